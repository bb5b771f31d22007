"""Indices of a ring's words in Python's memoryviews, and the commands for its lock bytes."""

from __future__ import annotations

import struct
from typing import Final

from framebus.ring.frame_header import NUMBERS, FrameHeader
from framebus.ring.layout import (
    EVENT,
    LOCK_SLOTS,
    MAX_SLOTS,
    SLOT_FIELDS,
    SLOT_HEADER_BYTES,
    SLOT_TABLE,
    TAIL,
)
from framebus.shm import locks
from framebus.shm.futex import wake_all
from framebus.shm.segment import Segment

LOCK_READ: Final = [locks.read_lock(LOCK_SLOTS + slot) for slot in range(MAX_SLOTS + 1)]
LOCK_WRITE: Final = [locks.write_lock(LOCK_SLOTS + slot) for slot in range(MAX_SLOTS)]
UNLOCK: Final = [locks.unlock(LOCK_SLOTS + slot) for slot in range(MAX_SLOTS + 1)]
NO_SLOT: Final = MAX_SLOTS
"""Number of a slot that does not exist, whose lock byte is used to warm up."""
TAIL_WORD: Final = TAIL // 8
EVENT_WORD: Final = EVENT // 4
SEQ_WORDS: Final = [(SLOT_TABLE + slot * SLOT_HEADER_BYTES) // 8 for slot in range(MAX_SLOTS)]
WORDS: Final = {
    name: (SLOT_FIELDS + struct.calcsize(f"<{NUMBERS[:index]}")) // 8
    for index, name in enumerate(FrameHeader._fields[: len(NUMBERS)])
}
"""Offset of each number of a slot's header from ``seq[i]``, in words, by the field's name."""
EPOCH_WORD: Final = WORDS["epoch"]
SEQUENCE_WORD: Final = WORDS["sequence"]
CAPTURED_WORD: Final = WORDS["captured_ns"]
CAPTURED_WALL_WORD: Final = WORDS["captured_wall_ns"]
PUBLISHED_WORD: Final = WORDS["published_ns"]


def raise_event(segment: Segment) -> None:
    """Increment the event word and wake all processes that sleep on it (P8)."""
    words32 = segment.words32
    words32[EVENT_WORD] = (words32[EVENT_WORD] + 1) & 0xFFFFFFFF
    wake_all(segment.address + EVENT)
