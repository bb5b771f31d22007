"""Shared-memory objects in /dev/shm: create, attach, prefault, lock. The only user of posix_ipc and fcntl.

Locks are open-file-description locks: they belong to the open file description, not to the process, so the kernel frees
them when its last descriptor closes, by SIGKILL too, and they work across PID and IPC namespaces. Two rules follow:

- A segment holds its locks through ``fd``, a descriptor that nothing else shares. The map comes from an open of its
  own, because a map keeps the description that it was made from, and a lock would outlive the descriptor's close.
- A forked child shares the parent's description, and an unlock in the child would free the parent's lock. So in the
  child every segment's descriptor becomes -1 before any other code runs, and unlocking does nothing there.

A segment closes its descriptor when its last reference goes: a lease keeps the segment, so a late release never touches
a descriptor number that has been given to another file, and no map vanishes under a view.

Sources: fcntl(2), "Open file description locks"; shm_open(3); posix_fallocate(3); open(2), EMFILE and ENFILE.
"""

from __future__ import annotations

import errno
import fcntl
import fnmatch
import mmap
import os
import resource
import secrets
import stat
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import posix_ipc

from framebus import forks
from framebus.arguments import shown
from framebus.errors import (
    InvalidArgument,
    LayoutMismatch,
    NotEnoughSharedMemory,
    PermissionDenied,
    ResourceExhausted,
    StreamNotFound,
)
from framebus.identity import as_user, describe_group, describe_user, group_would_help
from framebus.layout import check_name
from framebus.mapping import Mapping

SHM_DIRECTORY: Final = Path("/dev/shm")
PREFIX: Final = "framebus."
RING_MODE: Final = 0o640
LOCK_MODE: Final = 0o600
MIB: Final = 1 << 20

_FLOCK: Final = struct.Struct("hhqqi4x")


def companion_path(stream: str, suffix: str) -> Path:
    """Path of a file that belongs to a stream: ``/dev/shm/framebus.STREAM.SUFFIX``.

    Raises:
        InvalidName: ``stream`` is no name for a stream.
        InvalidArgument: ``suffix`` cannot end a file's name.
    """
    return SHM_DIRECTORY / f"{PREFIX}{check_name(stream)}.{_check_suffix(suffix, 'suffix')}"


def companion_paths(stream: str, pattern: str) -> list[Path]:
    """The files of a stream whose suffix matches the shell pattern, sorted.

    Raises:
        InvalidName: ``stream`` is no name for a stream.
        InvalidArgument: ``pattern`` cannot match the end of a file's name.
        ResourceExhausted: The process has no descriptor left.
    """
    prefix = f"{PREFIX}{check_name(stream)}."
    _check_suffix(pattern, "pattern")
    return sorted(
        SHM_DIRECTORY / name
        for name in file_names()
        if name.startswith(prefix) and fnmatch.fnmatchcase(name.removeprefix(prefix), pattern)
    )


def file_names() -> list[str]:
    """Names of all files in /dev/shm.

    Raises:
        ResourceExhausted: The process has no descriptor left.
    """
    try:
        return os.listdir(SHM_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []
    except OSError as error:
        raise exhausted(error) or error from None


def _check_suffix(suffix: str, what: str) -> str:
    if not isinstance(suffix, str) or not suffix or "/" in suffix or not suffix.isprintable():
        raise InvalidArgument(f"the {what} of a stream's file is a part of its name, not {shown(suffix)}")
    return suffix


def write_lock(offset: int) -> bytes:
    """Command that write-locks the byte at ``offset``, for :meth:`Segment.try_lock`."""
    return _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0)


def read_lock(offset: int) -> bytes:
    """Command that read-locks the byte at ``offset``, for :meth:`Segment.try_lock`."""
    return _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, offset, 1, 0)


def unlock(offset: int) -> bytes:
    """Command that frees the byte at ``offset``, for :meth:`Segment.unlock`."""
    return _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, offset, 1, 0)


class LockHolder:
    """A descriptor that holds locks: closed with its last reference, and given up at once in a forked child."""

    __slots__ = ("__weakref__", "fd")

    def __init__(self, fd: int) -> None:
        self.fd: int = fd
        forks.register(self)

    def close(self, _close: Callable[[int], None] = os.close) -> None:
        """Close the descriptor; its locks are free."""
        fd = getattr(self, "fd", -1)
        if fd >= 0:
            self.fd = -1
            _close(fd)

    __del__ = close

    def after_fork_in_child(self) -> None:
        """Leave the locks to the parent."""
        self.close()


class Segment(LockHolder):
    """A file in /dev/shm, mapped, with a descriptor of its own for locks."""

    __slots__ = ("address", "buffer", "identity", "name", "size", "words", "words32")

    def __init__(self, name: str, fd: int, map_fd: int, *, writable: bool) -> None:
        self.name: str = name
        status = os.fstat(fd)
        self.identity: tuple[int, int] = status.st_dev, status.st_ino
        self.size: int = status.st_size
        mapping = Mapping(map_fd, self.size, writable=writable)
        self.address: int = mapping.address
        self.buffer: memoryview[int] = mapping.view()
        self.words: memoryview[int] = self.buffer[: self.size & -8].cast("Q")
        self.words32: memoryview[int] = self.buffer[: self.size & -8].cast("I")
        super().__init__(fd)  # last, when nothing more can fail: until here the caller closes what it opened

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


def is_locked(fd: int, command: bytes) -> bool:
    """Whether another description holds a lock on the same file that conflicts with ``command``."""
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, command)
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


def is_any_locked(fd: int) -> bool:
    """Whether another description holds a lock on any byte of the file."""
    return is_locked(fd, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))


def create(name: str, size: int, mode: int, what: str = "this ring") -> Segment:
    """Create a file of ``size`` bytes, zeroed, with every page allocated and mapped, or nothing at all.

    Args:
        name: The file's name in /dev/shm.
        size: Its size in bytes.
        mode: Its permissions, whatever the umask.
        what: What the file is, for the error's sentence.

    Raises:
        NotEnoughSharedMemory: /dev/shm, or the memory limit of the control group, has less room.
        FileExistsError: The name is taken.
    """
    require_space(size, what)
    try:
        memory = posix_ipc.SharedMemory(f"/{name}", posix_ipc.O_CREX, mode=mode)
    except posix_ipc.ExistentialError:
        raise FileExistsError(f"{SHM_DIRECTORY / name} exists") from None
    except OSError as error:
        raise no_room(error, size, what) or exhausted(error) or error from None
    map_fd = -1
    try:
        os.fchmod(memory.fd, mode)
        # ftruncate would succeed on a full tmpfs, and the first touch of a page be a SIGBUS.
        os.posix_fallocate(memory.fd, 0, size)
        map_fd = _open(name, writable=True)
        return Segment(name, memory.fd, map_fd, writable=True)
    except BaseException as error:
        os.unlink(SHM_DIRECTORY / name)
        if memory.fd >= 0:
            os.close(memory.fd)
        if isinstance(error, OSError) and not isinstance(error, ResourceExhausted):
            raise no_room(error, size, what) or exhausted(error) or error from None
        raise
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
        fd = map_fd = -1
        try:
            fd = _open(name, writable)
            map_fd = _open(name, writable)
            status, map_status = os.fstat(fd), os.fstat(map_fd)
            if status.st_ino != map_status.st_ino:
                continue
            if owner is not None and map_status.st_uid != owner:
                found = map_status.st_uid
                raise PermissionDenied(
                    errno.EACCES,
                    f"{SHM_DIRECTORY / name} belongs to {_user(found)}, and frames of {_user(owner)} alone are wanted: "
                    f"stop whoever publishes as user {found}, or name that user if you trust it",
                )
            if status.st_size < min_bytes:
                raise LayoutMismatch(f"{SHM_DIRECTORY / name} has {status.st_size} bytes: it is no ring")
            # A page that was never allocated could fail to be, later, with a SIGBUS.
            if status.st_blocks * 512 < status.st_size:
                raise LayoutMismatch(f"{SHM_DIRECTORY / name} has holes: it is no ring")
            segment = Segment(name, fd, map_fd, writable=writable)
        except OSError as error:
            raise exhausted(error) or error from None
        else:
            fd = -1
            return segment
        finally:
            for descriptor in (fd, map_fd):
                if descriptor >= 0:
                    os.close(descriptor)
    raise StreamNotFound(f"{SHM_DIRECTORY / name} is replaced again and again")


def open_for_reading(name: str) -> LockHolder:
    """Open an existing file without mapping it, to read its bytes with pread(2) and to ask for its locks.

    Raises:
        StreamNotFound: There is no such file.
        PermissionDenied: It is closed to this user.
    """
    return LockHolder(_open(name, writable=False))


EXCLUSION_PATIENCE_S: Final = 0.2
"""How long to wait for a stream's exclusion. With no publisher, ``framebus gc`` and ``doctor`` take it briefly."""


def take_exclusion(name: str, patience_s: float = 0.0, *, create: bool = True) -> LockHolder | None:
    """Write-lock a file of mode 0600 that only this user can open, creating it if need be.

    Args:
        name: The file's name in /dev/shm.
        patience_s: Seconds to try again while another process holds it.
        create: Whether to create it where it is missing.

    Returns:
        What holds the lock until it is closed; ``None`` when another process holds it.

    Raises:
        PermissionDenied: The file belongs to another user.
        StreamNotFound: It is missing and not to be created.
        NotEnoughSharedMemory: /dev/shm has no room for one more file.
    """
    path = SHM_DIRECTORY / name
    deadline_s = time.monotonic() + patience_s
    while True:
        try:
            # Without O_CREAT where it exists: fs.protected_regular refuses that for another user's file (proc(5)).
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            if not create:
                raise StreamNotFound(errno.ENOENT, f"{path} does not exist") from None
            try:
                fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_CREAT | os.O_EXCL, LOCK_MODE)
            except FileExistsError:
                continue
            except OSError as error:
                raise no_room(error, 0, "the lock") or exhausted(error) or error from None
        except OSError as error:
            raise exhausted(error) or denied(path, error) from None
        try:
            if os.fstat(fd).st_uid != os.geteuid():
                raise denied(path, None)
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, write_lock(0))
            # Who locks a file that its last holder has just unlinked holds nothing.
            if path.exists() and os.stat(path).st_ino == os.fstat(fd).st_ino:
                holder, fd = LockHolder(fd), -1
                return holder
        except (BlockingIOError, FileNotFoundError):
            if path.exists() and time.monotonic() >= deadline_s:
                return None
            time.sleep(0.001)
        finally:
            if fd >= 0:
                os.close(fd)


def hold_briefly(segment: Segment, timeout_s: float) -> bool:
    """Take the file's flock(2) within ``timeout_s``; freed by :func:`let_go`.

    It orders honest processes that change several locks together. A false answer is no reason to stop: somebody may
    hold it for ever on purpose.
    """
    deadline_s = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(segment.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline_s:
                return False
            time.sleep(0.001)
        else:
            return True


def let_go(segment: Segment) -> None:
    """Free what :func:`hold_briefly` took."""
    fcntl.flock(segment.fd, fcntl.LOCK_UN)


def random_suffix() -> str:
    """Sixteen hexadecimal digits that no other process takes."""
    return secrets.token_hex(8)


def require_space(size: int, what: str) -> None:
    """Check that /dev/shm has room for ``size`` bytes in one more file.

    Raises:
        NotEnoughSharedMemory: It has not; the message says what to set.
    """
    space = os.statvfs(SHM_DIRECTORY)
    if size > space.f_bavail * space.f_frsize or _lacks_files(space):
        raise _not_enough(space, size, what)


def no_room(error: OSError, size: int, what: str) -> NotEnoughSharedMemory | None:
    """What the error means if it says that there is no room; ``None`` when it says something else.

    Args:
        error: What the kernel answered.
        size: Bytes that were wanted.
        what: What they were wanted for.
    """
    if error.errno == errno.ENOMEM:
        reason = f"the memory limit leaves no {-(-size // MIB)} MiB for {what}: raise mem_limit"
        return NotEnoughSharedMemory(errno.ENOMEM, reason)
    return _not_enough(os.statvfs(SHM_DIRECTORY), size, what) if error.errno == errno.ENOSPC else None


def _not_enough(space: os.statvfs_result, size: int, what: str) -> NotEnoughSharedMemory:
    free, total = space.f_bavail * space.f_frsize, space.f_blocks * space.f_frsize
    if _lacks_files(space):
        reason = f"/dev/shm has no room for one more file, {what}: remove some, or mount it with a larger nr_inodes"
    else:
        shm_size = -(-(total - free + size) // (32 * MIB)) * 32
        reason = f"/dev/shm has {free // MIB} MiB free, {what} needs {-(-size // MIB)} MiB: set shm_size: {shm_size}m"
    return NotEnoughSharedMemory(errno.ENOSPC, reason)


def _lacks_files(space: os.statvfs_result) -> bool:
    return space.f_files > 0 and space.f_favail == 0  # no files at all are counted where they have no limit: tmpfs(5)


def denied(path: Path, error: OSError | None) -> PermissionDenied:
    """The error for a file that another user has, with what to do."""
    try:
        status = path.lstat()
    except OSError:
        return PermissionDenied(errno.EACCES, f"{path}: {error.strerror if error else 'permission denied'}")
    if error is not None and error.errno == errno.EROFS:
        return PermissionDenied(errno.EROFS, f"{SHM_DIRECTORY} is mounted read-only: mount it writable")
    if error is not None and group_would_help(status):
        remedy = f"run this process with group {status.st_gid}, or have user {status.st_uid} remove the file"
    else:
        # Either only the owner may open the file, or only the owner may serve the stream: no group helps.
        remedy = (
            "that user serves this stream, or has left the file: take another name, "
            f"or run this process or 'framebus gc' {as_user(status.st_uid)}"
        )
    return PermissionDenied(
        errno.EACCES,
        f"{path} belongs to {_user(status.st_uid)} and {describe_group(status.st_gid)}, mode "
        f"{stat.S_IMODE(status.st_mode):04o}, and is closed to user {os.geteuid()} with group {os.getegid()}: {remedy}",
    )


def _user(number: int) -> str:
    return describe_user(number)


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


def exhausted(error: OSError) -> ResourceExhausted | None:
    """What the error means if the process or the host has run out of something; ``None`` when it means something else.

    Args:
        error: What the kernel answered.
    """
    if error.errno == errno.EMFILE:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        return ResourceExhausted(
            errno.EMFILE,
            f"this process has all of its {soft} descriptors open (the hard limit is {hard}), a publisher takes 4 and "
            "1 for each subscriber, a subscriber 3: raise RLIMIT_NOFILE (ulimit -n, ulimits: nofile in compose), or "
            "close what is not needed",
        )
    if error.errno == errno.ENFILE:
        return ResourceExhausted(
            errno.ENFILE, "this host has all of its descriptors open: raise fs.file-max, or close what is not needed"
        )
    if error.errno == errno.ENOMEM:
        return ResourceExhausted(
            errno.ENOMEM,
            "this process can map no more memory: raise RLIMIT_AS or vm.max_map_count, or open fewer streams",
        )
    return None
