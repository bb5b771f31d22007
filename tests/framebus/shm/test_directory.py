"""What the directory tells, and what it takes for left over: never what lives."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from framebus import FrameFormat, Publisher, StreamNotFound, Subscriber, companion_path, remove_leftovers, streams
from framebus.inspect.leftovers import find_leftovers
from framebus.inspect.streams import inspect
from framebus.shm import locks
from framebus.shm.directory import stream_names
from tests.support import SHM, Program, files_of

SMALL = FrameFormat(4, 6)
Start = Callable[..., Program]


def names_left(stream: str) -> list[str]:
    return sorted(leftover.path.name.removeprefix(f"framebus.{stream}.") for leftover in find_leftovers(stream))


def test_a_stream_is_seen_without_being_touched(stream: str) -> None:
    with Publisher(stream, SMALL, slots=6) as publisher, Subscriber(stream, name="detector") as subscriber:
        assert inspect(stream).frame is None
        with publisher.loan() as loan:
            loan.pixels[:] = 1
        frame = subscriber.receive(5)
        info = inspect(stream)
        assert (info.name, info.live, info.state, info.sequence) == (stream, True, "open", 1)
        assert (info.slots, info.slots_held, info.seats, info.seats_taken) == (6, 1, 4, 2)
        assert info.frame is not None
        assert info.frame.shape == (4, 6, 3)
        (seen,) = info.subscribers
        assert seen.alive
        assert (seen.record.name, seen.record.received, seen.record.leases) == ("detector", 1, 1)
        assert info.name in [other.name for other in streams()]
        assert np.asarray(frame.pixels).sum() == 72
        assert find_leftovers(stream) == []
    with pytest.raises(StreamNotFound):
        inspect(stream)


def test_a_live_stream_is_never_left_over(stream: str) -> None:
    with Publisher(stream, SMALL) as publisher, Subscriber(stream) as subscriber:
        assert remove_leftovers(stream) == []
        publisher.loan().publish()
        assert subscriber.receive(5).sequence == 1


def test_files_left_by_a_killed_process_are_found_and_removed(stream: str, start_program: Start) -> None:
    publisher = start_program("publish", stream, "4", "6", "8")
    assert publisher.read() == "open"
    reader = start_program("check_frames", stream, "newest", "zmq", "0")
    assert reader.read() == "open"
    assert names_left(stream) == []
    publisher.process.kill()
    publisher.process.wait()
    # The reader still holds the ring: a publisher may come back and adopt it.
    assert "ring" not in names_left(stream)
    reader.process.kill()
    reader.process.wait()
    (record,) = (file for file in files_of(stream) if ".sub." in file)
    assert names_left(stream) == sorted(["ring", "lock", "sock", record.rpartition(f"{stream}.")[2]])
    removed = remove_leftovers(stream)
    assert len(removed) == 4
    assert files_of(stream) == []


def test_an_interrupted_creation_is_left_over(stream: str) -> None:
    (SHM / f"framebus.{stream}.ring.00ff").write_bytes(b"half")
    assert names_left(stream) == ["ring.00ff"]
    remove_leftovers(stream)


def test_a_service_socket_without_a_listener_is_a_leftover(stream: str) -> None:
    path = SHM / f"framebus.{stream}.status.detector.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        assert names_left(stream) == []
    assert names_left(stream) == ["status.detector.sock"]
    remove_leftovers(stream)


def test_a_kept_ring_is_left_over(stream: str) -> None:
    Publisher(stream, SMALL, keep_ring=True).close()
    assert names_left(stream) == ["lock", "ring"]
    remove_leftovers(stream)


def test_files_that_a_service_kept_are_left_over_after_the_stream(stream: str) -> None:
    publisher = Publisher(stream, SMALL)
    (SHM / f"framebus.{stream}.state.detector").write_bytes(b"tracks")
    assert names_left(stream) == []
    publisher.close()
    (leftover,) = find_leftovers(stream, remove=True)
    assert (leftover.path.name, leftover.judgement) == (f"framebus.{stream}.state.detector", "kept")
    assert files_of(stream) == []


@pytest.mark.root
def test_files_of_another_user_are_reported_and_not_removed(stream: str) -> None:
    Publisher(stream, SMALL, keep_ring=True).close()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setgroups([])
            os.setgid(54321)
            os.setuid(54321)
            status = 0 if not remove_leftovers(stream) else 2
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert len(files_of(stream)) == 2
    assert len(remove_leftovers(stream)) == 2


def test_files_of_other_programs_are_not_streams() -> None:
    assert all("/" not in name and "." not in name for name in stream_names())


def test_no_publisher_opens_what_is_about_to_be_removed(stream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Publisher(stream, SMALL, keep_ring=True).close()
    lock = companion_path(stream, "lock")
    unlink, acquired = Path.unlink, []

    def look_and_unlink(path: Path, missing_ok: bool = False) -> None:
        acquired.append(locks.PublisherLock.acquire(lock.name))
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", look_and_unlink)
    assert len(remove_leftovers(stream)) == 2
    monkeypatch.undo()
    assert acquired == [None, None]
    assert files_of(stream) == []
    Publisher(stream, SMALL).close()


@pytest.mark.parametrize("remove", [False, True])
def test_two_processes_that_look_for_leftovers_at_once_both_find_them(stream: str, remove: bool) -> None:
    Publisher(stream, SMALL, keep_ring=True).close()
    held = locks.PublisherLock.acquire(companion_path(stream, "lock").name)
    assert held is not None
    other = threading.Timer(0.02, held.close)
    other.start()
    try:
        assert len(find_leftovers(stream, remove=remove)) == 2
    finally:
        other.join()
        remove_leftovers(stream)


def test_inspection_creates_no_lock(stream: str) -> None:
    with pytest.raises(StreamNotFound, match="does not exist"):
        locks.PublisherLock.acquire(companion_path(stream, "lock").name, create=False)
    assert find_leftovers(stream, remove=True) == []
    assert files_of(stream) == []
