"""A stage of a chain: publishes the negative of each frame of a stream until Ctrl-C or until the source is gone."""

import sys

import numpy as np

from framebus import FramebusError, Publisher, Subscriber


def main(source: str = "half", target: str = "negative") -> None:
    """Read from one ring and render into the next."""
    with Subscriber(source, name="negate", gone_after_s=1.0) as subscriber:
        with subscriber.receive() as first:
            frame_format = first.format
        with Publisher(target, frame_format) as publisher:
            print(f"publishing {target}", flush=True)
            for frame in subscriber:
                loan = publisher.loan()
                np.subtract(255, frame.pixels, out=loan.pixels)
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
