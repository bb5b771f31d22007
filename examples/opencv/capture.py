"""Publishes what a camera or a file shows until Ctrl-C, or until the file ends."""

import sys
import time

import cv2

from framebus import FramebusError, FrameFormat, Publisher


def main(source: str = "0", stream: str = "camera") -> None:
    """Let OpenCV write each picture into a slot of the ring."""
    is_camera = source.isdecimal()
    capture = cv2.VideoCapture(int(source)) if is_camera else cv2.VideoCapture(source)
    ok, first = capture.read()
    if not ok:
        sys.exit(f"no picture comes from {source!r}: give a camera's number, a file or a URL")
    pace_s = 0.0 if is_camera else 1 / (capture.get(cv2.CAP_PROP_FPS) or 25)  # a camera sets the pace itself
    with Publisher(stream, FrameFormat.of(first)) as publisher:
        print(f"publishing {stream}", flush=True)
        publisher.publish(first)
        while capture.grab():  # waits for the camera, without holding a slot
            loan = publisher.loan()
            loan.captured_ns, loan.captured_wall_ns = time.monotonic_ns(), time.time_ns()
            _, picture = capture.retrieve(loan.pixels)
            if picture is not loan.pixels:  # OpenCV makes a new array if the size has changed
                sys.exit(f"{source} now sends pictures of {picture.shape}: start again to publish them")
            loan.publish()
            time.sleep(pace_s)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except KeyboardInterrupt:
        pass
    except FramebusError as error:
        sys.exit(str(error))
