"""How much one viewer's line can take: which pictures it gets, and how many may be on their way.

A line is judged by the time for which a picture occupies it: from its sending, or the acknowledgement of the one before
if that came later, to its own acknowledgement. Pictures get smaller at once when that is too long, and larger when it
would be short enough with the larger ones too; after a try that failed the next one waits twice as long. What is still
too much at the smallest size comes less often, since the next picture waits for the acknowledgement.
"""

from __future__ import annotations

from services.streamer.encode import SMALLEST

MAX_IN_FLIGHT = 2
"""Frames sent and not acknowledged: one on its way while the one before is drawn."""
ONE_IN_FLIGHT_S = 0.15
"""On a line on which a picture takes longer, a second one on its way would only make both older."""
TOO_LONG_S = 0.4
SHORT_S = 0.25
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 64.0
FAILED_WITHIN_S = 8.0
"""Larger pictures that have to be made smaller again so soon were a try that failed."""
BYTES = (1.0, 0.55, 0.21, 0.1)
"""Sizes of the levels' files, roughly, as shares of the first one's."""


class Pace:
    """The level and the frames in flight of one viewer. Times are of any one clock, in seconds.

    Args:
        first: Level to begin with. With the smallest pictures the first one comes soon on any line, and on a quick line
            its acknowledgement leads to the largest at once.
        largest: Level of the largest pictures to choose.
    """

    def __init__(self, first: int = SMALLEST, largest: int = 0) -> None:
        self._largest = largest
        self.level = first
        """Index into ``encode.LEVELS``."""
        self.in_flight = MAX_IN_FLIGHT
        """Frames that may be sent and not acknowledged."""
        self._acknowledged_s: float | None = None
        self._short_since_s: float | None = None
        self._raised_s = 0.0
        self._wait_s = FIRST_WAIT_S

    def acknowledge(self, level: int, sent_s: float, now_s: float, held_s: float | None = None) -> None:
        """Learn from a picture that has arrived.

        Args:
            level: The level of the picture, which need not be today's.
            sent_s: When it was sent.
            now_s: When its acknowledgement came.
            held_s: For how long the viewer had it before it acknowledged it: a hidden page is not a slow line. Without
                it the line is judged by the whole time, and two frames may be in flight on any line.
        """
        first = self._acknowledged_s is None
        started_s = sent_s if self._acknowledged_s is None else max(sent_s, self._acknowledged_s)
        took_s = max(now_s - (held_s or 0.0) - started_s, 0.0)
        self._acknowledged_s = now_s
        self.in_flight = 1 if held_s is not None and took_s > ONE_IN_FLIGHT_S else MAX_IN_FLIGHT
        if level != self.level:
            return
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
