"""Tries which parts of an engine's storage can be on another disk, and notes what happened."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from bench.storage.engine import Engine, engine
from bench.storage.figures import FigureTable, NotHere
from bench.storage.form import Form
from bench.storage.mounts import loop_disk, mounted, overlay

NAME: Final = "disks"
DISK_MIB: Final = 1024
FIRST: Final = "the first disk"
OTHER: Final = "the other disk"
DOCKERFILE: Final = "FROM scratch\nCOPY file /data/file\n"


def measure(form: Form, place: Path) -> list[FigureTable]:
    """Return the tables of the rule of overlay mounts and of an engine's folders."""
    del form
    return [_rule(place / "rule"), _engine(place / "engine")]


def _rule(place: Path) -> FigureTable:
    found = FigureTable("overlay on two loop disks (ext4)", "all three on one disk")
    with ExitStack() as stack:
        try:
            first, second = (
                stack.enter_context(loop_disk(place / name, "ext4", DISK_MIB)) for name in ("first", "second")
            )
        except NotHere as error:
            found.row("all on one disk").note = str(error)
            return found
        for name, lower, upper, work in (
            ("all on one disk", first, first, first),
            ("lower on another disk", second, first, first),
            ("upper and work on two disks", first, first, second),
        ):
            base = lower / f"l-{len(found.rows)}"
            base.mkdir()
            (base / "file").write_bytes(b"lower")
            row = found.row(name)
            try:
                with overlay(
                    place / "merged", [base], upper / f"u-{len(found.rows)}", work / f"w-{len(found.rows)}"
                ) as merged:
                    (merged / "file").write_bytes(b"upper")
                    row.note = "mounted; a write was copied up"
            except NotHere as error:
                row.note = f"refused: {error}"
    return found


def container_writes(ours: Engine, folder: Path) -> str:
    """Build an image, make a container and a volume filled from it; return the disks that they are on."""
    folder.mkdir(parents=True)
    (folder / "file").write_bytes(b"x" * 4096)
    (folder / "Dockerfile").write_text(DOCKERFILE)
    ours.build(folder, "one")
    container = ours.docker("create", "--network", "none", "--volume", "one:/data", "one", "none").strip()
    merged = Path(ours.inspect(container)["GraphDriver"]["Data"]["UpperDir"])
    volume = Path(ours.inspect("--type", "volume", "one")["Mountpoint"])
    logs = ours.data_root.resolve() / "containers" / container
    metadata = ours.data_root.resolve() / "containerd"
    places = {"layers": merged, "volumes": volume, "logs": logs, "containerd's metadata": metadata}
    return ", ".join(f"{what} on {_disk(path)}" for what, path in places.items())


def _disk(path: Path) -> str:
    """Return which of the two disks a path is on, by the name of its mount point."""
    # The disk of a path is that of the nearest mount point above it.
    while not path.is_mount():
        path = path.parent
    return (
        "the other disk"
        if path.name in {"disk", "volumes", "overlay2", "containers", "containerd"}
        else "the first disk"
    )


def _engine(place: Path) -> FigureTable:
    found = FigureTable("An engine's folders, overlay2", "all in one data root")
    ways: dict[str, Callable[[ExitStack, Path, Path], Path]] = {
        "all in one data root": lambda _stack, root, _disk: root,
        "--data-root on another disk": lambda _stack, _root, disk: disk / "data",
        "the data root is a symbolic link to another disk": _linked,
        "volumes/ on another disk, mounts not shared (no systemd)": lambda stack, root, disk: _bound(
            stack, root, disk, "volumes", shared=False
        ),
        "volumes/ on another disk": lambda stack, root, disk: _bound(stack, root, disk, "volumes"),
        "overlay2/ on another disk": lambda stack, root, disk: _bound(stack, root, disk, "overlay2"),
        "containers/ (their logs) on another disk": lambda stack, root, disk: _bound(stack, root, disk, "containers"),
        "containerd/ (of dockerd's own containerd) on another disk": lambda stack, root, disk: _bound(
            stack, root, disk, "containerd"
        ),
    }
    for number, (name, way) in enumerate(ways.items()):
        row = found.row(name)
        here = place / str(number)
        try:
            with ExitStack() as stack:
                disk = stack.enter_context(loop_disk(here / "other", "ext4", DISK_MIB))
                root = here / "root"
                root.mkdir()
                data_root = way(stack, root, disk)
                ours = stack.enter_context(engine(here / "engine", "overlay2", data_root))
                row.note = container_writes(ours, here / "build")
        except NotHere as error:
            row.note = f"refused: {error}"
    # This needs no other data root: the volume's own options name the disk.
    _volume_elsewhere(found, place / "volume")
    return found


def _linked(stack: ExitStack, root: Path, disk: Path) -> Path:
    del stack
    link = root.parent / "link"
    (disk / "data").mkdir()
    link.symlink_to(disk / "data")
    return link


def _bound(stack: ExitStack, root: Path, disk: Path, name: str, *, shared: bool = True) -> Path:
    (disk / name).mkdir()
    if shared:
        # Systemd makes all mounts shared. If they are not, the engine mounts its data root over itself, which hides
        # what is mounted below.
        stack.enter_context(mounted(root, "--bind", "--make-shared", str(root)))
    stack.enter_context(mounted(root / name, "--bind", str(disk / name)))
    return root


def _volume_elsewhere(found: FigureTable, place: Path) -> None:
    """Put a single named volume on the other disk, by options of the local driver."""
    row = found.row("one named volume on another disk: --opt type=none --opt o=bind --opt device=PATH")
    try:
        with ExitStack() as stack:
            disk = stack.enter_context(loop_disk(place / "other", "ext4", DISK_MIB))
            ours = stack.enter_context(engine(place / "engine", "overlay2"))
            (disk / "one").mkdir()
            options = ("type=none", "o=bind", f"device={disk / 'one'}")
            ours.docker("volume", "create", *(word for option in options for word in ("--opt", option)), "one")
            said = container_writes(ours, place / "build")
            row.note = f"layers on {FIRST}, the volume's files on {OTHER}" if (disk / "one" / "file").exists() else said
    except NotHere as error:
        row.note = f"refused: {error}"
