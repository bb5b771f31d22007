"""Measures what storage drivers cost, each with its own engine and loop disk: disk, build, create, start and reads."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Final

from bench.storage.engine import Engine, engine, saved
from bench.storage.figures import NOT_IN_KERNEL, FigureTable, NotHere, take_turns
from bench.storage.form import Form
from bench.storage.mounts import drop_caches, kernel_knows, loop_disk, used_bytes
from bench.storage.residency import shared_part

NAME: Final = "drivers"
DRIVERS: Final = {"overlay2": "ext4", "fuse-overlayfs": "ext4", "btrfs": "btrfs", "vfs": "ext4"}
"""Drivers that are measured if the kernel supports them, and the file system below each."""
OTHERS: Final = {"devicemapper": "device-mapper", "zfs": "zfs", "aufs": "aufs"}
"""Drivers that need a kernel module which Debian's kernel does not have, or an older engine, and the module."""
CONTROL: Final = Path("/dev/mapper/control")
DISK_MIB: Final = 24 * 1024
DOCKERFILE: Final = """\
FROM {image}
USER 0
COPY framebus /bench/framebus
COPY services /bench/services
RUN python3 -m compileall -q /bench
RUN touch /bench/built
USER 1000:2000
"""
SHARED: Final = "/usr/bin/perl"
"""A file of Debian's base that the measurement does not execute."""
READ: Final = """\
import json, pathlib, time
paths = [p for p in pathlib.Path("/usr/lib").rglob("*") if p.is_file() and not p.is_symlink()]
paths = [p for p in paths if "/python3" not in str(p)]
def each(call):
    begun = time.perf_counter()
    for path in paths:
        call(path)
    return time.perf_counter() - begun
def read(path):
    with open(path, "rb", 0) as file:
        return len(file.read())
total = sum(p.stat().st_size for p in paths)
print(json.dumps({"files": len(paths), "bytes": total, "first_s": each(read), "later_s": each(read)}))
"""


def dockerfile(image: str) -> str:
    """Return the Dockerfile of the measured build: four layers of code on an image."""
    return DOCKERFILE.format(image=image)


def context(folder: Path, image: str, source: Path) -> Path:
    """Make the build context from the sources of this checkout."""
    folder.mkdir(parents=True)
    for name in ("framebus", "services"):
        shutil.copytree(source / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "Dockerfile").write_text(dockerfile(image))
    return folder


def one_round(ours: Engine, image: str, build: Path, can_drop: bool) -> Mapping[str, float]:
    """Return the figures of one round on an engine."""
    before = used_bytes(ours.data_root)
    figures = {"build, s": _build_s(ours, build)}
    figures["disk of the build, MB"] = (used_bytes(ours.data_root) - before) / 1e6
    before = used_bytes(ours.data_root)
    begun_s = time.perf_counter()
    container = ours.docker("create", "--network", "none", image, "true").strip()
    figures["create, ms"] = (time.perf_counter() - begun_s) * 1e3
    # Before the start, so that only the layer of the container is counted.
    figures["disk of a container, MB"] = (used_bytes(ours.data_root) - before) / 1e6
    begun_s = time.perf_counter()
    ours.docker("start", "--attach", container)
    figures["start to end, ms"] = (time.perf_counter() - begun_s) * 1e3
    ours.docker("rm", container)
    container = ours.docker("run", "--detach", "--network", "none", image, "sleep", "600").strip()
    if can_drop:
        drop_caches()
    told = json.loads(ours.docker("exec", container, "python3", "-c", READ))
    figures["first read, MB/s"] = told["bytes"] / told["first_s"] / 1e6
    figures["later read, MB/s"] = told["bytes"] / told["later_s"] / 1e6
    figures["stat, open and read a file, us"] = told["later_s"] / told["files"] * 1e6
    ours.docker("rm", "--force", container)
    if can_drop:
        figures["pages shared by two containers"] = shared_part(ours, SHARED, [image], [image])
    ours.docker("rmi", "--force", "built")
    return figures


def _build_s(ours: Engine, build: Path) -> float:
    begun_s = time.perf_counter()
    ours.build(build, "built")
    return time.perf_counter() - begun_s


def measure(form: Form, place: Path) -> list[FigureTable]:
    """Return the tables of drivers and of the deepest image."""
    root = Path(__file__).resolve().parent.parent.parent
    found = FigureTable(
        f"Storage drivers, with {form.image}", "overlay2", text="Each on a loop disk of its own, engines in turns."
    )
    with ExitStack() as stack:
        archive = stack.enter_context(saved(form.image, place))
        build = context(place / "context", form.image, root)
        engines: dict[str, Engine] = {}
        for driver, file_system in DRIVERS.items():
            row = found.row(driver)
            try:
                # A disk of its own, so that its used bytes are those of this driver alone.
                disk = stack.enter_context(loop_disk(place / driver, file_system, DISK_MIB))
                ours = stack.enter_context(engine(place / driver / "engine", driver, disk / "data"))
                before = used_bytes(disk)
                begun_s = time.perf_counter()
                ours.load(archive)
                # Loading is measured once: a second load finds its layers already there.
                row.add({"load, s": time.perf_counter() - begun_s})
                row.add({"disk of the image, MB": (used_bytes(disk) - before) / 1e6})
                engines[driver] = ours
            except NotHere as error:
                row.note = str(error)
        # The engines take turns, so that other load on the machine affects all of them.
        take_turns(
            found,
            {
                driver: partial(one_round, ours, form.image, build, form.may_drop_caches)
                for driver, ours in engines.items()
            },
            form.engine_rounds,
        )
        for driver, module in OTHERS.items():
            found.row(driver).note = other(place / driver, driver, module)
        return [found, *([_depth(engines.get("overlay2"), place / "deep", form.depths)] if form.depths else [])]


def other(folder: Path, driver: str, module: str) -> str:
    """Try to start an engine with a driver that hardly any kernel supports; return the result in words."""
    here = kernel_knows(module) or module in Path("/proc/devices").read_text().split()
    had_control = CONTROL.exists()
    try:
        with engine(folder / "engine", driver):
            return "starts here, and was not measured"
    except NotHere as error:
        return f"{error}" if here else f"{NOT_IN_KERNEL}; the engine said: {error}"
    finally:
        # The engine's library creates it, though there is no device.
        if not had_control and CONTROL.exists() and not here:
            CONTROL.unlink()
            with contextlib.suppress(OSError):
                CONTROL.parent.rmdir()


def _depth(ours: Engine | None, folder: Path, depths: tuple[int, ...]) -> FigureTable:
    """Build images of many layers, and make a container of each."""
    found = FigureTable("The deepest image", "the engine's own limit on layers")
    for depth in depths:
        row = found.row(f"{depth} layers")
        if ours is None:
            row.note = "overlay2 does not run here"
            continue
        here = folder / str(depth)
        here.mkdir(parents=True)
        (here / "file").write_bytes(b"x")
        copies = "".join(f"COPY file /file{number}\n" for number in range(depth))
        (here / "Dockerfile").write_text(f"FROM scratch\n{copies}")
        try:
            ours.build(here, f"deep{depth}")
            row.note = "built, and " + _creates(ours, f"deep{depth}")
        except NotHere as error:
            row.note = f"refused: {error}"
    return found


def _creates(ours: Engine, image: str) -> str:
    try:
        ours.docker("create", "--network", "none", image, "none")
    except NotHere as error:
        return f"no container could be made of it: {error}"
    return "a container was made of it"
