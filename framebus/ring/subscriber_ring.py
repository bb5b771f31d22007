"""A subscriber's side of a ring file: attach to it, see whether its publisher lives, map its slots."""

from __future__ import annotations

from framebus.errors import LayoutMismatch, StreamNotFound
from framebus.ring import backend
from framebus.ring.file import LIVE_PROBE, STATE_WORD, read_header, ring_name
from framebus.ring.layout import METADATA, OPEN, PAGE_BYTES, Geometry, RingHeader
from framebus.ring.leases import Lease, Reader
from framebus.ring.words import EVENT_WORD, SEQ_WORDS, TAIL_WORD
from framebus.shm import segment as shm
from framebus.shm.segment import Segment


class StaleRing(LayoutMismatch):
    """The file is not a ring of this version, and no publisher holds it: the next one replaces it."""


class SubscriberRing:
    """A subscriber's side of one ring file. Its leases keep the file mapped when the subscriber has moved on."""

    def __init__(self, stream: str, owner: int | None = None, *, every: bool = False, history: int = 0) -> None:
        """Attach to the ring of a publisher that lives.

        Args:
            stream: Name of the stream.
            owner: The user, by number, whose ring alone is wanted; ``None`` accepts any user's.
            every: Whether to take all frames in order, or the newest.
            history: How many of the frames that the ring holds already to take first, in order.

        Raises:
            StreamNotFound: There is none, or its publisher is gone.
            LayoutMismatch: A publisher holds the file, and it is not a ring of this version.
            StaleRing: The same, and no publisher holds it.
            PermissionDenied: It is closed to this user, or belongs to another than ``owner``.
        """
        backend.check()
        try:
            self.segment: Segment = shm.attach(ring_name(stream), min_bytes=PAGE_BYTES, owner=owner)
        except StreamNotFound:
            raise StreamNotFound(f"no publisher serves the stream {stream!r} here") from None
        try:
            self.header: RingHeader = read_header(self.segment)
        except LayoutMismatch as error:
            raise error if self.is_live() else StaleRing(str(error)) from None
        self.geometry: Geometry = self.header.geometry
        if not self.is_live():
            raise StreamNotFound(f"the publisher of the stream {stream!r} is gone")
        geometry = self.geometry
        self.reader: Reader = backend.steps.Reader(
            self.segment, geometry.slots, geometry.slot_bytes, geometry.first_slot, every, history
        )
        """What holds the leases, and counts."""
        self.cold: set[int] = set(range(geometry.slots))
        """Slots whose pages are not mapped yet."""

    def is_live(self) -> bool:
        """Whether a publisher holds the ring, by the kernel's word."""
        return self.segment.is_locked(LIVE_PROBE)

    def is_open(self) -> bool:
        """Whether the publisher has neither closed nor left this file: a hint that costs no system call."""
        return self.segment.words32[STATE_WORD] == OPEN

    def is_current(self) -> bool:
        """Whether the stream's ring is still this file."""
        return self.segment.is_current()

    def event(self) -> int:
        """The futex word; read it before looking for a frame, wait while it stays the same."""
        return self.segment.words32[EVENT_WORD]

    def prefault(self, slot: int) -> None:
        """Map the pages of a cold slot: some 0.8 ms for 10 MB, which would else be spent where its pixels are read."""
        self.cold.remove(slot)
        self.segment.prefault(self.geometry.pixels(slot), self.geometry.slot_bytes)

    def prefault_next(self) -> bool:
        """Map the pages of the cold slot that is likely to be written next.

        Returns:
            Whether there was one.
        """
        if not self.cold:
            return False
        newest = self.segment.words[TAIL_WORD] & 0xFF
        self.prefault(min(self.cold, key=lambda slot: (slot - newest - 1) % self.geometry.slots))
        return True


def read_metadata(lease: Lease) -> memoryview:
    """The bytes of a leased frame's metadata."""
    start = SEQ_WORDS[lease.slot] * 8 + METADATA
    return lease.reader.segment.buffer[start : start + lease.header.metadata_bytes]
