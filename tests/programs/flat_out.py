"""Publishes as fast as it can for some seconds: ``flat_out.py STREAM HEIGHT WIDTH SLOTS SECONDS``.

Every byte of a frame is its sequence modulo 251, so a frame of two generations shows itself.
"""

from __future__ import annotations

import sys
import time

from framebus import FrameFormat, NoFreeSlot, Publisher


def main() -> None:
    stream, height, width, slots, seconds = sys.argv[1], *map(int, sys.argv[2:])
    with Publisher(stream, FrameFormat(height, width), slots=slots) as publisher:
        print("open", flush=True)
        sys.stdin.readline()
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            try:
                with publisher.loan() as loan:
                    loan.pixels[:] = (publisher.statistics.sequence + 1) % 251
            except NoFreeSlot:
                continue
        print(publisher.statistics.published, publisher.statistics.dropped, flush=True)
        sys.stdin.readline()


main()
