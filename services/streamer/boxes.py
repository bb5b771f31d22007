"""The detections' path: one thread receives those of all detectors and keeps the newest."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from services.common.detections import Detections, DetectionSubscriber
from services.common.status import Stage

SLICE_S = 0.1
LOOK_AGAIN_S = 1.0


class DetectionThread:
    """Hands over detections that are newer than those before, until stopped.

    Several detectors may share the frames and finish out of order: what is older than the newest handed over, or than
    ``max_age_s``, is dropped and counted as skipped.
    """

    def __init__(
        self, stream: str, max_age_s: float, *, deliver: Callable[[Detections], None], stop: threading.Event
    ) -> None:
        self.received = Stage()
        self.rejected = 0
        """Messages that were no detections of the stream."""
        self._stream = stream
        self._max_age_ns = int(max_age_s * 1e9)
        self._deliver = deliver
        self._stop = stop
        self._newest_captured_ns = 0
        self._late = 0
        self._thread = threading.Thread(target=self._run, name="detections")

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def join(self) -> None:
        """Wait until the thread has ended, which is at most one slice after the stop event is set."""
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether the thread runs; when it does not without a stop, it has failed."""
        return self._thread.is_alive()

    def _run(self) -> None:
        subscriber = DetectionSubscriber(self._stream)
        try:
            look_at_s = 0.0
            while not self._stop.is_set():
                if time.monotonic() >= look_at_s:
                    subscriber.look_for_detectors()
                    look_at_s = time.monotonic() + LOOK_AGAIN_S
                for detections in subscriber.receive(SLICE_S):
                    self._take(detections)
                self.rejected = subscriber.rejected
        finally:
            subscriber.close()

    def _take(self, detections: Detections) -> None:
        age_ns = time.monotonic_ns() - detections.captured_ns
        if detections.captured_ns <= self._newest_captured_ns or not 0 <= age_ns <= self._max_age_ns:
            self._late += 1
            return
        self._newest_captured_ns = detections.captured_ns
        self.received.record(age_ns / 1e9, self._late)
        self._late = 0
        self._deliver(detections)
