"""Order detections: of each detector, accept only those of a newer frame than all before."""

from __future__ import annotations

import threading
import time
from enum import Enum
from typing import Final

from services.common.detections import Detections

MAX_INSTANCES: Final = 256


class Place(Enum):
    """Position of detections relative to earlier ones of their detector."""

    NEWEST = "newest"
    REPEATED = "repeated"
    """Of the newest known frame."""
    LATE = "late"
    """Of an older frame."""
    FUTURE = "future"
    """Of a frame with a capture time in the future, which is therefore of another host's clock."""


class DetectionOrder:
    """Remembers the newest frame of each detector. Thread-safe."""

    def __init__(self) -> None:
        self._newest_captured_ns: dict[str, int] = {}
        self._lock = threading.Lock()

    def place(self, detections: Detections) -> Place:
        """Return the position of detections. Remember them if they are the newest."""
        instance, captured_ns = detections.instance, detections.captured_ns
        if captured_ns > time.monotonic_ns():
            return Place.FUTURE  # remembering it would make all true ones late
        with self._lock:
            newest_ns = self._newest_captured_ns.get(instance, 0)
            if captured_ns == newest_ns:
                return Place.REPEATED
            if captured_ns < newest_ns:
                return Place.LATE
            # The names are untrusted input, so bound their number; drop the one that was added first.
            if len(self._newest_captured_ns) >= MAX_INSTANCES and instance not in self._newest_captured_ns:
                del self._newest_captured_ns[next(iter(self._newest_captured_ns))]
            self._newest_captured_ns[instance] = captured_ns
        return Place.NEWEST
