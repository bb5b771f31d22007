"""The record of a subscriber: a file in which it describes itself. docs/spec.md specifies its bytes."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from framebus.errors import LayoutMismatch
from framebus.ring.layout import PAGE_BYTES, VERSION, text

RECORD_MAGIC: Final = b"FBUS-SUB"
RECORD_BYTES: Final = PAGE_BYTES
RECORD_RECEIVED: Final = 128
RECORD_COUNTERS: Final = 6
RECORD: Final = struct.Struct("<8sIIQ48s8s8s")
RECORD_WORDS: Final = struct.Struct(f"<{RECORD_COUNTERS}Q")


@dataclass(frozen=True, slots=True)
class SubscriberRecord:
    """How a subscriber describes itself to other processes: its name, its options and its counters."""

    name: str
    """Its name."""
    mode: str
    """``newest`` or ``every``."""
    wake: str
    """How it waits for a frame, one of the values of ``wake``."""
    max_leases: int
    """Frames that it may hold at a time."""
    since_wall_ns: int
    """When it subscribed, nanoseconds since 1970."""
    received: int = 0
    """Frames received."""
    skipped: int = 0
    """Frames missed between those received."""
    sequence: int = 0
    """Sequence of the newest frame received."""
    leases: int = 0
    """Frames held when it was received."""
    latency_ns: int = 0
    """That frame's time from capture to reception."""
    received_ns: int = 0
    """CLOCK_MONOTONIC of its reception."""

    def pack(self) -> bytes:
        """Return the record's first bytes. The counters, which follow them, are written separately."""
        return RECORD.pack(
            RECORD_MAGIC,
            VERSION,
            self.max_leases,
            self.since_wall_ns,
            self.name.encode(),
            self.mode.encode(),
            self.wake.encode(),
        )

    @classmethod
    def unpack(cls, content: bytes) -> SubscriberRecord:
        """Parse and validate an untrusted record.

        Raises:
            LayoutMismatch: The bytes are not a subscriber's record of this version.
        """
        if len(content) < RECORD_RECEIVED + RECORD_WORDS.size:
            raise LayoutMismatch("a subscriber's record is truncated")
        magic, version, max_leases, since_wall_ns, name, mode, wake = RECORD.unpack_from(content)
        if magic != RECORD_MAGIC or version != VERSION:
            raise LayoutMismatch(f"a subscriber's record is not of version {VERSION}")
        counters = RECORD_WORDS.unpack_from(content, RECORD_RECEIVED)
        return cls(text(name), text(mode), text(wake), max_leases, since_wall_ns, *counters)
