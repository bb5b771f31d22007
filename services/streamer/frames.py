"""The frame path: one thread receives, shrinks and encodes, each frame once however many watch."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

import structlog

from framebus import Frame, FramebusError, Subscriber
from services.common.follow import Attached, Waiting, follow
from services.common.status import Stage
from services.streamer.encode import HalfSizeEncoder, UnsupportedFrame

SLICE_S = 0.05
"""Longest wait without a look whether to stop, or whether somebody has come who wants the frame at hand."""
RETRY_S = 0.2
GONE_AFTER_S = 1.0


@dataclass(frozen=True, slots=True)
class EncodedFrame:
    """A frame as the viewers get it."""

    jpeg: bytes
    """The picture, at half the frame's width and height."""
    epoch: int
    sequence: int
    captured_ns: int
    """When the frame was captured, CLOCK_MONOTONIC."""
    captured_wall_ns: int
    """When the frame was captured, since 1970 UTC."""
    width_px: int
    """Width of the picture."""
    height_px: int
    full_width_px: int
    """Width of the frame, to which the detections' boxes refer."""
    full_height_px: int


class FrameThread:
    """Follows the stream through its publisher's deaths and returns, until stopped.

    Without anybody who wants pictures it goes on receiving, which costs little and keeps rates and health true; the
    newest frame stays leased, so that who comes next gets it at once.

    Args:
        stream: Name of the stream.
        quality: JPEG's quality, 0 to 100.
        publisher_uid: The user whose frames are taken; ``None`` for anybody's.
        demand: 0 while nobody wants pictures, else a number that is another one after each pause.
        deliver: Called with each picture, in this thread.
        stop: Ends the thread.
    """

    def __init__(
        self,
        stream: str,
        quality: int,
        *,
        publisher_uid: int | None,
        demand: Callable[[], int],
        deliver: Callable[[EncodedFrame], None],
        stop: threading.Event,
    ) -> None:
        self.received = Stage()
        self.encoded = Stage()
        self.absent = "the streamer starts"
        """Why there are no frames at all, in one sentence; empty while attached to the stream."""
        self.unsupported = ""
        """Why the newest frame cannot be shown, in one sentence; empty when it can."""
        self.received_s: float | None = None
        """When the newest frame was received, ``time.monotonic``."""
        self._stream = stream
        self._publisher_uid = publisher_uid
        self._encoder = HalfSizeEncoder(quality)
        self._demand = demand
        self._deliver = deliver
        self._stop = stop
        self._log = structlog.get_logger()
        self._thread = threading.Thread(target=self._run, name="frames")

    def start(self) -> None:
        """Begin to follow the stream."""
        self._thread.start()

    def join(self) -> None:
        """Wait until the thread has ended, which is at most two slices after the stop event is set."""
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether the thread runs; when it does not without a stop, it has failed."""
        return self._thread.is_alive()

    def _run(self) -> None:
        pending: Frame | None = None
        newest: EncodedFrame | None = None
        served = 0
        events = follow(
            self._stream,
            self._subscribe,
            self._stop,
            slice_s=SLICE_S,
            retry_s=RETRY_S,
            tolerate=(FramebusError,),
        )
        try:
            with closing(events):
                for event in events:
                    match event:
                        case Attached():
                            self.absent = ""
                        case Waiting():
                            self.absent = event.reason
                            pending, newest = _replace(pending, None), None
                        case Frame():
                            self._count(event)
                            pending = _replace(pending, event)
                    demand = self._demand()
                    if demand and pending is not None:
                        frame, pending = pending, None
                        newest = self._encode(frame)
                        served = 0
                    # Also to those who have come back after the newest frame was encoded.
                    if newest is not None and demand not in (0, served):
                        self._deliver(newest)
                        served = demand
        finally:
            _replace(pending, None)

    def _subscribe(self) -> Subscriber:
        return Subscriber(
            self._stream,
            name="streamer",
            wake="futex",
            attach_timeout_s=0,
            gone_after_s=GONE_AFTER_S,
            publisher_uid=self._publisher_uid,
        )

    def _count(self, frame: Frame) -> None:
        self.received_s = time.monotonic()
        self.received.record((time.monotonic_ns() - frame.captured_ns) / 1e9, frame.skipped)

    def _encode(self, frame: Frame) -> EncodedFrame | None:
        try:
            with frame:
                height, width = frame.pixels.shape[:2]
                small = self._encoder.shrink(frame.pixels, frame.pixel_format)
            jpeg = self._encoder.encode(small)
        except UnsupportedFrame as error:
            if str(error) != self.unsupported:
                self._log.error("frame refused", reason=str(error))
                self.unsupported = str(error)
            return None
        self.unsupported = ""
        self.encoded.record((time.monotonic_ns() - frame.captured_ns) / 1e9)
        return EncodedFrame(
            jpeg=jpeg,
            epoch=frame.epoch,
            sequence=frame.sequence,
            captured_ns=frame.captured_ns,
            captured_wall_ns=frame.captured_wall_ns,
            width_px=small.shape[1],
            height_px=small.shape[0],
            full_width_px=width,
            full_height_px=height,
        )


def _replace(held: Frame | None, by: Frame | None) -> Frame | None:
    if held is not None:
        held.release()
    return by
