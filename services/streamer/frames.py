"""Receive, shrink and encode frames in one thread, each frame once per level regardless of the number of viewers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import structlog
from numpy.typing import NDArray

from framebus import Frame, FramebusError, Subscriber
from services.common.follow import Attached, Waiting, follow
from services.common.status import Stage
from services.streamer.encode import LEVELS, PictureEncoder, UnsupportedFrame, level_of
from services.streamer.thread import StreamerThread

SLICE_S = 0.05
"""Longest wait without checking whether to stop, or whether a new viewer wants the current frame."""
RETRY_S = 0.2
"""Wait between two attempts to subscribe."""
GONE_AFTER_S = 1.0
"""Time without a publisher after which the stream counts as ended."""


class Demand(NamedTuple):
    """The pictures that the viewers currently want."""

    number: int
    """Changes after each pause and whenever a level is added."""
    levels: frozenset[int]
    """Indexes into ``encode.LEVELS``; empty while no viewer watches."""


class Picture(NamedTuple):
    """A frame as a JPEG file."""

    jpeg: bytes
    width_px: int
    height_px: int


@dataclass(frozen=True, slots=True)
class EncodedFrame:
    """A frame as it is sent to the viewers."""

    pictures: Mapping[int, Picture]
    """The picture at each requested level, at least one."""
    epoch: int
    sequence: int
    captured_ns: int
    """When the frame was captured, CLOCK_MONOTONIC; never later than its first arrival here."""
    captured_wall_ns: int
    """When the frame was captured, since 1970 UTC."""
    full_width_px: int
    """Width of the frame, to which the detections' boxes refer."""
    full_height_px: int

    @property
    def key(self) -> tuple[int, int]:
        """Epoch and sequence: the same for two encodings of one frame."""
        return self.epoch, self.sequence

    def level(self, wanted: int) -> int:
        """Return the level to send to a viewer: ``wanted`` if available, otherwise the next smaller or larger file."""
        smaller = [level for level in self.pictures if level >= wanted]
        return min(smaller) if smaller else max(self.pictures)


class FrameThread(StreamerThread):
    """Receives the stream across restarts of its publisher, until stopped.

    While no viewer wants pictures, it continues to receive, which costs little and keeps rates and health correct. It
    keeps the newest frame leased, so that the next viewer gets it immediately.

    Args:
        stream: Name of the stream.
        quality: JPEG quality, 0 to 100.
        publisher_uid: User id of the accepted publisher; ``None`` accepts any.
        demand: Returns which pictures are wanted.
        deliver: Called with each picture, in this thread.
        stop: Ends the thread.
    """

    def __init__(
        self,
        stream: str,
        quality: int,
        *,
        publisher_uid: int | None,
        demand: Callable[[], Demand],
        deliver: Callable[[EncodedFrame], None],
        stop: threading.Event,
    ) -> None:
        super().__init__("frames", stop)
        self.received = Stage()
        self.encoded = Stage()
        self.absent = "the streamer starts"
        """Why there are no frames, in one sentence; empty while attached to the stream."""
        self.unsupported = ""
        """Why the newest frame cannot be shown, in one sentence; empty if it can."""
        self.captured_ns: int | None = None
        """When the newest frame was captured, CLOCK_MONOTONIC; ``None`` before the first."""
        self._stream = stream
        self._publisher_uid = publisher_uid
        self._encoder = PictureEncoder(quality)
        self._small: NDArray[np.uint8] | None = None
        self._newest_key = (0, 0)
        self._newest_arrival_ns = 0
        self._demand = demand
        self._deliver = deliver
        self._log = structlog.get_logger()

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
            tolerate=(FramebusError,),  # whatever is wrong with the stream, the page stays up and shows the reason
        )
        try:
            with closing(events):
                for event in events:
                    match event:
                        case Attached():
                            self.absent = ""
                        case Waiting():
                            self.absent = event.reason
                            # A held frame would keep the memory of a ring without a publisher.
                            pending, newest = _replace(pending, None), None
                        case Frame():
                            self._count(event)
                            pending = _replace(pending, event)
                    # After every event, because a viewer may have joined without a new frame.
                    demand = self._demand()
                    if not demand.levels:
                        continue
                    if pending is not None:
                        frame, pending = pending, None
                        newest = self._encode(frame, demand.levels)
                        served = 0  # no demand has this number, so the new frame is delivered below
                    # Deliver also to viewers that joined, or changed their level, after the newest frame was encoded.
                    if newest is not None and demand.number != served:
                        newest = self._add_levels(newest, demand.levels)
                        self._deliver(newest)
                        served = demand.number
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
        now_ns = time.monotonic_ns()
        # A frame that is received again, after a new attachment, keeps the time of its first arrival.
        if (frame.epoch, frame.sequence) != self._newest_key:
            self._newest_key, self._newest_arrival_ns = (frame.epoch, frame.sequence), now_ns
        self.captured_ns = self._captured_ns(frame)
        self.received.record((now_ns - self.captured_ns) / 1e9, frame.skipped)

    def _captured_ns(self, frame: Frame) -> int:
        # Clamp to now: otherwise a publisher with a wrong clock could make its last frame live forever.
        return min(frame.captured_ns, self._newest_arrival_ns)

    def _encode(self, frame: Frame, levels: frozenset[int]) -> EncodedFrame | None:
        captured_ns = self._captured_ns(frame)
        try:
            with frame:  # release the slot before the encoding, which needs the small copy only
                height, width = frame.pixels.shape[:2]
                self._small = self._encoder.shrink(frame.pixels, frame.pixel_format)
            pictures = self._pictures(self._small, levels)
        except UnsupportedFrame as error:
            if str(error) != self.unsupported:
                self._log.error("frame refused", reason=str(error))
                self.unsupported = str(error)
            return None
        self.unsupported = ""
        self.encoded.record((time.monotonic_ns() - captured_ns) / 1e9)
        return EncodedFrame(
            pictures=pictures,
            epoch=frame.epoch,
            sequence=frame.sequence,
            captured_ns=captured_ns,
            captured_wall_ns=frame.captured_wall_ns,
            full_width_px=width,
            full_height_px=height,
        )

    def _add_levels(self, newest: EncodedFrame, levels: frozenset[int]) -> EncodedFrame:
        """Encode missing levels from the half-size picture, which stays valid until the next frame."""
        if self._small is None:
            return newest
        missing = {level_of(self._small, level) for level in levels} - newest.pictures.keys()
        if not missing:
            return newest
        return replace(newest, pictures={**newest.pictures, **self._pictures(self._small, missing)})

    def _pictures(self, small: NDArray[np.uint8], levels: Collection[int]) -> dict[int, Picture]:
        pictures = {}
        for level in sorted({level_of(small, level) for level in levels}):
            divisor = LEVELS[level].divisor
            jpeg = self._encoder.encode(small, level)
            pictures[level] = Picture(jpeg, small.shape[1] // divisor, small.shape[0] // divisor)
        return pictures


def _replace(held: Frame | None, by: Frame | None) -> Frame | None:
    """Release a held frame. Return the one to hold instead."""
    if held is not None:
        held.release()
    return by
