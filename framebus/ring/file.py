"""What both sides share about the ring's file: its name, its header, and the lock of a live publisher."""

from __future__ import annotations

from typing import Final

from framebus.ring.layout import LOCK_LIVE, PAGE_BYTES, STATE, RingHeader
from framebus.shm import locks
from framebus.shm.paths import companion_path
from framebus.shm.segment import Segment

LIVE_WRITE: Final = locks.write_lock(LOCK_LIVE)
"""The publisher holds this lock as long as it lives."""
LIVE_PROBE: Final = locks.read_lock(LOCK_LIVE)
"""Conflicts with :data:`LIVE_WRITE`."""
STATE_WORD: Final = STATE // 4
"""Index of the state among the file's 32-bit words."""


def ring_name(stream: str) -> str:
    """Return the name of a stream's ring in /dev/shm."""
    return companion_path(stream, "ring").name


def read_header(segment: Segment) -> RingHeader:
    """Parse and validate the ring's header.

    Raises:
        LayoutMismatch: The file is not a ring, has an unsupported layout version, or is corrupted.
    """
    return RingHeader.unpack(segment.buffer[:PAGE_BYTES], segment.size)
