"""Checks of ``framebus doctor`` on /dev/shm itself: its file system, size and mode, and the limits of a pod."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from framebus.cli.findings import MIB, Finding
from framebus.ring.layout import PAGE_BYTES
from framebus.shm.directory import directory_fault
from framebus.shm.host import is_container, is_pod, machine_memory_bytes, memory_limit_bytes
from framebus.shm.paths import SHM_DIRECTORY

DOCKER_DEFAULT_BYTES: Final = 64 * MIB
"""Docker's default size of /dev/shm. In a pod, it applies to containers without a volume on /dev/shm."""
UNSIZED: Final = 0.49
"""Share of the memory from which a tmpfs counts as unsized: the kernel's default is one half, rounded."""
MEMORY_FILE_SYSTEMS: Final = ("tmpfs", "ramfs", "rootfs")
SHARE_IT: Final = (
    "to see another container's streams, join its /dev/shm: in compose with 'ipc: service:holder'; "
    "in a pod, mount one emptyDir with 'medium: Memory' on /dev/shm of each container"
)
SIZED_VOLUME: Final = "mount an emptyDir with 'medium: Memory' and a 'sizeLimit' with room to spare on /dev/shm"
STICKY_FOLDER: Final = (
    "to prevent the containers' users from removing each other's files, let an init container create a folder of mode "
    "1777 in the emptyDir, and mount that on /dev/shm by 'subPath'"
)


def judge_directory(*, has_streams: bool) -> Iterator[Finding]:
    """Check /dev/shm itself.

    Args:
        has_streams: Whether it contains streams. If not, the user may expect to see the /dev/shm of another container.
    """
    fault = directory_fault(writable=False)
    if fault is not None:
        yield Finding("problem", *fault[1])
        return
    status, space = SHM_DIRECTORY.stat(), os.statvfs(SHM_DIRECTORY)
    total = space.f_blocks * space.f_frsize
    kind = _file_system()
    yield _judge_room(status, space, kind)
    if is_pod():
        yield from _judge_limits(total)
    if kind and kind not in MEMORY_FILE_SYSTEMS:
        what = f"/dev/shm is on {kind}, not on a tmpfs: frames would go to a disk"
        yield Finding("warning", what, "mount a tmpfs on /dev/shm")
    if space.f_files > 0 and space.f_favail == 0:
        what = "/dev/shm has no room for one more file"
        yield Finding("problem", what, "remove some files, or mount it with a larger nr_inodes")
    if stat.S_IMODE(status.st_mode) != 0o1777:
        what = f"/dev/shm has mode {stat.S_IMODE(status.st_mode):04o}"
        yield Finding("warning", what, STICKY_FOLDER if is_pod() else "chmod 1777 /dev/shm: sticky, for all")
    fault = directory_fault(writable=True)
    if fault is not None:
        yield Finding("problem", *fault[1])
    if not has_streams:
        if total <= DOCKER_DEFAULT_BYTES or is_container():
            size = ", of docker's default size" if total == DOCKER_DEFAULT_BYTES else ""
            what = f"no streams; this container seems to have a /dev/shm of its own{size}"
            yield Finding("note", what, SHARE_IT)
        else:
            yield Finding("note", "no streams")


def _judge_room(status: os.stat_result, space: os.statvfs_result, kind: str) -> Finding:
    free, total = space.f_bavail * space.f_frsize, space.f_blocks * space.f_frsize
    device = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
    # Show the device, because two containers with the same device share their streams.
    room = f"/dev/shm ({kind or 'file system'}, device {device}) has {free // MIB} MiB free of {total // MIB} MiB"
    if total and free < PAGE_BYTES:
        larger = "sizeLimit" if is_pod() else "shm_size"
        return Finding("problem", room, f"run 'framebus gc', or set a larger {larger}: subscribers find no room either")
    if total and total <= DOCKER_DEFAULT_BYTES:
        remedy = "see 'framebus size', " + (SIZED_VOLUME if is_pod() else "set shm_size")
        return Finding("warning", room, f"too small for big frames: {remedy}")
    return Finding("ok", room)


def _judge_limits(total: int) -> Iterator[Finding]:
    """Check what else ends a pod when /dev/shm fills up: eviction beyond a sizeLimit, and the memory limit."""
    limit = memory_limit_bytes()
    # The kernel does not report whether a size was given, so compare with its default.
    if total >= UNSIZED * machine_memory_bytes():
        what = f"/dev/shm may grow to {total // MIB} MiB, half of this node's memory or more"
        consequence = "Kubernetes evicts a pod that fills it too far, before a publisher gets an error"
        yield Finding("warning", f"{what}: {consequence}", f"see 'framebus size', {SIZED_VOLUME}")
    elif limit is not None and total > limit:
        what = f"/dev/shm may grow to {total // MIB} MiB, and this container may use {limit // MIB} MiB of memory"
        consequence = "pages are charged to the container that touches them first, so a publisher here may be killed"
        yield Finding("warning", f"{what}: {consequence}", "set limits.memory of publishers above the sizeLimit")


def _file_system() -> str:
    """Return the type of the file system of /dev/shm; empty if unknown."""
    place = SHM_DIRECTORY.resolve()
    kind, longest = "", -1
    try:
        mounts = Path("/proc/self/mounts").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    for line in mounts:
        _, point, found, *_ = line.split(" ")
        if place.is_relative_to(point) and len(point) >= longest:  # the last mount on a directory hides the others
            kind, longest = found, len(point)
    return kind
