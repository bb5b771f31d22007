"""A subscriber's steps of a hand-over in plain Python: find a frame, lease its slot, wait for the next."""

from __future__ import annotations

import errno
import time
import weakref
from typing import Any, Final

from framebus.errors import LayoutMismatch
from framebus.ring.frame_header import FrameHeader
from framebus.ring.layout import EVENT
from framebus.ring.record import RECORD_RECEIVED, RECORD_WORDS
from framebus.ring.words import LOCK_READ, NO_SLOT, SEQ_WORDS, TAIL_WORD, UNLOCK
from framebus.shm.futex import sleep_while
from framebus.shm.segment import Segment

MAX_RETRIES: Final = 8
"""How often a subscriber retries to lease a frame before it waits for the next event."""


class Lease:
    """A read-locked slot. The lease ends when its last reference goes.

    An array that is made from the lease has it as its base, so views on the pixels hold the lease too.
    """

    __slots__ = ("__weakref__", "_reference", "header", "reader", "sequence", "skipped", "slot")

    header: FrameHeader
    """The slot's header, once it was read."""

    def __init__(self, reader: Reader, slot: int, sequence: int) -> None:
        self.reader: Reader = reader
        """The reader to which the lease belongs."""
        self.slot: int = slot
        """The slot's number."""
        self.sequence: int = sequence
        """Sequence of the frame in it."""
        self.skipped: int = 0
        """Frames missed since the previous lease."""
        self._reference = weakref.ref(self)  # the key under which the reader tracks the lease without keeping it alive

    @property
    def is_inherited(self) -> bool:
        """Whether the lease was inherited through a fork: the publisher may write its slot again at any time."""
        return self.reader.segment.fd < 0

    @property
    def __array_interface__(self) -> dict[str, Any]:
        header = self.header
        address = self.reader._pixels_address(self.slot)
        return {"version": 3, "shape": header.shape, "typestr": header.dtype, "data": (address, True)}

    def __del__(self, _unlock: list[bytes] = UNLOCK) -> None:
        # A signal handler may raise in here, so Reader._sweep() unlocks the slots of dead leases too. If the garbage
        # collector has cleared the weak reference, _sweep() may already have unlocked the slot, and the reader may have
        # leased it again. In this case, leave the slot to _sweep(), to avoid releasing the new lease.
        reference = getattr(self, "_reference", None)
        if reference is not None and reference() is not None:
            self.reader.segment.unlock(_unlock[self.slot])  # R6


LAST_SEQUENCE = (1 << 63) - 1


class Reader:
    """Leases the slots of one ring. One thread uses it; leases may end in any thread."""

    def __init__(
        self, segment: Segment, slots: int, slot_bytes: int, first_slot: int, every: bool, history: int
    ) -> None:
        """Create a reader without leases.

        Args:
            segment: The ring.
            slots: Number of its slots.
            slot_bytes: Room for pixels in each.
            first_slot: Offset of the first slot's pixels.
            every: Whether to take all frames in order instead of the newest.
            history: How many of the frames that the ring already holds to take first, in order.
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
        """Times a slot was reused before it could be leased."""
        self.rejected: int = 0
        """Invalid slot headers."""
        self._slots = slots
        self._slot_bytes = slot_bytes
        self._first_slot = first_slot
        self._every = every
        self._leases: dict[weakref.ref[Lease], int] = {}
        self._report = b""
        self._record: Segment | None = None
        newest = segment.words[TAIL_WORD] >> 8 if history else 0
        self._history_after = max(newest - history, 0)
        # With ``every``, continue in order after the history, also if the ring is still empty.
        self._history_end = LAST_SEQUENCE if every and history else newest or -1

    def report_to(self, record: Segment) -> None:
        """Write the counters into a subscriber's record from now on, at every lease.

        Args:
            record: The record's file.
        """
        self._record = record

    def resume_from(self, earlier: Reader, first_sequence: int) -> None:
        """Continue after the last frame that a reader of the stream's previous ring has seen.

        Args:
            earlier: That reader, whose counters this one continues.
            first_sequence: The first sequence of this ring.

        Raises:
            TypeError: ``earlier`` is not a reader.
        """
        if not isinstance(earlier, Reader):
            raise TypeError("a reader resumes from a reader")
        # A publisher that restarts with an empty /dev/shm numbers its frames from 1 again.
        self.last = min(earlier.last, first_sequence - 1)
        if self._every and self.last >= 0:
            self._history_after = 0
        self.received, self.skipped = earlier.received, earlier.skipped
        self.overruns, self.rejected = earlier.overruns, earlier.rejected

    @property
    def leases(self) -> int:
        """Number of leases held now."""
        return sum(reference() is not None for reference in list(self._leases))

    def held(self) -> tuple[int, ...]:
        """Return the sequences of the frames that are leased, in order."""
        words = self.segment.words
        slots = [slot for reference, slot in list(self._leases.items()) if reference() is not None]
        return tuple(sorted(words[SEQ_WORDS[slot]] for slot in slots))

    def take(self) -> Lease | None:
        """Lease the newest frame or, in order, the next one (R1 to R4); return ``None`` if there is no new frame.

        Raises:
            OSError: The kernel refused a lock, and not because another process holds it.
        """
        for _ in range(MAX_RETRIES):
            in_order = self.last < self._history_end or (self._every and self.last >= 0)
            sequence, slot = self._following() if in_order else self._newest()
            if not sequence:
                return None
            if (lease := self._lease(slot, sequence)) is not None and self._accept(lease):
                return lease
        return None

    def spin(self, until_ns: int) -> Lease | None:
        """Spin until there is a new frame or CLOCK_MONOTONIC reaches ``until_ns``, then :meth:`take` it."""
        words, unseen = self.segment.words, max(self.last + 1, 1) << 8
        while words[TAIL_WORD] < unseen and time.monotonic_ns() < until_ns:
            pass
        return self.take()

    def sleep(self, event: int, timeout_ns: int) -> Lease | None:
        """Sleep while the event word equals ``event``, for at most ``timeout_ns``, then :meth:`take` a new frame."""
        sleep_while(self.segment.address + EVENT, event, timeout_ns)
        return self.take()

    def warm_up(self) -> Lease | None:
        """Warm the caches: run the lease path against a lock byte that no slot uses.

        Returns:
            A lease with the newest frame's header and without pixels; ``None`` if that header is invalid.

        Raises:
            OSError: As for :meth:`take`.
        """
        slot = self.segment.words[TAIL_WORD] & 0xFF
        if slot >= self._slots or not self._try_lock(NO_SLOT):
            return None
        lease = Lease(self, NO_SLOT, 0)
        self._write_report()
        try:
            lease.header = self._read_header(slot)
        except LayoutMismatch:  # read without the slot's lock, so the publisher may be writing it
            return None
        return lease

    def _pixels_address(self, slot: int) -> int:
        return self.segment.address + self._first_slot + slot * self._slot_bytes

    def _try_lock(self, slot: int) -> bool:
        if self.segment.fd < 0:
            raise OSError(errno.EBADF, "the ring is closed, or is the parent process's")
        return self.segment.try_lock(LOCK_READ[slot])

    def _sweep(self) -> None:
        """Unlock the slots of leases that have ended, and stop tracking them."""
        for reference, slot in list(self._leases.items()):
            if reference() is None:
                self.segment.unlock(UNLOCK[slot])  # R6
                del self._leases[reference]

    def _newest(self) -> tuple[int, int]:
        # R1. The tail is untrusted, because another process writes it: validate the slot's number before using it.
        tail = self.segment.words[TAIL_WORD]
        sequence, slot = tail >> 8, tail & 0xFF
        return (sequence, slot) if sequence > self.last and slot < self._slots else (0, 0)

    def _following(self) -> tuple[int, int]:
        # R1 in order: the lowest sequence after the last one. Like the tail, it is a hint until R3.
        words, after = self.segment.words, max(self.last, self._history_after)
        later = [(found, slot) for slot in range(self._slots) if (found := words[SEQ_WORDS[slot]]) > after]
        return min(later, default=(0, 0))

    def _accept(self, lease: Lease) -> bool:
        sequence = lease.sequence
        # Count the frame as seen even if its header is invalid. A subscriber that retried it would never get past it.
        last, self.last = self.last, sequence
        try:
            lease.header = header = self._read_header(lease.slot)  # R4
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
        # Register the slot before locking it, to ensure that the end of the lease unlocks it, whatever interrupts this.
        lease = Lease(self, slot, sequence)
        self._leases[lease._reference] = slot
        # R2, then R3: the publisher may have claimed, written and unlocked the slot again between R1 and R2.
        if not self._try_lock(slot) or segment.words[SEQ_WORDS[slot]] != sequence:
            self.overruns += 1
            return None
        return lease
