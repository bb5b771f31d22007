"""Publishes at full speed for some seconds: ``flat_out.py STREAM HEIGHT WIDTH SLOTS SECONDS LOANS``.

It holds as many loans as it may and publishes any of them. Every byte of a frame is its sequence modulo 251, so a frame
of two generations shows itself.
"""

from __future__ import annotations

import random
import sys
import time

from framebus import FrameFormat, Loan, NoFreeSlot, Publisher


def main() -> None:
    stream, height, width, slots, seconds, max_loans = sys.argv[1], *map(int, sys.argv[2:])
    loans: list[Loan] = []
    with Publisher(stream, FrameFormat(height, width), slots=slots, max_loans=max_loans) as publisher:
        print("open", flush=True)
        sys.stdin.readline()
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            try:
                while len(loans) < max_loans:
                    loans.append(publisher.loan())
            except NoFreeSlot:
                continue
            loan = loans.pop(random.randrange(len(loans)))
            loan.pixels[:] = (publisher.statistics.sequence + 1) % 251
            loan.publish()
        print(publisher.statistics.published, publisher.statistics.dropped, flush=True)
        sys.stdin.readline()


main()
