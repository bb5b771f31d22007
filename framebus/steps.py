"""The steps of a hand-over that decide its time, in plain Python: what runs where ``framebus._native`` was not built.

``_native.c`` does the same, compiled: a subscriber has the frame in about two thirds of the time, for code that has not
run since the frame before waits for memory with nearly every line. :mod:`framebus.ring` tells what the steps are for,
and in which order they must come.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import time
from collections import deque
from collections.abc import Sequence
from itertools import chain
from operator import index
from typing import Any, Final, NamedTuple

from framebus import segment as shm
from framebus.errors import LayoutMismatch
from framebus.layout import (
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
    SlotHeader,
)
from framebus.segment import Segment
from framebus.wake import sleep_while, wake_all

LOCK_READ: Final = [shm.read_lock(LOCK_SLOTS + slot) for slot in range(MAX_SLOTS + 1)]
LOCK_WRITE: Final = [shm.write_lock(LOCK_SLOTS + slot) for slot in range(MAX_SLOTS)]
UNLOCK: Final = [shm.unlock(LOCK_SLOTS + slot) for slot in range(MAX_SLOTS + 1)]
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
SEND_FLAGS: Final = socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT
SLOT_AFTER_SEQUENCE: Final = 9
CAPTURED_FROM_END: Final = 17
PUBLISHED_FROM_END: Final = 8
"""Where a notification has the slot, and its times."""


def raise_event(segment: Segment) -> None:
    """Change the event word and wake all who sleep on it."""
    words32 = segment.words32
    words32[EVENT_WORD] = (words32[EVENT_WORD] + 1) & 0xFFFFFFFF
    wake_all(segment.address + EVENT)


def _word(signed: int) -> int:
    return int.from_bytes(index(signed).to_bytes(8, signed=True))


def send_all(sockets: Sequence[socket.socket], content: bytes) -> None:
    """Send the same to each socket, without waiting, and whole or not at all.

    One that is full is left out. One that takes a part is shut down, for what follows would make no sense to who reads
    it: Linux's Unix sockets never do so with a few kB.
    """
    for each in sockets:
        with contextlib.suppress(OSError):
            if each.send(content, SEND_FLAGS) < len(content):
                each.shutdown(socket.SHUT_RDWR)


class Template(NamedTuple):
    """The notifications of frames of one format, but for what differs from frame to frame."""

    content: bytes
    """A whole notification, with anything where that stands; it ends with the time of publication."""
    at: int
    """Where it has the sequence."""


def fill(template: Template, sequence: int, slot: int, captured_ns: int, published_ns: int) -> bytes:
    """The notification of one frame.

    Args:
        template: Those of the frame's stream and format.
        sequence: The frame's sequence.
        slot: The frame's slot.
        captured_ns: Time of capture, CLOCK_MONOTONIC.
        published_ns: Time of publication, CLOCK_MONOTONIC.
    """
    content, end = bytearray(template.content), len(template.content)
    struct.pack_into(">Q", content, template.at, sequence)
    content[template.at + SLOT_AFTER_SEQUENCE] = slot
    struct.pack_into(">q", content, end - CAPTURED_FROM_END, captured_ns)
    struct.pack_into(">q", content, end - PUBLISHED_FROM_END, published_ns)
    return bytes(content)


NO_TEMPLATE: Final = Template(b"", 0)


class Writer:
    """Claims and publishes the slots of one ring."""

    def __init__(self, segment: Segment, slots: int, epoch: int, next_sequence: int) -> None:
        """Claim nothing yet.

        Args:
            segment: The ring. Its ``tail`` tells of its newest frame.
            slots: Number of its slots.
            epoch: The publisher's epoch.
            next_sequence: The sequence of the next frame.
        """
        self.segment = segment
        """The ring."""
        self.next_sequence = next_sequence
        """Sequence that the next frame will have."""
        self._epoch = epoch
        words = segment.words
        self._order = sorted(range(slots), key=lambda slot: words[SEQ_WORDS[slot]])
        tail = words[TAIL_WORD]
        self._newest = tail & 0xFF if tail >> 8 else -1

    def claim(self, description: bytes) -> tuple[int, int, int] | None:
        """Write-lock the oldest slot that is free and not the newest, and write what is known of its header.

        A subscriber may move its lease from a slot that could not be locked to one that is yet to be tried, so that
        each is held when its turn comes, though one was free all the time. Leases move to newer frames only: the second
        pass, from new to old, meets each of them once at most, and finds a slot whenever admission leaves one.

        Args:
            description: The header's bytes from height on, of :func:`framebus.layout.describe`.

        Returns:
            The slot, the time, CLOCK_MONOTONIC, and the time since 1970, both in ns; ``None`` when there is no slot.
        """
        if self._newest >= 0 and self._newest != self._order[-1]:
            self._order.remove(self._newest)
            self._order.append(self._newest)
        for slot in chain(self._order, reversed(self._order)):
            if slot != self._newest and self._claim(slot, description):
                return slot, time.monotonic_ns(), time.time_ns()
        return None

    def publish(
        self,
        slot: int,
        captured_ns: int,
        captured_wall_ns: int,
        sockets: Sequence[socket.socket] = (),
        template: Template = NO_TEMPLATE,
    ) -> int:
        """Finish a claimed slot's header, let readers in, wake who sleeps, and tell who listens.

        Args:
            slot: What :meth:`claim` returned; its pixels are written.
            captured_ns: Time of capture, CLOCK_MONOTONIC.
            captured_wall_ns: Time of capture since 1970.
            sockets: Those to which a notification goes, as :func:`send_all` sends it.
            template: The notification, to be filled; at most 257 bytes.

        Returns:
            Time of publication, CLOCK_MONOTONIC in ns.

        Raises:
            OSError: The segment is the parent's, or was closed. As with the others, nothing was written.
            OverflowError: A time is no signed 64-bit number.
            TypeError: A time is no integer.
        """
        segment, sequence = self.segment, self.next_sequence
        if segment.fd < 0:
            raise OSError(errno.EBADF, "the ring is closed")
        captured, captured_wall = _word(captured_ns), _word(captured_wall_ns)
        words, seq = segment.words, SEQ_WORDS[slot]
        published_ns = time.monotonic_ns()
        words[seq + CAPTURED_WORD] = captured
        words[seq + CAPTURED_WORD + 1] = captured_wall
        words[seq + CAPTURED_WORD + 2] = published_ns
        words[seq] = sequence
        segment.unlock(UNLOCK[slot])
        words[TAIL_WORD] = sequence << 8 | slot
        raise_event(segment)
        self.next_sequence = sequence + 1
        self._newest = slot
        if sockets:
            send_all(sockets, fill(template, sequence, slot, captured_ns, published_ns))
        return published_ns

    def _claim(self, slot: int, description: bytes) -> bool:
        segment = self.segment
        if segment.fd < 0 or not segment.try_lock(LOCK_WRITE[slot]):
            return False
        words, seq = segment.words, SEQ_WORDS[slot]
        words[seq] = 0
        words[seq + EPOCH_WORD] = self._epoch
        words[seq + EPOCH_WORD + 1] = self.next_sequence
        start = seq * 8 + SLOT_DESCRIPTION
        segment.buffer[start : start + len(description)] = description
        return True


class Lease:
    """A read-locked slot. It ends when its last reference goes, and every array made of it is one.

    numpy takes the pixels through ``__array_interface__`` and keeps the lease as the array's base.
    """

    __slots__ = ("header", "reader", "sequence", "skipped", "slot")

    header: SlotHeader
    """What the slot says of its frame, once it was read."""

    def __init__(self, reader: Reader, slot: int, sequence: int) -> None:
        self.reader = reader
        """Who holds it."""
        self.slot = slot
        """The slot's number."""
        self.sequence = sequence
        """Sequence of the frame in it."""
        self.skipped = 0
        """Frames missed since the one that was leased before."""

    @property
    def __array_interface__(self) -> dict[str, Any]:
        header = self.header
        address = self.reader.pixels_address(self.slot)
        return {"version": 3, "shape": header.shape, "typestr": header.dtype, "data": (address, True)}

    def __del__(self, _no_slot: int = NO_SLOT, _unlock: list[bytes] = UNLOCK) -> None:
        # This may run inside any allocation of any thread: no lock is taken, and the slot is free before it counts as
        # returned, so that a new lease on it can never be undone by this unlock.
        self.reader.segment.unlock(_unlock[self.slot])
        if self.slot != _no_slot:
            self.reader.returned.append(self.slot)


class Reader:
    """Leases the slots of one ring."""

    def __init__(self, segment: Segment, slots: int, slot_bytes: int, first_slot: int, every: bool) -> None:
        """Lease nothing yet.

        Args:
            segment: The ring.
            slots: Number of its slots.
            slot_bytes: Room for pixels in each.
            first_slot: Offset of the first slot's pixels.
            every: Whether to take all frames in order, or the newest.
        """
        self.segment = segment
        """The ring."""
        self.last = -1
        """Sequence of the newest frame seen; -1 before the first."""
        self.received = 0
        """Frames leased."""
        self.skipped = 0
        """Frames missed between them."""
        self.overruns = 0
        """Slots reused before they were leased."""
        self.rejected = 0
        """Slot headers that made no sense."""
        self.returned: deque[int] = deque()
        """Slots whose leases have ended since somebody counted."""
        self._slots = slots
        self._slot_bytes = slot_bytes
        self._first_slot = first_slot
        self._every = every
        self._held: set[int] = set()
        self._report = b""
        self._record: Segment | None = None

    def report_to(self, record: Segment) -> None:
        """Write the counters into a subscriber's record from now on, with every lease."""
        self._record = record

    def go_on(self, earlier: Reader, first_sequence: int) -> None:
        """Go on where the reader of another ring of the same stream has ended.

        Args:
            earlier: That reader, whose counters are taken over.
            first_sequence: The sequence with which this ring begins.
        """
        self.last = min(earlier.last, first_sequence - 1)
        self.received, self.skipped = earlier.received, earlier.skipped
        self.overruns, self.rejected = earlier.overruns, earlier.rejected

    @property
    def leases(self) -> int:
        """Leases held now."""
        self._count_returned()
        return len(self._held)

    def take(self) -> Lease | None:
        """Lease the newest frame, or the oldest that comes after the last one, if it is not seen yet."""
        for _ in range(LOOKS):
            sequence, slot = self._following() if self._every and self.last >= 0 else self._newest()
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
        """Lease a byte that is no slot's, with the newest frame's header; ``None`` if that makes no sense.

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

    def _count_returned(self) -> None:
        while self.returned:
            self._held.discard(self.returned.popleft())

    def _newest(self) -> tuple[int, int]:
        tail = self.segment.words[TAIL_WORD]
        sequence, slot = tail >> 8, tail & 0xFF
        return (sequence, slot) if sequence > self.last and slot < self._slots else (0, 0)

    def _following(self) -> tuple[int, int]:
        words = self.segment.words
        later = [(found, slot) for slot in range(self._slots) if (found := words[SEQ_WORDS[slot]]) > self.last]
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
        self._report = RECORD_WORDS.pack(self.received, self.skipped, sequence, len(self._held), latency_ns, now_ns)
        self._write_report()
        return True

    def _write_report(self) -> None:
        if self._record is not None:
            self._record.buffer[RECORD_RECEIVED : RECORD_RECEIVED + len(self._report)] = self._report

    def _read_header(self, slot: int) -> SlotHeader:
        return SlotHeader.unpack_from(self.segment.buffer, SEQ_WORDS[slot] * 8, self._slot_bytes)

    def _lease(self, slot: int, sequence: int) -> Lease | None:
        segment = self.segment
        self._count_returned()
        if slot in self._held:
            return None
        if not segment.try_lock(LOCK_READ[slot]):
            self.overruns += 1
            return None
        if segment.words[SEQ_WORDS[slot]] != sequence:
            segment.unlock(UNLOCK[slot])
            self.overruns += 1
            return None
        self._held.add(slot)
        return Lease(self, slot, sequence)
