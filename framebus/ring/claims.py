"""The publisher's steps of a hand-over in plain Python: claim a slot, publish it, or give it back."""

from __future__ import annotations

import contextlib
import errno
import socket
import time
from collections.abc import Callable, Sequence
from itertools import chain
from operator import index
from typing import Any

from framebus.errors import AlreadyInUse
from framebus.ring.frame_header import SLOT_DESCRIPTION
from framebus.ring.layout import SLOT_HEADER_BYTES
from framebus.ring.message import Message, check_message, send_all
from framebus.ring.open_claims import Claim, OpenClaims
from framebus.ring.words import (
    CAPTURED_WALL_WORD,
    CAPTURED_WORD,
    EPOCH_WORD,
    LOCK_WRITE,
    NO_SLOT,
    PUBLISHED_WORD,
    SEQ_WORDS,
    SEQUENCE_WORD,
    TAIL_WORD,
    UNLOCK,
    raise_event,
)
from framebus.shm.segment import Segment


def _word(signed: int) -> int:
    return int.from_bytes(index(signed).to_bytes(8, signed=True))


__all__ = ["Claim", "Writer"]


class Writer:
    """Claims and publishes the slots of one ring. One thread uses it; another thread may close it meanwhile."""

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
        """Create a writer without claims.

        Args:
            segment: The ring. Its ``tail`` refers to its newest frame.
            slots: Number of its slots.
            slot_bytes: Room for pixels in each.
            first_slot: Offset of the first slot's pixels.
            epoch: The publisher's epoch.
            next_sequence: The sequence of the next frame.
            max_loans: Slots that may be claimed at a time.
        """
        self.segment: Segment = segment
        """The ring."""
        self.next_sequence: int = next_sequence
        """Sequence of the next frame."""
        self.lost: int = 0
        """Claims that were given back because nothing referenced them any more."""
        self._slot_bytes = slot_bytes
        self._first_slot = first_slot
        self._epoch = epoch
        self._max_loans = max_loans
        self._open = OpenClaims()
        self._is_used = self._is_closed = False
        self._at_end: Callable[[], None] | None = None
        words = segment.words
        self._order = sorted(range(slots), key=lambda slot: words[SEQ_WORDS[slot]])
        tail = words[TAIL_WORD]
        self._newest = tail & 0xFF if tail >> 8 else -1

    @property
    def loans(self) -> int:
        """Number of claims that are neither published nor abandoned, and still referenced."""
        return self._open.referenced()

    def watch(self, arrays: list[Any]) -> None:
        """Count a claim as referenced while there are views on its slot's array.

        Args:
            arrays: A list with one array for each slot. Only this list and the views on the slot's pixels may reference
                an array. Sharing them avoids creating an array for each frame.

        Raises:
            TypeError: ``arrays`` is not a list.
        """
        if not isinstance(arrays, list):
            raise TypeError("a list of arrays is required")
        self._open.arrays = arrays

    def claim(self, description: bytes) -> Claim | None:
        """Write-lock the oldest free slot, except the newest frame's, and write a part of its header (P1 to P3).

        One pass over the slots is not enough. Between two attempts, a subscriber may move its lease from a slot that
        was held to one that has not been tried yet, so the pass can find each slot held although one was always free.
        Leases only move to newer frames. The second pass, from new to old, therefore meets each lease at most once, and
        finds a slot whenever admission leaves one.

        Args:
            description: The header's bytes from height on, from :meth:`framebus.ring.frame_header.Description.pack`.

        Returns:
            The slot's claim; ``None`` if no slot is free, ``max_loans`` are claimed, or the writer was closed.

        Raises:
            OSError: The kernel refused a lock, and not because another process holds it.
            TypeError: The description is not bytes.
            ValueError: The description is longer than the rest of a slot's header.
        """
        if not isinstance(description, bytes):
            raise TypeError(f"expected bytes, {type(description).__name__} found")
        if len(description) > SLOT_HEADER_BYTES - SLOT_DESCRIPTION:
            raise ValueError("the description is longer than a slot's header")
        self._enter()
        try:
            return None if self._is_closed else self._claim_oldest(description)
        finally:
            self._is_used = False  # before any call, because a signal handler may raise when a call begins
            self._end()

    def publish(
        self,
        claim: Claim,
        captured_ns: int,
        captured_wall_ns: int,
        sockets: Sequence[socket.socket] = (),
        message: Message | None = None,
    ) -> int:
        """Finish a claimed slot's header, unlock the slot, and wake and notify the subscribers (P4 to P8).

        Args:
            claim: A claim of this writer, whose pixels are written.
            captured_ns: Time of capture, CLOCK_MONOTONIC.
            captured_wall_ns: Time of capture, nanoseconds since 1970.
            sockets: The sockets to send the message to, as :func:`framebus.ring.message.send_all` does.
            message: The message to render and send. It is required if there are sockets.

        Returns:
            Time of publication, CLOCK_MONOTONIC in ns.

        Raises:
            OSError: The segment belongs to the parent process, or the writer was closed. After this and the other
                errors, nothing was written.
            OverflowError: A time does not fit a signed 64-bit number.
            TypeError: A time is not an integer, or the message is not one.
            ValueError: The claim belongs to another writer, or was published or abandoned; or the message is too long,
                or an offset is outside it.
        """
        checked = check_message(message) if len(sockets) else None
        if not isinstance(claim, Claim) or claim.writer is not self or not claim.is_open:
            raise ValueError("the claim is not an open one of this writer")
        captured, captured_wall = _word(captured_ns), _word(captured_wall_ns)
        self._enter()
        try:
            segment, slot, sequence = self.segment, claim.slot, self.next_sequence
            if segment.fd < 0 or self._is_closed:
                raise OSError(errno.EBADF, "the ring is closed")
            words, seq = segment.words, SEQ_WORDS[slot]
            published_ns = time.monotonic_ns()
            # P4: number the frame now, so that sequences follow the order of publication.
            words[seq + SEQUENCE_WORD] = sequence
            words[seq + CAPTURED_WORD] = captured
            words[seq + CAPTURED_WALL_WORD] = captured_wall
            words[seq + PUBLISHED_WORD] = published_ns
            try:
                words[seq] = sequence  # P5: a subscriber may lock the slot as soon as it is unlocked
                self._make_visible(claim, sequence)
            except BaseException:
                # A signal handler may raise between any two steps. Each step may be repeated. After P5, a subscriber
                # that searches the slots may find the sequence, so P6 to P8 must follow.
                if words[seq] == sequence:
                    self._make_visible(claim, sequence)
                raise
            if checked is not None:
                send_all(sockets, checked.render(sequence, slot, captured_ns, published_ns))
            return published_ns
        finally:
            self._is_used = False
            self._end()

    def _give_back(self, claim: Claim) -> None:
        if claim.is_open and claim.writer is self:
            self.segment.unlock(UNLOCK[claim.slot])
            self._forget(claim)

    def close(self, finish: Callable[[], None]) -> None:
        """Stop claiming and publishing, and call ``finish`` when no thread is in the middle of either.

        That is immediately, or when the other thread's call ends. The method may be called again if ``finish`` raised.

        Args:
            finish: The function to call.
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

    def _make_visible(self, claim: Claim, sequence: int) -> None:
        segment, slot = self.segment, claim.slot
        # Forget the claim before P6, to prevent a sweep from unlocking the slot after it was claimed again.
        self._forget(claim)
        self.next_sequence = sequence + 1
        self._newest = slot
        segment.unlock(UNLOCK[slot])  # P6
        segment.words[TAIL_WORD] = sequence << 8 | slot  # P7: after P6, so that the slot is not locked
        raise_event(segment)  # P8
        # Reorder at every publication rather than at the next claim, because several frames may be published in
        # between.
        self._order = [*(other for other in self._order if other != slot), slot]

    def _forget(self, claim: Claim) -> None:
        claim.is_open = False
        self._open.slots.pop(claim._reference, None)

    def _sweep(self) -> None:
        for reference, slot in self._open.lost():
            if slot != NO_SLOT:
                self.segment.unlock(UNLOCK[slot])
                self.lost += 1
            del self._open.slots[reference]

    def _claim_oldest(self, description: bytes) -> Claim | None:
        self._sweep()
        claims = self._open.slots
        if len(claims) >= self._max_loans:
            return None
        # P1 skips the newest frame and the loans, because the locks of one publisher do not exclude each other.
        taken = {self._newest, *claims.values()}
        claim = Claim(self)
        claims[claim._reference] = NO_SLOT
        try:
            for slot in chain(self._order, reversed(self._order)):
                if slot not in taken and self._lock(claim, slot, description):
                    claim.now_ns, claim.now_wall_ns = time.monotonic_ns(), time.time_ns()
                    return claim
        except OSError:
            # The error's traceback keeps the claim alive, so its __del__() would not give the slot back now. The lock
            # is held if a signal handler raised the error.
            with contextlib.suppress(OSError):
                self.segment.unlock(UNLOCK[claim.slot])
            self._forget(claim)
            raise
        claims[claim._reference] = NO_SLOT
        self._forget(claim)
        return None

    def _lock(self, claim: Claim, slot: int, description: bytes) -> bool:
        segment = self.segment
        # Register the slot before locking it, to ensure that the end of the claim unlocks it, whatever interrupts this.
        self._open.slots[claim._reference] = claim.slot = slot
        if segment.fd < 0 or not segment.try_lock(LOCK_WRITE[slot]):  # P1
            return False
        words, seq = segment.words, SEQ_WORDS[slot]
        words[seq] = 0  # P2: prevents subscribers from accepting the slot if this process dies before P5
        words[seq + EPOCH_WORD] = self._epoch  # P3: a part of the header; the caller writes the pixels
        start = seq * 8 + SLOT_DESCRIPTION
        segment.buffer[start : start + len(description)] = description
        return True
