"""Tell from a stream's rate whether a newer frame has been published."""

from __future__ import annotations

import math
import time

from framebus import Frame


class FrameInterval:
    """Measures the time between two frames of a stream."""

    def __init__(self) -> None:
        self._interval_ns = math.inf
        self._last: tuple[int, int, int] | None = None

    def observe(self, frame: Frame) -> None:
        """Record the sequence and the time of a frame."""
        now = frame.epoch, frame.sequence, frame.published_ns
        if self._last is not None and self._last[0] == now[0] and self._last[1] < now[1]:
            self._interval_ns = (now[2] - self._last[2]) / (now[1] - self._last[1])
        self._last = now

    def has_passed_since(self, frame: Frame) -> bool:
        """Return whether the next frame is due; ``False`` while the rate is unknown."""
        return time.monotonic_ns() - frame.published_ns > self._interval_ns
