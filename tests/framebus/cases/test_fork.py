"""What a forked child inherits is its parent's: a child can use none of it, and harms none of it."""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from framebus import Closed, Frame, FrameReleased, Publisher, ReceiveTimeout, Subscriber
from framebus.bus.options import Wake
from tests.framebus.cases.support import ALL_WAKES, EACH_BACKEND, SMALL, WAKES, descriptors, in_child, left_open, run
from tests.support import files_of, publish

FORK = multiprocessing.get_context("fork")


@pytest.mark.usefixtures("each_steps")
def test_a_child_cannot_read_its_parents_frame(stream: str) -> None:
    def use() -> None:
        reads: list[Callable[[], object]] = [
            lambda: frame.pixels,
            lambda: np.asarray(frame),
            lambda: np.from_dlpack(frame),
            lambda: other.metadata,
            lambda: frame.__buffer__(0),
        ]
        for read in reads:
            with pytest.raises(FrameReleased, match="parent process"):
                read()
        assert "of the parent process" in repr(frame)
        assert (frame.sequence, frame.metadata, frame.format.shape) == (1, {"x": 1}, (4, 6, 3))
        frame.release()
        with pytest.raises(FrameReleased, match="was released"):
            frame.pixels  # noqa: B018

    with Publisher(stream, SMALL, slots=4) as publisher, Subscriber(stream) as subscriber:
        with publisher.loan() as loan:
            loan.pixels[:] = 5
            loan.metadata = {"x": 1}
        frame = subscriber.receive(5)
        assert (frame.metadata, int(frame.pixels[0, 0, 0])) == ({"x": 1}, 5)
        publish(publisher)
        other = subscriber.receive(5)
        assert in_child(use) == 0
        for value in range(10):
            publish(publisher, value)
        assert (frame.pixels == 5).all()


@WAKES
@pytest.mark.usefixtures("each_steps")
def test_a_child_uses_closes_drops_and_collects_what_it_inherited(stream: str, wake: Wake) -> None:
    def use() -> None:
        for call in (lambda: subscriber.receive(0), publisher.loan, loan.publish, lambda: next(subscriber)):
            with pytest.raises(Closed):
                call()
        loan.abandon()
        subscriber.statistics, publisher.statistics  # noqa: B018
        subscriber.close()
        publisher.close()
        frame.release()
        gc.collect()

    with Publisher(stream, SMALL, max_loans=2) as publisher, Subscriber(stream, wake=wake) as subscriber:
        publish(publisher, 7)
        frame, loan = subscriber.receive(5), publisher.loan()
        loan.pixels[:] = 9
        files = files_of(stream)
        assert in_child(use) == 0
        assert files_of(stream) == files
        loan.publish()
        assert (subscriber.receive(5).pixels == 9).all()
        for value in range(10):
            publish(publisher, value)
            with subscriber.receive(5) as later:
                assert (later.pixels == value).all()
        assert (frame.pixels == 7).all()


@pytest.mark.usefixtures("each_steps")
def test_a_child_opens_its_own(stream: str) -> None:
    def use() -> None:
        for wake in ALL_WAKES:
            with Subscriber(stream, wake=wake, max_leases=1) as own:
                assert (own.receive(5).pixels == 7).all()
        with Publisher(f"{stream}-c", SMALL) as served, Subscriber(f"{stream}-c") as own:
            publish(served, 3)
            assert (own.receive(5).pixels == 3).all()

    with Publisher(stream, SMALL) as publisher, Subscriber(stream) as subscriber:
        publish(publisher, 7)
        assert in_child(use) == 0
        assert subscriber.receive(5).sequence == 1
        publish(publisher, 8)
        assert (subscriber.receive(5).pixels == 8).all()
    assert files_of(f"{stream}-c") == []


@WAKES
def test_a_child_that_outlives_the_parents_holds_nothing_of_them(stream: str, wake: Wake) -> None:
    reader, writer = os.pipe()
    publisher, subscriber = Publisher(stream, SMALL), Subscriber(stream, wake=wake)
    publish(publisher)
    frame = subscriber.receive(5)
    if not (pid := os.fork()):
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    os.close(reader)
    try:
        del frame
        subscriber.close()
        publisher.close()
        assert files_of(stream) == []
        with Publisher(stream, SMALL, slots=3) as successor, Subscriber(stream, max_leases=1, wake=wake) as other:
            publish(successor, 4)
            assert (other.receive(5).pixels == 4).all()
    finally:
        os.close(writer)
        assert os.waitpid(pid, 0)[1] == 0


def _answer(number: int) -> int:
    return number * number


def _inherit(frame: Frame) -> None:
    try:
        frame.pixels  # noqa: B018
    except FrameReleased:
        return
    raise AssertionError("the child read its parent's frame")


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
@pytest.mark.usefixtures("each_steps")
def test_multiprocessing_works_beside_a_subscriber(stream: str) -> None:
    with Publisher(stream, SMALL) as publisher, Subscriber(stream, mode="every") as subscriber:
        publish(publisher, 7)
        frame = subscriber.receive(5)
        before = descriptors()
        with FORK.Pool(2) as pool:
            results: Any = pool.map_async(_answer, range(20))
            for value in range(20):
                publish(publisher, value)
                with subscriber.receive(5) as received:
                    assert (received.pixels == value).all()
            assert results.get(20) == [number * number for number in range(20)]
            pool.close()
            pool.join()
        process = FORK.Process(target=_inherit, args=(frame,))
        process.start()
        process.join(20)
        assert process.exitcode == 0
        process.close()
        del pool, results
        assert not left_open(before)
        assert (frame.pixels == 7).all()


@EACH_BACKEND
def test_children_exit_in_every_way_and_the_parent_continues(stream: str, backend: str) -> None:
    code = f"""
publisher = Publisher({stream!r}, FrameFormat(4, 6), slots=40, max_loans=2)
subscribers = [Subscriber({stream!r}, wake=wake) for wake in ("zmq", "futex", "predict", "busy")]
loan, files = publisher.loan(), lambda: sorted(os.listdir("/dev/shm"))
def publish(value):
    with publisher.loan() as one:
        one.pixels[:] = value
publish(5)
held = [subscriber.receive(5) for subscriber in subscribers]
ways = [lambda: sys.exit(0), lambda: os._exit(0), lambda: os.kill(os.getpid(), signal.SIGKILL), lambda: 1 // 0]
mine = lambda: [name for name in files() if {stream!r} in name]
before = mine()
for number, way in enumerate(ways):
    pid = os.fork()
    if not pid:
        if number == 3:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        way()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status == [0, 0, -9, 1][number], status
    assert mine() == before
    publish(number)
    for subscriber in subscribers:
        with subscriber.receive(5) as frame:
            assert (frame.pixels == number).all()
assert all((frame.pixels == 5).all() for frame in held)
print("went on")
"""
    assert run(code, backend) == "went on\n"
    assert files_of(stream) == []


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_finalizer_may_fork(stream: str) -> None:
    class Forks:
        status = -1

        def __del__(self) -> None:
            Forks.status = in_child(lambda: None)

    with Publisher(stream, SMALL) as publisher, Subscriber(stream) as subscriber:
        for _ in range(3):
            publish(publisher)
            cycle: list[Any] = [Forks(), subscriber.receive(5), publisher.loan()]
            cycle.append(cycle)
            del cycle
            gc.collect()
            assert Forks.status == 0
        with pytest.raises(ReceiveTimeout):
            subscriber.receive(0)
        assert subscriber.statistics.leases == 0
