"""Prints where the bar is in each frame until Ctrl-C, or until the publisher has been gone for two seconds."""

import sys

from framebus import FramebusError, Subscriber


def main(stream: str = "camera") -> None:
    """Read each frame where the publisher wrote it."""
    with Subscriber(stream, name="bar", gone_after_s=2.0) as subscriber:  # waits up to 10 s for the publisher
        for frame in subscriber:
            number = frame.metadata["number"]
            bar = frame.pixels[0, :, 0].argmax()  # a read-only view of the shared memory
            print(f"frame {frame.sequence}: number {number}, bar at {bar}, skipped {frame.skipped}", flush=True)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except KeyboardInterrupt:
        pass
    except FramebusError as error:
        sys.exit(str(error))
