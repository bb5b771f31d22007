"""``close()`` at any moment: from a signal handler, from another thread, twice at the same time, and interrupted."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from framebus import Closed, Publisher, ReceiveTimeout, StreamExists, Subscriber
from framebus.bus.options import Wake
from framebus.ring.layout import LOCK_SLOTS
from framebus.shm import locks
from framebus.shm import segment as shm
from tests.framebus.cases.support import EACH_BACKEND, SMALL, WAKES, run
from tests.framebus.interruptions import Interrupted, each_point, in_a_thread, interrupt
from tests.support import PATIENCE_S, files_of, publish, wait_until

INTERRUPTED = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
"""An exception that a signal handler raises in ``__del__`` goes no further."""
PIXELS = np.zeros((4, 6, 3), np.uint8)


class Outcome(threading.Thread):
    """The outcome of a call in another thread."""

    def __init__(self, call: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self.result: object = None
        self._call = call
        self.start()

    def run(self) -> None:
        try:
            self.result = self._call()
        except BaseException as error:  # noqa: BLE001  the test asserts on it
            self.result = error

    def get(self) -> object:
        self.join(PATIENCE_S)
        assert not self.is_alive(), "it hangs"
        return self.result


@WAKES
@pytest.mark.usefixtures("each_steps")
def test_another_thread_closes_in_the_middle_of_a_receive(stream: str, wake: Wake) -> None:
    with Publisher(stream, SMALL) as publisher:
        for _ in range(3):
            publish(publisher)
            subscriber = Subscriber(stream, wake=wake)
            receiver = Outcome(lambda subscriber=subscriber: [frame.sequence for frame in subscriber])  # type: ignore[misc]
            wait_until(lambda subscriber=subscriber: subscriber.statistics.received, "a frame", interval_s=0.001)  # type: ignore[misc]
            subscriber.close()
            assert isinstance(receiver.get(), Closed)
            assert not [file for file in files_of(stream) if ".sub." in file]


@pytest.mark.usefixtures("each_steps")
def test_another_thread_closes_in_the_middle_of_receive_async(stream: str) -> None:
    async def consume() -> None:
        async for frame in subscriber:
            assert (frame.pixels == 1).all()

    with Publisher(stream, SMALL) as publisher, Subscriber(stream) as subscriber:
        publish(publisher)
        receiver = Outcome(lambda: asyncio.run(consume()))
        wait_until(lambda: subscriber.statistics.received, "a frame", interval_s=0.001)
        subscriber.close()
        assert isinstance(receiver.get(), Closed)


@pytest.mark.usefixtures("each_steps")
def test_the_frame_of_a_loop_stays_readable_when_another_thread_closes(stream: str) -> None:
    with Publisher(stream, SMALL) as publisher, Subscriber(stream) as subscriber:
        publish(publisher, 7)
        with pytest.raises(Closed):  # noqa: PT012
            for frame in subscriber:
                in_a_thread(subscriber.close)()
                for value in range(10):
                    publish(publisher, value)
                assert (frame.pixels == 7).all()


@WAKES
@pytest.mark.usefixtures("each_steps")
def test_a_signal_handler_closes_what_it_interrupts(stream: str, wake: Wake) -> None:
    publisher, subscriber = Publisher(stream, SMALL), Subscriber(stream, wake=wake)

    def close(*_: object) -> None:
        subscriber.close()
        publisher.close()

    before = signal.signal(signal.SIGUSR1, close)
    later = threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGUSR1))
    try:
        later.start()
        with pytest.raises(Closed):
            subscriber.receive(PATIENCE_S)
    finally:
        later.join()
        signal.signal(signal.SIGUSR1, before)
    assert files_of(stream) == []
    with pytest.raises(Closed):
        publisher.loan()


@pytest.mark.usefixtures("each_steps")
def test_two_threads_close_at_once(stream: str) -> None:
    for _ in range(30):
        publisher, subscriber = Publisher(stream, SMALL), Subscriber(stream)
        start = threading.Barrier(4)

        def close(opened: Publisher | Subscriber, start: threading.Barrier = start) -> None:
            start.wait()
            opened.close()

        closing = [
            Outcome(lambda opened=opened, close=close: close(opened))  # type: ignore[misc]
            for opened in (publisher, publisher, subscriber, subscriber)
        ]
        assert [one.get() for one in closing] == [None] * 4
        assert files_of(stream) == []


@pytest.mark.usefixtures("each_steps")
@pytest.mark.parametrize("keep_ring", [False, True])
def test_another_thread_closes_a_publisher_whose_loan_is_out(stream: str, keep_ring: bool) -> None:
    publisher = Publisher(stream, SMALL, keep_ring=keep_ring)
    publish(publisher)
    loan = publisher.loan()
    loan.pixels[:] = 9
    in_a_thread(publisher.close)()
    with pytest.raises(Closed):
        loan.publish()
    with pytest.raises(Closed):
        publisher.loan()
    assert files_of(stream) == ([f"framebus.{stream}.lock", f"framebus.{stream}.ring"] if keep_ring else [])
    with Publisher(stream, SMALL) as successor, Subscriber(stream) as subscriber:
        assert successor.statistics.adopted is keep_ring
        publisher.close()
        publish(successor, 3)
        assert (subscriber.receive(5).pixels == 3).all()
        publisher.close()
        assert len(files_of(stream)) == 4


@pytest.mark.usefixtures("each_steps")
def test_an_exception_on_its_way_is_not_replaced_by_what_close_raises(
    stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink = Path.unlink

    def break_shm(path: Path, missing_ok: bool = False) -> None:
        if stream in path.name and broken:
            raise OSError(errno.EIO, "broken")
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", break_shm)
    broken = False
    for error in (KeyboardInterrupt, ZeroDivisionError):
        publisher, subscriber = Publisher(stream, SMALL, keep_ring=True), Subscriber(stream)
        broken = True
        with pytest.raises(error), publisher, subscriber:
            raise error
        with pytest.raises(OSError, match="broken"):
            subscriber.close()
        broken = False
        subscriber.close()
        publisher.close()
    Publisher(stream, SMALL).close()
    assert files_of(stream) == []


def calls(publisher: Publisher, subscriber: Subscriber) -> dict[str, Callable[[], object]]:
    def receive_async() -> object:
        return asyncio.run(subscriber.receive_async(0.002))

    return {
        "first receive": lambda: subscriber.receive(0.002),
        "iterate": lambda: next(subscriber),
        "receive_async": receive_async,
        "fileno": subscriber.fileno,
        "loan": publisher.loan,
        "publish": lambda: publisher.publish(PIXELS, metadata={"x": 1}),
    }


@pytest.mark.usefixtures("each_steps")
@pytest.mark.parametrize("name", ["first receive", "iterate", "receive_async", "fileno", "loan", "publish"])
def test_another_thread_closes_at_any_point_of_a_call(stream: str, name: str) -> None:
    opened: list[Publisher | Subscriber] = []

    def close() -> None:
        for one in opened:
            one.close()

    for points in each_point(in_a_thread(close)):
        publisher, subscriber = Publisher(stream, SMALL), Subscriber(stream)
        opened[:] = subscriber, publisher
        publish(publisher)
        call = calls(publisher, subscriber)[name]
        try:
            with points:
                call()
        except (Closed, ReceiveTimeout):
            pass
        subscriber.close()
        publisher.close()
        for again in (call, calls(publisher, subscriber)["fileno"]):
            with pytest.raises(Closed):
                again()
        assert files_of(stream) == [], points.done


@INTERRUPTED
@pytest.mark.usefixtures("each_steps")
@pytest.mark.parametrize("what", ["publisher", "subscriber", "kept"])
def test_a_close_that_a_signal_handler_interrupts_is_finished_by_the_next(stream: str, what: str) -> None:
    for points in each_point(interrupt):
        publisher, subscriber = Publisher(stream, SMALL, keep_ring=what == "kept"), Subscriber(stream)
        publish(publisher)
        opened = subscriber if what == "subscriber" else publisher
        try:
            with points:
                opened.close()
        except Interrupted:
            opened.close()
        with pytest.raises(Closed):
            opened.receive(0) if isinstance(opened, Subscriber) else opened.loan()
        subscriber.close()
        publisher.close()
        assert files_of(stream) == ([f"framebus.{stream}.{kind}" for kind in ("lock", "ring") if what == "kept"])
    Publisher(stream, SMALL).close()


@INTERRUPTED
@pytest.mark.usefixtures("each_steps")
@pytest.mark.parametrize("what", ["publisher", "subscriber"])
def test_a_close_that_is_interrupted_is_finished_when_it_is_collected(stream: str, what: str) -> None:
    with Publisher(stream, SMALL) if what == "subscriber" else _nothing():
        for points in each_point(interrupt):
            opened: Any = Subscriber(stream) if what == "subscriber" else Publisher(stream, SMALL)
            try:
                with points:
                    opened.close()
            except Interrupted:
                pass
            del opened
            gc.collect()
            assert not [file for file in files_of(stream) if ".sub." in file or what == "publisher"], points.done


@INTERRUPTED
@pytest.mark.usefixtures("each_steps")
@pytest.mark.parametrize("what", ["publisher", "subscriber"])
def test_an_opening_that_is_interrupted_leaves_no_file_that_lives(stream: str, what: str) -> None:
    with Publisher(stream, SMALL) if what == "subscriber" else _nothing():
        before = files_of(stream)
        for points in each_point(interrupt):
            try:
                with points:
                    opened = Subscriber(stream) if what == "subscriber" else Publisher(stream, SMALL)
            except Interrupted:
                pass
            else:
                opened.close()
                del opened
            gc.collect()
            left = [file for file in files_of(stream) if file not in before and not file.endswith(".lock")]
            assert left == [], points.done
    Publisher(stream, SMALL).close()


class _nothing:  # noqa: N801  a context manager
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


@pytest.fixture
def pinned(stream: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Publisher]:
    """Return a publisher whose slots are all held, so that its next loan replaces the ring."""
    monkeypatch.setattr("framebus.bus.served_stream.REPLACE_AFTER_S", 0.0)
    publisher = Publisher(stream, SMALL, slots=3)
    publish(publisher)
    neighbour = shm.attach(f"framebus.{stream}.ring")
    for slot in range(3):
        assert neighbour.try_lock(locks.read_lock(LOCK_SLOTS + slot))
    yield publisher
    publisher.close()


@pytest.mark.usefixtures("each_steps")
def test_another_thread_closes_while_the_ring_is_replaced(
    stream: str, pinned: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = shm.create
    seen: list[object] = []

    def close_first(*arguments: Any) -> shm.Segment:
        in_a_thread(pinned.close)()
        try:
            Publisher(stream, SMALL)
        except StreamExists as error:
            seen.append(error)
        return create(*arguments)

    monkeypatch.setattr(shm, "create", close_first)
    with pytest.raises(Closed):
        pinned.loan(timeout_s=PATIENCE_S)
    assert seen, "the stream belongs to it until the replacement has ended"
    assert files_of(stream) == []


@EACH_BACKEND
def test_close_from_everywhere_at_random_neither_aborts_nor_hangs(stream: str, backend: str) -> None:
    code = f"""
import random
publisher, stop = Publisher({stream!r}, FrameFormat(4, 6), slots=40), threading.Event()
def feed():
    while not stop.is_set():
        with publisher.loan() as loan:
            loan.pixels[...] = 1
        time.sleep(0.0005)
feeder = threading.Thread(target=feed)
feeder.start()
seen = set()
def receive(subscriber, ready):
    try:
        for frame in subscriber:
            ready.set()
    except Closed:
        seen.add("Closed")
end, wakes = time.monotonic() + 0.4, ["zmq", "futex", "predict", "busy"]
while time.monotonic() < end:
    subscriber, ready = Subscriber({stream!r}, wake=random.choice(wakes)), threading.Event()
    receiver = threading.Thread(target=receive, args=(subscriber, ready))
    receiver.start()
    ready.wait()
    time.sleep(random.random() * 0.003)
    subscriber.close()
    receiver.join()
stop.set()
feeder.join()
publisher.close()
print(*seen)
"""
    assert run(code, backend) == "Closed\n"
    assert files_of(stream) == []
