"""Admission and the subscribers' records."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator

import pytest

from framebus import FrameFormat, Publisher, remove_leftovers
from framebus import segment as shm
from framebus.directory import inspect
from framebus.errors import RingFull
from framebus.seats import Record, new_record, read_records, seats_taken, take_seats
from framebus.segment import Segment
from tests.support import SHM


@pytest.fixture
def ring(stream: str) -> Iterator[Segment]:
    segment = shm.create(f"framebus.{stream}.ring", 4096, 0o640)
    yield segment
    segment.unlink()


def test_seats_are_as_many_as_slots_but_two(ring: Segment) -> None:
    first, second, third = (shm.attach(ring.name) for _ in range(3))
    take_seats(first, 6, 2)
    take_seats(second, 6, 2)
    with pytest.raises(RingFull, match="6 slots leave 4 leases to subscribers, 0 are free"):
        take_seats(third, 6, 1)
    assert seats_taken(ring, 6) == 4
    del first
    take_seats(third, 6, 1)
    assert seats_taken(ring, 6) == 3


def test_a_refused_subscriber_takes_none(ring: Segment) -> None:
    first, second = shm.attach(ring.name), shm.attach(ring.name)
    take_seats(first, 5, 2)
    with pytest.raises(RingFull):
        take_seats(second, 5, 2)
    assert seats_taken(ring, 5) == 2


def test_who_holds_the_admission_for_ever_keeps_nobody_out(ring: Segment) -> None:
    neighbour = shm.attach(ring.name)
    fcntl.flock(neighbour.fd, fcntl.LOCK_EX)
    take_seats(shm.attach(ring.name), 5, 2)


def test_a_record_tells_who_lives(stream: str) -> None:
    record = Record(stream, new_record("detector", "newest", "zmq", 2))
    record.update(10, 3, 99, 1, 5000, 777)
    ((path, content, alive),) = read_records(stream)
    assert alive
    assert content is not None
    assert (content.name, content.mode, content.wake, content.max_leases) == ("detector", "newest", "zmq", 2)
    assert (content.received, content.skipped, content.sequence) == (10, 3, 99)
    assert (content.leases, content.latency_ns, content.received_ns) == (1, 5000, 777)
    record._segment.close()
    assert [alive for _, _, alive in read_records(stream)] == [False]
    path.unlink()


@pytest.mark.parametrize("content", [b"", b"\0" * 4096, b"\xff" * 5000])
def test_a_record_that_makes_no_sense_is_nobodys(stream: str, content: bytes) -> None:
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
    record = Record(stream, new_record("detector", "newest", "zmq", 2))
    assert [alive for _, _, alive in read_records(stream)] == [True]
    record.remove()
