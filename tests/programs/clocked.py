"""Publishes 25 frames a second that show when they were made, until it is killed: ``clocked.py STREAM``.

The number in the pixels counts hundredths of a second of the wall clock, so that a page can compare it with its own.
"""

from __future__ import annotations

import sys
import time

from framebus import FrameFormat, NoFreeSlot, Publisher
from tests.services.streamer.support import BITS, HEIGHT, WIDTH, draw_number

TICKS_PER_S = 100


def main() -> None:
    with Publisher(sys.argv[1], FrameFormat(HEIGHT, WIDTH), slots=16) as publisher:
        while True:
            try:
                with publisher.loan() as loan:
                    draw_number(loan.pixels, int(time.time() * TICKS_PER_S) % (1 << BITS))
            except NoFreeSlot:
                pass
            time.sleep(0.04)


if __name__ == "__main__":
    main()
