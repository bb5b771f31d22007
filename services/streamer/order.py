"""The order in which detections are shown: of each detector only what is of a newer frame than all before."""

from __future__ import annotations

import threading
import time
from enum import Enum
from typing import Final

from services.common.detections import Detections

MAX_INSTANCES: Final = 256


class Place(Enum):
    """Where detections stand among those of their detector."""

    NEWEST = "newest"
    REPEATED = "repeated"
    """Of the frame that was the newest already."""
    LATE = "late"
    """Of an older frame."""
    FUTURE = "future"
    """Of a frame that is not captured yet: by another clock than this host's."""


class DetectionOrder:
    """Remembers the newest frame of each detector. Any thread may ask."""

    def __init__(self) -> None:
        self._newest_captured_ns: dict[str, int] = {}
        self._lock = threading.Lock()

    def place(self, detections: Detections) -> Place:
        """Tell where detections stand; those that are the newest are remembered."""
        instance, captured_ns = detections.instance, detections.captured_ns
        if captured_ns > time.monotonic_ns():
            return Place.FUTURE
        with self._lock:
            newest_ns = self._newest_captured_ns.get(instance, 0)
            if captured_ns == newest_ns:
                return Place.REPEATED
            if captured_ns < newest_ns:
                return Place.LATE
            # The names come from the messages, so their number is bounded; the one that was heard first makes room.
            if len(self._newest_captured_ns) >= MAX_INSTANCES and instance not in self._newest_captured_ns:
                del self._newest_captured_ns[next(iter(self._newest_captured_ns))]
            self._newest_captured_ns[instance] = captured_ns
        return Place.NEWEST
