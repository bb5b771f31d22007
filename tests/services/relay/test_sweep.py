"""The sweep removes old objects of its stream only; the frames of dead letters stay longer."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from services.common.remote_config import StorageSection
from services.common.storage import Storage
from services.relay.config import RelaySection
from services.relay.ledger import DEAD, Fate, Ledger
from services.relay.sweep import Sweeper
from tests.services.relay.frames import STREAM, frame

SECTION = RelaySection(expire_frames_s=100, expire_results_s=1000, expire_dead_letters_s=10_000, sweep_s=60)


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    """A ledger in memory."""
    with closing(Ledger(None, ("detector",))) as opened:
        yield opened


def put(folder: Path, address: str, age_s: float) -> Path:
    path = folder / address
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def left(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def sweep(folder: Path, ledger: Ledger) -> tuple[int, int]:
    """Return what one search removed, and what was removed in total."""

    async def work() -> tuple[int, int]:
        sweeper = Sweeper(ledger, Storage(StorageSection(url=f"file://{folder}")), STREAM, SECTION)
        removed = await sweeper.sweep()
        assert await sweeper.sweep() == 0
        return removed, sweeper.removed

    return asyncio.run(work())


def test_only_expired_objects_are_removed(tmp_path: Path, ledger: Ledger) -> None:
    put(tmp_path, "frames/roof/7/1-0.png", 150)
    put(tmp_path, "frames/roof/7/2-0.png", 50)
    put(tmp_path, "results/roof/7/1/m/0", 1500)
    put(tmp_path, "results/roof/7/2/m/0", 500)
    put(tmp_path, "frames/roofs/7/1-0.png", 150)
    put(tmp_path, "other/roof/1", 10**6)
    assert sweep(tmp_path, ledger) == (2, 2)
    assert left(tmp_path) == {
        "frames/roof/7/2-0.png", "results/roof/7/2/m/0", "frames/roofs/7/1-0.png", "other/roof/1",
    }  # fmt: skip


def test_the_frames_of_dead_letters_stay_longer(tmp_path: Path, ledger: Ledger) -> None:
    for sequence, age_s in ((1, 150), (2, 15_000)):
        ledger.accept(frame(sequence))
        ledger.published(ledger.pending(0, 1)[0])
        ledger.settle([Fate(frame(sequence), "detector", DEAD)])
        put(tmp_path, frame(sequence).address, age_s)
    assert sweep(tmp_path, ledger) == (1, 1)
    assert left(tmp_path) == {frame(1).address}
    assert ledger.is_dead(frame(1).address)
    assert not ledger.is_dead(frame(2).address)


def test_frames_that_no_detector_took_are_given_up_with_their_objects(tmp_path: Path, ledger: Ledger) -> None:
    now_ns = time.time_ns()
    for sequence, age_s in ((1, 150), (2, 50)):
        ledger.accept(frame(sequence, captured_wall_ns=now_ns - age_s * 10**9))
        ledger.published(ledger.pending(0, 1)[0])
        put(tmp_path, frame(sequence).address, age_s)
    sweep(tmp_path, ledger)
    assert left(tmp_path) == {frame(2).address}
    assert ledger.counts()["dropped: expired in the storage"] == 1
    assert ledger.waiting()[1] == 1


def test_files_of_dead_writers_are_removed(tmp_path: Path, ledger: Ledger) -> None:
    put(tmp_path, "frames/roof/7/1-0.png#1", 70)
    put(tmp_path, "results/roof/7/1/m/0#2", 70)
    put(tmp_path, "frames/roof/7/2-0.png#1", 5)
    put(tmp_path, "frames/roofs/7/2-0.png#1", 70)
    assert sweep(tmp_path, ledger)[0] == 2
    assert left(tmp_path) == {"frames/roof/7/2-0.png#1", "frames/roofs/7/2-0.png#1"}
