"""A subscriber's record: what it tells of itself in a file of its own. docs/spec.md has the table."""

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
    """What a subscriber tells of itself."""

    name: str
    """The name it gave itself."""
    mode: str
    """``newest`` or ``every``."""
    wake: str
    """How it is woken."""
    max_leases: int
    """Frames that it may hold at once."""
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
        """The record's first bytes; the counters behind them are written apart."""
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
        """Read a record, believing nothing of it.

        Raises:
            LayoutMismatch: It is not a subscriber's record of this version.
        """
        if len(content) < RECORD_RECEIVED + RECORD_WORDS.size:
            raise LayoutMismatch("a subscriber's record is cut short")
        magic, version, max_leases, since_wall_ns, name, mode, wake = RECORD.unpack_from(content)
        if magic != RECORD_MAGIC or version != VERSION:
            raise LayoutMismatch(f"a subscriber's record is not of version {VERSION}")
        counters = RECORD_WORDS.unpack_from(content, RECORD_RECEIVED)
        return cls(text(name), text(mode), text(wake), max_leases, since_wall_ns, *counters)
