"""Measures each part of a hand-over, in one process with warm caches: ``make bench``."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from framebus import FrameFormat, Loan, Publisher, Subscriber
from framebus.bus.options import Wake
from framebus.notify.listener import Listener

PANORAMA = FrameFormat(880, 3840)
FORMATS = {"0.1 MB": FrameFormat(176, 192), "10 MB": PANORAMA, "50 MB": FrameFormat(2880, 5760)}
ROUNDS = 2000


@pytest.fixture
def stream() -> str:
    return f"bench-{secrets.token_hex(4)}"


@pytest.fixture(name="publisher", params=list(FORMATS.values()), ids=list(FORMATS))
def _publisher(stream: str, request: pytest.FixtureRequest) -> Iterator[Publisher]:
    with Publisher(stream, request.param, slots=4) as publisher:
        yield publisher


@pytest.fixture(name="subscriber")
def _subscriber(stream: str, publisher: Publisher) -> Iterator[Subscriber]:
    del publisher  # requested because it opens the stream
    with Subscriber(stream, wake="futex", max_leases=1) as subscriber:
        yield subscriber


def time_call(
    benchmark: BenchmarkFixture, call: Callable[..., object], before: Callable[[], Any], after: Callable[[], object]
) -> None:
    """Measure a call, with a preparation before it and a clean-up after it that are not measured."""
    benchmark.pedantic(call, setup=before, teardown=lambda *_: after(), rounds=ROUNDS)  # type: ignore[no-untyped-call]


@pytest.mark.benchmark(group="claim: loan()")
def test_claim(benchmark: BenchmarkFixture, publisher: Publisher) -> None:
    loans: list[Loan] = []
    time_call(benchmark, lambda: loans.append(publisher.loan()), lambda: None, lambda: loans.pop().abandon())


@pytest.mark.benchmark(group="publish: publish()")
def test_publish(benchmark: BenchmarkFixture, publisher: Publisher) -> None:
    time_call(benchmark, lambda loan: loan.publish(), lambda: ((publisher.loan(),), {}), lambda: None)


@pytest.mark.benchmark(group="lease: receive(), pixels")
def test_lease(benchmark: BenchmarkFixture, publisher: Publisher, subscriber: Subscriber) -> None:
    frames: list[Any] = []

    def lease() -> None:
        frame = subscriber.receive(0)
        frames.append((frame, frame.pixels))

    time_call(benchmark, lease, lambda: publisher.loan().publish() and None, frames.clear)


@pytest.mark.benchmark(group="release: release()")
def test_release(benchmark: BenchmarkFixture, publisher: Publisher, subscriber: Subscriber) -> None:
    def before() -> Any:
        publisher.loan().publish()
        return (subscriber.receive(0),), {}

    time_call(benchmark, lambda frame: frame.release(), before, lambda: None)


@pytest.mark.benchmark(group="notify: publish()")
@pytest.mark.parametrize("listens", [False, True], ids=["without a listener", "with one listener"])
def test_notify(benchmark: BenchmarkFixture, stream: str, publisher: Publisher, listens: bool) -> None:
    listener = Listener(stream) if listens else None

    def before() -> Any:
        if listener is not None:
            listener.drain()
        return (publisher.loan(),), {}

    try:
        # The publisher learns of the listener at a publication, so publish until it has.
        while listener is not None and not publisher._served.server.listening:
            listener.drain()
            publisher.loan().publish()
        time_call(benchmark, lambda loan: loan.publish(), before, lambda: None)
    finally:
        if listener is not None:
            listener.close()


@pytest.mark.benchmark(group="attach: Subscriber(), first frame")
def test_attach(benchmark: BenchmarkFixture, stream: str, publisher: Publisher) -> None:
    def attach() -> None:
        with Subscriber(stream) as subscriber:
            subscriber.receive(1).release()

    publisher.loan().publish()
    benchmark.pedantic(attach, rounds=20)  # type: ignore[no-untyped-call]


@pytest.mark.benchmark(group="all: loan, publish, lease, release")
@pytest.mark.parametrize("wake", ["zmq", "futex"])
def test_hand_over(benchmark: BenchmarkFixture, stream: str, publisher: Publisher, wake: Wake) -> None:
    def hand_over() -> None:
        publisher.loan().publish()
        with subscriber.receive(1) as frame:
            frame.pixels  # noqa: B018  creating the array is measured too

    with Subscriber(stream, wake=wake, max_leases=1) as subscriber:
        benchmark(hand_over)


@pytest.mark.benchmark(group="floor: a copy of 10 MB")
def test_copy_of_a_panorama(benchmark: BenchmarkFixture) -> None:
    source, target = np.zeros(PANORAMA.shape, np.uint8), np.zeros(PANORAMA.shape, np.uint8)
    benchmark(np.copyto, target, source)
