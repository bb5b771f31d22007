"""Measures what layers of a union file system cost: to open a file, to miss one, to read one, and to copy one up."""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final

from bench.storage.figures import FigureTable, NotHere, take_turns
from bench.storage.form import Form
from bench.storage.mounts import MIB, drop_caches, loop_disk, mounted, overlay

NAME: Final = "union"
LAYERS: Final = (1, 20, 100)
KERNEL_LIMIT: Final = 500
"""OVL_MAX_STACK of fs/overlayfs/params.h."""
FRAME_BYTES: Final = 10_000_000
FOLDER: Final = "package"
SECOND: Final = "second write, any size"
SHARED_MEMORY: Final = "/dev/shm (a tmpfs)"


def fill(folder: Path, files: int) -> None:
    """Write the files that are probed: small files, and one of a frame's size."""
    inside = folder / FOLDER
    inside.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        (inside / f"small{number}").write_bytes(os.urandom(4096))
    (inside / "frame").write_bytes(os.urandom(FRAME_BYTES))


def _each_us(call: Callable[[str], object], names: list[str]) -> float:
    """Return the median time of the calls, because other work on the same cores delays some of them."""
    taken_ns = []
    for name in names:
        begun_ns = time.perf_counter_ns()
        call(name)
        taken_ns.append(time.perf_counter_ns() - begun_ns)
    return statistics.median(taken_ns) / 1e3


def _open(name: str) -> None:
    os.close(os.open(name, os.O_RDONLY))


def _miss(name: str) -> None:
    with suppress(FileNotFoundError):
        os.stat(name)


def _read(name: str, buffer: bytearray) -> None:
    fd = os.open(name, os.O_RDONLY)
    try:
        os.readv(fd, [buffer])
    finally:
        os.close(fd)


def probe(folder: Path, files: int, can_drop: bool) -> dict[str, float]:
    """Return the figures of one round on a folder of :func:`fill`: first with cold caches, then with warm ones."""
    inside = folder / FOLDER
    small = [str(inside / f"small{number}") for number in range(files)]
    absent = [str(inside / f"absent{number}") for number in range(files)]
    buffer = bytearray(FRAME_BYTES)
    figures: dict[str, float] = {}
    # Layers cost while the caches are cold, so open and miss before the first warm access of this round.
    if can_drop:
        drop_caches()
        figures["open, cold, us"] = _each_us(_open, small)
        figures["stat of a missing name, cold, us"] = _each_us(_miss, absent)
        figures["read 10 MB, cold, ms"] = _each_us(lambda name: _read(name, buffer), [str(inside / "frame")]) / 1e3
    # Fill the dentry cache, also with the negative entries of the missing names.
    for call, names in ((_open, small), (_miss, absent)):
        _each_us(call, names)
    figures["open, us"] = _each_us(_open, small * 5)
    figures["stat of a missing name, us"] = _each_us(_miss, absent * 5)
    # Read once, so that the file is in the page cache.
    _read(str(inside / "frame"), buffer)
    figures["read 10 MB, ms"] = _each_us(lambda name: _read(name, buffer), [str(inside / "frame")] * 5) / 1e3
    return figures


def layers(folder: Path, count: int, files: int) -> list[Path]:
    """Make ``count`` layers, the topmost first. Each has the folder and a file; the last also has the probed files."""
    made = [folder / str(number) for number in range(count)]
    for number, layer in enumerate(made):
        (layer / FOLDER).mkdir(parents=True)
        # The folder must exist in every layer: a lookup asks each layer that has it.
        (layer / FOLDER / f"own{number}").write_bytes(b"own")
    fill(made[-1], files)
    return made


@contextmanager
def _layered(folder: Path, count: int, files: int) -> Iterator[Path]:
    with overlay(folder / "merged", layers(folder / "l", count, files), folder / "u", folder / "w") as merged:
        yield merged


def deepest(folder: Path) -> str:
    """Try how many layers the kernel accepts; return the result in words."""
    one = folder / "l"
    for number in range(KERNEL_LIMIT + 1):
        (one / str(number)).mkdir(parents=True)
    said: list[str] = []
    for count in (KERNEL_LIMIT, KERNEL_LIMIT + 1):
        lower = [one / str(number) for number in range(count)]
        try:
            with overlay(folder / "merged", lower, folder / "u", folder / "w"):
                said.append(f"{count} layers were mounted")
        except NotHere as error:
            said.append(f"{count} layers were refused: {error}")
    return "; ".join(said)


def _lookups(form: Form, place: Path) -> FigureTable:
    found = FigureTable(
        "Files in the bottom layer",
        "a folder of the same disk",
        text="The folder exists in every layer, which is the worst case for a lookup. Cold: after "
        "`echo 3 > /proc/sys/vm/drop_caches`.",
    )
    files = form.files
    with ExitStack() as stack:
        places: dict[str, Path] = {"folder": place / "plain"}
        fill(place / "plain", files)
        fill(place / "source", files)
        fill(place / "volumes" / "v" / "_data", files)
        reasons: dict[str, str] = {}
        makers: dict[str, AbstractContextManager[Path]] = {
            "bind mount": mounted(place / "bind", "--bind", str(place / "source")),
            "named volume": mounted(place / "named", "--bind", str(place / "volumes/v/_data")),
            SHARED_MEMORY: mounted(place / "shm", "-t", "tmpfs", "-o", "size=64m", "tmpfs"),
        }
        for count in LAYERS:
            makers[f"overlay, {count} layer{'s' * (count > 1)}"] = _layered(place / f"overlay{count}", count, files)
        for name, maker in makers.items():
            try:
                places[name] = stack.enter_context(maker)
            except NotHere as error:
                reasons[name] = str(error)
        if SHARED_MEMORY in places:
            fill(places[SHARED_MEMORY], files)
        candidates = {name: partial(probe, one, files, form.may_drop_caches) for name, one in places.items()}
        take_turns(found, candidates, form.rounds)
        for name, reason in reasons.items():
            found.row(name).note = reason
        deep = found.row(f"overlay, {KERNEL_LIMIT} layers and one more")
        try:
            deep.note = deepest(place / "deep")
        except (NotHere, OSError) as error:
            deep.note = str(error)
    return found


def _write_ms(path: Path) -> float:
    begun_ns = time.perf_counter_ns()
    # Opening for writing already copies the file up, so the open is measured too.
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(fd, b"x")
    finally:
        os.close(fd)
    return (time.perf_counter_ns() - begun_ns) / 1e6


def _copy_up(form: Form, place: Path) -> FigureTable:
    found = FigureTable(
        "Copy-up: milliseconds of the first write, one byte, to a file of a lower layer that is in the page cache",
        "the same in a folder of the same disk",
    )
    with ExitStack() as stack:
        disks: dict[str, Path | str] = {"this disk": place / "here"}
        for kind in ("xfs", "btrfs"):
            try:
                disks[f"{kind} on a loop disk"] = stack.enter_context(loop_disk(place / kind, kind, 4096))
            except NotHere as error:
                disks[f"{kind} on a loop disk"] = str(error)
        for kind, disk in disks.items():
            if isinstance(disk, str):
                found.row(f"overlay, {kind}").note = disk
                continue
            for size_bytes in form.copy_up_bytes:
                ours = disk / str(size_bytes)
                ways = {
                    f"folder, {kind}": partial(_append, ours, size_bytes, False),
                    f"overlay, {kind}": partial(_append, ours, size_bytes, True),
                }
                take_turns(found, ways, form.rounds)
    for row in found.rows:
        row.cells |= {SECOND: row.cells.pop(SECOND)} if SECOND in row.cells else {}  # the last column
    return found


def _append(folder: Path, size_bytes: int, layered: bool) -> dict[str, float]:
    lower = folder / "l"
    lower.mkdir(parents=True, exist_ok=True)
    file = lower / "file"
    # Write the file again, so that it is in the page cache. It is synced, so that no write-back is measured.
    block = os.urandom(min(MIB, size_bytes))
    with file.open("wb") as target:
        for _ in range(0, size_bytes, MIB):
            target.write(block)
        os.fsync(target.fileno())
    with ExitStack() as stack:
        if layered:
            stack.callback(_remove_tree, folder / "u", folder / "w")
            file = stack.enter_context(overlay(folder / "m", [lower], folder / "u", folder / "w")) / "file"
        label = f"{size_bytes // MIB} MiB" if size_bytes >= MIB else f"{size_bytes // 1024} KiB"
        first_ms = _write_ms(file)
        return {label: first_ms, SECOND: _write_ms(file)}


def _remove_tree(*folders: Path) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def measure(form: Form, place: Path) -> list[FigureTable]:
    """Return the tables of layers and of copy-up."""
    return [_lookups(form, place / "lookups"), _copy_up(form, place / "copy-up")]
