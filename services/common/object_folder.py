"""Objects as files below a folder, which the services of several hosts may share.

A file, its name in a folder, and the names of new folders above it are on the disk only once each was flushed. Source:
fsync(2), "Notes".
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import stat
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final

ATTEMPTS: Final = 10
"""Attempts to write an object beside a process that removes its folder, or has a temporary file of the same name."""
_STAGED: Final = re.compile(r"#\d+$")
"""Suffix of the temporary files to which obstore and :meth:`ObjectFolder.write` write, and which they then rename."""
_LASTING_FOLDERS: Final = 1000
_KEPT_PARTS: Final = 2
"""Number of parts of a path, those of a kind and a stream, whose folders stay when they are empty."""


class ObjectFolder:
    """A folder of objects. All methods block, and any thread may call them.

    Args:
        root: The folder. An object's address is its path below it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._lasting: set[Path] = set()
        """Folders that survive a power failure, because their names and those of the folders above were flushed."""
        self._created = 0
        """Number of times that a folder was missing and was created."""

    def write(self, address: str, data: bytes | memoryview, *, durable: bool = False) -> None:
        """Write an object atomically, so that a reader finds all of it or none.

        Args:
            address: Its address.
            data: Its bytes.
            durable: Whether it must survive a power failure.

        Raises:
            OSError: It could not be written.
        """
        path = self.root / address
        for attempt in range(ATTEMPTS):
            staged = path.with_name(f"{path.name}#{next(self._numbers)}")
            try:
                with staged.open("xb") as file:
                    file.write(data)
                    if durable:
                        file.flush()
                        os.fsync(file.fileno())
                staged.rename(path)
            except FileExistsError:
                continue  # the file of a writer that died, or of another process
            except FileNotFoundError:
                if attempt == ATTEMPTS - 1:
                    raise
                self._create(path.parent)  # a reader may remove it again while it is empty
            except BaseException:
                staged.unlink(missing_ok=True)
                raise
            else:
                if durable:
                    self._make_lasting(path.parent)
                return
        raise OSError(errno.EEXIST, "files of other writers are in the way", str(path))

    def remove(self, addresses: Sequence[str]) -> None:
        """Remove objects, and the folders that become empty. Missing objects are ignored.

        Raises:
            OSError: An object could not be removed, or an address is of no object. Others may have been removed.
        """
        folders: dict[Path, None] = {}
        for address in addresses:
            if {"", ".", ".."}.intersection(address.split("/")):
                raise OSError(errno.EINVAL, "not the address of an object", address)
            path = self.root / address
            try:
                path.unlink()
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                continue  # there is no such object
            folders[path.parent] = None
        for folder in folders:
            self._remove_empty(folder)

    def remove_staged(self, prefix: str, before_s: float) -> int:
        """Remove what writers left that died while they wrote an object: temporary files and empty folders.

        Args:
            prefix: Prefix of the addresses to search.
            before_s: Time before which a temporary file was last changed, in seconds since 1970.

        Returns:
            Number of removed files.
        """
        removed = 0
        # From the innermost folders outwards, so that a folder is empty when its turn comes.
        for place, _folders, names in os.walk(self.root / prefix, topdown=False):
            for name in filter(_STAGED.search, names):
                path = Path(place, name)
                try:
                    if path.stat().st_mtime < before_s:
                        path.unlink()
                        removed += 1
                except FileNotFoundError:
                    continue  # its writer has renamed it, or another sweep has removed it
            self._remove_empty(Path(place))
        return removed

    def share_with_group(self) -> None:
        """If the folder has the setgid bit, allow its group to write all that this process creates from now on.

        Services of several users remove each other's objects, which requires write access to folders that others
        created. obstore creates folders and files with the process's umask, so change the umask. The setgid bit marks a
        folder as shared by its group; for other folders, the umask stays as it is.
        """
        if self.root.stat().st_mode & stat.S_ISGID:
            umask = os.umask(0o077)
            os.umask(umask & ~stat.S_IRWXG)

    def _create(self, folder: Path) -> None:
        with self._lock:
            # It was removed, and perhaps folders above it too. Their names are flushed with the next durable object.
            self._lasting.difference_update(self._below_root(folder))
            self._created += 1
        # A reader may have removed it, or one above it, in the middle of this call: the next attempt repeats it.
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            folder.mkdir(parents=True, exist_ok=True)

    def _make_lasting(self, folder: Path) -> None:
        """Flush the names in a folder, and its own name unless this was done since it was created.

        Another thread may have created the folder without having flushed its name yet.
        """
        created = self._created
        new = list(itertools.takewhile(lambda above: above not in self._lasting, self._below_root(folder)))
        for one in (folder, *(below.parent for below in new)):
            with contextlib.suppress(FileNotFoundError):  # a reader has removed the object, and the empty folder
                flush_names(one)
        with self._lock:
            if self._created == created:
                if len(self._lasting) > _LASTING_FOLDERS:  # each minute has a folder of its own
                    self._lasting.clear()
                self._lasting.update(new)

    def _below_root(self, folder: Path) -> list[Path]:
        """Return a folder and those above it, without the root."""
        return list(itertools.takewhile(lambda above: above != self.root, (folder, *folder.parents)))

    def _remove_empty(self, folder: Path) -> None:
        """Remove a folder and those above it as far as they are empty, but keep those of a kind and stream."""
        for one in self._below_root(folder)[:-_KEPT_PARTS]:
            try:
                one.rmdir()
            except OSError:  # not empty, or already gone
                return


def flush_names(folder: Path) -> None:
    """Flush the names in a folder to the disk.

    Raises:
        OSError: It could not be flushed, or does not exist.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
