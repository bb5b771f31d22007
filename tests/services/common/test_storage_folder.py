"""A folder as storage: which users may change its files."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.common.remote_config import StorageSection
from services.common.storage import Storage

ADDRESS = "frames/panorama/1/2-0123.jpeg"


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    """The usual umask, which a storage may change."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.parametrize(("mode", "by_group"), [(0o2775, True), (0o755, False)])
def test_a_folder_with_the_setgid_bit_is_shared_with_its_group(tmp_path: Path, mode: int, by_group: bool) -> None:
    folder = tmp_path / "objects"
    folder.mkdir()
    folder.chmod(mode)
    asyncio.run(Storage(StorageSection(url=folder.as_uri())).put(ADDRESS, b"frame"))
    made = [folder / ADDRESS, *list((folder / ADDRESS).parents)[:3]]
    assert [bool(path.stat().st_mode & stat.S_IWGRP) for path in made] == [by_group] * 4
    assert not any(path.stat().st_mode & stat.S_IWOTH for path in made)
