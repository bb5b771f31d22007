"""Finds files that processes left behind when they died, and removes those that no process uses."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from framebus.errors import LayoutMismatch, PermissionDenied, StreamNotFound
from framebus.ring.admission import read_records
from framebus.ring.file import LIVE_PROBE
from framebus.ring.layout import CLOSED, PAGE_BYTES, STATE, RingHeader
from framebus.shm import locks
from framebus.shm import segment as shm
from framebus.shm.directory import directory_fault, stream_names
from framebus.shm.identity import as_user, describe_readers, describe_user, is_unmapped
from framebus.shm.paths import check_name, companion_path, companion_paths

Judgement = Literal["left", "kept", "unknown"]


@dataclass(frozen=True, slots=True)
class Leftover:
    """A file that no live process holds, or that this user cannot judge."""

    path: Path
    """The file."""
    reason: str
    """Why it is a leftover, or why this user cannot judge it."""
    obstacle: str = ""
    """Why this user cannot remove it; empty if it can be removed, or was."""
    judgement: Judgement = "left"
    """``left`` by a process that died, ``kept`` by a publisher or a service on purpose, or ``unknown`` to this user."""
    owner: int = -1
    """Number of the user that owns the file."""

    @property
    def is_mine(self) -> bool:
        """Whether the file belongs to this user. An unmapped owner counts as another user."""
        return self.owner == os.geteuid() and not is_unmapped(self.owner)


@dataclass(frozen=True, slots=True)
class _Candidate:
    path: Path
    reason: str
    judgement: Judgement = "left"
    needs_lock: bool = True
    """Whether to remove it only while the publisher's lock prevents a publisher from opening the stream."""


def find_leftovers(stream: str | None = None, *, remove: bool = False) -> list[Leftover]:
    """Find files in /dev/shm that dead processes left behind.

    A ring whose publisher lives, or that a subscriber still holds, is never removed. Files of other users are found
    too, as far as this user may read them.

    Args:
        stream: Name of the stream; ``None`` for all streams.
        remove: Whether to remove the files that this user may remove.
    """
    found = []
    for name in [check_name(stream)] if stream is not None else stream_names():
        # While the lock is held, no publisher can adopt a file that is about to be removed.
        with _publisher_locked(name) as (locked, permitted):
            for candidate in _leftovers_of(name, locked=locked, permitted=permitted):
                try:
                    owner = candidate.path.lstat().st_uid
                except OSError:
                    continue  # another process has removed it meanwhile
                obstacle = _obstacle(candidate, owner, locked=locked)
                if remove and not obstacle:
                    obstacle = _remove(candidate.path, owner)
                found.append(Leftover(candidate.path, candidate.reason, obstacle, candidate.judgement, owner))
    return found


def _obstacle(candidate: _Candidate, owner: int, *, locked: bool) -> str:
    """Return why this user may not remove the file, as far as that is known before trying."""
    mine = owner == os.geteuid()
    if candidate.judgement == "unknown" or (candidate.needs_lock and not locked):
        return _read_only() or "its lock cannot be taken" if mine else _owned_by(owner)
    # /dev/shm is sticky, so only root and the owner of a file may remove it.
    return "" if mine or os.geteuid() == 0 else _owned_by(owner)


def _remove(path: Path, owner: int) -> str:
    """Remove the file; return why that failed, or an empty string."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        if path.is_dir():
            return "it is a directory: check its content, and remove it manually"
        if error.errno in (errno.EPERM, errno.EACCES) and owner != os.geteuid():
            return _owned_by(owner)
        return _read_only() or os.strerror(error.errno or errno.EIO)
    return ""


def _owned_by(owner: int) -> str:
    return f"it belongs to {describe_user(owner)}: run 'framebus gc' {as_user(owner)}"


def _read_only() -> str:
    fault = directory_fault(writable=True)
    return "" if fault is None else ": ".join(fault[1])


@contextlib.contextmanager
def _publisher_locked(stream: str) -> Iterator[tuple[bool, bool]]:
    """Prevent publishers from opening the stream, because a publisher may adopt a leftover at any moment.

    Yields:
        Whether no publisher can open the stream, and whether this user may open the lock's file. If only the second is
        true, a publisher lives.
    """
    lock, locked, permitted = None, False, True
    # If no publisher lives, the holder is another inspecting process, or a publisher that is opening the stream: wait.
    timeout_s = 0.0 if _ring_use(companion_path(stream, "ring")) == "live" else locks.LOCK_TIMEOUT_S
    try:
        lock = locks.PublisherLock.acquire(companion_path(stream, "lock").name, timeout_s, create=False)
        locked = lock is not None
    except StreamNotFound:
        locked = True
    except PermissionDenied:
        permitted = False
    except OSError:
        permitted = False  # not a regular file
    try:
        yield locked, permitted
    finally:
        if lock is not None:
            lock.close()


def remove_leftovers(stream: str | None = None) -> list[Path]:
    """Remove the files that no live process holds, of one stream or of all, and return their paths."""
    return [leftover.path for leftover in find_leftovers(stream, remove=True) if not leftover.obstacle]


def _leftovers_of(stream: str, *, locked: bool, permitted: bool) -> list[_Candidate]:
    own_socket, lock_path, ring_path = (companion_path(stream, suffix) for suffix in ("sock", "lock", "ring"))
    ring = _ring_use(ring_path)
    found = [
        _Candidate(path, "its subscriber is gone", needs_lock=False)
        for path, _, alive in read_records(stream)
        if not alive
    ]
    closed: Judgement = "kept" if ring == "closed" else "left"
    # If this user may not take the lock, the state of the ring shows that no publisher lives. One may start at any
    # moment, so nothing may be removed.
    idle = locked or (not permitted and ring in ("closed", "dead", "held"))
    found += [
        _Candidate(path, "no process listens on it", closed, needs_lock=path == own_socket)
        for path in companion_paths(stream, "*sock")
        if (idle or path != own_socket) and _has_no_listener(path)
    ]
    if not idle:
        # A publisher lives, or this user cannot find out. In the second case, report the file that would tell.
        if not permitted and ring == "denied":
            readers = _readers(ring_path)
            found.append(_Candidate(ring_path, f"only {readers} can tell whether it is in use", "unknown"))
        elif not permitted and ring == "missing":
            readers = _readers(lock_path)
            found.append(_Candidate(lock_path, f"only {readers} can tell whether it is in use", "unknown"))
        return found
    found += [_Candidate(path, "its creation was interrupted") for path in companion_paths(stream, "ring.*")]
    # A publisher may come back and adopt a ring that subscribers still hold.
    if ring in ("live", "held", "denied"):
        return found
    if ring == "closed":
        found.append(_Candidate(ring_path, "its publisher closed and kept it for the next one", "kept"))
    elif ring == "dead":
        found.append(_Candidate(ring_path, "its publisher is gone and no subscriber holds it"))
    # A service may save its state here, to resume after a restart.
    found += [
        _Candidate(path, "a service saved its state here, and the stream has ended", "kept")
        for path in companion_paths(stream, "state.*")
    ]
    if lock_path.exists():
        found.append(_Candidate(lock_path, "no publisher holds it", closed))
    return found


def _readers(path: Path) -> str:
    try:
        return describe_readers(path.lstat())
    except OSError:
        return "its owner"


RingUse = Literal["missing", "denied", "live", "held", "closed", "dead"]


def _ring_use(ring_path: Path) -> RingUse:
    """Return how the ring is used, as its locks and state show. ``held`` means by subscribers only."""
    try:
        holder = shm.open_for_reading(ring_path.name)
    except StreamNotFound:
        return "missing"
    except LayoutMismatch:
        return "dead"
    except PermissionDenied:
        return "denied"
    try:
        if locks.is_locked(holder.fd, LIVE_PROBE):
            return "live"
        # Check all bytes: a lease, a seat, or a lock of another layout version.
        if locks.is_any_locked(holder.fd):
            return "held"
        return "closed" if _was_closed(holder.fd) else "dead"
    finally:
        holder.close()


def _was_closed(fd: int) -> bool:
    """Return whether the file is a ring whose publisher closed it."""
    # pread(2) instead of a mapping, because the owner may truncate the file.
    head = os.pread(fd, PAGE_BYTES, 0)
    try:
        RingHeader.unpack(head, os.fstat(fd).st_size)
    except LayoutMismatch:
        return False
    return bool(struct.unpack_from("<I", head, STATE)[0] == CLOSED)


def _has_no_listener(path: Path) -> bool:
    """Return whether the file is a Unix socket on which no process listens."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            return False
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            # A service that does not accept must not make the probe wait.
            probe.setblocking(False)
            probe.connect(os.fspath(path))
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False
