"""Each way to wait: every frame wakes the subscribers, and a subscriber without a frame sleeps.

The tick is disabled where it would hide a lost wake-up: a subscriber that sleeps until the time-out fails the test.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from framebus import FrameFormat, InvalidMetadata, Publisher, ReceiveTimeout, Subscriber
from framebus.bus import subscriber as subscriber_module
from framebus.bus.options import Mode, Wake
from framebus.bus.waiting import FutexWaiter, PredictiveWaiter, SocketWaiter
from framebus.inspect.streams import inspect
from framebus.ring.layout import MAX_METADATA_BYTES
from tests.framebus.listeners import listens_to
from tests.support import PATIENCE_S, Program, publish, wait_until

SMALL = FrameFormat(4, 6)
FOR_EVER_S = 1000.0
WAIT_S = 0.15
ASLEEP_AFTER_S = 0.02
"""Enough to look and to go to sleep; on a machine where it is not, the test finds less."""
WAKES = pytest.mark.parametrize("wake", ["zmq", "futex", "predict", "busy"])
SLEEPERS = pytest.mark.parametrize("wake", ["zmq", "futex", "predict"])
UNTOLD = ("before the tail", "before store 6 of the publication", "published, before the wake")
"""Points of a publication between ``seq[i]`` and the wake."""
Start = Callable[..., Program]


def cpu_of_a_wait(subscriber: Subscriber) -> float:
    """Return the seconds of CPU that this thread uses while it waits ``WAIT_S`` without a frame."""
    before_ns = time.thread_time_ns()
    with pytest.raises(ReceiveTimeout):
        subscriber.receive(WAIT_S)
    return (time.thread_time_ns() - before_ns) / 1e9


class Waiter:
    """A subscriber that waits in its own thread, which is the only one that uses it."""

    def __init__(self, subscriber: Subscriber) -> None:
        self.subscriber = subscriber
        self._pool = ThreadPoolExecutor(1)

    def receive(self) -> Callable[[], int]:
        """Begin to wait; return a function that waits for the frame and returns its sequence."""

        def take() -> int:
            with self.subscriber.receive(PATIENCE_S) as frame:
                assert (frame.pixels == frame.pixels[0, 0, 0]).all()
                return frame.sequence

        return self._pool.submit(take).result

    def cpu_of_a_wait(self) -> float:
        return self._pool.submit(cpu_of_a_wait, self.subscriber).result()

    def close(self) -> None:
        self._pool.submit(self.subscriber.close).result()
        self._pool.shutdown()


def end_the_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disable the tick. A subscriber that sleeps until the time-out was not woken, and raises."""

    def woken(wait: Callable[..., Any]) -> Callable[..., Any]:
        def checked(*arguments: Any) -> Any:
            timeout_s, begun_s = arguments[-1], time.monotonic()
            result = wait(*arguments)
            if timeout_s > PATIENCE_S / 2 and time.monotonic() - begun_s >= timeout_s:
                raise RuntimeError("it was not woken")
            return result

        return checked

    monkeypatch.setattr(subscriber_module, "TICK_S", FOR_EVER_S)
    for kind in (SocketWaiter, FutexWaiter, PredictiveWaiter):
        monkeypatch.setattr(kind, "wait", woken(kind.wait))


@pytest.fixture
def no_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    end_the_tick(monkeypatch)


@pytest.fixture
def waiters() -> Iterator[list[Waiter]]:
    started: list[Waiter] = []
    yield started
    for waiter in started:
        waiter.close()


def open_waiters(stream: str, publisher: Publisher, waiters: list[Waiter], wake: Wake, modes: list[Mode]) -> None:
    """Subscribe in each mode; all have received a frame, and the publisher knows the listeners."""
    waiters += [Waiter(Subscriber(stream, mode=mode, wake=wake, max_leases=1)) for mode in modes]
    first = [waiter.receive() for waiter in waiters]
    if wake == "zmq":
        wait_until(lambda: listens_to(publisher) == len(modes), "the publisher hears all of them")
    assert publish(publisher) == 1
    assert [answer() for answer in first] == [1] * len(waiters)


@WAKES
@pytest.mark.usefixtures("each_steps", "no_tick")
def test_a_frame_wakes_all_waiting_subscribers(stream: str, wake: Wake, waiters: list[Waiter]) -> None:
    with Publisher(stream, SMALL) as publisher:
        open_waiters(stream, publisher, waiters, wake, ["newest", "every"])
        for sequence in (2, 3, 4):
            answers = [waiter.receive() for waiter in waiters]
            time.sleep(ASLEEP_AFTER_S)
            assert publish(publisher) == sequence
            assert [answer() for answer in answers] == [sequence] * len(waiters)


@WAKES
@pytest.mark.usefixtures("each_steps", "no_tick")
def test_no_subscriber_receives_an_abandoned_frame(stream: str, wake: Wake, waiters: list[Waiter]) -> None:
    with Publisher(stream, SMALL) as publisher:
        open_waiters(stream, publisher, waiters, wake, ["newest", "every"])
        answers = [waiter.receive() for waiter in waiters]
        for _ in range(3):
            loan = publisher.loan()
            loan.pixels[:] = 255
            loan.metadata = {"x": "y" * MAX_METADATA_BYTES}
            with pytest.raises(InvalidMetadata, match="metadata"):
                loan.publish()
            time.sleep(ASLEEP_AFTER_S)
        assert publish(publisher) == 2
        assert [answer() for answer in answers] == [2] * len(waiters)
        assert publisher.statistics.abandoned == 3
        for waiter in waiters:
            statistics = waiter.subscriber.statistics
            assert (statistics.skipped, statistics.rejected, statistics.leases) == (0, 0, 0)


@SLEEPERS
@pytest.mark.usefixtures("each_steps")
def test_a_subscriber_without_a_frame_sleeps(stream: str, wake: Wake) -> None:
    with Publisher(stream, SMALL) as publisher, Subscriber(stream, wake=wake) as subscriber:
        publish(publisher)
        subscriber.receive(5).release()
        assert cpu_of_a_wait(subscriber) < WAIT_S / 2


# At which point the publisher died matters to the next one, and not to the way to wait.
@pytest.mark.parametrize(
    ("wake", "point"),
    [*(("futex", point) for point in UNTOLD), *((wake, UNTOLD[-1]) for wake in ("zmq", "predict", "busy"))],
)
def test_what_a_dead_publisher_did_not_tell_the_next_one_tells(
    stream: str, wake: Wake, point: str, start_program: Start, waiters: list[Waiter], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = start_program("publish", stream, "4", "6", "8", point)
    assert program.read() == "open"
    waiter = Waiter(Subscriber(stream, wake=wake, gone_after_s=None))
    waiters.append(waiter)
    program.send("publish 1")
    assert program.read() == "1"
    assert waiter.receive()() == 1
    if wake != "zmq":  # this one must connect to the next publisher first; until then, the tick checks the ring
        end_the_tick(monkeypatch)
    answer = waiter.receive()
    time.sleep(ASLEEP_AFTER_S)
    program.send("die")
    assert program.process.wait(PATIENCE_S) == -9
    with Publisher(stream, SMALL, slots=8) as publisher:
        assert publisher.statistics.adopted
        assert answer() == 2
        assert publish(publisher) == 3
        assert waiter.receive()() == 3


@pytest.mark.parametrize("mode", ["newest", "every"])
def test_a_steady_pace_is_followed_and_its_end_is_slept_through(stream: str, mode: Mode) -> None:
    period_s, count = 0.01, 25
    with (
        Publisher(stream, SMALL, slots=count + 4) as publisher,
        Subscriber(stream, wake="predict", mode=mode) as subscriber,
    ):

        def publish_steadily() -> None:
            due_s = time.monotonic()
            for number in range(count):
                due_s += period_s
                time.sleep(max(due_s - time.monotonic(), 0))
                publish(publisher, number)
                if not number:
                    first.wait(PATIENCE_S)

        first = threading.Event()
        thread = threading.Thread(target=publish_steadily)
        thread.start()
        last = subscriber.receive(PATIENCE_S).sequence
        first.set()
        while last < count:
            with subscriber.receive(PATIENCE_S) as frame:
                assert frame.sequence == last + 1 + frame.skipped
                assert (frame.pixels == frame.sequence - 1).all()
                last = frame.sequence
        thread.join()
        if mode == "every":
            assert subscriber.statistics.skipped == 0
        assert cpu_of_a_wait(subscriber) < WAIT_S / 2


@WAKES
def test_the_directory_tells_the_way_to_wait(stream: str, wake: Wake) -> None:
    with Publisher(stream, SMALL), Subscriber(stream, name="detector", wake=wake):
        (seen,) = inspect(stream).subscribers
        assert (seen.record.name, seen.record.wake) == ("detector", wake)
