"""A folder of objects: what survives a power failure, what is left alone, and which users may change its files."""

from __future__ import annotations

import asyncio
import os
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from services.common.object_folder import ObjectFolder
from services.common.remote_config import StorageSection
from services.common.storage import Storage

ADDRESS = "frames/panorama/20261129T2051Z-1/2-0123.jpeg"
OTHER = "frames/panorama/20261129T2051Z-1/3-0123.jpeg"
NEXT_MINUTE = "frames/panorama/20261129T2052Z-1/4-0123.jpeg"


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    """The usual umask, which a storage may change."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def folder(tmp_path: Path) -> ObjectFolder:
    """An empty folder."""
    root = tmp_path / "objects"
    root.mkdir()
    return ObjectFolder(root)


class Disk:
    """Names that survive a power failure: those that a folder had when it was last flushed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.flushes = 0
        self.flushing = threading.Event()
        """Set while a flush of a folder's name is held back."""
        self.released = threading.Event()
        self.held = ""
        """Name of the folder whose flush waits for :attr:`released`."""
        self._names: dict[str, dict[str, int]] = {}
        self._fsync = os.fsync
        monkeypatch.setattr(os, "fsync", self._flush)

    def _flush(self, descriptor: int) -> None:
        self._fsync(descriptor)
        self.flushes += 1
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if self.held and Path(path).name == self.held:
            self.flushing.set()
            assert self.released.wait(10)
        if os.path.isdir(path):
            self._names[path] = {entry.name: entry.inode() for entry in os.scandir(path)}
        else:
            self._names.setdefault(path, {})

    def keeps(self, folder: ObjectFolder, address: str) -> bool:
        """Return whether an object, which exists, survives."""
        path = folder.root / address
        parts = [path, *list(path.parents)[: len(Path(address).parts) - 1]]
        return all(self._names.get(str(one.parent), {}).get(one.name) == one.stat().st_ino for one in parts)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """What is flushed from now on."""
    return Disk(monkeypatch)


def by_another_process(change: Callable[[ObjectFolder], None], folder: ObjectFolder) -> None:
    """Make a change that this process's folder does not know, and that is not flushed."""
    change(ObjectFolder(folder.root))


def test_a_durable_object_survives_with_all_folders_above_it(folder: ObjectFolder, disk: Disk) -> None:
    for address in (ADDRESS, OTHER, NEXT_MINUTE):
        folder.write(address, b"frame", durable=True)
        assert disk.keeps(folder, address), address


def test_an_object_that_need_not_survive_is_not_flushed(folder: ObjectFolder, disk: Disk) -> None:
    folder.write(ADDRESS, b"frame")
    assert (folder.root / ADDRESS).read_bytes() == b"frame"
    assert disk.flushes == 0


def test_a_known_folder_is_not_flushed_again(folder: ObjectFolder, disk: Disk) -> None:
    folder.write(ADDRESS, b"frame", durable=True)
    before = disk.flushes
    folder.write(OTHER, b"frame", durable=True)
    assert disk.flushes - before == 2, "the file, and its name"


@pytest.mark.parametrize(
    "change",
    [
        lambda other: other.write(OTHER, b"frame"),
        lambda other: (other.root / ADDRESS).parent.mkdir(parents=True),
        lambda other: (other.root / "frames").mkdir(),
    ],
    ids=["an object", "a minute", "a kind"],
)
def test_a_folder_of_another_process_survives_with_the_object(
    folder: ObjectFolder, disk: Disk, change: Callable[[ObjectFolder], None]
) -> None:
    by_another_process(change, folder)
    folder.write(ADDRESS, b"frame", durable=True)
    assert disk.keeps(folder, ADDRESS)


def test_a_folder_that_this_process_made_for_another_object_survives(folder: ObjectFolder, disk: Disk) -> None:
    folder.write(OTHER, b"frame")
    folder.write(ADDRESS, b"frame", durable=True)
    assert disk.keeps(folder, ADDRESS)


@pytest.mark.parametrize("by_this_process", [True, False])
def test_a_folder_that_was_removed_and_returns_survives(
    folder: ObjectFolder, disk: Disk, by_this_process: bool
) -> None:
    folder.write(ADDRESS, b"frame", durable=True)
    if by_this_process:
        folder.remove([ADDRESS])
    else:
        by_another_process(lambda other: other.remove([ADDRESS]), folder)
    assert not (folder.root / ADDRESS).parent.exists()
    folder.write(OTHER, b"frame", durable=True)
    assert disk.keeps(folder, OTHER)


def test_a_folder_whose_name_another_thread_has_not_flushed_yet_survives(folder: ObjectFolder, disk: Disk) -> None:
    folder.write("frames/panorama/1/0-0123.jpeg", b"frame", durable=True)
    disk.held = Path(ADDRESS).parent.name
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(folder.write, ADDRESS, b"frame", durable=True)
        assert disk.flushing.wait(10)
        disk.held = ""
        folder.write(OTHER, b"frame", durable=True)
        assert disk.keeps(folder, OTHER)
        disk.released.set()
        first.result(10)
    assert disk.keeps(folder, ADDRESS)


def test_concurrent_writes_and_removals_lose_nothing(folder: ObjectFolder) -> None:
    def write(number: int) -> None:
        for index in range(50):
            address = f"frames/panorama/{index % 3}/{number}-{index}"
            folder.write(address, b"frame", durable=index % 2 == 0)
            assert (folder.root / address).read_bytes() == b"frame"
            folder.remove([address])

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write, range(4)))
    assert [path.name for path in folder.root.rglob("*")] == ["frames", "panorama"]


def test_the_files_of_other_writers_are_left_alone(folder: ObjectFolder) -> None:
    other = folder.root / f"{ADDRESS}#1"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"half")
    folder.write(ADDRESS, b"frame", durable=True)
    assert (folder.root / ADDRESS).read_bytes() == b"frame"
    assert other.read_bytes() == b"half"
    assert len(list(other.parent.iterdir())) == 2


def test_a_failed_write_leaves_no_file(folder: ObjectFolder) -> None:
    (folder.root / ADDRESS).mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        folder.write(ADDRESS, b"frame")
    assert list((folder.root / ADDRESS).parent.iterdir()) == [folder.root / ADDRESS]


@pytest.mark.parametrize(("mode", "by_group"), [(0o2775, True), (0o755, False)])
@pytest.mark.parametrize("durable", [True, False])
def test_a_folder_with_the_setgid_bit_is_shared_with_its_group(
    tmp_path: Path, mode: int, by_group: bool, durable: bool
) -> None:
    folder = tmp_path / "objects"
    folder.mkdir()
    folder.chmod(mode)
    asyncio.run(Storage(StorageSection(url=folder.as_uri())).put(ADDRESS, b"frame", durable=durable))
    made = [folder / ADDRESS, *list((folder / ADDRESS).parents)[:3]]
    assert [bool(path.stat().st_mode & stat.S_IWGRP) for path in made] == [by_group] * 4
    assert not any(path.stat().st_mode & stat.S_IWOTH for path in made)
