"""Admission: seats bound what all subscribers lease together, and each subscriber's record tells who it is.

A ring of N slots whose publisher takes L loans has N - 1 - L seats: one slot holds the newest frame, and L are written.
A subscriber read-locks a seat for every frame that it may hold, so the publisher always finds a slot and never waits
for an honest subscriber. Read locks do not exclude each other, so a seat is taken when a write lock on it would
conflict, and the file's flock(2) orders those that look and take.
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
"""End of a record's name until it is locked."""
MAX_LOOKED_AT: Final = 256
_ALIVE: Final = locks.write_lock(0)
_PROBE: Final = locks.read_lock(0)


def take_seats(segment: Segment, geometry: Geometry, count: int) -> None:
    """Take ``count`` seats of a ring; they are free again when the segment's descriptor closes.

    Raises:
        SubscriberLimitReached: Fewer are free.
    """
    held = locks.hold_briefly(segment, ADMISSION_TIMEOUT_S)
    taken: list[int] = []
    try:
        for seat in range(geometry.seats):
            if len(taken) == count:
                break
            offset = LOCK_SEATS + seat
            if not segment.is_locked(locks.write_lock(offset)) and segment.try_lock(locks.read_lock(offset)):
                taken.append(offset)
        if len(taken) < count:
            for offset in taken:
                segment.unlock(locks.unlock(offset))
            raise SubscriberLimitReached(
                f"the ring's {geometry.slots} slots leave {geometry.seats} leases to subscribers, {len(taken)} are "
                f"free and this one wants {count}: open the publisher with more slots, or this subscriber with fewer "
                "leases"
            )
    finally:
        if held:
            locks.let_go(segment)


def seats_taken(fd: int, geometry: Geometry) -> int:
    """Seats that are held now, of the ring that is open as ``fd``."""
    return sum(locks.is_locked(fd, locks.write_lock(LOCK_SEATS + seat)) for seat in range(geometry.seats))


class Record:
    """A subscriber's own record, locked while it lives; others read it, nobody else writes it.

    It gets its name when it is locked, and the name's random end is no other's: so a record that is not locked belongs
    to nobody any more.
    """

    def __init__(self, stream: str, record: SubscriberRecord) -> None:
        self._is_removed = False
        while True:
            self._name = companion_path(stream, f"sub.{random_suffix()}").name
            try:
                if self._create(record.pack()):
                    break
            except BaseException:
                self._remove_names()  # a signal handler may have raised before the segment was anybody's
                raise

    def _create(self, content: bytes) -> bool:
        self.segment: Segment = shm.create(self._name + UNFINISHED, RECORD_BYTES, RING_MODE, "a subscriber's record")
        """The record's file, into which its subscriber's reader writes the counters."""
        self.segment.buffer[: len(content)] = content
        self.segment.try_lock(_ALIVE)
        try:
            self.segment.take_name(self._name)
        except FileNotFoundError:
            return False  # until it was locked, it looked like what the dead leave, and was cleared away
        return True

    def remove(self) -> None:
        """Remove the file; in a forked child, where it is the parent's, do nothing."""
        segment: Segment | None = self.__dict__.get("segment")
        if segment is None or segment.fd < 0:
            return
        if not self._is_removed:
            self._remove_names()
            self._is_removed = True
        segment.close()

    __del__ = remove

    def _remove_names(self) -> None:
        # Both: a signal handler may have raised before it had the second.
        for name in (self._name, self._name + UNFINISHED):
            (SHM_DIRECTORY / name).unlink(missing_ok=True)


def remove_dead_records(stream: str) -> int:
    """Remove what this user's killed subscribers of the stream left behind; the number of files.

    Some of a great many are left to the next time, or to ``framebus gc``, and so is what was never finished: it may be
    about to be locked.
    """
    removed = 0
    paths = companion_paths(stream, "sub.*")[:MAX_LOOKED_AT]
    for path, fd in _opened(path for path in paths if not path.name.endswith(UNFINISHED)):
        with contextlib.suppress(OSError):
            if os.fstat(fd).st_uid == os.geteuid() and not locks.is_locked(fd, _PROBE):
                path.unlink()
                removed += 1
    return removed


def read_records(stream: str) -> list[tuple[Path, SubscriberRecord | None, bool]]:
    """Every readable record of the stream, ``None`` for one that makes no sense, and whether its subscriber lives.

    Records are copied, never mapped: their owners can cut them short.
    """
    records = []
    for path, fd in _opened(companion_paths(stream, "sub.*")):
        with contextlib.suppress(OSError):
            alive = locks.is_locked(fd, _PROBE)
            records.append((path, _read_record(fd), alive))
    return records


def _opened(paths: Iterable[Path]) -> Iterator[tuple[Path, int]]:
    """Each file that this user can open, and a descriptor for reading it, until the next."""
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
    """The record of a subscriber that begins now."""
    return SubscriberRecord(name, mode, wake, max_leases, time.time_ns())
