"""The publisher's steps of a hand-over in plain Python: claim a slot, publish it, give it back."""

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

from framebus.errors import AlreadyInUse
from framebus.ring.frame_header import SLOT_DESCRIPTION
from framebus.ring.message import NO_MESSAGE, Message, send_all
from framebus.ring.words import (
    CAPTURED_WORD,
    EPOCH_WORD,
    LOCK_WRITE,
    NO_SLOT,
    SEQ_WORDS,
    TAIL_WORD,
    UNLOCK,
    raise_event,
)
from framebus.shm.segment import Segment


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
