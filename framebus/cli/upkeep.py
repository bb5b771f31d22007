"""``size``, ``doctor`` and ``gc``: room in /dev/shm, faults, and leftovers of dead processes."""

from __future__ import annotations

import argparse
import os
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

from framebus.bus import FrameFormat
from framebus.cli.output import columns, wrap, write, write_json
from framebus.cli.show import PATIENCE_S
from framebus.errors import FramebusError, UnsupportedEnvironment
from framebus.inspect.leftovers import Leftover, find_leftovers
from framebus.inspect.streams import StreamInfo, UnreadableStream, survey
from framebus.ring import backend
from framebus.ring.layout import PAGE_BYTES, Geometry
from framebus.shm.directory import check_directory, directory_fault
from framebus.shm.identity import as_user, describe_user, is_unmapped
from framebus.shm.locks import is_any_locked
from framebus.shm.paths import SHM_DIRECTORY, companion_path
from framebus.shm.segment import open_for_reading

MIB: Final = 1 << 20
STEP_MIB: Final = 32
OVERHEAD_BYTES: Final = 4 * MIB
"""Sockets, records, and what other programs keep in /dev/shm."""
DOCKER_DEFAULT_BYTES: Final = 64 * MIB
STALE_AFTER_S: Final = 5.0
MEMORY_FILE_SYSTEMS: Final = ("tmpfs", "ramfs", "rootfs")
SHARE_IT: Final = (
    "to see another container's streams, join its /dev/shm: in compose with 'ipc: service:holder'; "
    "in a pod, mount one emptyDir with 'medium: Memory' on /dev/shm of each container"
)

Level = Literal["ok", "note", "unknown", "warning", "problem"]


def run_size(options: argparse.Namespace) -> int:
    """Print the ring's size and the shm_size to set."""
    frame_format = FrameFormat(
        options.height, options.width, options.channels, options.dtype, pixel_format=options.pixel_format
    )
    geometry = Geometry.for_frames(options.slots, frame_format.frame_bytes, options.max_loans)
    ring_bytes = geometry.total_bytes
    shm_size = f"{-(-(ring_bytes + OVERHEAD_BYTES) // (STEP_MIB * MIB)) * STEP_MIB}m"
    if options.json:
        write_json({"ring_bytes": ring_bytes, "shm_size": shm_size, "leases": geometry.seats})
    else:
        write(f"ring      {ring_bytes / MIB:.1f} MiB\nleases    {geometry.seats}\nshm_size: {shm_size}\n")
    return 0


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that the doctor saw."""

    level: Level
    """``note`` needs nothing done, ``unknown`` cannot be judged by this user, ``problem`` needs something done."""
    what: str
    """What was seen."""
    remedy: str = ""
    """What to do."""


def run_doctor(options: argparse.Namespace) -> int:
    """Print what is wrong and what to do; exit status 1 when there is a problem."""
    found = survey(patience_s=PATIENCE_S)
    findings = [*_check_directory(has_streams=bool(found)), _judge_backend(), *map(_judge_stream, found)]
    unreadable = {companion_path(stream.name, "ring") for stream in found if isinstance(stream, UnreadableStream)}
    findings += [
        _judge_leftover(leftover)
        for leftover in find_leftovers()
        if leftover.judgement != "unknown" or leftover.path not in unreadable
    ]
    if options.json:
        write_json([asdict(finding) for finding in findings])
    else:
        width = columns()
        indent = " " * 9 if width is None or width >= 80 else "  "
        for finding in findings:
            for line in wrap(f"{finding.level:8} {finding.what}", width, indent):
                write(line + "\n")
            if finding.remedy:
                for line in wrap(indent + finding.remedy, width, indent):
                    write(line + "\n")
    return int(any(finding.level == "problem" for finding in findings))


def _check_directory(*, has_streams: bool) -> Iterator[Finding]:
    fault = directory_fault(writable=False)
    if fault is not None:
        yield Finding("problem", *fault[1])
        return
    status, space = SHM_DIRECTORY.stat(), os.statvfs(SHM_DIRECTORY)
    total = space.f_blocks * space.f_frsize
    kind = _file_system()
    yield _judge_room(status, space, kind)
    if kind and kind not in MEMORY_FILE_SYSTEMS:
        what = f"/dev/shm is on {kind}, not on a tmpfs: frames would go to a disk"
        yield Finding("warning", what, "mount a tmpfs on /dev/shm")
    if space.f_files > 0 and space.f_favail == 0:
        what = "/dev/shm has no room for one more file"
        yield Finding("problem", what, "remove some files, or mount it with a larger nr_inodes")
    if stat.S_IMODE(status.st_mode) != 0o1777:
        what = f"/dev/shm has mode {stat.S_IMODE(status.st_mode):04o}"
        yield Finding("warning", what, "chmod 1777 /dev/shm: sticky, for all")
    fault = directory_fault(writable=True)
    if fault is not None:
        yield Finding("problem", *fault[1])
    if not has_streams:
        if total <= DOCKER_DEFAULT_BYTES or _is_container():
            size = ", of docker's default size" if total == DOCKER_DEFAULT_BYTES else ""
            what = f"no streams; this container seems to have a /dev/shm of its own{size}"
            yield Finding("note", what, SHARE_IT)
        else:
            yield Finding("note", "no streams")


def _judge_backend() -> Finding:
    """Judge how this installation takes the steps of a hand-over."""
    used = f"backend: {backend.name()}"
    try:
        backend.check()
    except UnsupportedEnvironment as error:
        what, _, remedy = str(error).rpartition(": ")
        return Finding("problem", what or remedy, remedy if what else f"unset {backend.BACKEND}")
    if backend.missing:
        what = f"{used}, because the compiled part of framebus was not built ({backend.missing})"
        return Finding("warning", f"{what}: a hand-over takes about half as long again", backend.REMEDY)
    if backend.name() == "python":
        return Finding("note", f"{used}, because {backend.BACKEND}={backend.asked} asks for it")
    return Finding("ok", used)


def _judge_room(status: os.stat_result, space: os.statvfs_result, kind: str) -> Finding:
    free, total = space.f_bavail * space.f_frsize, space.f_blocks * space.f_frsize
    device = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
    # Two containers that show the same device share their streams.
    room = f"/dev/shm ({kind or 'file system'}, device {device}) has {free // MIB} MiB free of {total // MIB} MiB"
    if total and free < PAGE_BYTES:
        return Finding("problem", room, "run 'framebus gc', or set a larger shm_size: subscribers find no room either")
    if total and total <= DOCKER_DEFAULT_BYTES:
        return Finding("warning", room, "too small for big frames: see 'framebus size', set shm_size")
    return Finding("ok", room)


def _file_system() -> str:
    """Type of the file system that /dev/shm is on; empty if that cannot be known."""
    place = SHM_DIRECTORY.resolve()
    kind, longest = "", -1
    try:
        mounts = Path("/proc/self/mounts").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    for line in mounts:
        _, point, found, *_ = line.split(" ")
        if place.is_relative_to(point) and len(point) >= longest:  # the last one mounted on a place hides the others
            kind, longest = found, len(point)
    return kind


def _is_container() -> bool:
    return (
        Path("/.dockerenv").exists() or Path("/run/.containerenv").exists() or "KUBERNETES_SERVICE_HOST" in os.environ
    )


def _judge_stream(stream: StreamInfo | UnreadableStream) -> Finding:
    if isinstance(stream, UnreadableStream):
        return _judge_unreadable(stream)
    if stream.live and stream.slots_held >= stream.slots - 1:
        what = f"stream {stream.name}: {stream.slots_held} of {stream.slots} slots are held"
        return Finding("problem", what, "see in 'framebus top' which subscribers hold them, and stop those")
    if stream.live and stream.age_unknown:
        what = f"stream {stream.name}: live; age unknown: {stream.age_unknown}"
        return Finding("unknown", what, "run 'framebus doctor' beside its publisher to see whether frames come")
    if stream.live and stream.age_s is not None and stream.age_s > STALE_AFTER_S:
        what = f"stream {stream.name}: its publisher lives, but the newest frame is {stream.age_s:.0f} s old"
        return Finding("warning", what, "look at the publisher's log")
    return Finding("ok", f"stream {stream.name}: {'live' if stream.live else 'no publisher'}")


def _judge_unreadable(stream: UnreadableStream) -> Finding:
    if stream.denied:
        remedy = f"to judge it, run 'framebus doctor' {as_user(stream.owner)}"
        if stream.mode & 0o040 and stream.group and not is_unmapped(stream.group, "gid"):
            remedy += f" or with group {stream.group}"
        return Finding("unknown", f"stream {stream.name}: {stream.reason}", remedy)
    fault, _, advice = stream.detail.partition(": ")
    what = f"stream {stream.name}: {stream.detail}"
    if _is_in_use(stream.name):
        # A process of another version uses it, or one that does not write what it should.
        remedy = advice if advice.startswith("run ") else "run the same version of framebus in all containers"
        return Finding("problem", f"stream {stream.name}: {fault}" if remedy == advice else what, remedy)
    if os.geteuid() not in (0, stream.owner):
        return Finding("warning", what, f"{describe_user(stream.owner)} owns it: run 'framebus gc' as that user")
    return Finding("problem", what, "start its publisher, which replaces it, or run 'framebus gc'")


def _is_in_use(name: str) -> bool:
    """Whether any process locks the ring, of whatever version it is."""
    try:
        holder = open_for_reading(companion_path(name, "ring").name)
    except FramebusError:
        return False
    try:
        return is_any_locked(holder.fd)
    finally:
        holder.close()


def _judge_leftover(leftover: Leftover) -> Finding:
    if leftover.judgement == "kept":
        return Finding("note", f"{leftover.path} is kept: {leftover.reason}", "'framebus gc' would remove it")
    if leftover.judgement == "unknown":
        return Finding("unknown", f"{leftover.path}: {leftover.reason}", f"run 'framebus gc' {as_user(leftover.owner)}")
    what = f"{leftover.path} is left over: {leftover.reason}"
    if leftover.is_mine or not leftover.obstacle:
        return Finding("problem", what, "run 'framebus gc'")
    # Root can do something about it, though not by itself: the file's lock is its owner's.
    return Finding("problem" if os.geteuid() == 0 else "warning", what, leftover.obstacle)


def run_gc(options: argparse.Namespace) -> int:
    """Remove leftovers; exit status 1 when some of this user's could not be removed."""
    check_directory()
    found = find_leftovers(options.stream, remove=not options.dry_run)
    failed = [left for left in found if left.obstacle and left.is_mine and left.judgement != "unknown"]
    if options.json:
        write_json([_to_json(left, removed=not options.dry_run and not left.obstacle) for left in found])
        return int(bool(failed))
    verb = "would remove" if options.dry_run else "removed"
    for left in found:
        reason = left.reason
        if left.judgement == "unknown":
            state = "cannot judge"
        elif left.obstacle:
            state, reason = "cannot remove", f"{reason}, but {left.obstacle}"
        else:
            state = verb
        for line in wrap(f"{state} {left.path}: {reason}", columns(), "  "):
            write(line + "\n")
    if not found:
        write("nothing is left over\n")
    return int(bool(failed))


def _to_json(left: Leftover, *, removed: bool) -> dict[str, object]:
    return {
        "path": str(left.path),
        "reason": left.reason,
        "judgement": left.judgement,
        "owner": left.owner,
        "removed": removed,
        "obstacle": left.obstacle,
    }
