"""Made-up images, for the parts of the tool that need no engine."""

from __future__ import annotations

from collections.abc import Mapping

from bench.image_usage.layers import Content, ImageFile, State
from bench.image_usage.observe import Seen
from bench.image_usage.packages import Package
from bench.image_usage.usage import UNSEEN, Layer, Report, Row


class Inodes:
    """Contents of layers, whose files have distinct inodes."""

    def __init__(self) -> None:
        self._next = 1

    def content(
        self,
        files: Mapping[str, int],
        links: Mapping[str, str] | None = None,
        whiteouts: tuple[str, ...] = (),
        opaque: tuple[str, ...] = (),
        folders: tuple[str, ...] = (),
    ) -> Content:
        """Return a layer with files of these sizes; a name of the form ``old=new`` is a hard link to an earlier one."""
        inodes: dict[str, tuple[int, int]] = {}
        sizes: dict[tuple[int, int], int] = {}
        for name, size in files.items():
            old, _, new = name.partition("=")
            if new:
                inodes[new] = inodes[old]
                continue
            inodes[old] = (1, self._next)
            sizes[inodes[old]] = size
            self._next += 1
        return Content(inodes, sizes, links or {}, frozenset(folders), frozenset(whiteouts), frozenset(opaque))


def row(
    path: str,
    size_bytes: int,
    *,
    package: str = "",
    kind: str = "other data",
    seen: Seen = UNSEEN,
    state: State = State.VISIBLE,
    ours: bool = True,
) -> Row:
    """Return a file of an image; ``package`` is the name of a wheel."""
    owner = Package(package, "1", "wheel") if package else Package("/app")
    file = ImageFile(1 if ours else 0, (1, abs(hash(path))), size_bytes, state, (path,))
    return Row(file, owner, kind, seen, ours)


def used(touched_bytes: int = 0) -> Seen:
    """Return the use of a file that the work read."""
    return Seen(order=1, opened=True, read=True, touched_bytes=touched_bytes)


def report(*rows: Row) -> Report:
    """Return a report of an image with a layer of the base and one of ours."""
    layers = (Layer("sha256:" + "0" * 64, "base", False, ("other:1",)), Layer("sha256:" + "1" * 64, "COPY", True, ()))
    return Report("made:1", "base:1", "named by --base", layers, rows, "its work", ("server",))
