"""Too little memory: one clear error, or frames that go on; never a SIGBUS, never a file that is half made.

Each test runs in a child process with a /dev/shm of its own, of a few MiB, in a mount namespace of its own; the last
ones under a memory limit of their own.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from framebus import FrameFormat, NoFreeSlot, NotEnoughSharedMemory, Publisher, Subscriber, remove_leftovers
from framebus.bus import served_stream
from framebus.inspect.leftovers import find_leftovers
from framebus.inspect.streams import inspect
from framebus.ring.file import ring_name
from framebus.ring.words import LOCK_READ, UNLOCK
from framebus.shm import segment as shm
from framebus.shm import space
from tests.people import Person
from tests.support import SHM, files_of, lacks

pytestmark = pytest.mark.root

MIB = 1 << 20
SHM_BYTES = 4 * MIB
SHM_FILES = 40
SLOTS = 6
SMALL = FrameFormat(40, 60)
LARGE = FrameFormat(880, 960)
CLONE_NEWNS = 0x00020000
MS_REC, MS_PRIVATE = 0x4000, 0x40000
CGROUPS = Path("/sys/fs/cgroup")
CGROUP_BYTES = 48 * MIB


def in_small_shm(function: Callable[..., Any], *arguments: Any) -> Any:
    """Run the function with a /dev/shm of ``SHM_BYTES`` and ``SHM_FILES`` files that no other process sees.

    Source: unshare(2), mount(2), tmpfs(5).
    """
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"size={SHM_BYTES},nr_inodes={SHM_FILES},mode=1777".encode()
    if (
        libc.unshare(CLONE_NEWNS)
        or libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None)
        or libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, options)
    ):
        raise OSError(ctypes.get_errno(), "no mount of its own")
    return function(*arguments)


@pytest.fixture
def alone() -> Iterator[Callable[..., Any]]:
    """Runs a function in a child process with a small /dev/shm; returns what it returns."""
    started: list[Person] = []

    def run(function: Callable[..., Any], *arguments: Any) -> Any:
        started.append(Person(0, in_small_shm, function, *arguments, group=0))
        return started[-1].result()

    try:
        run(os.getpid)
    except OSError as error:
        lacks(f"root cannot mount a tmpfs in a namespace here ({error}): run the tests with CAP_SYS_ADMIN")
    yield run
    for person in started:
        person.end()


def all_files() -> list[str]:
    return sorted(path.name for path in SHM.iterdir())


def fill_bytes() -> list[Path]:
    """Take all memory of /dev/shm."""
    filler = SHM / "filler"
    space = os.statvfs(SHM)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, space.f_bavail * space.f_frsize)
    assert os.statvfs(SHM).f_bavail == 0
    return [filler]


def fill_files() -> list[Path]:
    """Take all files that /dev/shm may have."""
    fillers = [SHM / f"filler-{index}" for index in range(os.statvfs(SHM).f_ffree)]
    for filler in fillers:
        filler.touch()
    with pytest.raises(OSError, match="No space left"):
        (SHM / "one-more").touch()
    return fillers


Fill = Callable[[], list[Path]]
either_full = pytest.mark.parametrize("fill", [fill_bytes, fill_files])


def look_away() -> None:
    """Let the kernel alone see that there is no room, as when another process takes it after the look."""
    space.require_space = lambda size, what: None


def refused(open_it: Callable[[], Any]) -> str:
    """What is said when there is no room; nothing is left of what was begun."""
    before = all_files()
    try:
        open_it().close()
    except NotEnoughSharedMemory as error:
        message = str(error)
    else:
        raise AssertionError("it was opened")
    assert all_files() == before
    return message


def publish(publisher: Publisher) -> None:
    with publisher.loan() as loan:
        loan.pixels[:] = (publisher.statistics.sequence + 1) % 251


def receive(subscriber: Subscriber) -> int:
    with subscriber.receive(5) as frame:
        assert (frame.pixels == frame.sequence % 251).all()
        return frame.sequence


def open_too_large(stream: str, looks: bool) -> str:
    if not looks:
        look_away()
    return refused(lambda: Publisher(stream, LARGE, slots=SLOTS))


@pytest.mark.parametrize("looks", [True, False])
def test_a_ring_that_is_too_large_is_one_sentence_and_no_file(
    stream: str, alone: Callable[..., Any], looks: bool
) -> None:
    message = alone(open_too_large, stream, looks)
    assert message.startswith("/dev/shm has 4 MiB free, ")
    assert message.endswith(" needs 15 MiB: set shm_size: 32m")


def open_too_large_in_pod(stream: str) -> str:
    os.environ["KUBERNETES_SERVICE_HOST"] = "10.0.0.1"
    return refused(lambda: Publisher(stream, LARGE, slots=SLOTS))


def test_in_a_pod_the_volume_to_mount_is_named(stream: str, alone: Callable[..., Any]) -> None:
    message = alone(open_too_large_in_pod, stream)
    assert message.endswith(" needs 15 MiB: mount on it an emptyDir with medium: Memory and sizeLimit: 32Mi")


def go_on_when_full(stream: str, fill: Fill, looks: bool) -> tuple[str, str]:
    with Publisher(stream, SMALL, slots=SLOTS) as publisher, Subscriber(stream, mode="every") as subscriber:
        publish(publisher)
        assert receive(subscriber) == 1
        fillers = fill()
        if not looks:
            look_away()
        for sequence in range(2, 302):
            publish(publisher)
            assert receive(subscriber) == sequence
        messages = refused(lambda: Publisher(f"{stream}-b", SMALL)), refused(lambda: Subscriber(stream))
        assert inspect(stream).seats_taken == 2, "a rejected subscriber holds no seat"
        publish(publisher)
        assert receive(subscriber) == 302
        for filler in fillers:
            filler.unlink()
        with Publisher(f"{stream}-b", SMALL), Subscriber(stream) as late:
            assert receive(late) == 302
        assert publisher.statistics.dropped == 0
    assert all_files() == []
    return messages


@either_full
@pytest.mark.parametrize("looks", [True, False])
def test_a_full_dev_shm_does_not_affect_open_streams(
    stream: str, alone: Callable[..., Any], fill: Fill, looks: bool
) -> None:
    what = "0 MiB free" if fill is fill_bytes else "no room for one more file"
    for message in alone(go_on_when_full, stream, fill, looks):
        assert what in message
        assert "\n" not in message


def bind_when_full(stream: str) -> str:
    fillers = fill_files()
    for filler in fillers[:2]:  # the lock and the ring find room, the socket does not
        filler.unlink()
    return refused(lambda: Publisher(stream, SMALL))


def test_a_socket_without_room_is_one_sentence_and_no_file(stream: str, alone: Callable[..., Any]) -> None:
    assert "no room for one more file" in alone(bind_when_full, stream)


def replace_when_full(stream: str, fill: Fill) -> None:
    served_stream.REPLACE_AFTER_S = served_stream.REPLACE_EVERY_S = 0.0  # type: ignore[misc]
    with Publisher(stream, SMALL, slots=SLOTS) as publisher, Subscriber(stream) as subscriber:
        publish(publisher)
        assert receive(subscriber) == 1
        pins = shm.attach(ring_name(stream))
        for slot in range(SLOTS):
            assert pins.try_lock(LOCK_READ[slot])
        fillers, files = fill(), all_files()
        for tries in range(1, 50):
            with pytest.raises(NoFreeSlot):
                publish(publisher)
            assert (publisher.statistics.dropped, publisher.statistics.replaced) == (tries, 0)
            assert all_files() == files
        for slot in range(SLOTS):
            pins.unlock(UNLOCK[slot])
        publish(publisher)
        assert receive(subscriber) == 2, "slots that were let go are used as before"
        for slot in range(SLOTS):
            assert pins.try_lock(LOCK_READ[slot])
        for filler in fillers:
            filler.unlink()
        with pytest.raises(NoFreeSlot):
            publish(publisher)
        publish(publisher)
        assert (publisher.statistics.dropped, publisher.statistics.replaced) == (50, 1)
        assert receive(subscriber) == 3, "with room there is a new ring, and the subscriber finds it"
    assert all_files() == []


@either_full
def test_a_pinned_ring_that_cannot_be_replaced_drops_frames_and_continues(
    stream: str, alone: Callable[..., Any], fill: Fill
) -> None:
    alone(replace_when_full, stream, fill)


@pytest.fixture
def cgroup(stream: str) -> Iterator[Path]:
    """A control group with a limit of ``CGROUP_BYTES``, of version 1 or 2; processes in it at the end are killed."""
    mine = dict(line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
    places = [
        (CGROUPS / "memory" / mine.get("memory", "/").lstrip("/"), "memory.limit_in_bytes"),
        (CGROUPS / "memory", "memory.limit_in_bytes"),
        (CGROUPS, "memory.max"),
    ]
    faults = []
    for parent, limit in places:
        group = parent / stream
        try:
            group.mkdir()
        except OSError as error:
            faults.append(str(error))
            continue
        try:
            (group / limit).write_text(str(CGROUP_BYTES))
            break
        except OSError as error:
            faults.append(str(error))
            group.rmdir()
    else:
        lacks(f"root cannot make a control group with a memory limit here ({'; '.join(faults)}): see cgroups(7)")
    yield group
    group.rmdir()


def test_a_kernel_that_refuses_for_the_limit_names_the_limit(stream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(
        NotEnoughSharedMemory, match=r"^the memory limit leaves no 1 MiB for this ring: raise mem_limit$"
    ):
        Publisher(stream, SMALL, slots=SLOTS)
    assert files_of(stream) == []
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    with pytest.raises(NotEnoughSharedMemory, match=r": raise limits\.memory of this container$"):
        Publisher(stream, SMALL, slots=SLOTS)


def create_beyond_limit(stream: str, group: Path) -> None:
    (group / "cgroup.procs").write_text(str(os.getpid()))
    Publisher(stream, FrameFormat(880, 3840), slots=SLOTS)


def test_a_memory_limit_below_the_ring_leaves_nothing_that_the_next_publisher_minds(stream: str, cgroup: Path) -> None:
    """The kernel ends the process in the middle of the allocation, or refuses it: by its own choice."""
    person = Person(0, create_beyond_limit, stream, cgroup, group=0)
    try:
        person.result()
    except NotEnoughSharedMemory:
        assert files_of(stream) == []
    except AssertionError:
        assert person.killed_by == signal.SIGKILL
        assert [path.partition(f"{stream}.")[2][:5] for path in files_of(stream)] == ["lock", "ring."]
    else:
        raise AssertionError("the limit was none")
    assert {leftover.path.name for leftover in find_leftovers(stream)} == set(files_of(stream))
    with Publisher(stream, SMALL, slots=SLOTS) as publisher, Subscriber(stream) as subscriber:
        publish(publisher)
        assert receive(subscriber) == 1
        assert [path.partition(f"{stream}.")[2][:4] for path in files_of(stream)] == ["lock", "ring", "sock", "sub."]
    assert remove_leftovers(stream) == []
