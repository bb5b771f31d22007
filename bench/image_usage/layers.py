"""The files of an image's layers: which are visible, and which a later layer has superseded or deleted.

Overlayfs stacks layers, which are folders. A character device 0:0 in a layer (a *whiteout*) deletes the path in the
layers below; a folder that is marked as opaque hides the content of the same folder below.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

from bench.image_usage.errors import CannotMeasure

OPAQUE: Final = ("trusted.overlay.opaque", "user.overlay.opaque")
MAX_LINKS: Final = 40
"""How many symbolic links the kernel follows in one path."""
Inode = tuple[int, int]
"""Device and number."""


class State(StrEnum):
    """Whether a file of a layer is visible, or what a later layer did to it."""

    VISIBLE = "visible"
    SUPERSEDED = "superseded"
    DELETED = "deleted"


@dataclass(frozen=True)
class Content:
    """The content of a layer; paths start with a slash, in the order of the folder."""

    files: Mapping[str, Inode]
    """Regular files. Hard links share an inode."""
    sizes_bytes: Mapping[Inode, int]
    links: Mapping[str, str] = field(default_factory=dict)
    """Symbolic links and their targets."""
    folders: frozenset[str] = frozenset()
    whiteouts: frozenset[str] = frozenset()
    opaque: frozenset[str] = frozenset()


@dataclass(frozen=True)
class ImageFile:
    """A regular file of a layer."""

    layer: int
    """Number of the layer; the bottom is 0."""
    inode: Inode
    size_bytes: int
    state: State
    paths: tuple[str, ...]
    """All its names; those that are visible come first."""

    @property
    def path(self) -> str:
        """The name to show."""
        return self.paths[0]


@dataclass(frozen=True)
class View:
    """All files of an image, and the tree that a container of it sees."""

    files: tuple[ImageFile, ...]
    visible: Mapping[str, ImageFile]
    links: Mapping[str, str]

    def resolve(self, path: str) -> str:
        """Return the path with all symbolic links of the image resolved, that of its last part too."""
        done: list[str] = []
        parts = [part for part in reversed(path.split("/")) if part]
        followed = 0
        while parts:
            part = parts.pop()
            if part in {".", ".."}:
                done = done[:-1] if part == ".." else done
                continue
            done.append(part)
            target = self.links.get("/" + "/".join(done))
            # A loop of links ends here, as the kernel ends it, and the path stays as far as it was resolved.
            if target is not None and followed < MAX_LINKS:
                followed += 1
                done = [] if target.startswith("/") else done[:-1]
                parts.extend(part for part in reversed(target.split("/")) if part)
        return "/" + "/".join(done)


def scan(folder: Path) -> Content:
    """Read a layer's folder.

    Raises:
        CannotMeasure: The folder cannot be read.
    """
    files: dict[str, Inode] = {}
    sizes_bytes: dict[Inode, int] = {}
    links: dict[str, str] = {}
    folders: set[str] = set()
    whiteouts: set[str] = set()
    opaque: set[str] = set()
    try:
        for entry in _walk(folder):
            path = entry.path[len(str(folder)) :]
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISREG(status.st_mode):
                files[path] = (status.st_dev, status.st_ino)
                sizes_bytes[files[path]] = status.st_size
            elif stat.S_ISLNK(status.st_mode):
                links[path] = os.readlink(entry.path)
            elif stat.S_ISDIR(status.st_mode):
                folders.add(path)
                if _is_opaque(entry.path):
                    opaque.add(path)
            elif stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
                whiteouts.add(path)
    except OSError as error:
        raise CannotMeasure(f"a layer of the image cannot be read: {error}") from None
    return Content(files, sizes_bytes, links, frozenset(folders), frozenset(whiteouts), frozenset(opaque))


def _walk(folder: Path | str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda one: one.name):
            yield entry
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(entry.path)


def _is_opaque(path: str) -> bool:
    for name in OPAQUE:
        try:
            if os.getxattr(path, name, follow_symlinks=False) == b"y":
                return True
        except OSError:
            continue
    return False


class _Tree:
    """The names that are visible while layers are stacked."""

    def __init__(self) -> None:
        self.owner: dict[str, int] = {}
        """The layer from which a file or a symbolic link comes, by its path."""
        self._below: dict[str, set[str]] = {}

    def add(self, path: str, layer: int) -> None:
        self.owner[path] = layer
        while path:
            parent = path.rpartition("/")[0]
            known = self._below.setdefault(parent, set())
            if path in known:
                return
            known.add(path)
            path = parent

    def remove(self, path: str) -> Iterator[tuple[str, int]]:
        """Remove a path and all below it; yield the removed files and links with their layers."""
        owner = self.owner.pop(path, None)
        if owner is not None:
            yield path, owner
        yield from self.empty(path)
        self._below.get(path.rpartition("/")[0], set()).discard(path)

    def empty(self, folder: str) -> Iterator[tuple[str, int]]:
        """Remove all below a folder."""
        for path in sorted(self._below.pop(folder, ())):
            yield from self.remove(path)


def _lay(tree: _Tree, layer: int, content: Content) -> Iterator[tuple[str, int, State]]:
    """Stack a layer on the tree; yield each name that it hides, the layer of that name, and its new state."""
    # Whiteouts apply to the layers below only, so take them before this layer's own files.
    for hidden in [*content.whiteouts, *content.opaque]:
        removed = tree.remove(hidden) if hidden in content.whiteouts else tree.empty(hidden)
        for path, owner in removed:
            # A folder that is deleted and written again in one layer has both a whiteout, or is opaque, and new files.
            again = path in content.files or path in content.links
            yield path, owner, State.SUPERSEDED if again else State.DELETED
    for path in content.folders:
        # A folder takes the place of a file or a symbolic link of the same name.
        if path in tree.owner:
            for name, owner in tree.remove(path):
                yield name, owner, State.SUPERSEDED
    for path in [*content.files, *content.links]:
        for name, owner in tree.remove(path):
            yield name, owner, State.SUPERSEDED if name == path else State.DELETED
        tree.add(path, layer)


def merge(layers: Sequence[Content]) -> View:
    """Stack the layers, the first at the bottom."""
    tree = _Tree()
    fates: dict[tuple[int, str], State] = {}
    for number, content in enumerate(layers):
        for path, owner, state in _lay(tree, number, content):
            fates[owner, path] = state
    files: list[ImageFile] = []
    visible: dict[str, ImageFile] = {}
    for number, content in enumerate(layers):
        # Names that are hard links of one file count once, by its inode.
        for inode, paths in _names(content.files.items()).items():
            # A hard link that is hidden under one name may still be visible under another.
            seen = [path for path in paths if tree.owner.get(path) == number]
            hidden = [path for path in paths if tree.owner.get(path) != number]
            state = State.VISIBLE if seen else fates[number, hidden[0]]
            file = ImageFile(number, inode, content.sizes_bytes[inode], state, (*seen, *hidden))
            files.append(file)
            visible.update(dict.fromkeys(seen, file))
    links = {path: layers[number].links[path] for path, number in tree.owner.items() if path in layers[number].links}
    return View(tuple(files), visible, links)


def _names(files: Iterable[tuple[str, Inode]]) -> dict[Inode, list[str]]:
    names: dict[Inode, list[str]] = {}
    for path, inode in files:
        names.setdefault(inode, []).append(path)
    return names


def base_length(layers: Sequence[str], others: Mapping[str, Sequence[str]]) -> tuple[str, int]:
    """Find the base of an image: the image with the most layers, all of which are the first layers of this image.

    Args:
        layers: Digests of the image's layers, from the bottom.
        others: Those of other images, by name.

    Returns:
        Its name and its number of layers; an empty name and 0 if there is none.
    """
    best = ("", 0)
    for name, candidate in others.items():
        length = len(candidate)
        if best[1] < length < len(layers) and list(layers[:length]) == list(candidate):
            best = (name, length)
    return best
