"""Measures which control group is charged for a ring, and what the kernel does when there is no room for it.

Each process is in a control group and a mount namespace, with a /dev/shm that belongs to the measurement.
"""

from __future__ import annotations

import signal
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from bench.storage.figures import FigureTable, NotHere
from bench.storage.form import Form
from bench.storage.memory import Group, group
from bench.storage.mounts import MIB, mounted

NAME: Final = "ring"
HEIGHT, WIDTH, SLOTS = 688, 4896, 16
STREAM: Final = "charged"
PUBLISH: Final = f"""\
import sys
from framebus import FrameFormat, Publisher
with Publisher("{STREAM}", FrameFormat({HEIGHT}, {WIDTH}, 3), slots={SLOTS}, keep_ring=True) as publisher:
    for number in range({SLOTS} * 2):
        with publisher.loan() as loan:
            loan.pixels[:] = number
            loan.publish()
    print("published", flush=True)
    sys.stdin.read()
"""
SUBSCRIBE: Final = f"""\
import mmap, os, sys
fd = os.open("/dev/shm/framebus.{STREAM}.ring", os.O_RDONLY)
ring = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
print(sum(ring[at] for at in range(0, len(ring), 4096)) > 0 and "read", flush=True)
sys.stdin.read()
"""
NAIVE: Final = """\
import mmap, os, sys
fd = os.open("/dev/shm/naive", os.O_RDWR | os.O_CREAT)
os.ftruncate(fd, 155 << 20)
memory = mmap.mmap(fd, 0)
print("mapped", flush=True)
for at in range(0, len(memory), 4096):
    memory[at] = 1
print("written", flush=True)
"""
SIZES: Final = ((240, 320, 16), (688, 4896, 8), (688, 4896, 16), (688, 4896, 32), (1080, 7680, 16))
"""Height, width and slots of the rings whose sizes are listed."""


def _shm(folder: Path) -> str:
    return f"mount --bind '{folder}' /dev/shm"


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def _finish(process: subprocess.Popen[str]) -> str:
    """End a process by closing its input; return how it ended, and the last line of its errors."""
    try:
        out, errors = process.communicate("", timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        out, errors = process.communicate()
    last = [line for line in errors.splitlines() if line.strip()][-1:]
    return ended(process.returncode, last[0] if last else out.strip())


def ended(status: int, last: str) -> str:
    """Return a phrase that says how a process ended."""
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return f"{'ended well' if status == 0 else 'ended with an error'}: {last}" if last else "ended well"


def _charges(place: Path) -> FigureTable:
    found = FigureTable(
        "The groups that are charged for a ring of 155 MiB",
        "what both groups had before",
        text="MiB of shmem in memory.stat of the two groups.",
    )
    for name, order in (
        ("the publisher first, then a subscriber that reads every page", (PUBLISH, SUBSCRIBE)),
        ("the publisher has ended, a new one in the other group adopts its ring", (PUBLISH, PUBLISH)),
    ):
        row = found.row(name)
        try:
            with ExitStack() as stack:
                shm = stack.enter_context(mounted(place / f"shm{len(found.rows)}", "-t", "tmpfs", "tmpfs"))
                shm.chmod(0o1777)
                groups = [stack.enter_context(group()) for _ in order]
                processes: list[subprocess.Popen[str]] = []
                for one, program in zip(groups, order, strict=True):
                    # A stream has one publisher: the second adopts the ring after the first has ended.
                    if program is PUBLISH and processes:
                        _finish(processes.pop())
                    processes.append(one.start("-c", program, before=_shm(shm)))
                    stack.callback(processes[-1].kill)
                    # Wait for the line that the program prints, so that its pages are charged before the counters are
                    # read.
                    _line(processes[-1])
                for which, one in zip(("first", "second"), groups, strict=True):
                    row.add({f"{which} group, MiB": one.shared_bytes() / MIB})
                ends = [_finish(one) for one in processes]
                row.note = ends[-1]
        except NotHere as error:
            row.note = str(error)
    return found


def _room(place: Path) -> FigureTable:
    found = FigureTable(
        "What happens when the room ends: a ring of 155 MiB", "a /dev/shm of 256 MiB and no memory limit"
    )
    for name, program, shm_mib, limit_mib in (
        ("framebus, shm_size 256m", PUBLISH, 256, None),
        ("framebus, shm_size 64m", PUBLISH, 64, None),
        ("a program that only calls ftruncate(2), 64m", NAIVE, 64, None),
        ("framebus, 256m, memory limit 128 MiB", PUBLISH, 256, 128),
        ("a program that only calls ftruncate(2), 256m, memory limit 128 MiB", NAIVE, 256, 128),
    ):
        row = found.row(name)
        try:
            with ExitStack() as stack:
                shm = stack.enter_context(
                    mounted(place / f"room{len(found.rows)}", "-t", "tmpfs", "-o", f"size={shm_mib}m", "tmpfs")
                )
                shm.chmod(0o1777)
                ours = stack.enter_context(group(limit_mib * MIB if limit_mib else None))
                row.note = _tried(ours, program, shm)
        except NotHere as error:
            row.note = str(error)
    return found


def _tried(ours: Group, program: str, shm: Path) -> str:
    # The program may be killed by SIGBUS or SIGKILL, which is the answer.
    said = _finish(ours.start("-c", program, before=_shm(shm)))
    # st_blocks counts allocated pages; st_size is the length, also without pages.
    left_bytes = sum(file.stat().st_blocks * 512 for file in shm.iterdir())
    kills = ours.kills()
    parts = [said, f"{left_bytes / MIB:.0f} MiB stay in /dev/shm"]
    if kills:
        parts.append(f"the kernel killed {kills} for memory")
    return "; ".join(parts)


def _sizes() -> FigureTable:
    from framebus.ring.layout import Geometry

    found = FigureTable("Sizes of rings", "`framebus size`, which prints the shm_size to set")
    for height, width, slots in SIZES:
        geometry = Geometry.for_frames(slots, height * width * 3, 1)
        found.row(f"{slots} slots of {height} x {width} x 3").add(
            {"ring, MiB": geometry.total_bytes / MIB, "frames held at once": float(geometry.seats)}
        )
    return found


def measure(form: Form, place: Path) -> list[FigureTable]:
    """Return the tables of the sizes, of the charges, and of what happens without room."""
    del form
    return [_sizes(), _charges(place), _room(place)]
