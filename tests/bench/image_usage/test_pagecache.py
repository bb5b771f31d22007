"""Pages of files in memory, and read-ahead, which is restored in every case."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from bench.image_usage import pagecache
from bench.image_usage.errors import CannotMeasure
from bench.image_usage.pagecache import alone, cached_bytes, cached_pages, drop, no_read_ahead, write_back
from tests.support import lacks

PAGES = 300


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return a file of which no page is in memory."""
    path = tmp_path / "file"
    path.write_bytes(os.urandom(PAGES * mmap.PAGESIZE - 100))
    write_back(tmp_path)
    drop([path])
    if cached_pages(path):
        lacks("the file system of temporary files keeps them in memory: set TMPDIR to a folder on a disk")
    return path


def test_pages_that_were_read_are_counted_and_dropped(file: Path) -> None:
    with file.open("rb", buffering=0) as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # no read-ahead
        opened.read(1)
        opened.seek(100 * mmap.PAGESIZE)
        opened.read(1)
    assert cached_pages(file) == 2
    file.read_bytes()
    assert cached_pages(file) == PAGES
    status = file.stat()
    found = cached_bytes({(status.st_dev, status.st_ino): (file, status.st_size)})
    assert found == {(status.st_dev, status.st_ino): PAGES * mmap.PAGESIZE - 100}
    drop([file])
    assert cached_pages(file) == 0


def test_mincore_is_used_on_an_older_kernel(file: Path) -> None:
    with file.open("rb", buffering=0) as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        opened.read(3 * mmap.PAGESIZE)
        assert pagecache._mincore(opened.fileno()) == pagecache._cachestat(opened.fileno()) == 3
    empty = file.with_name("empty")
    empty.touch()
    with empty.open("rb") as opened:
        assert pagecache._mincore(opened.fileno()) == 0


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a file that replaces the kernel's read-ahead setting."""
    path = tmp_path / "read_ahead_kb"
    path.write_text("128\n")
    monkeypatch.setattr(pagecache, "read_ahead_setting", lambda _: path)
    monkeypatch.setattr(pagecache, "NOTE", tmp_path / "note")
    return path


def test_read_ahead_is_restored_after_a_failure(setting: Path, tmp_path: Path) -> None:
    def fail() -> None:
        with alone(), no_read_ahead([tmp_path]):
            assert setting.read_text() == "0"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert setting.read_text() == "128"


def test_the_next_run_restores_the_settings_of_a_killed_one(setting: Path, tmp_path: Path) -> None:
    killed = no_read_ahead([tmp_path])
    with alone():
        killed.__enter__()  # and never left
    assert setting.read_text() == "0"
    with alone():
        assert setting.read_text() == "128"


def test_only_one_measurement_runs_at_a_time(setting: Path) -> None:
    del setting
    with alone(), pytest.raises(CannotMeasure, match="another measurement runs"), alone():
        pass


def test_a_file_system_without_the_setting_is_reported() -> None:
    with pytest.raises(CannotMeasure, match="cannot be set"):
        pagecache.read_ahead_setting(Path("/proc"))
