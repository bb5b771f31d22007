"""Storing and publishing: where the data of an unpublished frame is, and what the ledger contains after a failure."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from pamqp.commands import Basic

from services.common.reference import FrameReference
from services.common.remote_config import StorageSection
from services.common.storage import Storage, StorageUnavailable
from services.relay import upload
from services.relay.config import RelaySection
from services.relay.spool import Spool
from services.relay.upload import Uploader
from tests.services.relay.frames import DATA, frame

WORK = RelaySection(policy="work")


@pytest.fixture(autouse=True)
def slow_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a write count as quick even if the machine is busy."""
    monkeypatch.setattr(upload, "QUICK_S", 10.0)


class Exchange:
    """An exchange that confirms messages, until the connection is lost."""

    name = "frames"

    def __init__(self) -> None:
        self.sequences: list[int] = []
        self.confirms = 1 << 30
        """Number of messages that are confirmed before the connection is lost."""

    async def publish(self, sent: Any, _routing_key: str, **_options: Any) -> Basic.Ack:
        await asyncio.sleep(0)
        self.sequences.append(FrameReference.from_json(sent.body).sequence)
        if len(self.sequences) > self.confirms:
            raise ConnectionError("the connection was lost")
        return Basic.Ack()


def storage_in(folder: Path) -> Storage:
    return Storage(StorageSection(url=f"file://{folder}"))


def reference(sequence: int) -> FrameReference:
    """A frame of the work policy, which is useful however late."""
    return frame(sequence)


async def accept(spool: Spool, uploader: Uploader, sequence: int, timeout_s: float = 10.0) -> None:
    """Accept a frame as the taker's thread does."""
    accepted = frame(sequence)

    def take() -> None:
        put = lambda: uploader.put_encoded(accepted.address, memoryview(DATA), timeout_s)  # noqa: E731
        spool.accept(accepted, DATA, put)
        uploader.accepted()

    await asyncio.to_thread(take)


async def until(met: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 20
    while not met():
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def running(uploader: Uploader, exchange: Exchange) -> Any:
    """Store and publish in a task."""
    task = asyncio.create_task(uploader.run(exchange))  # type: ignore[arg-type]
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, ConnectionError):
            await task


def run(work: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(work())  # type: ignore[arg-type]


def spooled(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "frames").iterdir())


def test_a_frame_in_the_storages_folder_is_not_kept_twice_and_survives_the_relay(tmp_path: Path) -> None:
    objects, exchange = tmp_path / "objects", Exchange()

    async def dies() -> None:
        with closing(Spool(tmp_path / "spool", 1 << 20, ("detector",))) as spool:
            uploader = Uploader(spool, storage_in(objects), WORK)
            for sequence in (1, 2):
                await accept(spool, uploader, sequence)
            assert spooled(tmp_path / "spool") == []
            assert (objects / frame(1).address).read_bytes() == DATA

    async def goes_on() -> None:
        (objects / frame(2).address).unlink()
        with closing(Spool(tmp_path / "spool", 1 << 20, ("detector",))) as spool:
            async with running(Uploader(spool, storage_in(objects), WORK), exchange):
                await until(lambda: spool.ledger.spooled_bytes == 0)
            assert spool.ledger.counts() == {"accepted": 2, "published": 1, "dropped: lost from the spool": 1}

    run(dies)
    run(goes_on)
    assert exchange.sequences == [1]


def test_frames_that_cannot_be_published_wait_in_the_spool_beyond_a_few(tmp_path: Path) -> None:
    exchange = Exchange()

    async def work() -> None:
        with closing(Spool(tmp_path / "spool", 1 << 20, ("detector",))) as spool:
            uploader = Uploader(spool, storage_in(tmp_path / "objects"), WORK)
            for sequence in range(1, 8):
                await accept(spool, uploader, sequence)
            assert spooled(tmp_path / "spool") == ["7-5", "7-6", "7-7"]  # relay.puts is 4
            async with running(uploader, exchange):
                await until(lambda: spool.ledger.spooled_bytes == 0)
                await accept(spool, uploader, 8)
                assert spooled(tmp_path / "spool") == []
                await until(lambda: spool.ledger.spooled_bytes == 0)
            assert spool.ledger.counts() == {"accepted": 8, "published": 8}

    run(work)
    assert exchange.sequences == list(range(1, 9))


@pytest.mark.parametrize("policy", ["live", "work"])
def test_a_connection_that_is_lost_repeats_only_what_was_not_confirmed(tmp_path: Path, policy: str) -> None:
    section = RelaySection(policy=policy)
    exchange = Exchange()
    exchange.confirms = 3

    async def work() -> None:
        with closing(Spool(tmp_path / "spool" if policy == "work" else None, 1 << 20, ("detector",))) as spool:
            uploader = Uploader(spool, storage_in(tmp_path / "objects"), section)
            for sequence in range(1, 6):
                await accept(spool, uploader, sequence)
            with pytest.raises(ConnectionError):
                await uploader.run(exchange)  # type: ignore[arg-type]
            # Frames are recorded before another connection is used, even within GATHER_S.
            assert spool.ledger.counts() == {"accepted": 5, "published": 3}
            exchange.confirms = 1 << 30
            async with running(uploader, exchange):
                await until(lambda: spool.ledger.spooled_bytes == 0)
            assert spool.ledger.counts() == {"accepted": 5, "published": 5}

    run(work)
    assert exchange.sequences == [1, 2, 3, 4, 4, 5]


def test_confirmed_frames_are_recorded_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[int] = []
    published = Spool.published

    def noted(spool: Spool, entries: Any) -> None:
        recorded.append(len(entries))
        published(spool, entries)

    monkeypatch.setattr(Spool, "published", noted)

    async def work() -> None:
        with closing(Spool(tmp_path / "spool", 1 << 20, ("detector",))) as spool:
            uploader = Uploader(spool, storage_in(tmp_path / "objects"), WORK)
            for sequence in range(1, 11):
                await accept(spool, uploader, sequence)
            async with running(uploader, Exchange()):
                await until(lambda: spool.ledger.spooled_bytes == 0)

    run(work)
    assert sum(recorded) == 10
    assert len([count for count in recorded if count]) <= 3


class ScriptedStorage(Storage):
    """A folder whose writes in a thread wait, or fail."""

    goes_on: threading.Event | None = None
    fails = False
    writes = 0

    def write(self, address: str, data: bytes | memoryview, *, durable: bool = False) -> None:
        self.writes += 1
        if self.goes_on is not None:
            assert self.goes_on.wait(20)
        if self.fails:
            raise StorageUnavailable("the disk failed")
        super().write(address, data, durable=durable)


@pytest.mark.parametrize("policy", ["live", "work"])
def test_a_folder_that_fails_is_written_to_by_the_uploader_until_it_works(tmp_path: Path, policy: str) -> None:
    section = RelaySection(policy=policy)

    async def work() -> None:
        storage = ScriptedStorage(StorageSection(url=f"file://{tmp_path / 'objects'}"))
        storage.fails = True
        with closing(Spool(tmp_path / "spool" if policy == "work" else None, 1 << 20, ("detector",))) as spool:
            uploader = Uploader(spool, storage, section)
            for sequence in (1, 2):
                await accept(spool, uploader, sequence)
            assert storage.writes == 1  # the second went to the spool at once
            storage.fails = False
            exchange = Exchange()
            async with running(uploader, exchange):
                await until(lambda: spool.ledger.spooled_bytes == 0)
                await until(lambda: uploader._quick)
                await accept(spool, uploader, 3)
                assert storage.writes == 2
                await until(lambda: spool.ledger.spooled_bytes == 0)
            assert exchange.sequences == [1, 2, 3]

    run(work)


def test_a_folder_that_hangs_delays_one_frame_and_loses_none(tmp_path: Path) -> None:
    async def work() -> None:
        storage = ScriptedStorage(StorageSection(url=f"file://{tmp_path / 'objects'}"))
        storage.goes_on = threading.Event()
        with closing(Spool(tmp_path / "spool", 1 << 20, ("detector",))) as spool:
            uploader = Uploader(spool, storage, WORK)
            for sequence in (1, 2, 3):
                await accept(spool, uploader, sequence, timeout_s=0.05)
            assert storage.writes == 1
            assert spooled(tmp_path / "spool") == ["7-1", "7-2", "7-3"]
            exchange = Exchange()
            async with running(uploader, exchange):
                await until(lambda: spool.ledger.spooled_bytes == 0)
                uploader._quick = True
                await accept(spool, uploader, 4)  # the first write still hangs
                assert storage.writes == 1
                storage.goes_on.set()
                await until(lambda: spool.ledger.spooled_bytes == 0)
            assert exchange.sequences == [1, 2, 3, 4]

    run(work)


def test_a_folder_that_is_slow_is_written_to_beside_the_taking_of_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "QUICK_S", 0.0)

    async def work() -> None:
        storage = ScriptedStorage(StorageSection(url=f"file://{tmp_path / 'objects'}"))
        with closing(Spool(tmp_path / "spool", 1 << 20, ("detector",))) as spool:
            uploader = Uploader(spool, storage, WORK)
            for sequence in (1, 2, 3):
                await accept(spool, uploader, sequence)
            assert storage.writes == 1
            assert spooled(tmp_path / "spool") == ["7-2", "7-3"]
            # A slow folder is used all the same if the spool is as slow.
            spool.write_s = 10.0
            exchange = Exchange()
            async with running(uploader, exchange):
                await until(lambda: spool.ledger.spooled_bytes == 0)
            for sequence in (4, 5):
                await accept(spool, uploader, sequence)
            assert storage.writes == 3

    run(work)


def test_a_confirmed_frame_that_is_not_recorded_yet_is_not_trimmed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "GATHER_S", 0.2)
    section = RelaySection(policy="live", live_length=1)

    def objects() -> set[str]:
        return {path.name for path in (tmp_path / "objects").rglob("*") if path.is_file()}

    async def work() -> None:
        with closing(Spool(None, 1 << 20, ("detector",))) as spool:
            uploader = Uploader(spool, storage_in(tmp_path / "objects"), section)
            trimming = asyncio.create_task(uploader.trim())
            async with running(uploader, Exchange()):
                for sequence in range(1, 6):
                    await accept(spool, uploader, sequence)
                await until(lambda: spool.ledger.spooled_bytes == 0)
            assert spool.ledger.counts() == {"accepted": 5, "published": 5}
            await Storage.delete(uploader._storage, [frame(sequence).address for sequence in range(1, 6)])
            # Without a connection, all but the newest one are dropped, and their objects removed.
            for sequence in range(6, 9):
                await accept(spool, uploader, sequence)
            await until(lambda: objects() == {Path(frame(8).address).name})
            trimming.cancel()
            assert spool.ledger.counts() == {"accepted": 8, "published": 5, f"dropped: {upload.TOO_MANY}": 2}

    run(work)
