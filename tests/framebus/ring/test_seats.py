"""Admission and the subscribers' records."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import posix_ipc
import pytest

from framebus import FrameFormat, Publisher, remove_leftovers
from framebus.errors import SubscriberLimitReached
from framebus.inspect.streams import inspect
from framebus.ring.admission import RecordFile, new_record, read_records, remove_dead_records, seats_taken, take_seats
from framebus.ring.layout import Geometry
from framebus.ring.record import RECORD_RECEIVED, RECORD_WORDS
from framebus.shm import segment as shm
from framebus.shm.segment import Segment
from tests.support import SHM


@pytest.fixture
def ring(stream: str) -> Iterator[Segment]:
    segment = shm.create(f"framebus.{stream}.ring", 4096, 0o640)
    yield segment
    segment.unlink()


def of(slots: int, max_loans: int = 1) -> Geometry:
    return Geometry.for_frames(slots, 1, max_loans)


def test_there_is_a_seat_for_each_slot_except_the_newest_and_the_loans(ring: Segment) -> None:
    first, second, third = (shm.attach(ring.name) for _ in range(3))
    take_seats(first, of(6), 2)
    take_seats(second, of(6), 2)
    with pytest.raises(SubscriberLimitReached, match="6 slots leave 4 leases to subscribers, 0 are free"):
        take_seats(third, of(6), 1)
    assert seats_taken(ring.fd, of(6)) == 4
    del first
    take_seats(third, of(6), 1)
    assert seats_taken(ring.fd, of(6)) == 3
    fourth = shm.attach(ring.name)
    take_seats(fourth, of(6), 1)
    with pytest.raises(SubscriberLimitReached, match="6 slots leave 3 leases to subscribers, 0 are free"):
        take_seats(shm.attach(ring.name), of(6, max_loans=2), 1)


def test_a_refused_subscriber_takes_no_seat(ring: Segment) -> None:
    first, second = shm.attach(ring.name), shm.attach(ring.name)
    take_seats(first, of(5), 2)
    with pytest.raises(SubscriberLimitReached):
        take_seats(second, of(5), 2)
    assert seats_taken(ring.fd, of(5)) == 2


def test_a_process_that_holds_the_flock_forever_excludes_no_subscriber(ring: Segment) -> None:
    neighbour = shm.attach(ring.name)
    fcntl.flock(neighbour.fd, fcntl.LOCK_EX)
    take_seats(shm.attach(ring.name), of(5), 2)


def test_a_record_shows_whether_its_subscriber_lives(stream: str) -> None:
    record = RecordFile(stream, new_record("detector", "newest", "zmq", 2))
    counters = RECORD_WORDS.pack(10, 3, 99, 1, 5000, 777)
    record.segment.buffer[RECORD_RECEIVED : RECORD_RECEIVED + len(counters)] = counters
    ((path, content, alive),) = read_records(stream)
    assert alive
    assert content is not None
    assert (content.name, content.mode, content.wake, content.max_leases) == ("detector", "newest", "zmq", 2)
    assert (content.received, content.skipped, content.sequence) == (10, 3, 99)
    assert (content.leases, content.latency_ns, content.received_ns) == (1, 5000, 777)
    record.segment.close()
    assert [alive for _, _, alive in read_records(stream)] == [False]
    path.unlink()


@pytest.mark.parametrize("content", [b"", b"\0" * 4096, b"\xff" * 5000])
def test_an_invalid_record_belongs_to_no_subscriber(stream: str, content: bytes) -> None:
    path = SHM / f"framebus.{stream}.sub.junk"
    path.write_bytes(content)
    assert read_records(stream) == [(path, None, False)]
    assert inspect_subscribers(stream) == 0
    assert remove_leftovers(stream) == [path]


def inspect_subscribers(stream: str) -> int:
    with Publisher(stream, FrameFormat(4, 6)):
        return len(inspect(stream).subscribers)


def test_a_record_that_is_cleared_away_before_it_was_locked_is_written_again(
    stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = shm.create

    def create_and_lose(name: str, size: int, mode: int, what: str) -> Segment:
        monkeypatch.undo()
        segment = create(name, size, mode, what)
        remove_leftovers(stream)
        return segment

    monkeypatch.setattr(shm, "create", create_and_lose)
    record = RecordFile(stream, new_record("detector", "newest", "zmq", 2))
    assert [alive for _, _, alive in read_records(stream)] == [True]
    record.remove()


def dead_record(stream: str) -> Path:
    """What a subscriber of this user leaves when it is killed."""
    record = RecordFile(stream, new_record("killed", "newest", "zmq", 2))
    path = record.segment.path
    record.segment.close()
    return path


def test_records_of_this_users_dead_subscribers_are_removed_and_live_ones_stay(stream: str) -> None:
    living = RecordFile(stream, new_record("detector", "newest", "zmq", 2))
    dead = [dead_record(stream) for _ in range(3)]
    other = dead_record(f"{stream}-2")
    assert remove_dead_records(stream) == 3
    assert not any(path.exists() for path in dead)
    assert [alive for _, _, alive in read_records(stream)] == [True]
    assert other.exists()
    other.unlink()
    living.remove()


@pytest.mark.root
def test_records_of_another_users_dead_subscribers_stay(stream: str) -> None:
    path = dead_record(stream)
    os.chown(path, 12345, 12345)
    assert remove_dead_records(stream) == 0
    assert path.exists()
    path.unlink()


def test_a_file_that_is_not_our_record_is_inspected_without_harm(stream: str, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"kept")
    link, fifo, folder = (SHM / f"framebus.{stream}.sub.{name}" for name in ("link", "fifo", "folder"))
    link.symlink_to(target)
    os.mkfifo(fifo)
    folder.mkdir()
    remove_dead_records(stream)
    assert target.read_bytes() == b"kept"
    link.unlink()
    fifo.unlink(missing_ok=True)
    folder.rmdir()


def test_the_number_of_records_checked_at_a_time_is_limited(stream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("framebus.ring.admission.MAX_RECORDS_CHECKED", 2)
    for _ in range(5):
        dead_record(stream)
    assert [remove_dead_records(stream) for _ in range(4)] == [2, 2, 1, 0]


def test_a_record_that_is_being_made_is_never_cleared_away(stream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each step of its making, another subscriber attaches."""
    removed: list[int] = []

    def interrupted(step: Callable[..., Any]) -> Callable[..., Any]:
        def interrupt(*arguments: Any, **options: Any) -> Any:
            removed.append(remove_dead_records(stream))
            answer = step(*arguments, **options)
            removed.append(remove_dead_records(stream))
            return answer

        return interrupt

    with monkeypatch.context() as patches:
        for owner, name in (
            (posix_ipc, "SharedMemory"), (os, "fchmod"), (os, "posix_fallocate"),
            (Segment, "try_lock"), (Segment, "rename"),
        ):  # fmt: skip
            patches.setattr(owner, name, interrupted(getattr(owner, name)))
        record = RecordFile(stream, new_record("detector", "newest", "zmq", 2))
    assert len(removed) >= 10
    assert set(removed) == {0}
    assert [alive for _, _, alive in read_records(stream)] == [True]
    assert record.segment.is_current()
    record.remove()


def test_subscribers_that_come_and_die_side_by_side_lose_no_record_of_the_living(stream: str) -> None:
    """Eight threads make records and leave dead ones, each clearing away what it finds, while all check their own."""

    def live(_number: int) -> bool:
        kept = True
        for _ in range(40):
            remove_dead_records(stream)
            record = RecordFile(stream, new_record("detector", "newest", "zmq", 2))
            kept = kept and record.segment.is_current()
            dead_record(stream)
            kept = kept and record.segment.is_current()
            record.remove()
        return kept

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(live, range(8)))
    remove_dead_records(stream)
    remove_dead_records(stream)
