"""The page cache of files: counts and drops their pages, and disables read-ahead.

A page that a process has read or touched through a mapping stays in the page cache of its file. Under overlayfs that is
the file in the layer's folder, whichever container has read it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bench.image_usage.errors import CannotMeasure
from bench.image_usage.layers import Inode

CACHESTAT: Final = 451
"""Number of the system call, on every architecture."""
NOTE: Final = Path("/run/image-usage.note")
"""The read-ahead settings before this run. If it is killed, the next run restores them. Locked during a run."""
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


class _Range(ctypes.Structure):
    _fields_ = (("offset", ctypes.c_uint64), ("length", ctypes.c_uint64))


class _Pages(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("cached", "dirty", "written", "evicted", "recent"))


def _cachestat(descriptor: int) -> int:
    pages = _Pages()
    if _LIBC.syscall(CACHESTAT, descriptor, ctypes.byref(_Range(0, 0)), ctypes.byref(pages), 0) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    # A page that was touched and then reclaimed counts as touched.
    return int(pages.cached + pages.evicted)


def _mincore(descriptor: int) -> int:
    # mincore needs a mapping, and an empty file cannot be mapped.
    length = os.fstat(descriptor).st_size
    if not length:
        return 0
    # ctypes needs a writable buffer to find the mapping's address. A private mapping is writable without changing the
    # file.
    with mmap.mmap(descriptor, length, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as mapping:
        states = (ctypes.c_ubyte * -(-length // mmap.PAGESIZE))()
        first = ctypes.c_ubyte.from_buffer(mapping)
        try:
            if _LIBC.mincore(ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(length), states) < 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))
        finally:
            del first
        return sum(state & 1 for state in states)


def cached_pages(path: Path) -> int:
    """Return how many pages of a file are in memory, or were until the kernel reclaimed them.

    This uses ``cachestat`` or, on kernels before 6.5, ``mincore``, which does not count reclaimed pages.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOATIME)
    try:
        return _cachestat(descriptor)
    except OSError as error:
        if error.errno not in {errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP}:
            raise
        return _mincore(descriptor)
    finally:
        os.close(descriptor)


def cached_bytes(files: Mapping[Inode, tuple[Path, int]]) -> dict[Inode, int]:
    """Return how many bytes of each file are in memory; files without any are left out.

    Args:
        files: Path and size of each.
    """
    found: dict[Inode, int] = {}
    for inode, (path, size_bytes) in files.items():
        if size_bytes and (pages := cached_pages(path)):
            found[inode] = min(pages * mmap.PAGESIZE, size_bytes)
    return found


def drop(paths: Iterable[Path]) -> None:
    """Drop the pages of these files, except those that a process has mapped. No other file loses pages."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOATIME)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def write_back(folder: Path) -> None:
    """Write the dirty pages of a folder's file system to the disk, because dirty pages cannot be dropped."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _LIBC.syncfs(descriptor)
    finally:
        os.close(descriptor)


def read_ahead_setting(folder: Path) -> Path:
    """Return the file with the read-ahead setting of a folder's file system.

    Raises:
        CannotMeasure: There is no such file.
    """
    device = os.stat(folder).st_dev
    setting = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    if not setting.exists():
        setting = _of_btrfs(folder) or setting
    if not setting.exists():
        raise CannotMeasure(f"how far the kernel reads ahead on the file system of {folder} cannot be set here")
    return setting


def _of_btrfs(folder: Path) -> Path | None:
    """Find the setting by the file system's UUID, because a subvolume of btrfs has a device number of its own."""
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    above = [one for one in mounts if folder.resolve().is_relative_to(one[4])]
    # The longest mount point above the folder is the one that it is on.
    found = max(above, key=lambda one: len(one[4]), default=None)
    if found is None or found[found.index("-") + 1] != "btrfs":
        return None
    source = Path(found[found.index("-") + 2]).resolve().name
    settings = Path("/sys/fs/btrfs").glob(f"*/devices/{source}")
    return next((one.parent.parent / "bdi/read_ahead_kb" for one in settings), None)


@contextmanager
def alone() -> Iterator[None]:
    """Ensure that only one measurement runs at a time, and undo the settings of one that was killed.

    Raises:
        CannotMeasure: Another measurement runs.
    """
    with NOTE.open("a+") as note:
        try:
            fcntl.flock(note, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CannotMeasure(
                "another measurement runs, and its reads would count in this one: wait until it ends"
            ) from None
        note.seek(0)
        _restore(note.read())
        note.truncate(0)
        yield


def _restore(note: str) -> None:
    for line in note.splitlines():
        setting, _, value = line.partition(" ")
        with contextlib.suppress(OSError):
            Path(setting).write_text(value)


@contextmanager
def no_read_ahead(folders: Iterable[Path]) -> Iterator[None]:
    """Disable read-ahead on the file systems of these folders, and restore it at the end.

    Raises:
        CannotMeasure: A file system has no such setting, or this process may not change it.
    """
    settings = {read_ahead_setting(folder) for folder in folders}
    before = {setting: setting.read_text().strip() for setting in settings}
    # Save the settings before changing them, so that a kill at any time can be repaired.
    NOTE.write_text("".join(f"{setting} {value}\n" for setting, value in before.items()))
    try:
        for setting in settings:
            _switch_off(setting)
        yield
    finally:
        for setting, value in before.items():
            with contextlib.suppress(PermissionError):
                setting.write_text(value)
        NOTE.write_text("")


def _switch_off(setting: Path) -> None:
    try:
        setting.write_text("0")
    except PermissionError as error:
        raise CannotMeasure(f"reading ahead cannot be switched off: {error}; run this as root") from None
