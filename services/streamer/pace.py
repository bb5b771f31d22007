"""Adapt to a viewer's line: choose its level of pictures, and the number of frames in flight.

A line is judged by the time for which a picture occupies it: from its sending, or from the previous acknowledgement if
that is later, to its own acknowledgement. If this time is too long, pictures get smaller immediately. If it would be
short enough for larger pictures, they get larger; after a failed attempt, the wait before the next one doubles. If even
the smallest size is too much, pictures become less frequent, because the next one waits for the acknowledgement.
"""

from __future__ import annotations

from services.streamer.encode import SMALLEST

MAX_IN_FLIGHT = 2
"""Frames in flight on a fast line: one is sent while the previous one is drawn."""
ONE_IN_FLIGHT_S = 0.15
"""If a picture takes longer, a second one in flight would only make both older."""
TOO_LONG_S = 0.4
"""If a picture takes longer, pictures get smaller."""
SHORT_S = 0.25
"""Larger pictures must be expected to take at most this long. The gap to :data:`TOO_LONG_S` keeps the level steady."""
FIRST_WAIT_S = 1.0
"""Time for which larger pictures must be expected to be short before they are tried."""
LONGEST_WAIT_S = 64.0
"""Largest value of that time, after failed attempts."""
FAILED_WITHIN_S = 8.0
"""If larger pictures must shrink again within this time, the attempt failed."""
BYTES = (1.0, 0.55, 0.21, 0.1)
"""Approximate file sizes of the levels, relative to the first."""


class Pace:
    """Level and frames in flight of one viewer. Times may be of any clock, in seconds.

    Args:
        first: Initial level. The smallest picture arrives soon on any line, and on a fast line its acknowledgement
            switches to the largest level immediately.
        largest: Level of the largest pictures to choose.
    """

    def __init__(self, first: int = SMALLEST, largest: int = 0) -> None:
        self._largest = largest
        self.level = first
        """Index into ``encode.LEVELS``."""
        self.in_flight = MAX_IN_FLIGHT
        """Largest number of unacknowledged frames."""
        self._acknowledged_s: float | None = None
        self._short_since_s: float | None = None
        self._raised_s = 0.0
        self._wait_s = FIRST_WAIT_S

    def acknowledge(self, level: int, sent_s: float, now_s: float, held_s: float | None = None) -> None:
        """Adapt to an acknowledged picture.

        Args:
            level: Level of the picture, which may differ from the current one.
            sent_s: When it was sent.
            now_s: When its acknowledgement arrived.
            held_s: Time from the picture's arrival to its acknowledgement, to distinguish a hidden page from a slow
                line. If it is None, the line is judged by the total time, and two frames may be in flight on any line.
        """
        first = self._acknowledged_s is None
        started_s = sent_s if self._acknowledged_s is None else max(sent_s, self._acknowledged_s)
        took_s = max(now_s - (held_s or 0.0) - started_s, 0.0)
        self._acknowledged_s = now_s
        self.in_flight = 1 if held_s is not None and took_s > ONE_IN_FLIGHT_S else MAX_IN_FLIGHT
        if level != self.level:
            return  # a picture from before the last change says nothing about the current level
        # The first picture is the smallest. Go to the level that suits the line at once, not step by step.
        if first:
            self.level = next(
                other for other in range(self._largest, SMALLEST + 1) if self._is_short(took_s, level, other)
            )
        elif took_s > TOO_LONG_S:
            self._lower(took_s, now_s)
        elif level > self._largest and self._is_short(took_s, level, level - 1):
            self._raise(now_s)
        else:
            self._short_since_s = None

    @staticmethod
    def _is_short(took_s: float, level: int, other: int) -> bool:
        return other >= level or took_s * BYTES[other] / BYTES[level] <= SHORT_S

    def _lower(self, took_s: float, now_s: float) -> None:
        failed = now_s - self._raised_s < FAILED_WITHIN_S
        self._wait_s = min(self._wait_s * 2, LONGEST_WAIT_S) if failed else FIRST_WAIT_S
        self._short_since_s = None
        level = self.level
        # Skip the levels that would take too long as well.
        while self.level < SMALLEST:
            self.level += 1
            if took_s * BYTES[self.level] / BYTES[level] <= TOO_LONG_S:
                return

    def _raise(self, now_s: float) -> None:
        if self._short_since_s is None:
            self._short_since_s = now_s
        if now_s - self._short_since_s >= self._wait_s:
            self.level -= 1
            self._raised_s = now_s
            self._short_since_s = None
