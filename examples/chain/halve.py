"""A stage of a chain: publishes each frame of a stream at half its size until Ctrl-C or until the source is gone."""

import sys

from framebus import FramebusError, FrameFormat, Publisher, Subscriber


def main(source: str = "camera", target: str = "half") -> None:
    """Read from one ring and render into the next."""
    with Subscriber(source, name="halve", gone_after_s=1.0) as subscriber:
        with subscriber.receive() as first:
            half = FrameFormat.of(first.pixels[::2, ::2])
        with Publisher(target, half) as publisher:
            print(f"publishing {target}", flush=True)
            for frame in subscriber:
                loan = publisher.loan()
                loan.pixels[:] = frame.pixels[::2, ::2]
                loan.captured_ns, loan.captured_wall_ns = frame.captured_ns, frame.captured_wall_ns
                loan.metadata = frame.metadata
                loan.publish()


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except KeyboardInterrupt:
        pass
    except FramebusError as error:
        sys.exit(str(error))
