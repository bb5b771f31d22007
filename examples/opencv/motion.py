"""Prints how much of the picture has changed, frame by frame, until Ctrl-C or until the publisher is gone."""

import sys

import cv2

from framebus import FramebusError, Subscriber


def main(stream: str = "camera") -> None:
    """Compare each frame with the one before."""
    with Subscriber(stream, name="motion", gone_after_s=2.0) as subscriber:
        with subscriber.receive() as frame:
            before = cv2.cvtColor(frame.pixels, cv2.COLOR_BGR2GRAY)  # a new array, so the slot is free again
        for frame in subscriber:
            now = cv2.cvtColor(frame.pixels, cv2.COLOR_BGR2GRAY)
            changed = cv2.countNonZero(cv2.inRange(cv2.absdiff(before, now), 25, 255)) / now.size
            print(f"frame {frame.sequence}: {changed:.1%} changed", flush=True)
            before = now


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except KeyboardInterrupt:
        pass
    except FramebusError as error:
        sys.exit(str(error))
