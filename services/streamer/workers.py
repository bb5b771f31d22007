"""The detectors of a queue, as seen by their results: how many, how late, and when the last one arrived.

These detectors have their own /dev/shm, often on other hosts, so the streamer cannot read their status. Their results
name them, so no further channel is needed. A detector that is silent has died, was stopped, or has no frames: the
results do not tell these apart.
"""

from __future__ import annotations

import re
import threading
import time
from typing import Any, Final

from services.common.config import STREAM_NAME
from services.common.status import Stage
from services.streamer.presence import Absent

MAX_WORKERS: Final = 256
"""Largest number of detectors. Their names are untrusted input, so their number is bounded."""
FORGET_S: Final = 600.0
"""Silence after which a detector is forgotten: it was probably removed, and others have other names."""
SILENT_S: Final = 10.0
"""Shortest silence after which a detector is absent."""
SILENT_INTERVALS: Final = 10
"""Silence after which a detector is absent, in usual intervals between its results."""
_SMOOTHING: Final = 0.1
_NAME: Final = re.compile(STREAM_NAME)


class _Worker:
    def __init__(self, now_s: float) -> None:
        self.results = Stage()
        self.model = ""
        self.last_s = now_s
        self.interval_s = 0.0

    def record(self, now_s: float, model: str, latency_s: float) -> None:
        self.interval_s += _SMOOTHING * (now_s - self.last_s - self.interval_s)
        self.last_s, self.model = now_s, model
        self.results.record(latency_s)

    def is_silent(self, now_s: float) -> bool:
        return now_s - self.last_s > max(SILENT_S, SILENT_INTERVALS * self.interval_s)


class Workers:
    """The detectors whose results arrived in the last :data:`FORGET_S` seconds. Thread-safe."""

    def __init__(self) -> None:
        self._workers: dict[tuple[str, str], _Worker] = {}
        self._lock = threading.Lock()

    def record(self, group: str, name: str, model: str, latency_s: float) -> None:
        """Count a result.

        Args:
            group: Name of the detector's group.
            name: Name of the detector. A result is not counted if this is not a valid name.
            model: Name and version of its model.
            latency_s: Seconds from the frame's capture to the arrival of the result.
        """
        if not _NAME.fullmatch(name):
            return
        now_s = time.monotonic()
        with self._lock:
            self._forget(now_s)
            key = group, name
            if (worker := self._workers.pop(key, None)) is None:
                if len(self._workers) >= MAX_WORKERS:
                    del self._workers[next(iter(self._workers))]  # the one that is silent for longest
                worker = _Worker(now_s)
            self._workers[key] = worker  # at the end, so that the order is that of the last results
            worker.record(now_s, model, latency_s)

    def summaries(self) -> list[dict[str, Any]]:
        """Return a description of each detector, ready for JSON."""
        now_s = time.monotonic()
        with self._lock:
            self._forget(now_s)
            return [
                {
                    "group": group,
                    "worker": name,
                    "model": worker.model,
                    "silent": worker.is_silent(now_s),
                    **worker.results.summary(),  # a result is of one frame
                }
                for (group, name), worker in sorted(self._workers.items(), key=lambda item: item[0])
            ]

    def absent(self) -> list[Absent]:
        """Return the detectors that are silent."""
        now_s = time.monotonic()
        with self._lock:
            self._forget(now_s)
            return [
                Absent("worker", f"{group}/{name}", now_s - worker.last_s, "silent")
                for (group, name), worker in self._workers.items()
                if worker.is_silent(now_s)
            ]

    def _forget(self, now_s: float) -> None:
        for key in [key for key, worker in self._workers.items() if now_s - worker.last_s > FORGET_S]:
            del self._workers[key]
