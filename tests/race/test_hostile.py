"""A dishonest neighbour of the same group: what it tries, and that it cannot write, tear, crash or block.

The publisher is one user, the subscriber another, the neighbour a third; all share a group, as containers do.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import socket
import struct
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import pytest
import zmq

from framebus import FrameFormat, PermissionDenied, Publisher, StreamNotFound, Subscriber, remove_leftovers
from framebus.inspect.streams import inspect
from framebus.ring.layout import LOCK_SLOTS
from framebus.shm import locks
from tests.people import GROUP, Person, shared_event
from tests.race.victims import write
from tests.support import SHM, files_of, lacks, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.root]

SMALL = FrameFormat(40, 60)
SLOTS = 6
PUBLISHER, SUBSCRIBER, NEIGHBOUR = 40001, 40002, 40003
PROTECTED = Path("/proc/sys/fs/protected_regular")


@pytest.fixture(autouse=True)
def protected_regular(request: pytest.FixtureRequest) -> Iterator[None]:
    """The kernel's rule on opening others' files with O_CREAT in sticky directories: 2, as many hosts set it."""
    before = PROTECTED.read_text()
    try:
        PROTECTED.write_text(getattr(request, "param", "2"))
    except OSError:
        lacks("fs.protected_regular cannot be set here: run the tests where /proc/sys is writable")
    yield
    PROTECTED.write_text(before)


@pytest.fixture
def people() -> Iterator[Callable[..., Person]]:
    """Starts people, and kills those that still run at the end of the test."""
    started: list[Person] = []

    def start(*arguments: object, **options: int) -> Person:
        started.append(Person(*arguments, **options))  # type: ignore[arg-type]
        return started[-1]

    yield start
    for person in started:
        person.end()


def publish_until(stream: str, stop: Event) -> tuple[int, int, int]:
    """Publish 100 frames a second, each of one value; published, dropped, replaced."""
    with Publisher(stream, SMALL, slots=SLOTS) as publisher:
        while not stop.wait(0.01):
            write(publisher)
        statistics = publisher.statistics
    return statistics.published, statistics.dropped, statistics.replaced


def watch_until(stream: str, stop: Event) -> tuple[int, int]:
    """Receive until told to stop; frames received, and frames that are not of one right value."""
    received = torn = 0
    with Subscriber(stream, attach_timeout_s=10, gone_after_s=None) as subscriber:
        while not stop.is_set():
            try:
                with subscriber.receive(0.1) as frame:
                    received += 1
                    torn += not bool((frame.pixels == frame.sequence % 251).all())
            except TimeoutError:
                continue
    return received, torn


def received(stream: str) -> int:
    """How many frames the stream's only subscriber has received so far; 0 before it subscribes."""
    try:
        return sum(subscriber.record.received for subscriber in inspect(stream).subscribers)
    except StreamNotFound:
        return 0


def wait_for_frames(stream: str, count: int) -> None:
    """Wait until so many more frames have been received."""
    before = received(stream)
    wait_until(lambda: received(stream) >= before + count, f"{count} more frames are received")


def attempt(action: Callable[[], object]) -> str:
    """Name of the error that the action meets; empty if it succeeds."""
    try:
        action()
    except (OSError, ValueError) as error:
        return type(error).__name__
    return ""


def scribble(stream: str) -> dict[str, str]:
    """Try to change or remove every file of the stream."""
    failures = {}
    for file in files_of(stream):
        path, kind = SHM / file, file.split(".")[2]
        attempts: dict[str, Callable[[], object]] = {
            "unlink": path.unlink,
            "rename": lambda path=path: path.rename(SHM / "framebus-taken"),  # type: ignore[misc]
            "chmod": lambda path=path: path.chmod(0o666),  # type: ignore[misc]
            "replace": lambda path=path: os.link(path, SHM / "framebus-linked"),  # type: ignore[misc]
        }
        if kind != "sock":
            attempts["write"] = lambda path=path: os.open(path, os.O_RDWR)  # type: ignore[misc]
            attempts["truncate"] = lambda path=path: os.truncate(path, 0)  # type: ignore[misc]
        for name, action in attempts.items():
            failures[f"{kind} {name}"] = attempt(action)
    fd = os.open(SHM / f"framebus.{stream}.ring", os.O_RDONLY)
    failures["ring map"] = attempt(lambda: mmap.mmap(fd, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE))
    failures["ring write lock"] = attempt(lambda: fcntl.fcntl(fd, fcntl.F_OFD_SETLK, locks.write_lock(LOCK_SLOTS)))
    return failures


def test_a_hostile_neighbour_can_change_no_file(stream: str, people: Callable[..., Person]) -> None:
    stop, end = shared_event(), shared_event()
    publisher = people(PUBLISHER, publish_until, stream, end)
    watcher = people(SUBSCRIBER, watch_until, stream, stop)
    wait_for_frames(stream, 1)
    failures = people(NEIGHBOUR, scribble, stream).result()
    assert {name for name, failure in failures.items() if not failure} <= {
        "ring replace",
        "sub replace",
        "sock replace",
    }
    (SHM / "framebus-linked").unlink(missing_ok=True)
    wait_for_frames(stream, 50)
    stop.set()
    assert watcher.result()[1] == 0
    end.set()
    published, dropped, replaced = publisher.result()
    assert (published > 50, dropped, replaced) == (True, 0, 0)


def pin(stream: str, stop: Event) -> int:
    """Read-lock every byte of the ring that can be, and hold the flock; return how many slots were pinned."""
    fd = os.open(SHM / f"framebus.{stream}.ring", os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    pinned = set()
    while not stop.is_set():
        for offset in range(LOCK_SLOTS - 256, LOCK_SLOTS + 256 + 4096):
            try:
                fcntl.fcntl(fd, fcntl.F_OFD_SETLK, locks.read_lock(offset))
            except OSError:
                continue
            if LOCK_SLOTS <= offset < LOCK_SLOTS + SLOTS:
                pinned.add(offset)
    return len(pinned)


def test_pinned_slots_delay_the_publisher_until_the_ring_is_replaced(
    stream: str, people: Callable[..., Person]
) -> None:
    stop, end = shared_event(), shared_event()
    publisher = people(PUBLISHER, publish_until, stream, end)
    watcher = people(SUBSCRIBER, watch_until, stream, stop)
    wait_for_frames(stream, 30)
    ring = SHM / f"framebus.{stream}.ring"
    first = ring.stat().st_ino
    neighbour = people(NEIGHBOUR, pin, stream, stop)
    wait_until(lambda: ring.stat().st_ino != first, "the ring is replaced", interval_s=0.05)
    wait_for_frames(stream, 30)
    stop.set()
    assert neighbour.result() == SLOTS
    assert watcher.result()[1] == 0
    end.set()
    _, dropped, replaced = publisher.result()
    assert replaced == 1
    assert dropped > 0


def flood(stream: str, stop: Event) -> int:
    """Subscribe to a new topic again and again, and send rubbish to the socket."""
    context = zmq.Context()
    listener = context.socket(zmq.XSUB)
    listener.set(zmq.LINGER, 0)
    listener.connect(f"ipc://{SHM}/framebus.{stream}.sock")
    raw = socket.socket(socket.AF_UNIX)
    raw.connect(str(SHM / f"framebus.{stream}.sock"))
    raw.setblocking(False)
    sent = 0
    while not stop.is_set():
        for _ in range(100):
            try:
                listener.send(b"\x01" + struct.pack("<Q", sent), zmq.NOBLOCK)
                sent += 1
            except zmq.Again:
                break
        try:
            raw.send(b"\xff" * 4096)
        except OSError:
            raw.close()
            raw = socket.socket(socket.AF_UNIX)
            raw.connect(str(SHM / f"framebus.{stream}.sock"))
            raw.setblocking(False)
    raw.close()
    listener.close(0)
    context.term()
    return sent


def test_a_flooded_socket_blocks_no_process(stream: str, people: Callable[..., Person]) -> None:
    stop, end = shared_event(), shared_event()
    publisher = people(PUBLISHER, publish_until, stream, end)
    watcher = people(SUBSCRIBER, watch_until, stream, end)
    wait_for_frames(stream, 1)
    neighbour = people(NEIGHBOUR, flood, stream, stop)
    wait_for_frames(stream, 100)
    stop.set()
    assert neighbour.result() > 1000
    wait_for_frames(stream, 10)
    end.set()
    torn, dropped = watcher.result()[1], publisher.result()[1]
    assert (torn, dropped) == (0, 0)


def sit_on(stream: str, suffix: str) -> None:
    path = SHM / f"framebus.{stream}.{suffix}"
    if suffix == "sock":
        with socket.socket(socket.AF_UNIX) as sitting:
            sitting.bind(str(path))
    else:
        path.write_bytes(b"mine" * 2000)


@pytest.mark.parametrize("protected_regular", ["0", "2"], indirect=True)
@pytest.mark.parametrize("suffix", ["lock", "ring", "sock"])
def test_the_user_that_occupies_a_name_is_named_and_nothing_is_left(
    stream: str, people: Callable[..., Person], suffix: str
) -> None:
    people(NEIGHBOUR, sit_on, stream, suffix).result()
    with pytest.raises(PermissionDenied, match=f"user {NEIGHBOUR}"):
        people(PUBLISHER, publish_until, stream, shared_event()).result()
    assert files_of(stream) == [f"framebus.{stream}.{suffix}"]
    (SHM / f"framebus.{stream}.{suffix}").unlink()


def test_another_users_file_beside_the_ring_prevents_nothing(stream: str, people: Callable[..., Person]) -> None:
    people(NEIGHBOUR, sit_on, stream, "ring.0011").result()
    people(NEIGHBOUR, sit_on, stream, "sub.0011").result()
    stop = shared_event()
    publisher = people(PUBLISHER, publish_until, stream, stop)
    watcher = people(SUBSCRIBER, watch_until, stream, stop)
    wait_for_frames(stream, 5)
    stop.set()
    assert watcher.result()[1] == 0
    assert publisher.result()[0] >= 5
    remove_leftovers(stream)
    for suffix in ("ring.0011", "sub.0011"):
        (SHM / f"framebus.{stream}.{suffix}").unlink(missing_ok=True)


def test_a_user_outside_the_group_sees_nothing(stream: str, people: Callable[..., Person]) -> None:
    stop = shared_event()
    publisher = people(PUBLISHER, publish_until, stream, stop)
    wait_until((SHM / f"framebus.{stream}.sock").exists, "there is a publisher")
    with pytest.raises(PermissionDenied, match=f"run this process with group {GROUP}"):
        people(SUBSCRIBER, watch_until, stream, stop, group=GROUP + 1).result()
    stop.set()
    publisher.result()


def test_a_false_ring_is_not_a_stream(stream: str, people: Callable[..., Person]) -> None:
    people(NEIGHBOUR, sit_on, stream, "ring").result()

    def subscribe() -> str:
        try:
            Subscriber(stream, attach_timeout_s=0).close()
        except (ValueError, StreamNotFound, PermissionDenied) as error:
            return type(error).__name__
        return "attached"

    os.chmod(SHM / f"framebus.{stream}.ring", 0o644)
    assert people(SUBSCRIBER, subscribe).result() == "StaleRing"
    assert np.fromfile(SHM / f"framebus.{stream}.ring", np.uint8).size == 8000
    (SHM / f"framebus.{stream}.ring").unlink()
