"""Predicts when the next frame will arrive, to let a subscriber wake up before it."""

from __future__ import annotations

from collections import deque
from typing import Final

WAKE_UP_NS: Final = 300_000
"""Margin before and after the predicted times, for waking up and warming the caches."""
PERIODS: Final = 16
MIN_PERIODS: Final = 4
MAX_SPREAD: Final = 0.25
"""Largest spread of the intervals, as a share of the median, at which spinning is worth its CPU time: 10 % either way
are 0.2."""


class ArrivalPredictor:
    """Predicts the arrival of the next frame from recent intervals.

    It predicts only a steady rate: if the intervals differ too much, there is no window. Outliers, such as a single
    pause or late frame, are ignored.
    """

    def __init__(self) -> None:
        self._sequence = 0
        self._published_ns = 0
        self._periods_ns: deque[float] = deque(maxlen=PERIODS)

    def observe(self, sequence: int, published_ns: int) -> None:
        """Record the sequence of a frame and when it was published, CLOCK_MONOTONIC."""
        frames = sequence - self._sequence
        if self._sequence and frames > 0:  # a restarted publisher may number its frames from 1 again
            # Divide by the sequences in between, because a subscriber may have skipped frames.
            self._periods_ns.append((published_ns - self._published_ns) / frames)
        self._sequence, self._published_ns = sequence, published_ns

    def window(self) -> tuple[int, int]:
        """Return when the next frame is expected, from and to, CLOCK_MONOTONIC in ns; (0, 0) if it is unpredictable."""
        periods_ns = sorted(self._periods_ns)
        if len(periods_ns) < MIN_PERIODS:
            return 0, 0
        # Drop an eighth of the intervals at either end, which excludes a single pause or late frame.
        outliers = len(periods_ns) // 8
        least_ns, most_ns = periods_ns[outliers], periods_ns[-1 - outliers]
        # A window for such a spread would be too wide to spin in.
        if least_ns <= 0 or most_ns - least_ns > periods_ns[len(periods_ns) // 2] * MAX_SPREAD:
            return 0, 0
        # The window is for the frame after the last one. If the stream pauses, it passes, and the subscriber sleeps
        # again.
        return int(self._published_ns + least_ns) - WAKE_UP_NS, int(self._published_ns + most_ns) + WAKE_UP_NS
