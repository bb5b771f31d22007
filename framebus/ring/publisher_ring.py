"""The publisher's side of a ring file: create, adopt, replace and close it."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Callable
from threading import RLock
from typing import Any

import numpy as np
import numpy.typing as npt

from framebus.errors import FramebusError, LayoutMismatch, NotEnoughSharedMemory, StreamNotFound
from framebus.ring import backend
from framebus.ring.claims import Writer
from framebus.ring.file import LIVE_WRITE, STATE_WORD, read_header, ring_name
from framebus.ring.frame_header import METADATA_BYTES
from framebus.ring.layout import (
    CLOSED,
    LOCK_LIVE,
    MAGIC,
    MAX_SEQUENCE,
    METADATA,
    OPEN,
    PAGE_BYTES,
    SUPERSEDED,
    VERSION,
    VERSIONED,
    Geometry,
    RingHeader,
)
from framebus.ring.words import SEQ_WORDS, TAIL_WORD, raise_event
from framebus.shm import locks
from framebus.shm import segment as shm
from framebus.shm.identity import denied
from framebus.shm.mapping import Window
from framebus.shm.paths import SHM_DIRECTORY, companion_path, companion_paths, random_suffix
from framebus.shm.segment import RING_MODE, Segment


class PublisherRing:
    """The publisher's side of one ring file. The caller must hold the publisher's lock of the stream."""

    def __init__(self, stream: str, geometry: Geometry) -> None:
        """Adopt the ring that an earlier publisher left, or replace it with a new one.

        Raises:
            PermissionDenied: A file of the ring's name belongs to another user.
            NotEnoughSharedMemory: /dev/shm has no room for the ring.
        """
        backend.check()
        self.geometry = geometry
        self.epoch: int = secrets.randbits(53) or 1  # exact in JSON and JavaScript too
        self.adopted: bool = False
        self._ending = RLock()
        self._has_ended = False
        for leftover in companion_paths(stream, "ring.*"):
            with contextlib.suppress(PermissionError):  # a file of another user, which prevents nothing
                leftover.unlink(missing_ok=True)
        old = self._open_old(stream)
        first_sequence = 1
        if old is not None:
            header, segment = old
            # Continue the sequences of the old ring, so that subscribers can count the frames that they missed.
            first_sequence = 1 + _highest_sequence(segment, header)
            if header is not None and header.geometry == geometry and segment.try_lock(LIVE_WRITE):
                self.adopted = True
                self._use(segment, first_sequence)
                segment.buffer[: len(header.pack())] = RingHeader(
                    geometry, header.first_sequence, self.epoch, header.created_wall_ns
                ).pack()
                segment.words32[STATE_WORD] = OPEN
                raise_event(segment)  # the earlier publisher may have died before P8
                return
        try:
            self._create(stream, first_sequence)
        except NotEnoughSharedMemory:
            if old is None:
                raise
            # The old ring may occupy the space. Its memory is released when the last subscriber unmaps it.
            _supersede(segment)
            segment.unlink()
            del old, header, segment
            self._create(stream, first_sequence)
        else:
            if old is not None:
                _supersede(old[1])

    def _open_old(self, stream: str) -> tuple[RingHeader | None, Segment] | None:
        """Return the ring that an earlier publisher left; without its header if its layout has another version."""
        path = companion_path(stream, "ring")
        try:
            owner = path.lstat().st_uid
        except FileNotFoundError:
            return None
        if owner != os.geteuid():
            raise denied(path, None)
        try:
            segment = shm.attach(path.name, writable=True, min_bytes=PAGE_BYTES)
        except (StreamNotFound, LayoutMismatch):
            return None
        try:
            return read_header(segment), segment
        except LayoutMismatch:
            # Every version has the words at the same offsets, so its subscribers can be told that it is superseded.
            return (None, segment) if _is_another_version(segment) else None

    def _create(self, stream: str, first_sequence: int) -> None:
        name = ring_name(stream)
        unfinished = f"{name}.{random_suffix()}"
        segment: Segment | None = None
        try:
            segment = shm.create(unfinished, self.geometry.total_bytes, RING_MODE)
            header = RingHeader(self.geometry, first_sequence, self.epoch, time.time_ns())
            content = header.pack()
            segment.buffer[: len(content)] = content
            segment.words32[STATE_WORD] = OPEN
            if not segment.try_lock(LIVE_WRITE):
                raise FramebusError(f"{segment.path} was locked by another process at once")  # noqa: TRY301  undone below
            # Only a complete and locked file gets the stream's name. The rename is atomic, so subscribers see no other.
            segment.rename(name)
            self._use(segment, first_sequence)
        except BaseException:
            # A signal handler may have raised before the segment was stored.
            (SHM_DIRECTORY / unfinished).unlink(missing_ok=True)
            if segment is not None:
                segment.unlink()
            raise

    def _use(self, segment: Segment, next_sequence: int) -> None:
        words = segment.words
        newest = max(range(self.geometry.slots), key=lambda slot: words[SEQ_WORDS[slot]])
        if words[SEQ_WORDS[newest]] > words[TAIL_WORD] >> 8:
            # The earlier publisher died between P5 and P7, so finish P7 in its place. Otherwise this publisher could
            # claim the slot as an old one and, after a further crash, reuse the sequence, which subscribers may have
            # seen.
            words[TAIL_WORD] = words[SEQ_WORDS[newest]] << 8 | newest
        self.segment: Segment = segment
        geometry = self.geometry
        self.writer: Writer = backend.steps.Writer(
            segment,
            geometry.slots,
            geometry.slot_bytes,
            geometry.first_slot,
            self.epoch,
            next_sequence,
            geometry.max_loans,
        )
        """Claims and publishes the slots, and numbers the frames."""

    def replace(self, stream: str) -> None:
        """Continue in a new ring file, because other processes hold the slots of this one and do not release them.

        Raises:
            NotEnoughSharedMemory: A second ring does not fit in /dev/shm.
        """
        old = self.segment
        self._create(stream, self.writer.next_sequence)
        # The new file is in place, so a subscriber that is woken here finds it.
        _supersede(old)
        old.unlock(locks.unlock(LOCK_LIVE))

    def slot_arrays(self, shape: tuple[int, ...], typestr: str) -> list[npt.NDArray[Any]]:
        """Return an array on each slot's pixels, for :meth:`framebus.ring._ring_py.Writer.watch`.

        Args:
            shape: Shape of each array.
            typestr: numpy's name of the type of their values.
        """
        segment = self.segment
        starts = (segment.address + self.geometry.pixels(slot) for slot in range(self.geometry.slots))
        return [np.asarray(Window(segment, start, shape, typestr)) for start in starts]

    def write_metadata(self, slot: int, metadata: bytes) -> None:
        """Write metadata into a claimed slot's header.

        Args:
            slot: Number of the claimed slot.
            metadata: A msgpack map that fits the slot's header.
        """
        start = SEQ_WORDS[slot] * 8
        self.segment.buffer[start + METADATA : start + METADATA + len(metadata)] = metadata
        self.segment.words32[(start + METADATA_BYTES) // 4] = len(metadata)

    def close(self, *, unlink: bool, then: Callable[[], None] = lambda: None) -> None:
        """Tell subscribers that the publisher has closed. May be called from any thread.

        The slots of loans that are still referenced stay locked until these go.

        Args:
            unlink: Whether to remove the file.
            then: Called when the ring is closed: immediately, or when the call of another thread has ended.
        """

        def finish() -> None:
            # Run once, and in one thread at a time: afterwards, the files of these names may belong to the next
            # publisher. Until then each step may be repeated, because a signal handler may raise between any two.
            with self._ending:
                if self._has_ended:
                    return
                segment = self.segment
                if segment.fd >= 0:
                    segment.words32[STATE_WORD] = CLOSED
                    raise_event(segment)
                    if unlink:
                        segment.unlink()
                    segment.unlock(locks.unlock(LOCK_LIVE))
                    if not self.writer.loans:
                        segment.close()
                then()
                self._has_ended = True

        if not self._has_ended:
            self.writer.close(finish)


def _is_another_version(segment: Segment) -> bool:
    """Return whether the file is a ring of another layout version, rather than corrupted."""
    magic, version = VERSIONED.unpack_from(segment.buffer)
    return bool(magic == MAGIC and version != VERSION and segment.words[TAIL_WORD] >> 8 < MAX_SEQUENCE)


def _highest_sequence(segment: Segment, header: RingHeader | None) -> int:
    """Return the highest sequence in use. In a ring without frames, it is the last one of the ring before."""
    words = segment.words
    if header is None:
        return words[TAIL_WORD] >> 8
    given = (words[SEQ_WORDS[slot]] for slot in range(header.geometry.slots))
    return max(header.first_sequence - 1, words[TAIL_WORD] >> 8, *given)


def _supersede(segment: Segment) -> None:
    segment.words32[STATE_WORD] = SUPERSEDED
    raise_event(segment)
