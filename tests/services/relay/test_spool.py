"""The spool: a frame is kept whole or refused with a reason to count, and a killed relay leaves no files behind."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from services.common.service import ServiceError
from services.relay.spool import Lost, Spool, SpoolFull
from tests.services.common.test_storage import small_disk
from tests.services.relay.frames import frame

MANY_BYTES = 1 << 30


@contextmanager
def opened(folder: Path | None, max_bytes: int = MANY_BYTES) -> Iterator[Spool]:
    with closing(Spool(folder, max_bytes, ("detector",))) as spool:
        yield spool


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "frames").iterdir())


@pytest.fixture(params=["folder", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    """Return a folder for the spool, and then None."""
    return tmp_path / "a" / "spool" if request.param == "folder" else None


def test_a_frame_is_kept_until_it_is_published_or_dropped(folder: Path | None) -> None:
    with opened(folder) as spool:
        for sequence in (1, 2):
            spool.accept(frame(sequence, data=b"pixels %d" % sequence), b"pixels %d" % sequence)
        first, second = spool.ledger.pending(0, -1)
        assert bytes(spool.read(first)) == b"pixels 1"
        spool.published([first])
        assert bytes(spool.read(second)) == b"pixels 2"
        spool.drop(second, "too old")
        for entry in (first, second):
            with pytest.raises(Lost):
                spool.read(entry)
        assert spool.ledger.spooled_bytes == 0
        if folder is not None:
            assert files(folder) == []


def test_a_full_spool_accepts_no_frame_until_there_is_room(folder: Path | None) -> None:
    data = bytes(100)
    with opened(folder, 250) as spool:
        for sequence in (1, 2):
            spool.accept(frame(sequence, data=data), data)
        with pytest.raises(SpoolFull, match="spool full"):
            spool.accept(frame(3, data=data), data)
        spool.accept(frame(4, data=bytes(50)), bytes(50))
        spool.published(spool.ledger.pending(0, 1))
        spool.accept(frame(5, data=data), data)
        assert spool.ledger.counts()["accepted"] == 4
        if folder is not None:
            assert files(folder) == ["7-2", "7-4", "7-5"]


def test_frames_outlive_the_relay(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        spool.accept(frame(1), b"pixels")
    with opened(tmp_path) as spool:
        (entry,) = spool.ledger.pending(0, -1)
        assert spool.read(entry) == b"pixels"


def test_a_relay_without_a_folder_starts_with_an_empty_spool() -> None:
    with opened(None) as spool:
        spool.accept(frame(1), b"pixels")
    with opened(None) as spool:
        assert spool.ledger.pending(0, -1) == []


def test_files_of_a_killed_relay_are_removed(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        for sequence in (1, 2):
            spool.accept(frame(sequence), b"pixels")
        spool.ledger.published(spool.ledger.pending(0, 1))  # killed before its file was removed
        (tmp_path / "frames" / "7-3").write_bytes(b"pix")  # killed in the middle of it
    with opened(tmp_path) as spool:
        assert files(tmp_path) == ["7-2"]
        assert spool.read(spool.ledger.pending(0, -1)[0]) == b"pixels"


def test_a_frame_whose_file_is_missing_counts_as_lost(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        spool.accept(frame(1), b"pixels")
        (tmp_path / "frames" / "7-1").unlink()
        with pytest.raises(Lost, match=r"relay\.spool: .*7-1 cannot be read: No such file"):
            spool.read(spool.ledger.pending(0, -1)[0])


def test_a_folder_that_cannot_be_created_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ServiceError, match=r"relay\.spool .*file/spool cannot be made: Not a directory") as caught:
        Spool(tmp_path / "file" / "spool", MANY_BYTES, ("detector",))
    assert "\n" not in str(caught.value)


def test_a_second_relay_on_one_spool_is_refused_and_the_first_continues(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        spool.accept(frame(1), b"pixels")
        with pytest.raises(ServiceError, match="another relay uses it: give each a folder of its own") as caught:
            Spool(tmp_path, MANY_BYTES, ("detector",))
        assert "\n" not in str(caught.value)
        spool.accept(frame(2), b"pixels")
        assert [spool.read(entry) for entry in spool.ledger.pending(0, -1)] == [b"pixels", b"pixels"]


def test_a_folder_that_is_removed_meanwhile_is_reported(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        shutil.rmtree(tmp_path / "frames")
        with pytest.raises(ServiceError, match=r"relay\.spool: .* cannot be written: No such file") as caught:
            spool.accept(frame(1), b"pixels")
        assert "\n" not in str(caught.value)


def accept_until_full(spool: Spool, first: int, data: bytes) -> int:
    """Accept frames until the disk is full; return their number."""
    for sequence in range(first, first + 10_000):
        try:
            spool.accept(frame(sequence, data=data), data)
        except SpoolFull as refused:
            reason = str(refused)
            break
    assert reason == "disk full"
    return sequence - first


@pytest.mark.root
def test_a_full_disk_refuses_frames_and_keeps_those_that_it_has(tmp_path: Path) -> None:
    data = os.urandom(300_000)
    with small_disk(tmp_path / "disk", 1 << 20) as disk, opened(disk / "spool") as spool:
        accepted = accept_until_full(spool, 1, data)
        assert accepted >= 2
        assert len(files(disk / "spool")) == accepted
        for entry in spool.ledger.pending(0, -1):
            assert spool.read(entry) == data
        spool.published(spool.ledger.pending(0, 1))
        spool.accept(frame(accepted + 1, data=data), data)
        assert spool.ledger.counts()["accepted"] == accepted + 1


@pytest.mark.root
def test_a_disk_without_room_for_the_ledger_refuses_frames_too(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1 << 20) as disk, opened(disk / "spool") as spool:
        spool.accept(frame(1), b"pixels")
        with contextlib.suppress(OSError), (disk / "other").open("wb", buffering=0) as other:
            while True:
                other.write(bytes(4096))
        # The database's log has some room of its own: it lasts for a few frames.
        accepted = 1 + accept_until_full(spool, 2, b"")
        assert len(files(disk / "spool")) == accepted
        (disk / "other").unlink()
        spool.accept(frame(100_000), b"pixels")
        counts = spool.ledger.counts()
        assert counts["accepted"] + counts["missed: overwritten"] == 100_000
