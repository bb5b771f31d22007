"""Publishes a moving bar at 25 frames a second until Ctrl-C."""

import itertools
import sys
import time

from framebus import FramebusError, FrameFormat, Publisher


def main(stream: str = "camera") -> None:
    """Render each frame into a slot of the ring, and publish it."""
    with Publisher(stream, FrameFormat(720, 1280)) as publisher:
        print(f"publishing {stream}", flush=True)
        for number in itertools.count():
            loan = publisher.loan()
            loan.pixels[:] = 0  # a slot still holds an older frame
            loan.pixels[:, number * 8 % 1280] = 255
            loan.metadata = {"number": number}
            loan.publish()
            time.sleep(1 / 25)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except KeyboardInterrupt:
        pass
    except FramebusError as error:
        sys.exit(str(error))
