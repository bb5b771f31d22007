"""Objects that were never closed: in reference cycles, in threads that end, in a module at the interpreter's exit."""

from __future__ import annotations

import gc
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from framebus import Publisher, Subscriber
from framebus.bus.options import Wake
from tests.framebus.cases.support import EACH_BACKEND, SMALL, WAKES, descriptors, left_open, run
from tests.support import files_of, publish

NO_FORMAT: Any = None


class Cycle:
    """Refers to itself, like an application that its callbacks know, and to the given objects."""

    def __init__(self, *held: Any) -> None:
        self.me = self
        self.held = held


@pytest.fixture(autouse=True)
def _no_automatic_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def records(stream: str) -> list[str]:
    return [file for file in files_of(stream) if ".sub." in file]


@WAKES
@pytest.mark.usefixtures("each_steps")
def test_a_subscriber_in_a_cycle_is_collected(stream: str, wake: Wake) -> None:
    with Publisher(stream, SMALL) as publisher:
        publish(publisher)
        before = descriptors()
        subscriber = Subscriber(stream, wake=wake)
        Cycle(subscriber, subscriber.receive(5), subscriber.receive)
        if wake == "zmq":
            subscriber.fileno()
        del subscriber
        assert len(records(stream)) == 1
        assert not left_open(before)
        assert records(stream) == []


@pytest.mark.usefixtures("each_steps")
def test_a_publisher_in_a_cycle_is_collected(stream: str) -> None:
    before = descriptors()
    for use in (
        lambda publisher: None,
        lambda publisher: publisher.loan(),
        lambda publisher: publisher.loan().pixels[1:],
        publish,
    ):
        publisher = Publisher(stream, SMALL)
        Cycle(publisher, use(publisher), publisher.loan)
        del publisher
        assert not left_open(before)
        assert files_of(stream) == []


@pytest.mark.usefixtures("each_steps")
def test_both_sides_in_one_cycle_are_collected(stream: str) -> None:
    before = descriptors()
    publisher = Publisher(stream, SMALL, max_loans=2)
    publish(publisher)
    subscriber = Subscriber(stream)
    cycle = Cycle(publisher, publisher.loan(), subscriber, subscriber.receive(5).pixels[1:])
    cycle.held[1].metadata = {"x": cycle}
    del cycle, publisher, subscriber
    assert not left_open(before)
    assert files_of(stream) == []


@WAKES
@pytest.mark.usefixtures("each_steps")
def test_a_thread_that_ends_takes_its_subscriber_along(stream: str, wake: Wake) -> None:
    def use() -> None:
        local: Any = threading.local()
        local.subscriber = Subscriber(stream, wake=wake)
        local.frame = local.subscriber.receive(5)
        local.cycle = Cycle(Subscriber(stream, wake=wake), local)

    with Publisher(stream, SMALL) as publisher:
        publish(publisher)
        before = descriptors()
        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
        assert not left_open(before)
        assert records(stream) == []


@pytest.fixture
def quick_switches() -> Iterator[None]:
    """Let threads that wait for the interpreter's lock wait for 0.1 ms, and not for 5, which adds up to seconds."""
    before_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before_s)


@WAKES
@pytest.mark.usefixtures("each_steps", "quick_switches")
def test_another_thread_collects_while_one_receives(stream: str, wake: Wake) -> None:
    def collect() -> None:
        while not ended.is_set():
            gc.collect()

    ended = threading.Event()
    with Publisher(stream, SMALL) as publisher, Subscriber(stream, wake=wake, mode="every", max_leases=3) as subscriber:
        collector = threading.Thread(target=collect)
        collector.start()
        for value in range(20):
            publish(publisher, value)
            frame = subscriber.receive(5)
            assert (frame.pixels == value).all()
            Cycle(frame, frame.pixels[1:], publisher.loan())
        ended.set()
        collector.join()
        del frame
        gc.collect()
        assert subscriber.statistics.leases == 0
        assert publish(publisher) == 21


@pytest.mark.usefixtures("each_steps")
def test_callbacks_of_weak_references_may_use_the_bus(stream: str) -> None:
    seen: list[object] = []

    def use() -> None:
        publish(publisher, 5)
        with Subscriber(stream, max_leases=1) as other:
            seen.append(other.receive(5).sequence)

    with Publisher(stream, SMALL) as publisher:
        publish(publisher)
        subscriber = Subscriber(stream)
        pixels = subscriber.receive(5).pixels
        weakref.finalize(subscriber, use)
        weakref.finalize(pixels, use)
        Cycle(subscriber, pixels)
        del subscriber, pixels
        gc.collect()
        assert seen == [2, 3]
        assert records(stream) == []


@pytest.mark.usefixtures("each_steps")
@pytest.mark.parametrize(
    "attempt", [lambda name: Subscriber(name, attach_timeout_s=0), lambda name: Publisher(name, NO_FORMAT)]
)
def test_an_endpoint_that_did_not_open_is_collected_silently(stream: str, attempt: Callable[[str], object]) -> None:
    before = descriptors()
    for _ in range(3):
        try:
            attempt(stream)
        except (FileNotFoundError, ValueError) as error:
            Cycle(error)
    assert not left_open(before)
    assert files_of(stream) == []


@EACH_BACKEND
def test_an_interpreter_exits_with_all_of_it_in_use(stream: str, backend: str) -> None:
    code = f"""
import atexit
class App:
    def __init__(self):
        self.me = self
        self.publisher = Publisher({stream!r}, FrameFormat(4, 6), slots=40)
        self.publisher.publish(__import__("numpy").zeros((4, 6, 3), "uint8"))
        self.subscribers = [Subscriber({stream!r}, wake=wake) for wake in ("zmq", "futex", "predict", "busy")]
        self.frames = [subscriber.receive(5) for subscriber in self.subscribers]
        self.views = [frame.pixels[1:] for frame in self.frames]
        self.loan = self.publisher.loan()
app = App()
sys.modules["framebus"].kept = app
def receive(wake):
    try:
        for frame in Subscriber({stream!r}, wake=wake, max_leases=1):
            started.release()
            frame.pixels
    except Closed:
        pass
started = threading.Semaphore(0)
for wake in ("zmq", "futex", "predict", "busy"):
    threading.Thread(target=receive, args=(wake,), daemon=True).start()
    started.acquire()
atexit.register(app.frames.clear)
"""
    assert run(code, backend) == ""
    assert files_of(stream) == []


@pytest.mark.usefixtures("each_steps")
def test_loans_and_frames_in_garbage_go_though_another_thread_is_collecting(stream: str) -> None:
    class Slow:
        """A finalizer that lets another thread run in the middle of the collection."""

        def __del__(self) -> None:
            begun.set()
            time.sleep(0.005)

    with Publisher(stream, SMALL) as publisher, Subscriber(stream, max_leases=1) as subscriber:
        for value in range(3):
            begun = threading.Event()
            Cycle(Slow())
            collector = threading.Thread(target=gc.collect)
            collector.start()
            assert begun.wait(20)
            Cycle(publisher.loan())
            publish(publisher, value)
            Cycle(subscriber.receive(5))
            publish(publisher, value)
            collector.join()
            begun = threading.Event()
            Cycle(Slow())
            collector = threading.Thread(target=gc.collect)
            collector.start()
            assert begun.wait(20)
            with subscriber.receive(5) as frame:
                assert (frame.pixels == value).all()
            collector.join()
