"""Which package a file of an image belongs to: Debian's, Alpine's, or a wheel of Python.

A file that no package lists belongs to the folder that contains it, and byte code to the package of its source.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from bench.image_usage.layers import View

DPKG_STATUS: Final = "/var/lib/dpkg/status"
DPKG_LISTS: Final = "/var/lib/dpkg/info/"
DISTROLESS: Final = "/var/lib/dpkg/status.d/"
"""Folder in which images without dpkg keep, for each package, a status and the sums of its files."""
APK_DATABASE: Final = "/lib/apk/db/installed"
BYTE_CODE: Final = re.compile(r"(?P<folder>.*/)__pycache__/(?P<stem>[^/]+)\.cpython-\d+(\.opt-\d)?\.pyc")
UNPACKAGED_PARTS: Final = 2
"""How many leading parts of its path name the folder of a file without a package."""


class Package(NamedTuple):
    """The package, or the folder, that a file belongs to."""

    name: str
    version: str = ""
    manager: str = ""
    """``deb``, ``apk``, ``wheel``; empty for a folder."""

    def __str__(self) -> str:
        """Return the name to print."""
        return self.name if self.manager else f"no package, {self.name}"


def parse_dpkg_status(text: str) -> dict[str, str]:
    """Return the version of each installed package, by the name of its file list."""
    versions: dict[str, str] = {}
    for paragraph in text.split("\n\n"):
        fields = _fields(paragraph)
        if "Package" in fields and not fields.get("Status", "installed").endswith(("not-installed", "config-files")):
            versions[fields["Package"]] = fields.get("Version", "")
    return versions


def _fields(paragraph: str) -> dict[str, str]:
    lines = (line.partition(":") for line in paragraph.splitlines() if line and not line[0].isspace())
    return {name: value.strip() for name, _, value in lines}


def parse_dpkg_sums(text: str) -> list[str]:
    """Return the paths of a ``.md5sums`` file."""
    return ["/" + line.split(None, 1)[1].removeprefix("./") for line in text.splitlines() if len(line.split()) > 1]


def parse_apk(text: str) -> Iterator[tuple[Package, list[str]]]:
    """Yield each package of Alpine's database, and the paths of its files."""
    for paragraph in text.split("\n\n"):
        name = version = folder = ""
        paths: list[str] = []
        for line in paragraph.splitlines():
            key, _, value = line.partition(":")
            if key == "P":
                name = value
            elif key == "V":
                version = value
            elif key == "F":
                folder = value
            elif key == "R":
                paths.append(f"/{folder}/{value}" if folder else f"/{value}")
        if name:
            yield Package(name, version, "apk"), paths


def parse_record(text: str, folder: str) -> list[str]:
    """Return the paths of a wheel's ``RECORD``.

    Args:
        text: Its lines: path, hash and size.
        folder: The folder in which the wheel is installed; its paths are relative to it.
    """
    return [_join(folder, row[0]) for row in csv.reader(text.splitlines()) if row and row[0]]


def _join(folder: str, path: str) -> str:
    done = [] if path.startswith("/") else [part for part in folder.split("/") if part]
    for part in path.split("/"):
        if part == "..":
            done = done[:-1]
        elif part not in {"", "."}:
            done.append(part)
    return "/" + "/".join(done)


def wheel_of(dist_info: str) -> Package:
    """Return the wheel whose metadata a folder such as ``numpy-2.0.dist-info`` holds."""
    name, _, version = dist_info.removesuffix(".dist-info").partition("-")
    return Package(name.replace("_", "-").lower(), version, "wheel")


def owners(view: View, read: Callable[[str], str]) -> dict[str, Package]:
    """Return the package of each visible file.

    Args:
        view: The image.
        read: Returns the text of a visible file.
    """
    owner: dict[str, Package] = {}
    for package, paths in _listed(view, read):
        for path in paths:
            # Packages list paths from before /bin, /lib and /sbin became symbolic links into /usr.
            owner.setdefault(path if path in view.visible else view.resolve(path), package)
    # The most specific source of a name comes first.
    return {path: owner.get(path) or _of_source(path, owner) or _of_folder(path) for path in view.visible}


def _listed(view: View, read: Callable[[str], str]) -> Iterator[tuple[Package, Iterable[str]]]:
    if DPKG_STATUS in view.visible:
        versions = parse_dpkg_status(read(DPKG_STATUS))
        for path in view.visible:
            if path.startswith(DPKG_LISTS):
                name, _, kind = path.removeprefix(DPKG_LISTS).rpartition(".")
                # Lists of packages for several architectures are named NAME:ARCHITECTURE.
                name = name.partition(":")[0]
                package = Package(name, versions.get(name, ""), "deb")
                # The lists of dpkg are themselves files of the package.
                yield package, [path]
                if kind == "list":
                    yield package, read(path).splitlines()
    for path in view.visible:
        if path.startswith(DISTROLESS) and path.endswith(".md5sums"):
            name = path.removeprefix(DISTROLESS).removesuffix(".md5sums")
            status = path.removesuffix(".md5sums")
            versions = parse_dpkg_status(read(status)) if status in view.visible else {}
            yield Package(name, versions.get(name, ""), "deb"), parse_dpkg_sums(read(path))
        elif path.endswith(".dist-info/RECORD"):
            dist_info = path.removesuffix("/RECORD")
            folder, _, name = dist_info.rpartition("/")
            yield wheel_of(name), parse_record(read(path), folder)
    if APK_DATABASE in view.visible:
        yield from parse_apk(read(APK_DATABASE))


def _of_source(path: str, owner: Mapping[str, Package]) -> Package | None:
    found = BYTE_CODE.fullmatch(path)
    # Byte code that was compiled at the build is in no package's list.
    return owner.get(f"{found['folder']}{found['stem']}.py") if found else None


def _of_folder(path: str) -> Package:
    parts = path.split("/")[1:-1]
    return Package("/" + "/".join(parts[:UNPACKAGED_PARTS]))


def reader(view: View, folders: list[Path]) -> Callable[[str], str]:
    """Return a function that reads a visible file from the folders of the layers."""

    def read(path: str) -> str:
        return Path(f"{folders[view.visible[path].layer]}{path}").read_text(errors="replace")

    return read
