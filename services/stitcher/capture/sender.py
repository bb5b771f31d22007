"""Compare the wall clocks of cameras that send RTCP sender reports.

RTCP sender reports place each picture on the camera's own wall clock. Cameras that use the same time server agree to
milliseconds, so the difference of their delays can be measured: of two pictures with the same time, the one that
arrives later was delayed longer. This host's wall clock is not used, because it may be set differently. The camera with
the shortest delay is assumed to have none, so that cameras without reports do not lag behind those with them.
"""

from __future__ import annotations

import threading

MAX_DELAY_NS = 2_000_000_000
"""Cameras whose clocks differ by more do not use the same time server."""
FORGOTTEN_NS = 10_000_000_000
"""Time after which a silent camera is excluded from the comparison."""


class SenderClocks:
    """The sender clocks of all cameras. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._offsets: dict[str, tuple[int, int]] = {}

    def offset_ns(self, camera: str, own_ns: int, now_ns: int) -> int:
        """Return the offset from the camera's wall time to CLOCK_MONOTONIC.

        Args:
            camera: The camera's name.
            own_ns: Its least ``arrival - wall time``.
            now_ns: CLOCK_MONOTONIC.

        Returns:
            The least offset among the cameras whose clocks agree with this one's, including itself.
        """
        # A camera that is delayed more has a larger offset, so the least one is that of the shortest delay.
        with self._lock:
            self._offsets[camera] = (own_ns, now_ns)
            others = [
                offset_ns
                for name, (offset_ns, seen_ns) in self._offsets.items()
                if name != camera and now_ns - seen_ns <= FORGOTTEN_NS and abs(offset_ns - own_ns) <= MAX_DELAY_NS
            ]
        return min([own_ns, *others])
