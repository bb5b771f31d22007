"""Taking frames from a ring: which are taken, which are counted, and how long a slot is held."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog.testing

from framebus import FrameFormat, Publisher
from services.common import frame_codec
from services.common.frame_codec import decode
from services.relay import take
from services.relay.config import RelayConfiguration
from services.relay.spool import Spool
from services.relay.take import Taker
from services.relay.upload import Uploader
from tests.services.relay.parts import open_publisher, pixels_of, publish_frames
from tests.support import publish, wait_until

Put = Callable[[str, memoryview, float], bool]


def no_put(_address: str, _data: memoryview, _timeout_s: float) -> bool:
    return False


@contextmanager
def taking(
    stream: str, *, put: Put = no_put, folder: Path | None = None, max_bytes: int = 1 << 30, **relay: Any
) -> Iterator[tuple[Taker, Spool]]:
    """Take frames in a thread."""
    stop = threading.Event()
    configured = RelayConfiguration.model_validate({"stream": {"name": stream}, "relay": relay})
    spool = Spool(folder, max_bytes, ("detector",))
    taker = Taker(configured, spool, put=put, accepted=lambda: None, stop=stop)
    failures: list[BaseException] = []

    def run() -> None:
        try:
            taker.run()
        except BaseException as error:  # noqa: BLE001  told below
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield taker, spool
    finally:
        stop.set()
        thread.join()
        spool.close()
    assert failures == []


def done(spool: Spool) -> int:
    """Return the number of frames that were accepted or missed."""
    return sum(number for name, number in spool.ledger.counts().items() if name == "accepted" or "missed" in name)


def wait_for(spool: Spool, count: int) -> dict[str, int]:
    wait_until(lambda: done(spool) >= count, f"{count} frames are taken or counted", detail=spool.ledger.counts)
    return spool.ledger.counts()


def publish_at(publisher: Publisher, *captured_s: float) -> None:
    """Publish frames that were captured at these times."""
    for moment_s in captured_s:
        publisher.publish(pixels_of(1), captured_ns=round(moment_s * 1e9))


@pytest.mark.parametrize("encoding", ["jpeg", "png", "raw", "lz4", "zstd"])
@pytest.mark.parametrize("policy", ["live", "work"])
def test_a_frame_is_accepted_with_all_fields_of_its_header(
    stream: str, tmp_path: Path, encoding: str, policy: str
) -> None:
    with (
        open_publisher(stream) as publisher,
        taking(stream, folder=tmp_path if policy == "work" else None, encoding=encoding, policy=policy) as (_, spool),
    ):
        publish(publisher, 77)
        wait_for(spool, 1)
        (entry,) = spool.ledger.pending(0, -1)
        reference = entry.reference
        assert (reference.stream, reference.sequence, reference.format) == (stream, 1, encoding)
        assert re.fullmatch(rf"frames/{stream}/\d{{8}}T\d{{4}}Z-{reference.epoch}/1-.*", reference.address)
        assert (reference.deadline_wall_ns is not None) == (policy == "live")
        pixels = decode(spool.read(entry), reference)
    assert pixels.shape == (48, 64, 3)
    assert abs(int(pixels.max()) - 77) <= 2


def test_at_a_lower_rate_skipped_frames_are_counted_as_thinned(stream: str) -> None:
    with open_publisher(stream, slots=64) as publisher, taking(stream, target_fps=10) as (_, spool):
        publish_at(publisher, *(1000 + number / 25 for number in range(50)))
        counts = wait_for(spool, 50)
    assert counts["accepted"] + counts["missed: thinned"] == 50
    assert 19 <= counts["accepted"] <= 22  # two in advance at the start


def test_a_rate_above_the_streams_takes_every_frame(stream: str) -> None:
    with open_publisher(stream, slots=64) as publisher, taking(stream, target_fps=30) as (_, spool):
        publish_at(publisher, *(1000 + number / 25 for number in range(40)))
        assert wait_for(spool, 40) == {"accepted": 40}


def test_a_clock_that_is_set_back_does_not_end_the_stream(stream: str) -> None:
    with open_publisher(stream, slots=64) as publisher, taking(stream, target_fps=10) as (_, spool):
        publish_at(publisher, 5000.0, 5000.2, 1000.0, 1000.2, 1000.4)
        assert wait_for(spool, 5) == {"accepted": 5}


@pytest.mark.parametrize("encoding", ["jpeg", "png"])
def test_frames_that_a_format_cannot_hold_are_logged_once_and_counted(stream: str, encoding: str) -> None:
    with (
        structlog.testing.capture_logs() as logs,
        Publisher(stream, FrameFormat(4, 5, None, "float32", "depth")) as publisher,
        taking(stream, encoding=encoding) as (_, spool),
    ):
        for _ in range(3):
            publish(publisher)
        assert wait_for(spool, 3) == {"missed: not encodable": 3}
    told = [entry for entry in logs if entry["event"] == "frame not taken"]
    assert len(told) == 1
    assert "set relay.encoding to raw, lz4 or zstd" in told[0]["reason"]


def test_a_full_spool_is_logged_once_and_counted(stream: str) -> None:
    size = 48 * 64 * 3
    with (
        structlog.testing.capture_logs() as logs,
        open_publisher(stream) as publisher,
        taking(stream, encoding="raw", max_bytes=2 * size) as (_, spool),
    ):
        publish_frames(publisher, 5)
        assert wait_for(spool, 5) == {"accepted": 2, "missed: spool full": 3}
    assert len([entry for entry in logs if entry["event"] == "frame not taken"]) == 1


def test_a_restarted_relay_takes_the_frames_left_in_the_ring_and_none_twice(stream: str, tmp_path: Path) -> None:
    with open_publisher(stream, slots=8) as publisher:
        for count in (2, 6):
            with taking(stream, folder=tmp_path, policy="work") as (_, spool):
                publish_frames(publisher, 2)
                wait_for(spool, count)
            publish_frames(publisher, 2)
        with taking(stream, folder=tmp_path, policy="work") as (_, spool):
            publish_frames(publisher, 1)
            counts = wait_for(spool, 9)
            sequences = [entry.reference.sequence for entry in spool.ledger.pending(0, -1)]
    assert sum(counts.values()) == 9
    assert len(sequences) == len(set(sequences)) == counts["accepted"]


class HangingStorage:
    """A storage whose writes never end."""

    def __init__(self, *, is_folder: bool) -> None:
        self.is_folder = is_folder
        self.writes = 0
        self.goes_on = threading.Event()

    async def put(self, _address: str, _data: object, **_options: object) -> None:
        self.writes += 1
        await asyncio.Event().wait()

    def write(self, _address: str, _data: object, **_options: object) -> None:
        self.writes += 1
        self.goes_on.wait(60)


@pytest.mark.parametrize("is_folder", [False, True])
def test_a_storage_that_hangs_holds_at_most_one_slot(stream: str, is_folder: bool) -> None:
    storage = HangingStorage(is_folder=is_folder)
    section = RelayConfiguration.model_validate({"relay": {"encoding": "raw"}}).relay
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    spool = Spool(None, 1 << 30, ("detector",))

    async def make() -> Uploader:
        return Uploader(spool, storage, section)  # type: ignore[arg-type]

    try:
        uploader = asyncio.run_coroutine_threadsafe(make(), loop).result(10)
        with open_publisher(stream, slots=4) as publisher:
            with taking(stream, put=uploader.put_now, encoding="raw") as (taker, taken):
                for number in range(1, 9):  # more than the ring has slots
                    publish(publisher, number)
                    wait_for(taken, number)
                assert taken.ledger.counts() == {"accepted": 8}
                pixels = [bytes(taken.read(entry))[0] for entry in taken.ledger.pending(0, -1)]
            assert publisher.statistics.sequence == 8
        assert pixels == [1, 2, 3, 4, 5, 6, 7, 8]
        # A write to a folder cannot be cancelled, so no second one begins.
        assert storage.writes == (1 if is_folder else 8)
        assert taker.longest_hold_s < 1
    finally:
        storage.goes_on.set()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
        spool.close()


@pytest.mark.parametrize("encoding", ["jpeg", "raw"])
def test_a_slow_encoding_holds_at_most_one_slot(
    stream: str, tmp_path: Path, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on, began = threading.Semaphore(0), threading.Semaphore(0)

    def slow(*arguments: Any) -> memoryview:
        began.release()
        goes_on.acquire(timeout=20)
        return frame_codec.encode(*arguments)

    with (
        open_publisher(stream, slots=4) as publisher,
        taking(stream, folder=tmp_path, policy="work", encoding=encoding) as (taker, spool),
    ):
        monkeypatch.setattr(take, "encode", slow)
        taker._encoded_s = take.HOLD_S  # as after an encoding that took long
        publish(publisher, 1)
        assert began.acquire(timeout=20)
        for number in range(2, 12):  # the publisher overwrites its ring while the relay encodes
            publish(publisher, number)
        for _ in range(12):
            goes_on.release()
        counts = wait_for(spool, 11)
        first = spool.ledger.pending(0, 1)[0]
        pixels = decode(spool.read(first), first.reference)
        assert taker.longest_hold_s < 1
    assert counts["accepted"] + counts["missed: overwritten"] == 11
    assert counts["missed: overwritten"] > 0
    assert np.abs(pixels.astype(int) - 1).max() <= 2
