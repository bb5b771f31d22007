"""Files in /dev/shm that are mapped: create, attach, prefault, lock. The only user of posix_ipc.

A segment holds its locks through ``fd``, a descriptor that nothing else shares. The map comes from an open of its own,
because a map keeps the description that it was made from, and a lock would outlive the descriptor's close.

A segment closes its descriptor when its last reference goes: a lease keeps the segment, so a late release never touches
a descriptor number that has been given to another file, and no map vanishes under a view.

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
    """A file in /dev/shm, mapped, with a descriptor of its own for locks."""

    __slots__ = ("address", "buffer", "identity", "name", "size", "words", "words32")

    def __init__(self, name: str) -> None:
        self.name: str = name
        super().__init__(-1)  # a descriptor is stored when the segment is there to close it, whatever fails next

    def map(self, map_fd: int, *, writable: bool) -> None:
        """Map the file that is open as ``fd`` and, by an open of its own, as ``map_fd``."""
        status = os.fstat(self.fd)
        self.identity: tuple[int, int] = status.st_dev, status.st_ino
        self.size: int = status.st_size
        mapping = Mapping(map_fd, self.size, writable=writable)
        self.address: int = mapping.address
        self.buffer: memoryview[int] = mapping.view()
        self.words: memoryview[int] = self.buffer[: self.size & -8].cast("Q")
        self.words32: memoryview[int] = self.buffer[: self.size & -8].cast("I")

    @property
    def path(self) -> Path:
        """Where the file was created or opened."""
        return SHM_DIRECTORY / self.name

    def prefault(self, start: int, size: int) -> None:
        """Map the pages of a part of the file into this process, so that nobody waits for that who reads them later.

        Args:
            start: Offset of the part, in bytes.
            size: Its size in bytes.
        """
        # As fast as MADV_POPULATE_READ, which is not everywhere: a fault maps the pages around it too.
        np.add.reduce(np.frombuffer(self.buffer, np.uint8, size, start)[:: mmap.PAGESIZE])

    def try_lock(self, command: bytes, _setlk: int = fcntl.F_OFD_SETLK) -> bool:
        """Take a lock if nobody holds one that conflicts; never waits."""
        try:
            fcntl.fcntl(self.fd, _setlk, command)
        except (BlockingIOError, PermissionError):
            return False
        return True

    # The names are bound early: the last lease may go while the interpreter's modules are already torn down.
    def unlock(
        self, command: bytes, _fcntl: Callable[[int, int, bytes], object] = fcntl.fcntl, _setlk: int = fcntl.F_OFD_SETLK
    ) -> None:
        """Free a lock; in a forked child, which must leave the parent's locks alone, do nothing."""
        if self.fd >= 0:
            _fcntl(self.fd, _setlk, command)

    def is_locked(self, command: bytes) -> bool:
        """Whether another descriptor holds a lock that conflicts with ``command``; nothing is taken."""
        return is_locked(self.fd, command)

    def is_current(self) -> bool:
        """Whether the path still names this file."""
        try:
            status = os.stat(self.path)
        except FileNotFoundError:
            return False
        return (status.st_dev, status.st_ino) == self.identity

    def take_name(self, name: str) -> None:
        """Give the file another name in one step, in the place of what has that name now."""
        before, self.name = self.name, name
        try:
            os.rename(SHM_DIRECTORY / before, SHM_DIRECTORY / name)
        except BaseException:
            if not self.is_current():
                self.name = before
            raise

    def unlink(self) -> None:
        """Remove the file's name if it still names this file; those who have it mapped keep it."""
        if self.is_current():
            self.path.unlink(missing_ok=True)


def create(name: str, size: int, mode: int, what: str = "this ring") -> Segment:
    """Create a file of ``size`` bytes, zeroed, with every page allocated and mapped, or nothing at all.

    Args:
        name: The file's name in /dev/shm, which no other process gives to a file.
        size: Its size in bytes.
        mode: Its permissions, whatever the umask.
        what: What the file is, for the error's sentence.

    Raises:
        NotEnoughSharedMemory: /dev/shm, or the memory limit of the control group, has less room.
        FileExistsError: The name is taken.
    """
    require_space(size, what)
    try:
        return _create(name, size, mode)
    except posix_ipc.ExistentialError:
        raise FileExistsError(f"{SHM_DIRECTORY / name} exists") from None
    except BaseException as error:
        # Though nothing was created: a signal handler may have raised before that was known.
        (SHM_DIRECTORY / name).unlink(missing_ok=True)
        if isinstance(error, OSError) and not isinstance(error, ResourceExhausted):
            raise no_room(error, size, what) or exhausted(error) or error from None
        raise


def _create(name: str, size: int, mode: int) -> Segment:
    segment = Segment(name)
    map_fd = -1
    try:
        segment.fd = posix_ipc.SharedMemory(f"/{name}", posix_ipc.O_CREX, mode=mode).fd
        os.fchmod(segment.fd, mode)
        # ftruncate would succeed on a full tmpfs, and the first touch of a page be a SIGBUS.
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
    """Map an existing file; it is never created, resized or written here.

    Args:
        name: The file's name in /dev/shm.
        writable: Whether to map it for writing too, with all pages at once. To read, :meth:`Segment.prefault` maps
            them, or their first use does.
        min_bytes: Its least size.
        owner: The user, by number, who must own it: whoever else does could cut it short under its readers, which ends
            them with SIGBUS. ``None`` takes anybody's.

    Raises:
        StreamNotFound: There is no such file.
        PermissionDenied: It is closed to this user, and the message names the group that may read it; or another user
            than ``owner`` owns it.
        LayoutMismatch: It is no regular file, shorter than ``min_bytes``, or has holes.
    """
    for _ in range(16):
        segment, mapped = Segment(name), False
        map_fd = -1
        try:
            segment.fd = _open(name, writable)
            map_fd = _open(name, writable)
            status, map_status = os.fstat(segment.fd), os.fstat(map_fd)
            if status.st_ino != map_status.st_ino:
                continue
            if owner is not None and map_status.st_uid != owner:
                found = map_status.st_uid
                raise PermissionDenied(
                    errno.EACCES,
                    f"{SHM_DIRECTORY / name} belongs to {describe_user(found)}, and frames of {describe_user(owner)} "
                    f"alone are wanted: stop whoever publishes as user {found}, or name that user if you trust it",
                )
            if status.st_size < min_bytes:
                raise LayoutMismatch(f"{SHM_DIRECTORY / name} has {status.st_size} bytes: it is no ring")
            # A page that was never allocated could fail to be, later, with a SIGBUS.
            if status.st_blocks * 512 < status.st_size:
                raise LayoutMismatch(f"{SHM_DIRECTORY / name} has holes: it is no ring")
            segment.map(map_fd, writable=writable)
        except OSError as error:
            raise exhausted(error) or error from None
        else:
            mapped = True
            return segment
        finally:
            if not mapped:
                segment.close()
            if map_fd >= 0:
                os.close(map_fd)
    raise StreamNotFound(f"{SHM_DIRECTORY / name} is replaced again and again")


def open_for_reading(name: str) -> LockHolder:
    """Open an existing file without mapping it, to read its bytes with pread(2) and to ask for its locks.

    Raises:
        StreamNotFound: There is no such file.
        PermissionDenied: It is closed to this user.
    """
    return LockHolder(_open(name, writable=False))


def _open(name: str, writable: bool) -> int:
    path = SHM_DIRECTORY / name
    access = os.O_RDWR if writable else os.O_RDONLY
    try:
        # O_NONBLOCK: the open of a FIFO that somebody put in the place of the ring would wait for a writer.
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
