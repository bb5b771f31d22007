"""``size``, ``doctor`` and ``gc``: room in /dev/shm, faults, and what the dead left."""

from __future__ import annotations

import argparse
import json
import os
import stat
import sys
from dataclasses import asdict, dataclass
from typing import Literal

from framebus.bus import FrameFormat
from framebus.directory import find_leftovers, inspect, stream_names
from framebus.errors import FramebusError, StreamNotFound
from framebus.layout import Geometry
from framebus.segment import SHM_DIRECTORY

MIB = 1 << 20
STEP_MIB = 32
OVERHEAD_BYTES = 4 * MIB
"""Sockets, records, and what other programs keep in /dev/shm."""
DOCKER_DEFAULT_BYTES = 64 * MIB
STALE_AFTER_S = 5.0


def run_size(options: argparse.Namespace) -> int:
    """Print the ring's size and the shm_size to set."""
    try:
        frame_format = FrameFormat(options.height, options.width, options.channels, options.dtype)
        ring_bytes = Geometry.for_frames(options.slots, frame_format.frame_bytes).total_bytes
    except ValueError as error:
        raise FramebusError(str(error)) from None
    shm_size = f"{-(-(ring_bytes + OVERHEAD_BYTES) // (STEP_MIB * MIB)) * STEP_MIB}m"
    if options.json:
        sys.stdout.write(json.dumps({"ring_bytes": ring_bytes, "shm_size": shm_size}) + "\n")
    else:
        sys.stdout.write(f"ring      {ring_bytes / MIB:.1f} MiB\nshm_size: {shm_size}\n")
    return 0


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that the doctor saw."""

    level: Literal["ok", "warning", "problem"]
    what: str
    remedy: str = ""


def run_doctor(options: argparse.Namespace) -> int:
    """Print what is wrong and what to do; exit status 1 when anything needs doing."""
    findings = [*_check_directory(), *_check_streams()]
    findings += [
        Finding("problem", f"{left.path} is left over: {left.reason}", "run 'framebus gc'") for left in find_leftovers()
    ]
    if options.json:
        sys.stdout.write(json.dumps([asdict(finding) for finding in findings]) + "\n")
    else:
        for finding in findings:
            remedy = f"\n         {finding.remedy}" if finding.remedy else ""
            sys.stdout.write(f"{finding.level:8} {finding.what}{remedy}\n")
    return int(any(finding.level == "problem" for finding in findings))


def _check_directory() -> list[Finding]:
    try:
        mode = SHM_DIRECTORY.stat().st_mode
        space = os.statvfs(SHM_DIRECTORY)
    except OSError as error:
        return [Finding("problem", f"/dev/shm: {error.strerror}", "mount a tmpfs on /dev/shm")]
    findings = []
    free, total = space.f_bavail * space.f_frsize, space.f_blocks * space.f_frsize
    room = f"/dev/shm has {free // MIB} MiB free of {total // MIB} MiB"
    if total <= DOCKER_DEFAULT_BYTES:
        findings.append(Finding("warning", room, "too small for big frames: see 'framebus size', set shm_size"))
    else:
        findings.append(Finding("ok", room))
    if stat.S_IMODE(mode) != 0o1777:
        findings.append(
            Finding("warning", f"/dev/shm has mode {stat.S_IMODE(mode):04o}", "chmod 1777 /dev/shm: sticky, for all")
        )
    if not os.access(SHM_DIRECTORY, os.W_OK | os.X_OK):
        findings.append(Finding("problem", "/dev/shm cannot be written by this user", "mount it writable"))
    return findings


def _check_streams() -> list[Finding]:
    findings = []
    for name in stream_names():
        try:
            stream = inspect(name)
        except StreamNotFound:
            continue
        except FramebusError as error:
            findings.append(Finding("problem", f"stream {name}: {error}", "restart its publisher, which replaces it"))
            continue
        if stream.live and stream.age_s is not None and stream.age_s > STALE_AFTER_S:
            what = f"stream {name}: its publisher lives, but the newest frame is {stream.age_s:.0f} s old"
            findings.append(Finding("warning", what, "look at the publisher's log"))
        elif stream.live and stream.slots_held >= stream.slots - 1:
            what = f"stream {name}: {stream.slots_held} of {stream.slots} slots are held"
            findings.append(Finding("problem", what, "see in 'framebus top' who holds them, and stop it"))
        else:
            findings.append(Finding("ok", f"stream {name}: {'live' if stream.live else 'no publisher'}"))
    return findings


def run_gc(options: argparse.Namespace) -> int:
    """Remove leftovers; exit status 1 when some could not be removed."""
    found = find_leftovers(options.stream, remove=not options.dry_run)
    if options.json:
        rows = [{"path": str(left.path), "reason": left.reason, "obstacle": left.obstacle} for left in found]
        sys.stdout.write(json.dumps(rows) + "\n")
    else:
        verb = "would remove" if options.dry_run else "removed"
        for left in found:
            state = f"cannot remove ({left.obstacle})" if left.obstacle else verb
            sys.stdout.write(f"{state} {left.path}: {left.reason}\n")
        if not found:
            sys.stdout.write("nothing is left over\n")
    return int(any(left.obstacle for left in found))
