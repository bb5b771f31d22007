"""Mounts, loop disks and cold caches. Each is undone when its ``with`` block ends, also by Ctrl-C."""

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
    """Whether the running kernel has a file system."""
    return file_system in Path("/proc/filesystems").read_text().split()


def need_root() -> None:
    """Raise unless this process may mount.

    Raises:
        NotHere: It is not root's.
    """
    if os.geteuid() != 0:
        raise NotHere(f"{NOT_HERE}: mounting needs root, run it with sudo")


def need_file_system(name: str) -> None:
    """Raise unless the kernel has a file system.

    Raises:
        NotHere: It has not.
    """
    if not kernel_knows(name):
        raise NotHere(f"{NOT_IN_KERNEL}: /proc/filesystems has no {name}")


def command(*arguments: str, directory: Path | None = None, timeout_s: float = 120) -> str:
    """Run a program and return what it printed.

    Raises:
        NotHere: There is no such program, or it failed; the text is the end of what it said.
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
    """Yield a folder that is removed at the end, after all that is mounted below it is unmounted."""
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
    """Hold SIGINT and SIGTERM back while something is undone; what came is raised afterwards.

    To block the signals would not do: the kernel hands them to another thread, such as one of numpy's.
    """
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
    """Return the mount points at or below a folder, the latest first."""
    fields = (line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines())
    points = [Path(field[4].encode().decode("unicode_escape")) for field in fields]
    return [point for point in reversed(points) if point == folder or folder in point.parents]


def unmount_below(folder: Path) -> None:
    """Unmount all that is mounted at or below a folder; what is in use is detached."""
    for point in mounted_below(folder):
        for flags in ([], [], ["--lazy"]):
            if subprocess.run(["umount", *flags, point], capture_output=True, check=False).returncode == 0:
                break
            time.sleep(0.2)


@contextmanager
def mounted(target: Path, *arguments: str, directory: Path | None = None, log: str = "") -> Iterator[Path]:
    """Mount something at a folder, which is made: ``arguments`` are those of mount(8) before it.

    If it is refused, the reason is the last line of the kernel's log with ``log`` in it, if there is one.

    Raises:
        NotHere: mount(8) refused.
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
    """Yield a mounted disk in a file: sparse, so that it takes only what is written to it.

    Args:
        folder: Where the file and the mount point are.
        file_system: ``ext4``, ``xfs`` or ``btrfs``.
        size_mib: Its size; xfs wants 300 MiB or more.
        at: The mount point, if not in ``folder``.

    Raises:
        NotHere: The kernel has no such file system, its mkfs is not installed, or there is no loop device.
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

    The layers have short names below one folder, as the engine gives them, because mount(2) takes one page of options.

    Raises:
        NotHere: The kernel refused.
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
    """Write all back, then drop the page cache, the dentries and the inodes of the whole machine.

    Raises:
        NotHere: This is not root's, or the kernel is a container's that may not.
    """
    need_root()
    os.sync()
    try:
        DROP_CACHES.write_text("3")
    except OSError as error:
        raise NotHere(f"{NOT_HERE}: {DROP_CACHES} cannot be written ({error.strerror})") from None


def used_bytes(disk: Path) -> int:
    """Return what is taken of the file system that holds a path, after all is written."""
    os.sync()
    space = os.statvfs(disk)
    return (space.f_blocks - space.f_bfree) * space.f_frsize
