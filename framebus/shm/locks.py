"""Locks on open file descriptions: the commands for fcntl(2), their holders, and the lock of a stream's publisher.

Such a lock belongs to the open file description instead of the process. The kernel releases it when the last descriptor
closes, also after SIGKILL, and it works across PID and IPC namespaces.

A forked child shares the description of its parent, so an unlock in the child would release the parent's lock. To
prevent this, the descriptor of every holder is closed and set to -1 in the child, before any other code runs.

Source: fcntl(2), "Open file description locks".
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from framebus.errors import StreamNotFound
from framebus.shm import forks
from framebus.shm.identity import denied
from framebus.shm.limits import exhausted
from framebus.shm.paths import SHM_DIRECTORY
from framebus.shm.space import no_room

LOCK_MODE: Final = 0o600
LOCK_TIMEOUT_S: Final = 0.2
"""How long to wait for the lock of a stream without a publisher: ``framebus gc`` and ``doctor`` hold it briefly."""
RETRY_AFTER_S: Final = 0.001
_FLOCK: Final = struct.Struct("hhqqi4x")


def write_lock(offset: int) -> bytes:
    """Return the command that write-locks the byte at ``offset``, for :meth:`Segment.try_lock`."""
    return _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0)


def read_lock(offset: int) -> bytes:
    """Return the command that read-locks the byte at ``offset``, for :meth:`Segment.try_lock`."""
    return _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, offset, 1, 0)


def unlock(offset: int) -> bytes:
    """Return the command that unlocks the byte at ``offset``, for :meth:`Segment.unlock`."""
    return _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, offset, 1, 0)


class LockHolder:
    """A descriptor that holds locks. It is closed when its last reference goes, and immediately in a forked child."""

    __slots__ = ("__weakref__", "fd")

    def __init__(self, fd: int) -> None:
        self.fd: int = fd
        forks.register(self)

    def close(self, _close: Callable[[int], None] = os.close) -> None:
        """Close the descriptor, which releases its locks."""
        fd = getattr(self, "fd", -1)  # missing if a signal handler interrupted the constructor
        if fd >= 0:
            # Before the close, because the number may be reused as soon as it is closed.
            self.fd = -1
            _close(fd)

    __del__ = close

    def after_fork_in_child(self) -> None:
        """Leave the locks to the parent."""
        self.close()


def is_locked(fd: int, command: bytes) -> bool:
    """Return whether another description holds a lock on the same file that conflicts with ``command``."""
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, command)
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


def is_any_locked(fd: int) -> bool:
    """Return whether another description holds a lock on any byte of the file."""
    return is_locked(fd, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))


class PublisherLock(LockHolder):
    """The lock of a stream's publisher, held until it is closed. The mode of its file is 0600."""

    __slots__ = ()

    @classmethod
    def acquire(cls, name: str, timeout_s: float = 0.0, *, create: bool = True) -> PublisherLock | None:
        """Write-lock the file.

        Args:
            name: The file's name in /dev/shm.
            timeout_s: Seconds to retry while another process holds the lock.
            create: Whether to create the file if it is missing.

        Returns:
            The lock; ``None`` if another process holds it.

        Raises:
            PermissionDenied: The file belongs to another user.
            StreamNotFound: The file is missing, and ``create`` is false.
            NotEnoughSharedMemory: /dev/shm has no room for one more file.
        """
        path = SHM_DIRECTORY / name
        deadline_s = time.monotonic() + timeout_s
        while True:
            fd = _open_lock_file(path, create=create)
            try:
                # Another user could create this file to block the stream, so accept only a file of this user.
                if os.fstat(fd).st_uid != os.geteuid():
                    raise denied(path, None)
                fcntl.fcntl(fd, fcntl.F_OFD_SETLK, write_lock(0))
                # The last holder may have unlinked the file between the open and the lock. A lock on an unlinked file
                # excludes no other process, so it counts only if the path still names this file.
                if path.exists() and os.stat(path).st_ino == os.fstat(fd).st_ino:
                    lock, fd = cls(fd), -1
                    return lock
            except (BlockingIOError, FileNotFoundError):
                # If the path is gone, the lock in the way is on an unlinked file: retry, whatever the time.
                if path.exists() and time.monotonic() >= deadline_s:
                    return None
                time.sleep(RETRY_AFTER_S)
            finally:
                if fd >= 0:
                    os.close(fd)


def _open_lock_file(path: Path, *, create: bool) -> int:
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    while True:
        try:
            # Open an existing file without O_CREAT, which fs.protected_regular rejects for a file of another user
            # (proc(5)).
            return os.open(path, flags)
        except FileNotFoundError:
            if not create:
                raise StreamNotFound(errno.ENOENT, f"{path} does not exist") from None
        except OSError as error:
            raise exhausted(error) or denied(path, error) from None
        try:
            return os.open(path, flags | os.O_CREAT | os.O_EXCL, LOCK_MODE)
        except FileExistsError:  # another process has created it meanwhile: open it
            continue
        except OSError as error:
            raise no_room(error, 0, "the lock") or exhausted(error) or error from None


def acquire_flock(holder: LockHolder, timeout_s: float) -> bool:
    """Acquire the file's flock(2) within ``timeout_s``. Release it with :func:`release_flock`.

    It serialises cooperating processes that change several locks together. The caller should go on without it if this
    returns False, because a hostile process may hold it forever.
    """
    deadline_s = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(holder.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline_s:
                return False
            time.sleep(RETRY_AFTER_S)
        else:
            return True


def release_flock(holder: LockHolder) -> None:
    """Release what :func:`acquire_flock` acquired."""
    fcntl.flock(holder.fd, fcntl.LOCK_UN)
