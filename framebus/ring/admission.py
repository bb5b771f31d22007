"""Admission: seats limit how many frames all subscribers may lease together, and records describe the subscribers.

A ring of N slots whose publisher takes L loans has N - 1 - L seats: one slot holds the newest frame, and the publisher
writes L others. A subscriber read-locks one seat for every frame that it may hold. This ensures that the publisher
always finds a free slot, and never waits for a cooperating subscriber.

Read locks do not exclude each other, so a seat is taken if a write lock on it would conflict. The file's flock(2)
prevents two subscribers from finding the same seat free and both locking it.

A record (:class:`~framebus.ring.record.SubscriberRecord`) is a file in which a subscriber describes itself: its name,
its options and its counters. The subscriber locks the file while it lives.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from framebus.errors import LayoutMismatch, SubscriberLimitReached
from framebus.ring.layout import LOCK_SEATS, Geometry
from framebus.ring.record import RECORD_BYTES, SubscriberRecord
from framebus.shm import locks
from framebus.shm import segment as shm
from framebus.shm.paths import SHM_DIRECTORY, companion_path, companion_paths, random_suffix
from framebus.shm.segment import RING_MODE, Segment

ADMISSION_TIMEOUT_S: Final = 0.5
UNFINISHED: Final = ".new"
"""Suffix of a record's file until it is locked."""
MAX_RECORDS_CHECKED: Final = 256
"""Records that one subscriber checks for dead owners, to limit how long it takes to subscribe."""
_ALIVE: Final = locks.write_lock(0)
_PROBE: Final = locks.read_lock(0)


def take_seats(segment: Segment, geometry: Geometry, count: int) -> None:
    """Take ``count`` seats of a ring. The kernel releases them when the segment's descriptor closes.

    Raises:
        SubscriberLimitReached: Fewer seats are free.
    """
    # Go on without it after the time-out: a process that holds it forever must not prevent subscriptions.
    held = locks.acquire_flock(segment, ADMISSION_TIMEOUT_S)
    taken: list[int] = []
    try:
        for seat in range(geometry.seats):
            if len(taken) == count:
                break
            offset = LOCK_SEATS + seat
            # Query a write lock, because the read locks of two subscribers would not conflict.
            if not segment.is_locked(locks.write_lock(offset)) and segment.try_lock(locks.read_lock(offset)):
                taken.append(offset)
        if len(taken) < count:
            # Return the seats at once, instead of when the descriptor closes, for other subscribers.
            for offset in taken:
                segment.unlock(locks.unlock(offset))
            raise SubscriberLimitReached(
                f"the ring's {geometry.slots} slots leave {geometry.seats} leases to subscribers, {len(taken)} are "
                f"free and this one wants {count}: open the publisher with more slots, or this subscriber with fewer "
                "leases"
            )
    finally:
        if held:
            locks.release_flock(segment)


def seats_taken(fd: int, geometry: Geometry) -> int:
    """Return how many seats are held now of the ring that is open as ``fd``."""
    return sum(locks.is_locked(fd, locks.write_lock(LOCK_SEATS + seat)) for seat in range(geometry.seats))


class RecordFile:
    """The file of a subscriber's record, locked while the subscriber lives. Other processes only read it.

    The file gets its final name after it is locked, and the random suffix is never reused. A file with a final name and
    no lock therefore belonged to a subscriber that died.
    """

    def __init__(self, stream: str, record: SubscriberRecord) -> None:
        self._is_removed = False
        while True:
            self._name = companion_path(stream, f"sub.{random_suffix()}").name
            try:
                if self._create(record.pack()):
                    break
            except BaseException:
                self._remove_names()  # a signal handler may have raised before the segment was stored
                raise

    def _create(self, content: bytes) -> bool:
        self.segment: Segment = shm.create(self._name + UNFINISHED, RECORD_BYTES, RING_MODE, "a subscriber's record")
        """The record's file, into which its subscriber's reader writes the counters."""
        self.segment.buffer[: len(content)] = content
        self.segment.try_lock(_ALIVE)
        try:
            self.segment.rename(self._name)
        except FileNotFoundError:
            return False  # before it was locked it looked like a leftover, and another process removed it
        return True

    def remove(self) -> None:
        """Remove the file. Does nothing in a forked child, where the file belongs to the parent."""
        segment: Segment | None = self.__dict__.get("segment")
        if segment is None or segment.fd < 0:
            return
        if not self._is_removed:
            self._remove_names()
            self._is_removed = True
        segment.close()

    __del__ = remove

    def _remove_names(self) -> None:
        # Both names: a signal handler may have raised before or after the rename.
        for name in (self._name, self._name + UNFINISHED):
            (SHM_DIRECTORY / name).unlink(missing_ok=True)


def remove_dead_records(stream: str) -> int:
    """Remove the records that killed subscribers of this user left behind; return how many.

    At most ``MAX_RECORDS_CHECKED`` records are checked; the next subscriber or ``framebus gc`` removes the others.
    Unfinished records are skipped, because their subscriber may be about to lock them.
    """
    removed = 0
    paths = companion_paths(stream, "sub.*")[:MAX_RECORDS_CHECKED]
    for path, fd in _opened(path for path in paths if not path.name.endswith(UNFINISHED)):
        with contextlib.suppress(OSError):
            if os.fstat(fd).st_uid == os.geteuid() and not locks.is_locked(fd, _PROBE):
                path.unlink()
                removed += 1
    return removed


def read_records(stream: str) -> list[tuple[Path, SubscriberRecord | None, bool]]:
    """Return the path of each readable record, its content (``None`` if invalid), and whether its subscriber lives.

    Records are read with pread(2) instead of mapped, because their owners can truncate them.
    """
    records = []
    for path, fd in _opened(companion_paths(stream, "sub.*")):
        with contextlib.suppress(OSError):
            alive = locks.is_locked(fd, _PROBE)
            records.append((path, _read_record(fd), alive))
    return records


def _opened(paths: Iterable[Path]) -> Iterator[tuple[Path, int]]:
    """Yield each file that this user can open, with a descriptor that is closed at the next iteration."""
    for path in paths:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            continue
        try:
            yield path, fd
        finally:
            os.close(fd)


def _read_record(fd: int) -> SubscriberRecord | None:
    try:
        return SubscriberRecord.unpack(os.pread(fd, RECORD_BYTES, 0))
    except LayoutMismatch:
        return None


def new_record(name: str, mode: str, wake: str, max_leases: int) -> SubscriberRecord:
    """Return the record of a subscriber that subscribes now."""
    return SubscriberRecord(name, mode, wake, max_leases, time.time_ns())
