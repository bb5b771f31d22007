"""The slot protocol: claim, publish, adopt, lease, skip. No sockets, no waiting.

Theory of operation
===================

The publisher writes a slot under the write lock of its byte; a subscriber reads it under the read lock. The kernel
decides between them, frees the locks of the dead, and its lock calls are the memory barriers. Everything else exists so
that a subscriber finds the right slot, and is a hint until the slot is locked:

Publish                                          Receive
 1. write-lock the oldest slot but the newest     1. read ``tail``: sequence s, slot i
 2. ``seq[i] = 0``                                2. read-lock slot i, or look again
 3. the pixels, and what is known of the header   3. ``seq[i] == s``, or unlock and look again
 4. announce: ``event`` becomes odd, wake         4. the header, bounds checked
 5. the rest of the slot's header                 5. the pixels, while the lock is held
 6. ``seq[i] = s``
 7. unlock
 8. ``tail = s << 8 | i``
 9. ``event`` becomes even, wake

The check 3 is needed because between 1 and 2 the slot may have been claimed, written and unlocked again. Step 2 comes
before the pixels, so that a publisher that dies in the middle leaves a slot that nobody takes for a frame. Words are
written through a cast memoryview, one store each; ``struct.pack_into`` would show zeros in between.

Step 4 is for speed alone: a sleeper takes longer to wake than the publisher to come to step 8, so it is woken first,
and rehearses what it will do until ``tail`` changes (:meth:`SubscriberRing.rehearse`). Who has gone to sleep again by
then is woken by step 9.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections import deque
from itertools import chain
from typing import Final

import msgpack

from framebus import segment as shm
from framebus.errors import FramebusError, LayoutMismatch, StreamNotFound
from framebus.layout import (
    CLOSED,
    EVENT,
    LOCK_LIVE,
    LOCK_SLOTS,
    MAX_SLOTS,
    METADATA,
    METADATA_BYTES,
    OPEN,
    PAGE_BYTES,
    SLOT_DESCRIPTION,
    SLOT_FIELDS,
    SLOT_HEADER_BYTES,
    SLOT_TABLE,
    STATE,
    SUPERSEDED,
    TAIL,
    Geometry,
    RingHeader,
    SlotHeader,
)
from framebus.segment import RING_MODE, Segment, companion_path, companion_paths

LOCK_READ: Final = [shm.read_lock(LOCK_SLOTS + slot) for slot in range(MAX_SLOTS + 1)]
LOCK_WRITE: Final = [shm.write_lock(LOCK_SLOTS + slot) for slot in range(MAX_SLOTS)]
UNLOCK: Final = [shm.unlock(LOCK_SLOTS + slot) for slot in range(MAX_SLOTS + 1)]
NO_SLOT: Final = MAX_SLOTS
"""Its lock byte is nobody's."""
LIVE_WRITE: Final = shm.write_lock(LOCK_LIVE)
LIVE_PROBE: Final = shm.read_lock(LOCK_LIVE)

TAIL_WORD: Final = TAIL // 8
EVENT_WORD: Final = EVENT // 4
STATE_WORD: Final = STATE // 4
SEQ_WORDS: Final = [(SLOT_TABLE + slot * SLOT_HEADER_BYTES) // 8 for slot in range(MAX_SLOTS)]
EPOCH_WORD: Final = SLOT_FIELDS // 8
"""From ``seq[i]`` to the header's epoch; the sequence follows."""
CAPTURED_WORD: Final = EPOCH_WORD + 2
"""From ``seq[i]`` to captured_ns; captured_wall_ns and published_ns follow."""
METADATA_BYTES_WORD32: Final = METADATA_BYTES // 4
"""From ``seq[i]`` to metadata_bytes."""
LOOKS: Final = 8
"""How often a subscriber looks again at once before it waits for the next event."""


def ring_name(stream: str) -> str:
    """Name of a stream's ring in /dev/shm."""
    return companion_path(stream, "ring").name


def read_header(segment: Segment) -> RingHeader:
    """The ring's header.

    Raises:
        LayoutMismatch: The file is no ring of this version.
    """
    return RingHeader.unpack(segment.buffer[:PAGE_BYTES], segment.size)


def raise_event(segment: Segment) -> None:
    """Make the event word the next even number: look again."""
    words32 = segment.words32
    words32[EVENT_WORD] = (words32[EVENT_WORD] + 2) & 0xFFFFFFFE


class PublisherRing:
    """The publisher's side of one ring file. The caller holds the stream's exclusion."""

    def __init__(self, stream: str, geometry: Geometry) -> None:
        """Adopt the ring that an earlier publisher left, or put a new one in its place.

        Raises:
            PermissionDenied: A file of that name belongs to another user.
            NotEnoughSharedMemory: /dev/shm has no room for the ring.
        """
        self.geometry = geometry
        self.epoch = secrets.randbits(53) or 1  # exact in JSON and JavaScript too
        self.adopted = False
        for leftover in companion_paths(stream, "ring.*"):
            with contextlib.suppress(PermissionError):  # another user's, which is in nobody's way
                leftover.unlink(missing_ok=True)
        old = self._open_old(stream)
        first_sequence = 1
        if old is not None:
            header, segment = old
            first_sequence = 1 + _highest_sequence(segment, header)
            if header.geometry == geometry and segment.try_lock(LIVE_WRITE):
                self.adopted = True
                self._use(segment, first_sequence)
                segment.buffer[: len(header.pack())] = RingHeader(
                    geometry, header.first_sequence, self.epoch, header.created_wall_ns
                ).pack()
                segment.words32[STATE_WORD] = OPEN
                return
        self._create(stream, first_sequence)
        if old is not None:
            _supersede(old[1])

    def _open_old(self, stream: str) -> tuple[RingHeader, Segment] | None:
        path = companion_path(stream, "ring")
        try:
            owner = path.lstat().st_uid
        except FileNotFoundError:
            return None
        if owner != os.geteuid():
            raise shm.denied(path, None)
        try:
            segment = shm.attach(path.name, writable=True, min_bytes=PAGE_BYTES)
            return read_header(segment), segment
        except (StreamNotFound, LayoutMismatch):
            return None

    def _create(self, stream: str, first_sequence: int) -> None:
        name = ring_name(stream)
        segment = shm.create(f"{name}.{shm.random_suffix()}", self.geometry.total_bytes, RING_MODE)
        try:
            header = RingHeader(self.geometry, first_sequence, self.epoch, time.time_ns())
            content = header.pack()
            segment.buffer[: len(content)] = content
            segment.words32[STATE_WORD] = OPEN
            if not segment.try_lock(LIVE_WRITE):
                raise FramebusError(f"{segment.path} was locked by another process at once")  # noqa: TRY301  undone below
            segment.take_name(name)
        except BaseException:
            segment.unlink()
            raise
        self._use(segment, first_sequence)

    def _use(self, segment: Segment, next_sequence: int) -> None:
        self.segment = segment
        self.next_sequence = next_sequence
        self._descriptions = [b""] * self.geometry.slots
        words = segment.words
        self._order = sorted(range(self.geometry.slots), key=lambda slot: words[SEQ_WORDS[slot]])
        newest = self._order[-1]
        if words[SEQ_WORDS[newest]] > words[TAIL_WORD] >> 8:
            # Its publisher died between the steps 5 and 7. Left so, the slot could be claimed as an old one, and the
            # sequence, which may have been seen, would be given again after one more death.
            words[TAIL_WORD] = words[SEQ_WORDS[newest]] << 8 | newest
            raise_event(segment)
        tail = words[TAIL_WORD]
        self._newest = tail & 0xFF if tail >> 8 else -1

    def replace(self, stream: str) -> None:
        """Go on in a new ring file, because the slots of this one are held by somebody who does not let go.

        Raises:
            NotEnoughSharedMemory: There is no room for a second ring.
        """
        old = self.segment
        self._create(stream, self.next_sequence)
        _supersede(old)
        old.unlock(shm.unlock(LOCK_LIVE))

    def claim(self) -> int | None:
        """Write-lock the oldest slot that is free and not the newest; ``None`` when there is none.

        A subscriber may move its lease from a slot that could not be locked to one that is yet to be tried, so that
        each is held when its turn comes, though one was free all the time. Leases move to newer frames only: the second
        pass, from new to old, meets each of them once at most, and finds a slot whenever admission leaves one.
        """
        segment = self.segment
        if self._newest != self._order[-1] and self._newest >= 0:
            self._order.remove(self._newest)
            self._order.append(self._newest)
        for slot in chain(self._order, reversed(self._order)):
            if slot != self._newest and segment.try_lock(LOCK_WRITE[slot]):
                segment.words[SEQ_WORDS[slot]] = 0
                return slot
        return None

    def prepare(self, slot: int, description: bytes) -> None:
        """Write what is known of a claimed slot's header before its pixels are.

        Args:
            slot: What :meth:`claim` returned.
            description: The header's bytes from height on, of :func:`framebus.layout.describe`.
        """
        segment, seq = self.segment, SEQ_WORDS[slot]
        words = segment.words
        words[seq + EPOCH_WORD] = self.epoch
        words[seq + EPOCH_WORD + 1] = self.next_sequence
        start = seq * 8 + SLOT_DESCRIPTION
        if self._descriptions[slot] is not description:
            self._descriptions[slot] = description
            segment.buffer[start : start + len(description)] = description

    def announce(self) -> None:
        """Make the event word odd: a frame is about to be published."""
        words32 = self.segment.words32
        words32[EVENT_WORD] = ((words32[EVENT_WORD] + 1) | 1) & 0xFFFFFFFF

    def commit(self, slot: int, captured_ns: int, captured_wall_ns: int, published_ns: int, metadata: bytes) -> int:
        """Publish a prepared slot, in the steps of the module's text.

        Args:
            slot: What :meth:`claim` returned; its pixels are written.
            captured_ns: Time of capture, CLOCK_MONOTONIC, as an unsigned word.
            captured_wall_ns: Time of capture since 1970, as an unsigned word.
            published_ns: Time of publication, CLOCK_MONOTONIC.
            metadata: A msgpack map that fits the slot's header.

        Returns:
            The frame's sequence.
        """
        segment, sequence = self.segment, self.next_sequence
        words, seq = segment.words, SEQ_WORDS[slot]
        words[seq + CAPTURED_WORD] = captured_ns
        words[seq + CAPTURED_WORD + 1] = captured_wall_ns
        words[seq + CAPTURED_WORD + 2] = published_ns
        if metadata:
            start = seq * 8 + METADATA
            segment.buffer[start : start + len(metadata)] = metadata
            segment.words32[seq * 2 + METADATA_BYTES_WORD32] = len(metadata)
            self._descriptions[slot] = b""
        words[seq] = sequence
        segment.unlock(UNLOCK[slot])
        words[TAIL_WORD] = sequence << 8 | slot
        raise_event(segment)
        self.next_sequence = sequence + 1
        self._newest = slot
        return sequence

    def abandon(self, slot: int) -> None:
        """Give a claimed slot back; nobody sees what was written, and what was announced is called off."""
        self.segment.unlock(UNLOCK[slot])
        raise_event(self.segment)

    def close(self, *, unlink: bool) -> None:
        """Tell subscribers that the publisher is gone, and remove the file's name if ``unlink``."""
        segment = self.segment
        if segment.fd < 0:
            return
        segment.words32[STATE_WORD] = CLOSED
        raise_event(segment)
        if unlink:
            segment.unlink()
        segment.unlock(shm.unlock(LOCK_LIVE))


class Lease:
    """A read-locked slot. It ends when its last reference goes, and every array made of it is one.

    numpy takes the pixels through ``__array_interface__`` and keeps the lease as the array's base.
    """

    __slots__ = ("__array_interface__", "__weakref__", "_returned", "_segment", "_unlock", "header", "slot")

    def __init__(self, ring: SubscriberRing, slot: int, header: SlotHeader) -> None:
        self.slot = slot
        self.header = header
        self._segment = ring.segment
        self._returned = ring.returned
        self._unlock = UNLOCK[slot]
        self.__array_interface__ = {
            "version": 3,
            "shape": header.shape,
            "typestr": header.dtype,
            "data": (ring.segment.address + ring.geometry.pixels(slot), True),
        }

    def metadata(self) -> object:
        """The frame's metadata, unpacked.

        Raises:
            LayoutMismatch: It is no msgpack.
        """
        start = SEQ_WORDS[self.slot] * 8 + METADATA
        content = self._segment.buffer[start : start + self.header.metadata_bytes]
        try:
            return msgpack.unpackb(content) if content else {}
        except (ValueError, msgpack.UnpackException) as error:
            raise LayoutMismatch(f"the frame's metadata is no msgpack: {error}") from None

    def __del__(self) -> None:
        # This may run inside any allocation of any thread: no lock is taken, and the slot is free before it counts as
        # returned, so that a new lease on it can never be undone by this unlock.
        self._segment.unlock(self._unlock)
        self._returned.append(self.slot)


class SubscriberRing:
    """A subscriber's side of one ring file. Its leases keep the file mapped when the subscriber has moved on."""

    def __init__(self, stream: str, owner: int | None = None) -> None:
        """Attach to the ring of a publisher that lives; where ``owner`` is given, of that user's alone.

        Raises:
            StreamNotFound: There is none, or its publisher is gone.
            LayoutMismatch: The file is no ring of this version.
            PermissionDenied: It is closed to this user, or belongs to another than ``owner``.
        """
        try:
            self.segment = shm.attach(ring_name(stream), min_bytes=PAGE_BYTES, owner=owner)
        except StreamNotFound:
            raise StreamNotFound(f"no publisher serves the stream {stream!r} here") from None
        self.header = read_header(self.segment)
        self.geometry = self.header.geometry
        if not self.is_live():
            raise StreamNotFound(f"the publisher of the stream {stream!r} is gone")
        self.last = -1
        """Sequence of the newest frame seen; -1 before the first."""
        self.overruns = 0
        """Slots reused before they were leased."""
        self.rejected = 0
        """Slot headers that made no sense."""
        self.returned: deque[int] = deque()
        self._held: set[int] = set()

    def is_live(self) -> bool:
        """Whether a publisher holds the ring, by the kernel's word."""
        return self.segment.is_locked(LIVE_PROBE)

    def is_open(self) -> bool:
        """Whether the publisher has neither closed nor left this file: a hint that costs no system call."""
        return self.segment.words32[STATE_WORD] == OPEN

    def event(self) -> int:
        """The futex word; read it before looking for a frame, wait while it stays the same."""
        return self.segment.words32[EVENT_WORD]

    def leases(self) -> int:
        """Frames held now."""
        while self.returned:
            self._held.discard(self.returned.popleft())
        return len(self._held)

    def await_tail(self, until_ns: int) -> None:
        """Look at ``tail`` again and again until a new frame is published or CLOCK_MONOTONIC says ``until_ns``."""
        words, unseen = self.segment.words, max(self.last + 1, 1) << 8
        while words[TAIL_WORD] < unseen and time.monotonic_ns() < until_ns:
            pass

    def rehearse(self) -> Lease | None:
        """Do what a lease takes, on a byte that is no slot's: what is then in the caches makes the next lease fast.

        Returns:
            A lease that protects nothing, to be dropped unread; ``None`` if nobody has published yet.
        """
        words, segment = self.segment.words, self.segment
        slot = words[TAIL_WORD] & 0xFF
        if slot >= self.geometry.slots or not segment.try_lock(LOCK_READ[NO_SLOT]):
            return None
        try:
            header = SlotHeader.unpack_from(segment.buffer, self.geometry.slot_header(slot), self.geometry.slot_bytes)
        except LayoutMismatch:  # it may be in the middle of being written
            segment.unlock(UNLOCK[NO_SLOT])
            return None
        return Lease(self, NO_SLOT, header)

    def newest(self) -> Lease | None:
        """Lease the newest frame if it is not seen yet."""
        words = self.segment.words
        for _ in range(LOOKS):
            tail = words[TAIL_WORD]
            sequence, slot = tail >> 8, tail & 0xFF
            if not sequence or sequence <= self.last or slot >= self.geometry.slots:
                return None
            if (lease := self._lease(slot, sequence)) is not None:
                return lease
        return None

    def following(self) -> Lease | None:
        """Lease the oldest frame that comes after the last one seen and is still in the ring."""
        if self.last < 0:
            return self.newest()
        words = self.segment.words
        for _ in range(LOOKS):
            later = [
                (sequence, slot)
                for slot in range(self.geometry.slots)
                if (sequence := words[SEQ_WORDS[slot]]) > max(self.last, 0)
            ]
            if not later:
                return None
            sequence, slot = min(later)
            if (lease := self._lease(slot, sequence)) is not None:
                return lease
        return None

    def _lease(self, slot: int, sequence: int) -> Lease | None:
        segment = self.segment
        if slot in self._held:
            self.leases()  # it may have been returned by now
            if slot in self._held:
                return None
        if not segment.try_lock(LOCK_READ[slot]):
            self.overruns += 1
            return None
        if segment.words[SEQ_WORDS[slot]] != sequence:
            segment.unlock(UNLOCK[slot])
            self.overruns += 1
            return None
        try:
            header = SlotHeader.unpack_from(segment.buffer, self.geometry.slot_header(slot), self.geometry.slot_bytes)
        except LayoutMismatch:
            header = None
        if header is None or header.sequence != sequence:
            segment.unlock(UNLOCK[slot])
            self.rejected += 1
            self.last = sequence
            return None
        self._held.add(slot)
        self.last = sequence
        return Lease(self, slot, header)


def _highest_sequence(segment: Segment, header: RingHeader) -> int:
    """The highest sequence given; a file that holds no frame yet goes on from the one before it."""
    words = segment.words
    given = (words[SEQ_WORDS[slot]] for slot in range(header.geometry.slots))
    return max(header.first_sequence - 1, words[TAIL_WORD] >> 8, *given)


def _supersede(segment: Segment) -> None:
    segment.words32[STATE_WORD] = SUPERSEDED
    raise_event(segment)
