"""``size``, ``doctor`` and ``gc``: the size of /dev/shm, problems, and leftovers of dead processes."""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict
from typing import Final

from framebus.bus import FrameFormat
from framebus.cli.findings import MIB, Finding
from framebus.cli.output import columns, wrap, write, write_json
from framebus.cli.room import judge_directory
from framebus.cli.show import CLOCK_TIMEOUT_S
from framebus.errors import FramebusError, UnsupportedEnvironment
from framebus.inspect.leftovers import Leftover, find_leftovers
from framebus.inspect.streams import StreamInfo, UnreadableStream, survey
from framebus.ring import backend
from framebus.ring.layout import Geometry
from framebus.shm.directory import check_directory
from framebus.shm.identity import as_user, describe_user, is_unmapped
from framebus.shm.locks import is_any_locked
from framebus.shm.paths import companion_path
from framebus.shm.segment import open_for_reading

STEP_MIB: Final = 32
OVERHEAD_BYTES: Final = 4 * MIB
"""Space for sockets, records, and files of other programs in /dev/shm."""
STALE_AFTER_S: Final = 5.0


def run_size(options: argparse.Namespace) -> int:
    """Print the size of the ring and the shm_size to configure."""
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


def run_doctor(options: argparse.Namespace) -> int:
    """Print what is wrong and what to do; return 1 if there is a problem."""
    found = survey(timeout_s=CLOCK_TIMEOUT_S)
    findings = [*judge_directory(has_streams=bool(found)), _judge_backend(), *map(_judge_stream, found)]
    unreadable = {companion_path(stream.name, "ring") for stream in found if isinstance(stream, UnreadableStream)}
    findings += [
        _judge_leftover(leftover)
        for leftover in find_leftovers()
        # An unreadable ring has a finding already.
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


def _judge_backend() -> Finding:
    """Check which implementation of the hand-over steps is in use."""
    used = f"backend: {backend.name()}"
    try:
        backend.check()
    except UnsupportedEnvironment as error:
        what, _, remedy = str(error).rpartition(": ")
        return Finding("problem", what or remedy, remedy if what else f"unset {backend.BACKEND}")
    if backend.missing:
        what = f"{used}, because the compiled part of framebus was not built ({backend.missing})"
        return Finding("warning", f"{what}: a hand-over takes about 1.5 times as long", backend.REMEDY)
    if backend.name() == "python":
        return Finding("note", f"{used}, because {backend.BACKEND}={backend.asked} asks for it")
    return Finding("ok", used)


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
        # The process that uses it has another version, or does not keep to the protocol.
        remedy = advice if advice.startswith("run ") else "run the same version of framebus in all containers"
        return Finding("problem", f"stream {stream.name}: {fault}" if remedy == advice else what, remedy)
    if os.geteuid() not in (0, stream.owner):
        return Finding("warning", what, f"{describe_user(stream.owner)} owns it: run 'framebus gc' as that user")
    return Finding("problem", what, "start its publisher, which replaces it, or run 'framebus gc'")


def _is_in_use(name: str) -> bool:
    """Return whether a process holds a lock of the ring, whatever its layout version."""
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
    # Root can act on it as the owner, but not as itself, because only the owner may take the file's lock.
    return Finding("problem" if os.geteuid() == 0 else "warning", what, leftover.obstacle)


def run_gc(options: argparse.Namespace) -> int:
    """Remove leftovers; return 1 if some of this user's could not be removed."""
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
