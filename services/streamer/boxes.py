"""Receive the detections of all local detectors in one thread, each in the order of its frames."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import structlog
import zmq

from services.common.detections import Detections, DetectionSubscriber
from services.common.status import Stage
from services.streamer.order import DetectionOrder, Place
from services.streamer.thread import StreamerThread

SLICE_S = 0.1
"""Longest wait without checking whether to stop."""
LOOK_AGAIN_S = 1.0
"""Interval between two searches for detectors, and wait after a failure."""


class DetectionThread(StreamerThread):
    """Delivers the detections of each detector in the order of its frames, until stopped.

    Detections of an older or a future frame are dropped and counted as skipped. All others are delivered, however long
    the detector took, because they show that it is alive.

    Args:
        stream: Name of the stream.
        order: Decides which detections are newer; shared by all threads that deliver detections.
        deliver: Called with the detections, in this thread.
        stop: Ends the thread.
    """

    def __init__(
        self, stream: str, order: DetectionOrder, *, deliver: Callable[[Detections], None], stop: threading.Event
    ) -> None:
        super().__init__("detections", stop)
        self.received = Stage()
        self.rejected = 0
        """Messages that were malformed or of another stream."""
        self.dropped = 0
        """Invalid boxes that were dropped, by the detectors or here."""
        self.failures = 0
        """Failures to search for detectors, or to receive, for lack of file descriptors; they are retried."""
        self._stream = stream
        self._order = order
        self._deliver = deliver
        self._late = 0

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._receive()
            except (OSError, zmq.ZMQError) as error:
                # Without file descriptors the page loses its boxes for a while; the pictures must go on.
                self.failures += 1
                if self.failures == 1:
                    structlog.get_logger().warning("detections cannot be received", reason=str(error))
                self._stop.wait(LOOK_AGAIN_S)

    def _receive(self) -> None:
        subscriber = DetectionSubscriber(self._stream)
        try:
            look_at_s = 0.0
            while not self._stop.is_set():
                if time.monotonic() >= look_at_s:
                    self._look_for_detectors(subscriber)
                    look_at_s = time.monotonic() + LOOK_AGAIN_S
                for detections in subscriber.receive(SLICE_S):
                    self._take(detections)
                self.rejected, self.dropped = subscriber.rejected, subscriber.dropped
        finally:
            subscriber.close()

    def _look_for_detectors(self, subscriber: DetectionSubscriber) -> None:
        """Search for detectors. If no file descriptor is left for this, keep the connected ones."""
        try:
            subscriber.look_for_detectors()
        except (OSError, zmq.ZMQError):
            self.failures += 1

    def _take(self, detections: Detections) -> None:
        # A detector that restarts may send a frame that its predecessor has already processed.
        if self._order.place(detections) is not Place.NEWEST:
            self._late += 1
            return
        self.received.record((time.monotonic_ns() - detections.captured_ns) / 1e9, self._late)
        self._late = 0
        self._deliver(detections)
