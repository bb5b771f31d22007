"""Publishers that die one after another amid the pixels: ``lives.py STREAM HEIGHT WIDTH SLOTS SECONDS``.

Every byte of a frame is its sequence modulo 251, as in ``flat_out.py``. Prints how many lives there were.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time

from framebus import FrameFormat, Publisher


def live(stream: str, frame_format: FrameFormat, slots: int, *, first: bool = False, last: bool = False) -> None:
    with Publisher(stream, frame_format, slots=slots) as publisher:
        if first:
            print("open", flush=True)
            sys.stdin.readline()
        for _ in range(random.randint(1, 2 * slots)):
            with publisher.loan() as loan:
                loan.pixels[:] = (publisher.statistics.sequence + 1) % 251
        if not last:
            loan = publisher.loan()
            loan.pixels[: frame_format.height // 2] = (publisher.statistics.sequence + 1) % 251
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    stream, height, width, slots, seconds = sys.argv[1], *map(int, sys.argv[2:])
    frame_format = FrameFormat(height, width)
    end_s, lives = 0.0, 0
    while lives == 0 or time.monotonic() < end_s:
        child = os.fork()
        if child == 0:
            live(stream, frame_format, slots, first=lives == 0)
        os.waitpid(child, 0)
        if lives == 0:
            end_s = time.monotonic() + seconds
        lives += 1
    live(stream, frame_format, slots, last=True)
    print(lives, flush=True)


main()
