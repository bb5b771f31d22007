"""The clocks of cameras that tell the time of capture, compared with each other.

RTCP sender reports place each picture on the camera's own wall clock. Cameras that are set by one time server agree to
milliseconds, so the difference of their delays can be seen: of two pictures with the same time, the one that arrives
later was delayed longer. This host's wall clock has no part in it, as it may be set otherwise; the camera with the
shortest delay is taken to have none. So cameras without such reports do not fall behind those that have them.
"""

from __future__ import annotations

import threading

MAX_DELAY_NS = 2_000_000_000
"""Cameras whose clocks seem to differ by more are not set by one time server."""
FORGOTTEN_NS = 10_000_000_000
"""A camera that has been silent for so long is no longer compared with."""


class SenderClocks:
    """Shared by the cameras' threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._offsets: dict[str, tuple[int, int]] = {}

    def offset_ns(self, camera: str, own_ns: int, now_ns: int) -> int:
        """Return what has to be added to the camera's wall time to get CLOCK_MONOTONIC.

        Args:
            camera: The camera's name.
            own_ns: Its least ``arrival - wall time``.
            now_ns: CLOCK_MONOTONIC.

        Returns:
            The least one of all cameras whose clocks agree with this one's, itself included.
        """
        with self._lock:
            self._offsets[camera] = (own_ns, now_ns)
            others = [
                offset_ns
                for name, (offset_ns, seen_ns) in self._offsets.items()
                if name != camera and now_ns - seen_ns <= FORGOTTEN_NS and abs(offset_ns - own_ns) <= MAX_DELAY_NS
            ]
        return min([own_ns, *others])
