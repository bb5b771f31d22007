"""The sweep removes old objects of its stream only, and lists little else; the frames of dead letters stay longer."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from services.common.reference import result_prefix
from services.common.remote_config import StorageSection
from services.common.storage import Listed, Storage
from services.relay.config import RelaySection
from services.relay.ledger import DEAD, Fate, Ledger
from services.relay.sweep import Sweeper
from tests.s3 import BUCKET, SECRET_KEY, S3Server
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
        ledger.published(ledger.pending(0, 1))
        ledger.settle([Fate(frame(sequence), "detector", DEAD)])
        put(tmp_path, frame(sequence).address, age_s)
    assert sweep(tmp_path, ledger) == (1, 1)
    assert left(tmp_path) == {frame(1).address}
    assert ledger.is_dead(frame(1).address)
    assert not ledger.is_dead(frame(2).address)


def test_the_object_of_a_frame_that_waits_for_the_broker_stays(tmp_path: Path, ledger: Ledger) -> None:
    frames = [frame(sequence, captured_wall_ns=time.time_ns() - 150 * 10**9) for sequence in (1, 2)]
    for one in frames:
        ledger.accept(one)
        put(tmp_path, one.address, 150)
    ledger.published(ledger.pending(0, 1))
    assert sweep(tmp_path, ledger) == (1, 1)
    assert left(tmp_path) == {frames[1].address}
    assert [entry.reference.sequence for entry in ledger.pending(0, -1)] == [2]
    ledger.published(ledger.pending(0, 1))
    assert sweep(tmp_path, ledger) == (1, 1)
    assert ledger.counts()["dropped: expired in the storage"] == 2


def test_frames_that_no_detector_took_are_given_up_with_their_objects(tmp_path: Path, ledger: Ledger) -> None:
    now_ns = time.time_ns()
    for sequence, age_s in ((1, 150), (2, 50)):
        ledger.accept(frame(sequence, captured_wall_ns=now_ns - age_s * 10**9))
        ledger.published(ledger.pending(0, 1))
        put(tmp_path, frame(sequence).address, age_s)
    sweep(tmp_path, ledger)
    assert left(tmp_path) == {frame(2).address}
    assert ledger.counts()["dropped: expired in the storage"] == 1
    assert ledger.waiting()[1] == 1


def test_files_of_dead_writers_are_removed(tmp_path: Path, ledger: Ledger) -> None:
    put(tmp_path, "frames/roof/7/1-0.png#1", 150)
    put(tmp_path, "results/roof/20010909T0146Z-7/1/m/0#2", 1500)
    put(tmp_path, "frames/roof/7/2-0.png#1", 50)
    put(tmp_path, "frames/roofs/7/2-0.png#1", 150)
    (tmp_path / "results/roof/20010909T0147Z-7/1/m").mkdir(parents=True)
    assert sweep(tmp_path, ledger)[0] == 2
    assert left(tmp_path) == {"frames/roof/7/2-0.png#1", "frames/roofs/7/2-0.png#1"}
    assert list((tmp_path / "results/roof").iterdir()) == []


class Clock:
    """The sweep's clock, which a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead_s = 0.0
        now = time.time
        monkeypatch.setattr("services.relay.sweep.time.time", lambda: now() + self.ahead_s)


class Counted(Storage):
    """A storage that counts the objects that it lists. They are the files in its folder."""

    listed = 0
    folder: Path

    async def list(self, prefix: str) -> AsyncIterator[Listed]:
        async for found in super().list(prefix):
            self.listed += 1
            yield found


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A server."""
    with S3Server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(params=["folder", pytest.param("bucket", marks=pytest.mark.slow)])
def storage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Counted:
    """A folder, and then a part of a bucket of a real server."""
    if request.param == "folder":
        opened = Counted(StorageSection(url=f"file://{tmp_path}/objects"))
        opened.folder = tmp_path / "objects"
        return opened
    monkeypatch.setenv("S3_SECRET", SECRET_KEY)
    server: S3Server = request.getfixturevalue("s3")
    opened = Counted(StorageSection.model_validate(server.section | {"url": f"s3://{BUCKET}/{tmp_path.name}"}))
    opened.folder = server.folder / "data" / BUCKET / tmp_path.name
    return opened


async def addresses(storage: Storage) -> set[str]:
    return {found.address for kind in ("frames", "results") async for found in storage.list(f"{kind}/{STREAM}/")}


def test_a_sweep_costs_what_expires_and_not_what_is_kept(storage: Counted, ledger: Ledger) -> None:
    now_ns, minutes, count = time.time_ns(), 40, 5

    def put_results(minute: int, age_s: float, name: str) -> None:
        prefix = result_prefix(STREAM, 7, 42, now_ns - 60 * 10**9 * minute, "m")
        for number in range(count):
            put(storage.folder, f"{prefix}{name}{number}", age_s)  # a file's time is that of the object

    async def sweeps(sweeper: Sweeper) -> tuple[int, int]:
        """The numbers of removed and of listed objects."""
        storage.listed = 0
        return await sweeper.sweep(), storage.listed

    async def work() -> None:
        for minute in range(minutes):
            put_results(minute, 60 * minute, "")
        sweeper = Sweeper(ledger, storage, STREAM, SECTION)
        kept_minutes = int(SECTION.expire_results_s // 60) + 1
        removed, listed = await sweeps(sweeper)
        assert removed == (minutes - kept_minutes) * count
        assert listed - removed in {0, count}  # the minute in which the expiry falls
        assert len(await addresses(storage)) == kept_minutes * count
        for _ in range(3):
            assert await sweeps(sweeper) == (0, 0)
        # The results of a backlog are young, and of minutes that have passed: they are listed once.
        for minute in range(20, 30):
            put_results(minute, 0, "late")
        assert await sweeps(sweeper) == (0, 10 * count)
        assert await sweeps(sweeper) == (0, 0)

    asyncio.run(work())


def test_objects_of_every_layout_and_of_any_time_expire(
    storage: Counted, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, now_ns = Clock(monkeypatch), time.time_ns()

    async def work() -> None:
        of_epoch = {"results/roof/7/1/m/0", "results/roof/18446744073709551615/1/m/0", "frames/roof/7/1-0.png"}
        strange = {"results/roof/0", "results/roof/20261345T9999Z-7/0", "results/roof/x/0"}
        # The wall clock may have been wrong while a frame was captured.
        wrong = {f"{result_prefix(STREAM, 7, 1, wall_ns, 'm')}0" for wall_ns in (0, now_ns + 10**18, (1 << 64) - 1)}
        kept = f"{result_prefix(STREAM, 7, 2, now_ns, 'm')}0"
        for address in of_epoch | strange | wrong:
            await storage.put(address, b"x")
        sweeper = Sweeper(ledger, storage, STREAM, SECTION)
        assert await sweeper.sweep() == 0
        clock.ahead_s = SECTION.expire_results_s + 1
        await storage.put(kept, b"x")
        assert await sweeper.sweep() == len(of_epoch | strange | wrong) + 1
        assert await addresses(storage) == set()

    asyncio.run(work())


def test_a_dead_letters_frame_does_not_delay_a_later_frame_of_its_minute(
    storage: Counted, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)

    async def work() -> None:
        ledger.accept(frame(1))
        ledger.published(ledger.pending(0, 1))
        ledger.settle([Fate(frame(1), "detector", DEAD)])
        await storage.put(frame(1).address, b"x")
        sweeper = Sweeper(ledger, storage, STREAM, SECTION)
        clock.ahead_s = SECTION.expire_frames_s + 1
        assert await sweeper.sweep() == 0
        await storage.put(frame(2).address, b"x")  # by the sweep's clock, it is as old as the first one
        clock.ahead_s = 2 * SECTION.expire_frames_s + 2
        assert await sweeper.sweep() == 1
        assert await addresses(storage) == {frame(1).address}
        clock.ahead_s = SECTION.expire_dead_letters_s + SECTION.expire_frames_s
        assert await sweeper.sweep() == 1

    asyncio.run(work())
