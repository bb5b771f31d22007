"""The publisher's side of a ring file: create it, adopt it, replace it, close it."""

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
    """The publisher's side of one ring file. The caller holds the stream's exclusion."""

    def __init__(self, stream: str, geometry: Geometry) -> None:
        """Adopt the ring that an earlier publisher left, or put a new one in its place.

        Raises:
            PermissionDenied: A file of that name belongs to another user.
            NotEnoughSharedMemory: /dev/shm has no room for the ring.
        """
        backend.check()
        self.geometry = geometry
        self.epoch: int = secrets.randbits(53) or 1  # exact in JSON and JavaScript too
        self.adopted: bool = False
        self._ending = RLock()
        self._has_ended = False
        for leftover in companion_paths(stream, "ring.*"):
            with contextlib.suppress(PermissionError):  # another user's, which is in nobody's way
                leftover.unlink(missing_ok=True)
        old = self._open_old(stream)
        first_sequence = 1
        if old is not None:
            header, segment = old
            first_sequence = 1 + _highest_sequence(segment, header)
            if header is not None and header.geometry == geometry and segment.try_lock(LIVE_WRITE):
                self.adopted = True
                self._use(segment, first_sequence)
                segment.buffer[: len(header.pack())] = RingHeader(
                    geometry, header.first_sequence, self.epoch, header.created_wall_ns
                ).pack()
                segment.words32[STATE_WORD] = OPEN
                raise_event(segment)  # its publisher may have died before it told of the newest frame
                return
        try:
            self._create(stream, first_sequence)
        except NotEnoughSharedMemory:
            if old is None:
                raise
            # The old ring may take the room; what its readers have mapped stays until they let go.
            _supersede(segment)
            segment.unlink()
            del old, header, segment
            self._create(stream, first_sequence)
        else:
            if old is not None:
                _supersede(old[1])

    def _open_old(self, stream: str) -> tuple[RingHeader | None, Segment] | None:
        """The ring that an earlier publisher left; without its header when its layout is of another version."""
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
            # In every version the words are where they are in this one: its readers can be told to move on.
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
            segment.take_name(name)
            self._use(segment, first_sequence)
        except BaseException:
            # A signal handler may have raised before the segment was anybody's.
            (SHM_DIRECTORY / unfinished).unlink(missing_ok=True)
            if segment is not None:
                segment.unlink()
            raise

    def _use(self, segment: Segment, next_sequence: int) -> None:
        words = segment.words
        newest = max(range(self.geometry.slots), key=lambda slot: words[SEQ_WORDS[slot]])
        if words[SEQ_WORDS[newest]] > words[TAIL_WORD] >> 8:
            # Its publisher died between P5 and P7. Left so, the slot could be claimed as an old one, and the
            # sequence, which may have been seen, would be given again after one more death.
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
        """What claims and publishes the slots, and knows the next sequence."""

    def replace(self, stream: str) -> None:
        """Go on in a new ring file, because the slots of this one are held by somebody who does not let go.

        Raises:
            NotEnoughSharedMemory: There is no room for a second ring.
        """
        old = self.segment
        self._create(stream, self.writer.next_sequence)
        _supersede(old)
        old.unlock(locks.unlock(LOCK_LIVE))

    def slot_arrays(self, shape: tuple[int, ...], typestr: str) -> list[npt.NDArray[Any]]:
        """An array on each slot's pixels, for :meth:`framebus.ring._ring_py.Writer.watch`.

        Args:
            shape: Shape of each.
            typestr: numpy's name of the type of their values.
        """
        segment = self.segment
        starts = (segment.address + self.geometry.pixels(slot) for slot in range(self.geometry.slots))
        return [np.asarray(Window(segment, start, shape, typestr)) for start in starts]

    def write_metadata(self, slot: int, metadata: bytes) -> None:
        """Put metadata into a claimed slot.

        Args:
            slot: What the writer's ``claim`` returned.
            metadata: A msgpack map that fits the slot's header.
        """
        start = SEQ_WORDS[slot] * 8
        self.segment.buffer[start + METADATA : start + METADATA + len(metadata)] = metadata
        self.segment.words32[(start + METADATA_BYTES) // 4] = len(metadata)

    def close(self, *, unlink: bool, then: Callable[[], None] = lambda: None) -> None:
        """Tell subscribers that the publisher is gone, and remove the file's name if ``unlink``; from any thread.

        The slots of loans that are still out stay locked until these go.

        Args:
            unlink: Whether to remove the file's name.
            then: Called when the ring is closed: at once, or when the call that another thread is in has ended.
        """

        def finish() -> None:
            # One thread at a time, and nothing once it is done: what has the names then is the next publisher's. Until
            # then each step may be taken again, for a signal handler may raise between any two.
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
    """Whether the file is a ring whose layout is of another version, rather than damaged."""
    magic, version = VERSIONED.unpack_from(segment.buffer)
    return bool(magic == MAGIC and version != VERSION and segment.words[TAIL_WORD] >> 8 < MAX_SEQUENCE)


def _highest_sequence(segment: Segment, header: RingHeader | None) -> int:
    """The highest sequence given; a file that holds no frame yet goes on from the one before it."""
    words = segment.words
    if header is None:
        return words[TAIL_WORD] >> 8
    given = (words[SEQ_WORDS[slot]] for slot in range(header.geometry.slots))
    return max(header.first_sequence - 1, words[TAIL_WORD] >> 8, *given)


def _supersede(segment: Segment) -> None:
    segment.words32[STATE_WORD] = SUPERSEDED
    raise_event(segment)
