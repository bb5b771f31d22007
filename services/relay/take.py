"""The relay's first stage: encode and accept each frame of the ring, or count it as missed."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import structlog

from framebus import Frame, LayoutMismatch, Subscriber
from services.common import geometry
from services.common.follow import follow
from services.common.frame_codec import CannotEncode, check_encodable, encode
from services.common.reference import FrameReference, frame_address
from services.common.status import Stage
from services.relay.config import RelayConfiguration, RelaySection
from services.relay.ledger_file import LedgerFull
from services.relay.spool import Spool, SpoolFull

SLICE_S: Final = 0.25
"""Longest wait without checking whether the relay must stop."""
GONE_AFTER_S: Final = 2.0
"""Time without a publisher after which the relay detaches from the ring."""
HISTORY: Final = 255
"""Take frames that are still in the ring first, so that a restarted relay misses fewer."""
HOLD_S: Final = 0.1
"""Longest time for which the relay holds a slot."""
PUT_S: Final = 0.5
"""Longest time for which a write to the storage may delay the next frame."""

log = structlog.get_logger()


class Taker:
    """Takes frames until stopped, in the thread that calls :meth:`run`.

    Args:
        configuration: The relay's configuration.
        spool: Accepts the frames.
        put: Writes an object directly from a slot's memory, within a time-out. Returns whether it succeeded.
        put_encoded: Writes an encoded frame, within a time-out. Returns whether it did; it may decline to try.
        accepted: Called after each accepted frame.
        stop: Ends the loop.
    """

    def __init__(
        self,
        configuration: RelayConfiguration,
        spool: Spool,
        *,
        put: Callable[[str, memoryview, float], bool],
        put_encoded: Callable[[str, memoryview, float], bool] = lambda _address, _data, _timeout_s: False,
        accepted: Callable[[], None],
        stop: threading.Event,
    ) -> None:
        self.stage = Stage()
        self.longest_hold_s = 0.0
        """Longest time for which a slot was held."""
        self._stream = configuration.stream.name
        self._publisher_uid = configuration.stream.publisher_uid
        self._section = configuration.relay
        self._spool = spool
        self._put = put
        self._put_encoded = put_encoded
        self._accepted = accepted
        self._stop = stop
        self._encoded_s = 0.0
        self._due_ns = 0
        self._refused: str | None = None
        self._buffer: npt.NDArray[Any] = np.empty(0, np.uint8)

    def run(self) -> None:
        """Take frames."""
        events = follow(
            self._stream, self._subscribe, self._stop, slice_s=SLICE_S, retry_s=SLICE_S, tolerate=(LayoutMismatch,)
        )
        with closing(events):
            for event in events:
                if isinstance(event, Frame):
                    self._take(event)

    def _subscribe(self) -> Subscriber:
        return Subscriber(
            self._stream,
            name="relay",
            mode="every",
            history=HISTORY,
            attach_timeout_s=0,
            gone_after_s=GONE_AFTER_S,
            publisher_uid=self._publisher_uid,
        )

    def _take(self, frame: Frame) -> None:
        leased_s = time.monotonic()
        try:
            # After a restart, the history of the ring contains frames that the ledger knows.
            if not self._spool.ledger.is_new(frame.epoch, frame.sequence):
                return
            if not self._is_due(frame.captured_ns):
                self._miss(frame, "thinned")
                return
            check_encodable(frame.shape, frame.dtype, frame.pixel_format, self._section.encoding)
            reference, data, put = self._encode(frame, leased_s)
            self._spool.accept(reference, data, put)
        except CannotEncode as error:
            self._refuse(str(error))
            self._miss(frame, "not encodable")
        except SpoolFull as error:
            self._refuse(f"{error}: the broker or the storage is slower than the frames, or unavailable")
            self._miss(frame, str(error))
        else:
            self._refused = None
            self.stage.record((time.monotonic_ns() - frame.captured_ns) * 1e-9, frame.skipped)
            self._accepted()
        finally:
            frame.release()  # without effect if the slot has been released above

    def _write(self, address: str, data: memoryview) -> bool:
        """Write an encoded frame to the storage. Return whether it was written in time."""
        begun_s = time.monotonic()
        if self._put_encoded(address, data, PUT_S):
            return True
        if time.monotonic() - begun_s >= PUT_S:
            # The write may still read the old buffer, because raw data is a view of it.
            self._buffer = np.empty(0, np.uint8)
        return False

    def _miss(self, frame: Frame, reason: str) -> None:
        try:
            self._spool.ledger.miss(frame.epoch, frame.sequence, reason)
        except LedgerFull:
            # The next accepted frame reveals the gap, and counts it as overwritten.
            self._refuse("disk full: missed frames are counted once there is room")

    def _is_due(self, captured_ns: int) -> bool:
        """Return whether a frame is due at ``target_fps``. If so, schedule the next one."""
        if not self._section.target_fps:
            return True
        period_ns = round(1e9 / self._section.target_fps)
        # If the frame is earlier by more than a period, the clock went back, such as after a restart.
        if self._due_ns - period_ns <= captured_ns < self._due_ns:
            return False
        # Schedule relative to the due time, not to the arrival, to keep the average rate.
        self._due_ns = min(max(self._due_ns + period_ns, captured_ns - period_ns), captured_ns + period_ns)
        return True

    def _encode(self, frame: Frame, leased_s: float) -> tuple[FrameReference, memoryview, Callable[[], bool]]:
        """Encode the frame, and release its slot within :data:`HOLD_S`.

        Returns:
            The frame's reference, its data, and a function that writes the data to the storage, or returns False.
        """
        section = self._section
        panorama = _geometry(frame)
        if section.encoding == "raw" and section.policy == "live":
            data = encode(frame.pixels, "raw")
            # Hash and write from the slot's memory; the write has what is left of HOLD_S.
            reference = refer(frame, self._stream, section, data, panorama)
            put = self._put(reference.address, data, HOLD_S - (time.monotonic() - leased_s))
            # If the write was too slow: copy, release the slot, and let the uploader write it.
            kept = memoryview(b"" if put else data.tobytes())
            self._release(frame, leased_s)
            return reference, kept, lambda: put
        # Copy first: a write to the disk, or a slow encoding, would hold the slot for too long.
        copied = section.encoding == "raw" or self._encoded_s > HOLD_S / 2
        pixels = self._copy(frame.pixels) if copied else frame.pixels
        if copied:
            self._release(frame, leased_s)
        begun_s = time.monotonic()
        data = encode(pixels, section.encoding, section.jpeg_quality)
        # Remember the slowest encoding, and forget it slowly, so that one fast frame does not decide.
        self._encoded_s = max(time.monotonic() - begun_s, self._encoded_s * 0.9)
        del pixels  # a view of the slot keeps its lease
        if not copied:
            self._release(frame, leased_s)
        reference = refer(frame, self._stream, section, data, panorama)
        return reference, data, lambda: self._write(reference.address, data)

    def _copy(self, pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if (self._buffer.shape, self._buffer.dtype) != (pixels.shape, pixels.dtype):
            self._buffer = np.empty_like(pixels)
        self._buffer[...] = pixels
        return self._buffer

    def _release(self, frame: Frame, leased_s: float) -> None:
        frame.release()
        self.longest_hold_s = max(self.longest_hold_s, time.monotonic() - leased_s)

    def _refuse(self, reason: str) -> None:
        """Log once for each reason why frames are not taken."""
        if reason != self._refused:
            self._refused = reason
            log.warning("frame not taken", reason=reason)


def refer(
    frame: Frame, stream: str, section: RelaySection, data: memoryview, panorama: dict[str, Any] | None = None
) -> FrameReference:
    """Return the reference of a frame of a stream, whose encoded data will be at its address."""
    sha256 = hashlib.sha256(data).hexdigest()
    live = section.policy == "live"
    return FrameReference(
        address=frame_address(
            stream, frame.epoch, frame.sequence, frame.captured_wall_ns, encoding=section.encoding, sha256=sha256
        ),
        size_bytes=len(data),
        sha256=sha256,
        stream=stream,
        epoch=frame.epoch,
        sequence=frame.sequence,
        captured_ns=frame.captured_ns,
        captured_wall_ns=frame.captured_wall_ns,
        format=section.encoding,
        shape=frame.shape,
        dtype=frame.dtype.str,
        pixel_format=frame.pixel_format,
        geometry=panorama,
        deadline_wall_ns=frame.captured_wall_ns + round(section.max_age_s * 1e9) if live else None,
        attempts=section.attempts,
    )


def _geometry(frame: Frame) -> dict[str, Any] | None:
    try:
        found = geometry.read(frame.metadata)
    except geometry.GeometryError:
        return None
    return None if found is None else found.to_metadata()
