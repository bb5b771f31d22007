"""The byte layout of a ring, version 2. This module does no I/O.

docs/spec.md specifies what each field means, and which locks and steps protect it. In short, little-endian::

    0                           header, one page: HEADER; the words tail, event and state, each on its cache line
    4096 + 1024 i               header of slot i: seq[i]; the frame's fields, see frame_header.py; its metadata
    first page after these      pixels of slot 0, of slot_bytes bytes, a whole number of pages; then of slot 1, ...

``tail``, ``seq[i]``, ``event`` and ``state`` are single aligned words, and may be read at any time. All other fields of
a slot may only be read while its lock is held. The lock bytes are far beyond the end of the file, so that no I/O on the
file conflicts with them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from framebus.errors import InvalidArgument, LayoutMismatch

if TYPE_CHECKING:
    pass

VERSION: Final = 2
MAGIC: Final = b"FRAMEBUS"
PAGE_BYTES: Final = 4096
MIN_SLOTS: Final = 3
MAX_LOANS: Final = 253
MAX_SLOTS: Final = 255
MAX_SEQUENCE: Final = 1 << 48
"""More than a publisher reaches in the lifetime of a machine. The tail has room for 2^56."""
MAX_RING_BYTES: Final = 1 << 39
"""Half of the offset at which the lock bytes begin."""

TAIL: Final = 64
EVENT: Final = 128
STATE: Final = 192
OPEN: Final = 1
CLOSED: Final = 2
SUPERSEDED: Final = 3

SLOT_TABLE: Final = PAGE_BYTES
SLOT_HEADER_BYTES: Final = 1024
SLOT_FIELDS: Final = 64
METADATA: Final = 192
MAX_METADATA_BYTES: Final = SLOT_HEADER_BYTES - METADATA

LOCK_LIVE: Final = 1 << 40
LOCK_SLOTS: Final = LOCK_LIVE + 256
LOCK_SEATS: Final = LOCK_LIVE + 4096


HEADER: Final = struct.Struct("<8sIIQQQQI")
VERSIONED: Final = struct.Struct("<8sI")
"""Magic and version, with which every version of the header begins."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """How a ring is divided into slots, and how many of them the publisher and the subscribers may hold."""

    slots: int
    """Number of slots."""
    slot_bytes: int
    """Room for pixels in each, a whole number of pages."""
    max_loans: int = 1
    """Slots that the publisher may write at a time."""

    @classmethod
    def for_frames(cls, slots: int, frame_bytes: int, max_loans: int = 1) -> Geometry:
        """Return the geometry of a ring whose largest frame has ``frame_bytes`` bytes of pixels.

        Raises:
            InvalidArgument: ``slots`` is not from 3 to 255, ``max_loans`` leaves no slot for subscribers, or the frame
                is empty or too large.
        """
        if not MIN_SLOTS <= slots <= MAX_SLOTS:
            raise InvalidArgument(f"a ring has {MIN_SLOTS} to {MAX_SLOTS} slots, not {slots}")
        if not 1 <= max_loans <= slots - 2:
            raise InvalidArgument(
                f"a ring of {slots} slots allows 1 to {slots - 2} loans at a time, not {max_loans}: one slot holds the "
                "newest frame, and at least one is for subscribers"
            )
        geometry = cls(slots, _pages(frame_bytes), max_loans)
        if frame_bytes < 1 or geometry.total_bytes > MAX_RING_BYTES:
            raise InvalidArgument(
                f"{slots} frames of {frame_bytes} bytes do not fit in a ring: use fewer or smaller ones"
            )
        return geometry

    @property
    def seats(self) -> int:
        """Leases that all subscribers may hold together: all slots except the newest frame's and those of the loans."""
        return self.slots - 1 - self.max_loans

    @property
    def first_slot(self) -> int:
        """Offset of the first slot's pixels."""
        return _pages(SLOT_TABLE + self.slots * SLOT_HEADER_BYTES)

    @property
    def total_bytes(self) -> int:
        """Size of the file."""
        return self.first_slot + self.slots * self.slot_bytes

    def slot_header(self, slot: int) -> int:
        """Return the offset of a slot's header, whose first word is ``seq[slot]``."""
        return SLOT_TABLE + slot * SLOT_HEADER_BYTES

    def pixels(self, slot: int) -> int:
        """Return the offset of a slot's pixels."""
        return self.first_slot + slot * self.slot_bytes


@dataclass(frozen=True, slots=True)
class RingHeader:
    """The fields of the ring's header, except the words that change."""

    geometry: Geometry
    first_sequence: int
    epoch: int
    created_wall_ns: int

    def pack(self) -> bytes:
        """Return the header's bytes, from offset 0."""
        geometry = self.geometry
        return HEADER.pack(
            MAGIC,
            VERSION,
            geometry.slots,
            geometry.slot_bytes,
            self.first_sequence,
            self.epoch,
            self.created_wall_ns,
            geometry.max_loans,
        )

    @classmethod
    def unpack(cls, content: bytes | memoryview, file_bytes: int) -> RingHeader:
        """Parse and validate an untrusted header.

        Raises:
            LayoutMismatch: The file is not a ring, has an unsupported layout version, or is corrupted, because the
                header does not match a file of ``file_bytes`` bytes.
        """
        if len(content) < HEADER.size:
            raise LayoutMismatch(f"the ring file has {len(content)} bytes, less than a header: it is not a ring")
        magic, version, slots, slot_bytes, *rest, max_loans = HEADER.unpack_from(content)
        if magic != MAGIC:
            raise LayoutMismatch("the ring file does not begin with FRAMEBUS: it is not a ring")
        if version != VERSION:
            raise LayoutMismatch(
                f"the ring has layout version {version}, this framebus reads version {VERSION}: "
                "run the same version of framebus in all containers"
            )
        geometry = Geometry(slots, slot_bytes, max_loans)
        if (
            not MIN_SLOTS <= slots <= MAX_SLOTS
            or slot_bytes < 1
            or slot_bytes % PAGE_BYTES
            or not 1 <= max_loans <= slots - 2
        ):
            raise LayoutMismatch(f"the ring's header declares {slots} slots of {slot_bytes} bytes: it is corrupted")
        # Reading beyond the end of a file that is too short would raise SIGBUS.
        if geometry.total_bytes != file_bytes:
            raise LayoutMismatch(
                f"the ring's header declares {geometry.total_bytes} bytes, the file has {file_bytes}: it is corrupted"
            )
        return cls(geometry, *rest)


def _pages(size: int) -> int:
    return -(-size // PAGE_BYTES) * PAGE_BYTES


def text(field: bytes) -> str:
    """Return the printable characters of a field that is padded with NUL."""
    return "".join(letter for letter in field.rstrip(b"\0").decode("utf-8", "replace") if letter.isprintable())
