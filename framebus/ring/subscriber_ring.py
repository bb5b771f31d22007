"""A subscriber's side of a ring file: attach to it, check whether its publisher lives, prefault its slots."""

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
    """The file is not a ring of this version, and no publisher holds it, so the next publisher will replace it."""


class SubscriberRing:
    """A subscriber's side of one ring file. Leases keep the file mapped after the subscriber moves to another ring."""

    def __init__(self, stream: str, owner: int | None = None, *, every: bool = False, history: int = 0) -> None:
        """Attach to the ring of a live publisher.

        Args:
            stream: Name of the stream.
            owner: Number of the user that must own the ring; ``None`` accepts any owner.
            every: Whether to take all frames in order instead of the newest.
            history: How many of the frames that the ring already holds to take first, in order.

        Raises:
            StreamNotFound: The stream has no ring, or its publisher is gone.
            LayoutMismatch: A publisher holds the file, but it is not a ring of this version.
            StaleRing: The file is not a ring of this version, and no publisher holds it.
            PermissionDenied: This user may not open the ring, or it belongs to another user than ``owner``.
        """
        backend.check()
        try:
            self.segment: Segment = shm.attach(ring_name(stream), min_bytes=PAGE_BYTES, owner=owner)
        except StreamNotFound:
            raise StreamNotFound(f"no publisher serves the stream {stream!r} here") from None
        try:
            self.header: RingHeader = read_header(self.segment)
        except LayoutMismatch as error:
            # A publisher that starts replaces a stale file, so a subscriber can wait for it.
            raise error if self.is_live() else StaleRing(str(error)) from None
        self.geometry: Geometry = self.header.geometry
        if not self.is_live():
            raise StreamNotFound(f"the publisher of the stream {stream!r} is gone")
        geometry = self.geometry
        self.reader: Reader = backend.steps.Reader(
            self.segment, geometry.slots, geometry.slot_bytes, geometry.first_slot, every, history
        )
        """Holds the leases and the counters."""
        self.unmapped_slots: set[int] = set(range(geometry.slots))
        """Slots whose pages this process has not mapped yet."""

    def is_live(self) -> bool:
        """Return whether a publisher holds the ring's lock."""
        return self.segment.is_locked(LIVE_PROBE)

    def is_open(self) -> bool:
        """Return whether the publisher neither closed nor replaced this file: a hint, which requires no system call."""
        return self.segment.words32[STATE_WORD] == OPEN

    def is_current(self) -> bool:
        """Return whether this file is still the stream's ring."""
        return self.segment.is_current()

    def event(self) -> int:
        """Return the event word. Read it before searching for a frame, and wait while it is unchanged."""
        return self.segment.words32[EVENT_WORD]

    def prefault(self, slot: int) -> None:
        """Map the pages of a slot now, so that reading its pixels does not fault: some 0.8 ms for 10 MB."""
        self.unmapped_slots.remove(slot)
        self.segment.prefault(self.geometry.pixels(slot), self.geometry.slot_bytes)

    def prefault_one(self) -> bool:
        """Prefault the unmapped slot that the publisher is likely to write next.

        Returns:
            Whether there was an unmapped slot.
        """
        if not self.unmapped_slots:
            return False
        # The publisher claims the oldest slot, usually the one after the newest in a circle.
        newest = self.segment.words[TAIL_WORD] & 0xFF
        self.prefault(min(self.unmapped_slots, key=lambda slot: (slot - newest - 1) % self.geometry.slots))
        return True


def read_metadata(lease: Lease) -> memoryview:
    """Return the bytes of a leased frame's metadata."""
    start = SEQ_WORDS[lease.slot] * 8 + METADATA
    return lease.reader.segment.buffer[start : start + lease.header.metadata_bytes]
