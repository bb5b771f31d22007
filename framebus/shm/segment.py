"""Mapped files in /dev/shm: create, attach, prefault, lock. This is the only module that uses posix_ipc.

A segment holds its locks through ``fd``, whose open file description nothing else shares. The file is opened a second
time to map it, because a mapping keeps a reference to the description that it was made from. If both used the same one,
closing ``fd`` would not release the locks.

A segment closes its descriptor when its last reference goes. A lease keeps a reference to its segment, which ensures
that a late release never unlocks a descriptor number that the process has reused, and that no mapping vanishes below a
view.

Sources: fcntl(2), "Open file description locks"; shm_open(3); posix_fallocate(3); open(2), EMFILE and ENFILE.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import posix_ipc

from framebus.errors import LayoutMismatch, PermissionDenied, ResourceExhausted, StreamNotFound
from framebus.shm.identity import denied, describe_user
from framebus.shm.limits import exhausted
from framebus.shm.locks import LockHolder, is_locked
from framebus.shm.mapping import Mapping
from framebus.shm.paths import SHM_DIRECTORY
from framebus.shm.space import no_room, require_space

RING_MODE: Final = 0o640


class Segment(LockHolder):
    """A mapped file in /dev/shm, with a descriptor of its own for locks."""

    __slots__ = ("address", "buffer", "identity", "name", "size", "words", "words32")

    def __init__(self, name: str) -> None:
        self.name: str = name
        # The descriptor is stored as soon as it is open, so that this object closes it, whatever fails next.
        super().__init__(-1)

    def map(self, map_fd: int, *, writable: bool) -> None:
        """Map the file, which is open as ``fd`` for its locks and separately as ``map_fd`` for the mapping."""
        status = os.fstat(self.fd)
        # Device and inode identify the file after its path was unlinked or given to another file.
        self.identity: tuple[int, int] = status.st_dev, status.st_ino
        self.size: int = status.st_size
        mapping = Mapping(map_fd, self.size, writable=writable)
        self.address: int = mapping.address
        self.buffer: memoryview[int] = mapping.view()
        self.words: memoryview[int] = self.buffer[: self.size & -8].cast("Q")
        self.words32: memoryview[int] = self.buffer[: self.size & -8].cast("I")

    @property
    def path(self) -> Path:
        """Path of the file when it was created or opened, or last renamed."""
        return SHM_DIRECTORY / self.name

    def prefault(self, start: int, size: int) -> None:
        """Prefault the pages of a part of the file, so that later reads do not fault.

        Args:
            start: Offset of the part, in bytes.
            size: Its size in bytes.
        """
        # Read one byte of each page. This is as fast as MADV_POPULATE_READ, which requires Linux 5.14, because the
        # kernel maps the neighbouring pages with each fault.
        np.add.reduce(np.frombuffer(self.buffer, np.uint8, size, start)[:: mmap.PAGESIZE])

    def try_lock(self, command: bytes, _setlk: int = fcntl.F_OFD_SETLK) -> bool:
        """Acquire a lock without waiting; return False if another process holds a conflicting one."""
        try:
            fcntl.fcntl(self.fd, _setlk, command)
        except (BlockingIOError, PermissionError):
            return False
        return True

    # Bind the names early, because the last lease may go when the interpreter has already cleared its modules.
    def unlock(
        self, command: bytes, _fcntl: Callable[[int, int, bytes], object] = fcntl.fcntl, _setlk: int = fcntl.F_OFD_SETLK
    ) -> None:
        """Release a lock. Does nothing in a forked child, to avoid releasing the parent's lock."""
        if self.fd >= 0:
            _fcntl(self.fd, _setlk, command)

    def is_locked(self, command: bytes) -> bool:
        """Return whether another descriptor holds a lock that conflicts with ``command``, without acquiring it."""
        return is_locked(self.fd, command)

    def is_current(self) -> bool:
        """Return whether the path still names this file."""
        try:
            status = os.stat(self.path)
        except FileNotFoundError:
            return False
        return (status.st_dev, status.st_ino) == self.identity

    def rename(self, name: str) -> None:
        """Rename the file atomically, replacing the file that has this name now."""
        before, self.name = self.name, name
        try:
            os.rename(SHM_DIRECTORY / before, SHM_DIRECTORY / name)
        except BaseException:
            # A signal handler may have raised after the rename succeeded.
            if not self.is_current():
                self.name = before
            raise

    def unlink(self) -> None:
        """Remove the path if it still names this file. Processes that have the file mapped keep it."""
        if self.is_current():
            self.path.unlink(missing_ok=True)


def create(name: str, size: int, mode: int, what: str = "this ring") -> Segment:
    """Create a zeroed file of ``size`` bytes, with every page allocated and mapped. If this fails, no file is left.

    Args:
        name: The file's name in /dev/shm, which no other process uses.
        size: Its size in bytes.
        mode: Its permissions, regardless of the umask.
        what: What the file is, for the error message.

    Raises:
        NotEnoughSharedMemory: The file does not fit in /dev/shm or in the memory limit of the control group.
        FileExistsError: A file of this name exists.
    """
    require_space(size, what)
    try:
        return _create(name, size, mode)
    except posix_ipc.ExistentialError:
        raise FileExistsError(f"{SHM_DIRECTORY / name} exists") from None
    except BaseException as error:
        # Unlink in any case: a signal handler may have raised after the file was created, and before its segment was
        # stored.
        (SHM_DIRECTORY / name).unlink(missing_ok=True)
        if isinstance(error, OSError) and not isinstance(error, ResourceExhausted):
            raise no_room(error, size, what) or exhausted(error) or error from None
        raise


def _create(name: str, size: int, mode: int) -> Segment:
    segment = Segment(name)
    map_fd = -1
    try:
        segment.fd = posix_ipc.SharedMemory(f"/{name}", posix_ipc.O_CREX, mode=mode).fd
        # shm_open(3) applies the umask to the mode, so set it again.
        os.fchmod(segment.fd, mode)
        # Allocate every page now. ftruncate() would succeed on a full tmpfs, and the first access to a page that cannot
        # be allocated would raise SIGBUS.
        os.posix_fallocate(segment.fd, 0, size)
        map_fd = _open(name, writable=True)
        segment.map(map_fd, writable=True)
    except BaseException:
        segment.close()
        raise
    else:
        return segment
    finally:
        if map_fd >= 0:
            os.close(map_fd)


def attach(name: str, *, writable: bool = False, min_bytes: int = 1, owner: int | None = None) -> Segment:
    """Map an existing file, without creating, resizing or writing it.

    Args:
        name: The file's name in /dev/shm.
        writable: Whether to map it for writing too, which maps all pages at once. The pages of a read-only mapping are
            mapped by :meth:`Segment.prefault`, or when they are first read.
        min_bytes: Its minimum size.
        owner: Number of the user that must own the file, because its owner can truncate it, which ends readers with
            SIGBUS. ``None`` accepts any owner.

    Raises:
        StreamNotFound: The file does not exist.
        PermissionDenied: This user may not open the file, and the message names the group that may read it; or the file
            belongs to another user than ``owner``.
        LayoutMismatch: The file is not a regular file, is shorter than ``min_bytes``, or has holes.
    """
    for _ in range(16):
        segment, mapped = Segment(name), False
        map_fd = -1
        try:
            segment.fd = _open(name, writable)
            map_fd = _open(name, writable)
            status, map_status = os.fstat(segment.fd), os.fstat(map_fd)
            if status.st_ino != map_status.st_ino:  # a publisher replaced the file between the two opens
                continue
            if owner is not None and map_status.st_uid != owner:
                found = map_status.st_uid
                raise PermissionDenied(
                    errno.EACCES,
                    f"{SHM_DIRECTORY / name} belongs to {describe_user(found)}, and only frames of "
                    f"{describe_user(owner)} are accepted: stop the publisher of user {found}, or name that user if "
                    "you trust it",
                )
            if status.st_size < min_bytes:
                raise LayoutMismatch(f"{SHM_DIRECTORY / name} has {status.st_size} bytes: it is not a ring")
            # Reading a page that was never allocated raises SIGBUS if the allocation fails then.
            if status.st_blocks * 512 < status.st_size:
                raise LayoutMismatch(f"{SHM_DIRECTORY / name} has holes: it is not a ring")
            segment.map(map_fd, writable=writable)
        except OSError as error:
            raise exhausted(error) or error from None
        else:
            # From here on the caller owns the segment, so it is not closed below.
            mapped = True
            return segment
        finally:
            if not mapped:
                segment.close()
            if map_fd >= 0:
                os.close(map_fd)
    raise StreamNotFound(f"{SHM_DIRECTORY / name} is replaced again and again")


def open_for_reading(name: str) -> LockHolder:
    """Open an existing file without mapping it, to read it with pread(2) and to query its locks.

    Raises:
        StreamNotFound: The file does not exist.
        PermissionDenied: This user may not open it.
    """
    return LockHolder(_open(name, writable=False))


def _open(name: str, writable: bool) -> int:
    path = SHM_DIRECTORY / name
    access = os.O_RDWR if writable else os.O_RDONLY
    try:
        # O_NONBLOCK prevents a hang if another process has put a FIFO in place of the ring: its open would wait for a
        # writer. O_NOFOLLOW prevents this process from opening another file through a symbolic link.
        fd = os.open(path, access | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise StreamNotFound(errno.ENOENT, f"{path} does not exist") from None
    except PermissionError as error:
        raise denied(path, error) from None
    except OSError as error:
        raise exhausted(error) or LayoutMismatch(f"{path} cannot be opened as a ring: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise LayoutMismatch(f"{path} is not a regular file, so it is not a ring")
    return fd
