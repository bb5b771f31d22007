"""Knowing when the next frame is due, to be there before it comes."""

from __future__ import annotations

from collections import deque
from typing import Final

WAKE_UP_NS: Final = 300_000
"""A window begins and ends so much further from the expected times: waking up and a rehearsal take a part of that."""
PERIODS: Final = 16
MIN_PERIODS: Final = 4
MAX_SPREAD: Final = 0.25
"""Part of the period beyond which looking costs more than it is worth: periods that are off by 10 % spread over 0.2."""


class Pace:
    """Foretells when the next frame is due, from the times between those before it.

    Only a steady pace can be foretold: where the periods differ too much, there is no window. One pause, or one frame
    that comes late, is not taken for the pace.
    """

    def __init__(self) -> None:
        self._sequence = 0
        self._published_ns = 0
        self._periods_ns: deque[float] = deque(maxlen=PERIODS)

    def learn(self, sequence: int, published_ns: int) -> None:
        """Take in the sequence of a frame and its time, CLOCK_MONOTONIC."""
        frames = sequence - self._sequence
        if self._sequence and frames > 0:
            self._periods_ns.append((published_ns - self._published_ns) / frames)
        self._sequence, self._published_ns = sequence, published_ns

    def window(self) -> tuple[int, int]:
        """From when to when the next frame is likely, CLOCK_MONOTONIC in ns; (0, 0) if nobody can say."""
        periods_ns = sorted(self._periods_ns)
        if len(periods_ns) < MIN_PERIODS:
            return 0, 0
        outliers = len(periods_ns) // 8
        least_ns, most_ns = periods_ns[outliers], periods_ns[-1 - outliers]
        if least_ns <= 0 or most_ns - least_ns > periods_ns[len(periods_ns) // 2] * MAX_SPREAD:
            return 0, 0
        return int(self._published_ns + least_ns) - WAKE_UP_NS, int(self._published_ns + most_ns) + WAKE_UP_NS
