"""The steps of a hand-over that decide its time, in plain Python: what runs where ``_ring_c.c`` was not built.

The compiled module does the same in about two thirds of the time, because code that has not run since the frame before
waits for memory with nearly every line. :mod:`framebus.ring.rings` says what the steps are for, and in which order they
must come.
"""

from __future__ import annotations

import errno
import socket
import time
import weakref
from collections.abc import Callable, Sequence
from itertools import chain
from operator import index
from sys import getrefcount
from typing import Any, Final

import numpy as np

from framebus.errors import AlreadyInUse, LayoutMismatch
from framebus.ring.layout import (
    EVENT,
    LOCK_SLOTS,
    MAX_SLOTS,
    RECORD_RECEIVED,
    RECORD_WORDS,
    SLOT_DESCRIPTION,
    SLOT_FIELDS,
    SLOT_HEADER_BYTES,
    SLOT_TABLE,
    TAIL,
    FrameHeader,
)
from framebus.ring.message import NO_MESSAGE, Message, send_all
from framebus.shm import locks
from framebus.shm.futex import sleep_while, wake_all
from framebus.shm.segment import Segment

LOCK_READ: Final = [locks.read_lock(LOCK_SLOTS + slot) for slot in range(MAX_SLOTS + 1)]
LOCK_WRITE: Final = [locks.write_lock(LOCK_SLOTS + slot) for slot in range(MAX_SLOTS)]
UNLOCK: Final = [locks.unlock(LOCK_SLOTS + slot) for slot in range(MAX_SLOTS + 1)]
NO_SLOT: Final = MAX_SLOTS
"""Its lock byte is nobody's."""
TAIL_WORD: Final = TAIL // 8
EVENT_WORD: Final = EVENT // 4
SEQ_WORDS: Final = [(SLOT_TABLE + slot * SLOT_HEADER_BYTES) // 8 for slot in range(MAX_SLOTS)]
EPOCH_WORD: Final = SLOT_FIELDS // 8
"""From ``seq[i]`` to the header's epoch; the sequence follows."""
CAPTURED_WORD: Final = EPOCH_WORD + 2
"""From ``seq[i]`` to captured_ns; captured_wall_ns and published_ns follow."""
LOOKS: Final = 8
"""How often a subscriber looks again at once before it waits for the next event."""


def raise_event(segment: Segment) -> None:
    """Change the event word and wake all who sleep on it."""
    words32 = segment.words32
    words32[EVENT_WORD] = (words32[EVENT_WORD] + 1) & 0xFFFFFFFF
    wake_all(segment.address + EVENT)


def _word(signed: int) -> int:
    return int.from_bytes(index(signed).to_bytes(8, signed=True))


OWN_REFERENCES: Final = 2
"""Of an array that a sequence holds, as sys.getrefcount() counts them."""


class Claim:
    """A slot that the publisher has write-locked. It is given back when its last reference goes unpublished.

    numpy takes the slot's bytes through ``__array_interface__`` and keeps the claim as the array's base, so a view on
    the pixels is a reference too.
    """

    __slots__ = ("__weakref__", "is_open", "now_ns", "now_wall_ns", "reference", "slot", "writer")

    def __init__(self, writer: Writer) -> None:
        self.writer: Writer = writer
        """The writer that it belongs to."""
        self.slot: int = NO_SLOT
        """The slot's number."""
        self.is_open: bool = True
        """Whether it is neither published nor abandoned."""
        self.now_ns: int = 0
        """When it was made, CLOCK_MONOTONIC."""
        self.now_wall_ns: int = 0
        """When it was made, nanoseconds since 1970."""
        self.reference: weakref.ref[Claim] = weakref.ref(self)
        """How the writer knows of it without keeping it."""

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return {"version": 3, "typestr": "|u1", **self.writer.slot_memory(self.slot)}

    @property
    def memory(self) -> Any:
        """The slot's bytes, for numpy to make an array of."""
        return np.asarray(self)

    def abandon(self) -> None:
        """Give the slot back unpublished; harmless when that was done before."""
        self.writer.give_back(self)

    def __del__(self, _unlock: list[bytes] = UNLOCK) -> None:
        # The next claim looks for lost ones too, but after a close there is none, and the ring's next publisher would
        # lack the slot. As with a lease: a reference that is cleared already is left to that look.
        reference = getattr(self, "reference", None)
        if reference is None or not self.is_open or reference() is None:
            return
        if not self.writer.is_viewed(self.slot):
            self.writer.segment.unlock(_unlock[self.slot])
            self.writer.lost += self.slot != NO_SLOT
            self.writer._forget(self)


class Writer:
    """Claims and publishes the slots of one ring. One thread uses it; another may close it meanwhile."""

    def __init__(
        self,
        segment: Segment,
        slots: int,
        slot_bytes: int,
        first_slot: int,
        epoch: int,
        next_sequence: int,
        max_loans: int,
    ) -> None:
        """Claim nothing yet.

        Args:
            segment: The ring. Its ``tail`` tells of its newest frame.
            slots: Number of its slots.
            slot_bytes: Room for pixels in each.
            first_slot: Offset of the first slot's pixels.
            epoch: The publisher's epoch.
            next_sequence: The sequence of the next frame.
            max_loans: Slots that may be claimed at the same time.
        """
        self.segment: Segment = segment
        """The ring."""
        self.next_sequence: int = next_sequence
        """Sequence that the next frame will have."""
        self.lost: int = 0
        """Claims that ended because nothing referenced them any more."""
        self._arrays: Sequence[object] = ()
        self._slot_bytes = slot_bytes
        self._first_slot = first_slot
        self._epoch = epoch
        self._max_loans = max_loans
        self._claims: dict[weakref.ref[Claim], int] = {}
        self._is_used = self._is_closed = False
        self._at_end: Callable[[], None] | None = None
        words = segment.words
        self._order = sorted(range(slots), key=lambda slot: words[SEQ_WORDS[slot]])
        tail = words[TAIL_WORD]
        self._newest = tail & 0xFF if tail >> 8 else -1

    @property
    def loans(self) -> int:
        """Claims that are neither published nor abandoned, and still referenced."""
        return sum(self._is_referenced(*claim) for claim in list(self._claims.items()))

    def watch(self, arrays: Sequence[object]) -> None:
        """Take a claim whose slot's array is referenced for one that is referenced itself.

        Args:
            arrays: An array on each slot, on which all views on the slot's pixels are based, and which only this
                sequence references besides them. It saves an array for each frame.
        """
        self._arrays = arrays

    def is_viewed(self, slot: int) -> bool:
        """Whether there are views on the array of :meth:`watch` on the slot."""
        return slot < len(self._arrays) and getrefcount(self._arrays[slot]) > OWN_REFERENCES

    def slot_memory(self, slot: int) -> dict[str, Any]:
        """Shape and address of a slot's bytes, as numpy's array interface tells them."""
        address = self.segment.address + self._first_slot + slot * self._slot_bytes
        return {"shape": (self._slot_bytes,), "data": (address, False)}

    def claim(self, description: bytes) -> Claim | None:
        """Write-lock the oldest slot that is free and not the newest, and write what is known of its header.

        A subscriber may move its lease from a slot that could not be locked to one that is yet to be tried, so that
        each is held when its turn comes, though one was free all the time. Leases move to newer frames only: the second
        pass, from new to old, meets each of them once at most, and finds a slot whenever admission leaves one.

        Args:
            description: The header's bytes from height on, of :func:`framebus.ring.layout.describe`.

        Returns:
            The slot's claim; ``None`` when no slot is free, or ``max_loans`` are claimed, or the writer was closed.
        """
        self._enter()
        try:
            return None if self._is_closed else self._claim_oldest(description)
        finally:
            self._is_used = False  # before any call: a signal handler may raise at its beginning
            self._end()

    def publish(
        self,
        claim: Claim,
        captured_ns: int,
        captured_wall_ns: int,
        sockets: Sequence[socket.socket] = (),
        message: Message = NO_MESSAGE,
    ) -> int:
        """Finish a claimed slot's header, let readers in, wake all that sleep, and notify all that listen.

        Args:
            claim: What :meth:`claim` returned; its pixels are written.
            captured_ns: Time of capture, CLOCK_MONOTONIC.
            captured_wall_ns: Time of capture since 1970.
            sockets: Those to which the message goes, as :func:`send_all` sends it.
            message: What goes there, once it is rendered.

        Returns:
            Time of publication, CLOCK_MONOTONIC in ns.

        Raises:
            OSError: The segment is the parent's, or the writer was closed. As with the others, nothing was written.
            OverflowError: A time does not fit a signed 64-bit number.
            TypeError: A time is not an integer.
            ValueError: The claim is another writer's, or was published or abandoned.
        """
        if claim.writer is not self or not claim.is_open:
            raise ValueError("the claim is not an open one of this writer")
        captured, captured_wall = _word(captured_ns), _word(captured_wall_ns)
        self._enter()
        try:
            segment, slot, sequence = self.segment, claim.slot, self.next_sequence
            if segment.fd < 0 or self._is_closed:
                raise OSError(errno.EBADF, "the ring is closed")
            words, seq = segment.words, SEQ_WORDS[slot]
            published_ns = time.monotonic_ns()
            words[seq + EPOCH_WORD + 1] = sequence
            words[seq + CAPTURED_WORD] = captured
            words[seq + CAPTURED_WORD + 1] = captured_wall
            words[seq + CAPTURED_WORD + 2] = published_ns
            try:
                words[seq] = sequence
                self._let_in(claim, sequence)
            except BaseException:
                # A signal handler may raise between any two steps. Each of them may be taken twice.
                if words[seq] == sequence:
                    self._let_in(claim, sequence)
                raise
            if sockets:
                send_all(sockets, message.render(sequence, slot, captured_ns, published_ns))
            return published_ns
        finally:
            self._is_used = False
            self._end()

    def give_back(self, claim: Claim) -> None:
        """Unlock a claimed slot that was not published."""
        if claim.is_open and claim.writer is self:
            self.segment.unlock(UNLOCK[claim.slot])
            self._forget(claim)

    def close(self, finish: Callable[[], None]) -> None:
        """Claim and publish nothing more, and call ``finish`` when no other thread is in the middle of either.

        That is at once, or when that thread's call ends. It may be called again if ``finish`` raised.
        """
        self._at_end = finish
        self._is_closed = True
        if not self._is_used:
            self._end()

    def _enter(self) -> None:
        if self._is_used:
            raise AlreadyInUse("a signal handler may not publish while its thread is doing so: set a flag in it")
        self._is_used = True

    def _end(self) -> None:
        finish = self._at_end
        if finish is not None:
            finish()
            self._at_end = None

    def _let_in(self, claim: Claim, sequence: int) -> None:
        segment, slot = self.segment, claim.slot
        self._forget(claim)
        self.next_sequence = sequence + 1
        self._newest = slot
        segment.unlock(UNLOCK[slot])
        segment.words[TAIL_WORD] = sequence << 8 | slot
        raise_event(segment)
        # With every publication, not with the next claim: several frames may be published between two claims.
        self._order = [*(other for other in self._order if other != slot), slot]

    def _forget(self, claim: Claim) -> None:
        claim.is_open = False
        self._claims.pop(claim.reference, None)

    def _sweep(self) -> None:
        """Unlock the slots of claims that nothing references any more."""
        for reference, slot in list(self._claims.items()):
            if not self._is_referenced(reference, slot):
                if slot != NO_SLOT:
                    self.segment.unlock(UNLOCK[slot])
                    self.lost += 1
                del self._claims[reference]

    def _is_referenced(self, reference: weakref.ref[Claim], slot: int) -> bool:
        return reference() is not None or self.is_viewed(slot)

    def _claim_oldest(self, description: bytes) -> Claim | None:
        self._sweep()
        if len(self._claims) >= self._max_loans:
            return None
        taken = {self._newest, *self._claims.values()}
        claim = Claim(self)
        self._claims[claim.reference] = NO_SLOT
        for slot in chain(self._order, reversed(self._order)):
            if slot not in taken and self._lock(claim, slot, description):
                claim.now_ns, claim.now_wall_ns = time.monotonic_ns(), time.time_ns()
                return claim
        self._claims[claim.reference] = NO_SLOT
        self._forget(claim)
        return None

    def _lock(self, claim: Claim, slot: int, description: bytes) -> bool:
        segment = self.segment
        self._claims[claim.reference] = claim.slot = slot
        if segment.fd < 0 or not segment.try_lock(LOCK_WRITE[slot]):
            return False
        words, seq = segment.words, SEQ_WORDS[slot]
        words[seq] = 0
        words[seq + EPOCH_WORD] = self._epoch
        start = seq * 8 + SLOT_DESCRIPTION
        segment.buffer[start : start + len(description)] = description
        return True


class Lease:
    """A read-locked slot. It ends when its last reference goes, and every array made of it is one.

    numpy takes the pixels through ``__array_interface__`` and keeps the lease as the array's base.
    """

    __slots__ = ("__weakref__", "header", "reader", "reference", "sequence", "skipped", "slot")

    header: FrameHeader
    """What the slot says of its frame, once it was read."""

    def __init__(self, reader: Reader, slot: int, sequence: int) -> None:
        self.reader: Reader = reader
        """The reader that it belongs to."""
        self.slot: int = slot
        """The slot's number."""
        self.sequence: int = sequence
        """Sequence of the frame in it."""
        self.skipped: int = 0
        """Frames missed since the one that was leased before."""
        self.reference: weakref.ref[Lease] = weakref.ref(self)
        """How the reader knows of it without keeping it."""

    @property
    def __array_interface__(self) -> dict[str, Any]:
        header = self.header
        address = self.reader.pixels_address(self.slot)
        return {"version": 3, "shape": header.shape, "typestr": header.dtype, "data": (address, True)}

    def __del__(self, _unlock: list[bytes] = UNLOCK) -> None:
        # The reader unlocks the slot too, when it next looks, because an exception of a signal handler may end this
        # early. If the garbage collector has cleared the reference, it may have done so, and leased the slot again.
        reference = getattr(self, "reference", None)
        if reference is not None and reference() is not None:
            self.reader.segment.unlock(_unlock[self.slot])


class Reader:
    """Leases the slots of one ring. One thread uses it; leases may end in any."""

    def __init__(
        self, segment: Segment, slots: int, slot_bytes: int, first_slot: int, every: bool, history: int
    ) -> None:
        """Lease nothing yet.

        Args:
            segment: The ring.
            slots: Number of its slots.
            slot_bytes: Room for pixels in each.
            first_slot: Offset of the first slot's pixels.
            every: Whether to take all frames in order, or the newest.
            history: How many of the frames that are there already to take first, in order.
        """
        self.segment: Segment = segment
        """The ring."""
        self.last: int = -1
        """Sequence of the newest frame seen; -1 before the first."""
        self.received: int = 0
        """Frames leased."""
        self.skipped: int = 0
        """Frames missed between them."""
        self.overruns: int = 0
        """Slots reused before they were leased."""
        self.rejected: int = 0
        """Slot headers that made no sense."""
        self._slots = slots
        self._slot_bytes = slot_bytes
        self._first_slot = first_slot
        self._every = every
        self._leases: dict[weakref.ref[Lease], int] = {}
        self._report = b""
        self._record: Segment | None = None
        newest = segment.words[TAIL_WORD] >> 8 if history else 0
        self._history_after = max(newest - history, 0)
        self._history_end = newest or -1

    def report_to(self, record: Segment) -> None:
        """Write the counters into a subscriber's record from now on, with every lease."""
        self._record = record

    def resume_from(self, earlier: Reader, first_sequence: int) -> None:
        """Go on where the reader of another ring of the same stream has ended.

        Args:
            earlier: That reader, whose counters are taken over.
            first_sequence: The sequence with which this ring begins.
        """
        self.last = min(earlier.last, first_sequence - 1)
        if self._every and self.last >= 0:
            self._history_after = 0
        self.received, self.skipped = earlier.received, earlier.skipped
        self.overruns, self.rejected = earlier.overruns, earlier.rejected

    @property
    def leases(self) -> int:
        """Leases held now."""
        return sum(reference() is not None for reference in list(self._leases))

    def held(self) -> tuple[int, ...]:
        """Sequences of the frames that are leased, in order."""
        words = self.segment.words
        slots = [slot for reference, slot in list(self._leases.items()) if reference() is not None]
        return tuple(sorted(words[SEQ_WORDS[slot]] for slot in slots))

    def take(self) -> Lease | None:
        """Lease the newest frame, or the oldest that comes after the last one, if it is not seen yet."""
        for _ in range(LOOKS):
            in_order = self.last < self._history_end or (self._every and self.last >= 0)
            sequence, slot = self._following() if in_order else self._newest()
            if not sequence:
                return None
            if (lease := self._lease(slot, sequence)) is not None and self._accept(lease):
                return lease
        return None

    def look(self, until_ns: int) -> Lease | None:
        """Look for a new frame again and again until CLOCK_MONOTONIC says ``until_ns``, then :meth:`take` it."""
        words, unseen = self.segment.words, max(self.last + 1, 1) << 8
        while words[TAIL_WORD] < unseen and time.monotonic_ns() < until_ns:
            pass
        return self.take()

    def sleep(self, event: int, timeout_ns: int) -> Lease | None:
        """Sleep while the event word is ``event``, at most ``timeout_ns``, then :meth:`take` what is there."""
        sleep_while(self.segment.address + EVENT, event, timeout_ns)
        return self.take()

    def rehearse(self) -> Lease | None:
        """Lease a byte that belongs to no slot, with the newest frame's header; ``None`` if that makes no sense.

        No pixels belong to the lease.
        """
        slot = self.segment.words[TAIL_WORD] & 0xFF
        if slot >= self._slots or not self.segment.try_lock(LOCK_READ[NO_SLOT]):
            return None
        lease = Lease(self, NO_SLOT, 0)
        self._write_report()
        try:
            lease.header = self._read_header(slot)
        except LayoutMismatch:  # it may be in the middle of being written
            return None
        return lease

    def pixels_address(self, slot: int) -> int:
        """Where a slot's pixels are mapped."""
        return self.segment.address + self._first_slot + slot * self._slot_bytes

    def _sweep(self) -> None:
        """Unlock the slots of leases that have ended, and count these no more."""
        for reference, slot in list(self._leases.items()):
            if reference() is None:
                self.segment.unlock(UNLOCK[slot])
                del self._leases[reference]

    def _newest(self) -> tuple[int, int]:
        tail = self.segment.words[TAIL_WORD]
        sequence, slot = tail >> 8, tail & 0xFF
        return (sequence, slot) if sequence > self.last and slot < self._slots else (0, 0)

    def _following(self) -> tuple[int, int]:
        words, after = self.segment.words, max(self.last, self._history_after)
        later = [(found, slot) for slot in range(self._slots) if (found := words[SEQ_WORDS[slot]]) > after]
        return min(later, default=(0, 0))

    def _accept(self, lease: Lease) -> bool:
        sequence = lease.sequence
        last, self.last = self.last, sequence
        try:
            lease.header = header = self._read_header(lease.slot)
        except LayoutMismatch:
            self.rejected += 1
            return False
        if header.sequence != sequence:
            self.rejected += 1
            return False
        lease.skipped = sequence - last - 1 if last >= 0 else 0
        self.received += 1
        self.skipped += lease.skipped
        now_ns = time.monotonic_ns()
        latency_ns = max(now_ns - header.captured_ns, 0)
        self._report = RECORD_WORDS.pack(self.received, self.skipped, sequence, len(self._leases), latency_ns, now_ns)
        self._write_report()
        return True

    def _write_report(self) -> None:
        if self._record is not None:
            self._record.buffer[RECORD_RECEIVED : RECORD_RECEIVED + len(self._report)] = self._report

    def _read_header(self, slot: int) -> FrameHeader:
        return FrameHeader.unpack_from(self.segment.buffer, SEQ_WORDS[slot] * 8, self._slot_bytes)

    def _lease(self, slot: int, sequence: int) -> Lease | None:
        segment = self.segment
        self._sweep()
        if slot in self._leases.values():
            return None
        # Registered before it is locked: whatever interrupts this, the lease's end unlocks the slot.
        lease = Lease(self, slot, sequence)
        self._leases[lease.reference] = slot
        if not segment.try_lock(LOCK_READ[slot]) or segment.words[SEQ_WORDS[slot]] != sequence:
            self.overruns += 1
            return None
        return lease
