"""A publisher's resources of a stream: its lock, the ring, the notifications, and the move to a new ring."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any, Final

import numpy as np

from framebus.arguments import short_repr
from framebus.bus.formats import FrameFormat, Pixels
from framebus.errors import FormatMismatch, FramebusError, FrameTooLarge, InvalidArgument, StreamExists
from framebus.notify.local_socket import socket_path
from framebus.notify.notification import notification_message, topic
from framebus.notify.server import NotificationServer
from framebus.ring.claims import Claim, Writer
from framebus.ring.layout import Geometry
from framebus.ring.message import Message
from framebus.ring.publisher_ring import PublisherRing
from framebus.shm.locks import LOCK_TIMEOUT_S, PublisherLock
from framebus.shm.paths import companion_path

REPLACE_AFTER_S: Final = 1.0
"""How long all slots must be held before the ring is replaced."""
REPLACE_EVERY_S: Final = 10.0
"""Minimum time between two replacements."""


@dataclass(frozen=True, slots=True)
class PreparedFormat:
    """What is the same for all frames of a format, computed once."""

    frame_format: FrameFormat
    """The format."""
    shape: tuple[int, ...]
    """Shape of its arrays."""
    dtype: np.dtype[Any]
    """Type of their values."""
    description: bytes
    """The slot header's bytes that describe it."""
    message: Message
    """The notification of its frames."""
    arrays: list[Pixels] | None
    """An array on each slot, for the stream's own format; ``None`` for other formats."""

    def check(self, array: Any) -> np.ndarray[Any, Any]:
        """Return what a program wants to publish as an array.

        Raises:
            FormatMismatch: ``array`` is not an array of this shape and type, and numpy cannot convert it to one.
        """
        wanted = f"an array of shape {self.shape} and type {self.dtype}"
        try:
            pixels = np.asarray(array)
        except (TypeError, ValueError, RuntimeError) as error:
            raise FormatMismatch(
                f"{wanted} is required, and {type(array).__name__} cannot be converted to one: {error}"
            ) from None
        if pixels.shape != self.shape or pixels.dtype != self.dtype:
            raise FormatMismatch(
                f"{wanted} is required, not {pixels.shape} and {pixels.dtype}: convert it, or open the publisher with "
                "FrameFormat.of(array)"
            )
        return pixels


class ServedStream:
    """A publisher's resources of a stream. The publisher's thread uses it; :meth:`close` is thread-safe."""

    def __init__(self, stream: str, frame_format: FrameFormat, geometry: Geometry, *, keep_ring: bool) -> None:
        """Open the stream: adopt the ring that an earlier publisher left, or create one and allocate its memory.

        Args:
            stream: Name of the stream.
            frame_format: The stream's own format.
            geometry: Geometry of the ring.
            keep_ring: Whether to leave the ring in /dev/shm at close.

        Raises:
            FramebusError: As the constructor of :class:`~framebus.Publisher` documents.
        """
        self.full_since_s: float | None = None
        """When claims began to find all slots held, time.monotonic(); ``None`` while there is a free slot."""
        self.replaced: int = 0
        """Times the ring was replaced."""
        self.lost: int = 0
        """Loans of earlier rings that were given back because nothing referenced them any more."""
        self._stream = stream
        self._format = frame_format
        self._keep_ring = keep_ring
        self._replace_not_before_s = 0.0
        self._is_replacing = self._is_closed = False
        self._lock_path = companion_path(stream, "lock")
        # The lock comes first: it excludes other publishers while this one adopts or creates the ring.
        lock = PublisherLock.acquire(self._lock_path.name, LOCK_TIMEOUT_S)
        if lock is None:
            raise StreamExists(f"another publisher serves the stream {stream!r}")
        self._lock = lock
        try:
            self.ring: PublisherRing = PublisherRing(stream, geometry)
            """The ring file that is in use."""
            self._use_ring()
            self.server: NotificationServer = NotificationServer(socket_path(stream), topic(stream))
            """Notifies subscribers of frames."""
        except BaseException:
            ring: PublisherRing | None = self.__dict__.pop("ring", None)
            if ring is not None:
                # An adopted ring may have subscribers, so leave it to the next publisher.
                ring.close(unlink=not ring.adopted)
            with contextlib.suppress(OSError):  # a signal handler may have raised after the bind
                companion_path(stream, "sock").unlink(missing_ok=True)
            self._release_lock(unlink=True)
            raise

    def prepare(self, frame_format: FrameFormat) -> PreparedFormat:
        """Compute what is the same for all frames of a format.

        Raises:
            InvalidArgument: ``frame_format`` is not a format.
            FrameTooLarge: Its frames do not fit in a slot.
        """
        if not isinstance(frame_format, FrameFormat):
            raise InvalidArgument(f"frame_format is a FrameFormat or None, not {short_repr(frame_format)}")
        slot_bytes = self.ring.geometry.slot_bytes
        if frame_format.frame_bytes > slot_bytes:
            raise FrameTooLarge(
                f"a frame of {frame_format.frame_bytes} bytes does not fit in a slot of {slot_bytes}: open the "
                "publisher with the largest format"
            )
        description = frame_format.description
        message = notification_message(self._stream, self.ring.epoch, description)
        shape, dtype = frame_format.shape, np.dtype(frame_format.dtype)
        return PreparedFormat(frame_format, shape, dtype, description.pack(), message, None)

    def claim_in_new_ring(self, description: bytes) -> Claim | None:
        """If all slots have been held for ``REPLACE_AFTER_S``, move to a new ring, and claim a slot there.

        Seats prevent cooperating subscribers from holding every slot, so the processes that hold them do not keep to
        the protocol, or are stopped. The ring is not replaced while there are open loans: they belong to the old ring,
        where subscribers would never see their frames.
        """
        now_s = monotonic()
        if self.full_since_s is None:
            self.full_since_s = now_s
            return None
        old = self.writer
        if now_s - self.full_since_s < REPLACE_AFTER_S or now_s < self._replace_not_before_s or old.loans:
            return None
        self._replace_not_before_s = now_s + REPLACE_EVERY_S
        self._is_replacing = True
        try:
            self.ring.replace(self._stream)
        except FramebusError:
            return None  # no space, or another process interfered with the new file: retry after REPLACE_EVERY_S
        finally:
            self._is_replacing = False
            if self._is_closed:  # by another thread, which left this to the end of the replacement
                self.close()
        self._use_ring()
        # Keep the count of the old writer, which is not used any more.
        self.lost += old.lost
        self.replaced += 1
        return self.writer.claim(description)

    def close(self) -> None:
        """Close the stream, and remove its files from /dev/shm, except the ring if it is kept.

        While another thread calls the writer or replaces the ring, the stream closes at the end of that call.
        """
        self._is_closed = True
        if not self._is_replacing:
            self.ring.close(unlink=not self._keep_ring, then=self._close_rest)

    def _close_rest(self) -> None:
        # The lock is released last, so that no other publisher opens the stream before this one has left it.
        self.server.close()
        self._release_lock(unlink=not self._keep_ring)

    def _release_lock(self, *, unlink: bool) -> None:
        # Unlink it before releasing the lock. A process that locks the unlinked file notices that its path no longer
        # names the file, and retries.
        if unlink:
            with contextlib.suppress(OSError):
                self._lock_path.unlink(missing_ok=True)
        self._lock.close()

    def _use_ring(self) -> None:
        """Prepare the stream's own format, with an array on each slot of the ring."""
        prepared, ring = self.prepare(self._format), self.ring
        self.writer: Writer = ring.writer
        """Claims and publishes the ring's slots."""
        arrays = ring.slot_arrays(prepared.shape, self._format.typestr)
        # The writer sees views on these arrays as references to the claim.
        self.writer.watch(arrays)
        self.prepared: PreparedFormat = replace(prepared, arrays=arrays)
        """The stream's own format, on the ring that is in use."""
