"""Publishes frames of one value each: ``publish.py STREAM HEIGHT WIDTH SLOTS [POINT]``, then a command a line.

``publish N``: N frames, each filled with its sequence modulo 256. ``loan``: take a loan, write into it, keep it.
``die``: come to POINT of a publication (tests/race/points.py) and be killed there, without an answer. The others are
answered by a line.
"""

from __future__ import annotations

import sys

from framebus import FrameFormat, Publisher
from tests.race.points import PUBLISHING
from tests.race.victims import choose_steps, write


def die(publisher: Publisher, point: str) -> None:
    if point in PUBLISHING:
        PUBLISHING[point]()
    write(publisher, point)


def main() -> None:
    stream, height, width, slots = sys.argv[1], *map(int, sys.argv[2:5])
    point = "".join(sys.argv[5:])
    choose_steps(point)
    with Publisher(stream, FrameFormat(height, width), slots=slots) as publisher:
        print("open", flush=True)
        kept = None
        for line in sys.stdin:
            command, *arguments = line.split()
            if command == "publish":
                for _ in range(int(arguments[0])):
                    with publisher.loan() as loan:
                        loan.pixels[:] = (publisher.statistics.sequence + 1) % 256
                print(publisher.statistics.sequence, flush=True)
            elif command == "die":
                die(publisher, point)
            elif command == "loan":
                kept = publisher.loan()
                kept.pixels[: height // 2] = 255
                print("loaned", flush=True)


main()
