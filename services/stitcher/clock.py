"""From a camera's presentation times to CLOCK_MONOTONIC.

A frame arrives some time after it was captured, never before. So the smallest ``arrival - pts`` of the last seconds is
the camera's clock offset plus its shortest delay, and jitter, which only ever adds, is filtered out. The minimum is
kept over the last one to two windows, so a drifting clock, or a delay that has changed for good, is followed.
"""

from __future__ import annotations

WINDOW_NS = 5_000_000_000
"""Length of a window. At 100 parts per million of drift it costs 1 ms of accuracy."""
JUMP_NS = 1_000_000_000
"""A presentation time that runs ahead of the wall by more than this from one frame to the next is another clock."""


class CaptureClock:
    """Estimates when a camera's frames were captured. Owned by one thread."""

    def __init__(self) -> None:
        self.resets = 0
        """How often the presentation times began anew."""
        self._newest_ns = 0
        self.reset()

    def reset(self) -> None:
        """Forget the offset: the next frame comes from another connection."""
        self._last: tuple[int, int] | None = None
        self._window_start_ns = 0
        self._minimum_ns = 0
        self._previous_minimum_ns: int | None = None

    def captured_ns(self, pts_ns: int, arrival_ns: int) -> int:
        """When the frame was captured, CLOCK_MONOTONIC; increases from frame to frame and is never after its arrival.

        Args:
            pts_ns: Presentation time of the frame, of any origin.
            arrival_ns: When its packet arrived, CLOCK_MONOTONIC.
        """
        if self._last is not None:
            pts_step_ns, arrival_step_ns = pts_ns - self._last[0], arrival_ns - self._last[1]
            if pts_step_ns <= 0 or pts_step_ns > arrival_step_ns + JUMP_NS:
                self.reset()
                self.resets += 1
        offset_ns = arrival_ns - pts_ns
        if self._last is None:
            self._window_start_ns, self._minimum_ns = arrival_ns, offset_ns
        elif arrival_ns - self._window_start_ns > WINDOW_NS:
            self._previous_minimum_ns = self._minimum_ns
            self._window_start_ns, self._minimum_ns = arrival_ns, offset_ns
        self._last = (pts_ns, arrival_ns)
        self._minimum_ns = min(self._minimum_ns, offset_ns)
        best_ns = self._minimum_ns
        if self._previous_minimum_ns is not None:
            best_ns = min(best_ns, self._previous_minimum_ns)
        self._newest_ns = min(max(pts_ns + best_ns, self._newest_ns + 1), max(arrival_ns, self._newest_ns + 1))
        return self._newest_ns
