"""Mounts, loop disks and cold caches. Mounts and disks are removed when their ``with`` block ends, also by Ctrl-C."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bench.storage.figures import NOT_HERE, NOT_IN_KERNEL, NotHere

MIB: Final = 1 << 20
DROP_CACHES: Final = Path("/proc/sys/vm/drop_caches")
PACKAGES: Final = {"xfs": "xfsprogs", "btrfs": "btrfs-progs", "ext4": "e2fsprogs"}


def kernel_knows(file_system: str) -> bool:
    """Return whether the running kernel supports a file system."""
    return file_system in Path("/proc/filesystems").read_text().split()


def need_root() -> None:
    """Check that this process may mount.

    Raises:
        NotHere: The process does not run as root.
    """
    if os.geteuid() != 0:
        raise NotHere(f"{NOT_HERE}: mounting needs root, run it with sudo")


def need_file_system(name: str) -> None:
    """Check that the kernel supports a file system.

    Raises:
        NotHere: The kernel does not support it.
    """
    if not kernel_knows(name):
        raise NotHere(f"{NOT_IN_KERNEL}: /proc/filesystems has no {name}")


def command(*arguments: str, directory: Path | None = None, timeout_s: float = 120) -> str:
    """Run a program and return what it printed.

    Raises:
        NotHere: There is no such program, or it failed; the text is the end of what it printed.
    """
    try:
        done = subprocess.run(
            arguments, cwd=directory, capture_output=True, text=True, timeout=timeout_s, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except FileNotFoundError:
        raise NotHere(f"{NOT_HERE}: {arguments[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise NotHere(f"{arguments[0]} took longer than {timeout_s:g} s") from None
    if done.returncode:
        raise NotHere(" ".join((done.stderr or done.stdout).split())[-300:] or f"{arguments[0]} failed")
    return done.stdout


@contextmanager
def work_folder(parent: Path) -> Iterator[Path]:
    """Yield a temporary folder. At the end, unmount all that is mounted below it, and remove it."""
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="storage-", dir=parent))
    try:
        yield folder
    finally:
        with held_back():
            unmount_below(folder)
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def held_back() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back during a clean-up, and raise a signal that arrived afterwards.

    Blocking the signals is not enough: the kernel delivers them to another thread, such as one of numpy's.
    """
    # Only the main thread may set handlers of signals, and Python runs them only there.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    held = (signal.SIGINT, signal.SIGTERM)
    handlers = [signal.signal(number, lambda number, _frame: came.append(number)) for number in held]
    try:
        yield
    finally:
        for number, handler in zip(held, handlers, strict=True):
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if came:
            signal.raise_signal(came[0])


def mounted_below(folder: Path) -> list[Path]:
    """Return the mount points at or below a folder; the latest mount comes first."""
    fields = (line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines())
    # mountinfo escapes spaces and other characters in octal.
    points = [Path(field[4].encode().decode("unicode_escape")) for field in fields]
    return [point for point in reversed(points) if point == folder or folder in point.parents]


def unmount_below(folder: Path) -> None:
    """Unmount everything at or below a folder. A mount that is in use is detached."""
    for point in mounted_below(folder):
        # A process that is just ending may still use the mount, so try twice before detaching it.
        for flags in ([], [], ["--lazy"]):
            if subprocess.run(["umount", *flags, point], capture_output=True, check=False).returncode == 0:
                break
            time.sleep(0.2)


@contextmanager
def mounted(target: Path, *arguments: str, directory: Path | None = None, log: str = "") -> Iterator[Path]:
    """Create a folder and mount something on it: ``arguments`` are those of mount(8) before the folder.

    If mount(8) fails, the reason is the last line of the kernel's log that contains ``log``, if there is one.

    Raises:
        NotHere: mount(8) failed.
    """
    need_root()
    target.mkdir(parents=True, exist_ok=True)
    try:
        try:
            command("mount", *arguments, str(target), directory=directory)
        except NotHere as error:
            raise NotHere(_kernel_said(log) or str(error)) from None
        yield target
    finally:
        with held_back():
            unmount_below(target)


def _kernel_said(log: str) -> str:
    said = subprocess.run(["dmesg"], capture_output=True, text=True, check=False).stdout if log else ""
    found = [line.partition(log)[2] for line in said.splitlines() if log and log in line]
    return log + found[-1] if found else ""


@contextmanager
def loop_disk(folder: Path, file_system: str, size_mib: int, at: Path | None = None) -> Iterator[Path]:
    """Yield a mounted disk whose content is a sparse file, which takes only the space that is written.

    Args:
        folder: Folder of the file and of the mount point.
        file_system: ``ext4``, ``xfs`` or ``btrfs``.
        size_mib: Size of the disk; xfs needs 300 MiB or more.
        at: The mount point, if it is not in ``folder``.

    Raises:
        NotHere: The kernel does not support the file system, its mkfs is not installed, or there is no loop device.
    """
    need_file_system(file_system)
    if shutil.which(f"mkfs.{file_system}") is None:
        raise NotHere(f"{NOT_HERE}: mkfs.{file_system} is missing: apt-get install {PACKAGES[file_system]}")
    folder.mkdir(parents=True, exist_ok=True)
    image = folder / f"{file_system}.img"
    try:
        with image.open("xb") as file:
            file.truncate(size_mib * MIB)
        quiet = ["-q", "-F"] if file_system == "ext4" else ["-q", "-f"]
        command(f"mkfs.{file_system}", *quiet, str(image))
        with mounted(at or folder / "disk", "-o", "loop", str(image)) as disk:
            yield disk
    finally:
        image.unlink(missing_ok=True)


@contextmanager
def overlay(target: Path, lower: Sequence[Path], upper: Path, work: Path) -> Iterator[Path]:
    """Yield an overlay mount; ``lower`` begins with the topmost layer.

    The layers have short names relative to one folder, as with the engine, because mount(2) takes one page of options.

    Raises:
        NotHere: The kernel rejected the mount.
    """
    need_file_system("overlay")
    parent = Path(os.path.commonpath([*lower, upper, work]))
    for one in (upper, work):
        one.mkdir(parents=True, exist_ok=True)
    stack = ":".join(str(one.relative_to(parent)) for one in lower)
    options = f"lowerdir={stack},upperdir={upper.relative_to(parent)},workdir={work.relative_to(parent)}"
    with mounted(target, "-t", "overlay", "overlay", "-o", options, directory=parent, log="overlayfs: "):
        yield target


def drop_caches() -> None:
    """Write dirty pages back, then drop the page cache, dentries and inodes of the whole machine.

    Raises:
        NotHere: The process does not run as root, or it is in a container that may not drop them.
    """
    need_root()
    os.sync()
    try:
        # 3 drops pages, dentries and inodes: a lookup through layers is slow only without its dentry.
        DROP_CACHES.write_text("3")
    except OSError as error:
        raise NotHere(f"{NOT_HERE}: {DROP_CACHES} cannot be written ({error.strerror})") from None


def used_bytes(disk: Path) -> int:
    """Return the used bytes of the file system of a path, after writing dirty pages back."""
    os.sync()
    space = os.statvfs(disk)
    return (space.f_blocks - space.f_bfree) * space.f_frsize
