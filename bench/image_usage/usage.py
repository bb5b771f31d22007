"""The use of files, joined with their layers, packages and kinds: a row for each file, and sums of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from bench.image_usage.kinds import kind
from bench.image_usage.layers import ImageFile, Inode, State, View
from bench.image_usage.observe import Seen
from bench.image_usage.packages import Package

MB: Final = 1e6
UNSEEN: Final = Seen()


@dataclass(frozen=True)
class Row:
    """A file and how it was used."""

    file: ImageFile
    package: Package
    kind: str
    seen: Seen
    ours: bool
    """Whether its layer is above the base's."""

    @property
    def visible(self) -> bool:
        """Whether a container of the image can see it."""
        return self.file.state is State.VISIBLE

    @property
    def used(self) -> bool:
        """Whether it was opened by the work, a further command, a shell or a health check."""
        return bool(self.seen.opened or self.seen.apart or self.seen.only_in)


@dataclass(frozen=True)
class Share:
    """Sums over files."""

    files: int = 0
    size_bytes: int = 0
    opened_files: int = 0
    opened_bytes: int = 0
    """Size of the files that were opened."""
    read_files: int = 0
    read_bytes: int = 0
    """Size of the files that were read or mapped."""
    touched_bytes: int = 0

    @property
    def opened(self) -> float:
        """Share of the bytes whose files were opened."""
        return self.opened_bytes / self.size_bytes if self.size_bytes else 0.0

    @property
    def touched(self) -> float:
        """Share of the bytes that were touched."""
        return self.touched_bytes / self.size_bytes if self.size_bytes else 0.0

    @property
    def idle_bytes(self) -> int:
        """Size of the files that were not opened."""
        return self.size_bytes - self.opened_bytes


def share(rows: Iterable[Row]) -> Share:
    """Return the sums of rows."""
    total = Share()
    for row in rows:
        size_bytes, seen = row.file.size_bytes, row.seen
        total = Share(
            total.files + 1,
            total.size_bytes + size_bytes,
            total.opened_files + seen.opened,
            total.opened_bytes + size_bytes * seen.opened,
            total.read_files + seen.read,
            total.read_bytes + size_bytes * seen.read,
            # Pages of files that the work did not open were touched by a shell, a check or a further command.
            total.touched_bytes + seen.touched_bytes * seen.opened,
        )
    return total


def shares(rows: Iterable[Row], key: Callable[[Row], str]) -> dict[str, Share]:
    """Return the sums of rows by a key; the group with the most bytes that were not opened comes first."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    sums = {name: share(group) for name, group in groups.items()}
    return dict(sorted(sums.items(), key=lambda item: (-item[1].idle_bytes, item[0])))


def rows(view: View, owners: Mapping[str, Package], seen: Mapping[Inode, Seen], base_layers: int) -> tuple[Row, ...]:
    """Return a row for each file of the image, including hidden files."""
    return tuple(
        Row(
            file,
            owners.get(file.path, Package("hidden")),
            kind(file.path),
            # No container can open a hidden file, so a use seen of its inode is not one of this image.
            seen.get(file.inode, UNSEEN) if file.state is State.VISIBLE else UNSEEN,
            file.layer >= base_layers,
        )
        for file in view.files
    )


def also(found: Sequence[Row], name: str, opened: frozenset[str]) -> tuple[Row, ...]:
    """Add the observation of another run: files that only it opened are marked with its name."""
    return tuple(
        replace(row, seen=replace(row.seen, only_in=name))
        if row.visible and not row.seen.opened and not row.seen.only_in and opened.intersection(row.file.paths)
        else row
        for row in found
    )


class Layer(NamedTuple):
    """A layer in the report."""

    digest: str
    command: str
    ours: bool
    shared_with: tuple[str, ...]
    """Other images of this engine with the layer. Their containers use the same pages in memory."""


@dataclass(frozen=True)
class Report:
    """The report of an image."""

    image: str
    base: str
    base_known_by: str
    layers: tuple[Layer, ...]
    rows: tuple[Row, ...]
    work: str
    service: tuple[str, ...] = ()
    sharers: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def ours(self) -> Share:
        """Sums over the layers above the base's."""
        return share(row for row in self.rows if row.ours)

    @property
    def whole(self) -> Share:
        """Sums over all layers."""
        return share(self.rows)

    @property
    def held_bytes(self) -> int:
        """Bytes that other processes held in memory before the start."""
        return sum(row.seen.held_bytes for row in self.rows)

    def opened_paths(self) -> frozenset[str]:
        """Return all names of the files that the work or a further command opened."""
        opened = (row.file.paths for row in self.rows if row.seen.opened or row.seen.only_in)
        return frozenset(path for paths in opened for path in paths)

    @property
    def opened_in_any(self) -> float:
        """The part of our layers' bytes whose files the work or a further observation opened."""
        only_there = share(row for row in self.rows if row.ours and row.seen.only_in)
        return self.ours.opened + only_there.size_bytes / max(self.ours.size_bytes, 1)

    def summary(self) -> str:
        """Return the last line of the report."""
        ours = self.ours
        further = any(row.seen.only_in for row in self.rows)
        return (
            f"{self.image}: opened {ours.opened:.0%}, touched {ours.touched:.0%} of {ours.size_bytes / MB:.0f} MB "
            f"of our layers, {self.whole.opened:.0%} of the whole opened"
            + (f"; with the further observations {self.opened_in_any:.0%} of our layers" if further else "")
        ).replace("%", " %")
