"""What each part of a hand-over costs, in one process: ``make bench``."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from framebus import FrameFormat, Publisher, Subscriber

PANORAMA = FrameFormat(688, 4896)
FORMATS = {"0.1 MB": FrameFormat(192, 192), "1 MB": FrameFormat(592, 592), "10 MB": PANORAMA}


@pytest.fixture
def stream() -> str:
    return f"bench-{secrets.token_hex(4)}"


@pytest.fixture(params=FORMATS.values(), ids=FORMATS.keys())
def publisher(stream: str, request: pytest.FixtureRequest) -> Iterator[Publisher]:
    with Publisher(stream, request.param, slots=8) as publisher:
        yield publisher


def publish(publisher: Publisher) -> None:
    with publisher.loan():
        pass


@pytest.mark.benchmark(group="loan and publish")
def test_publish_without_subscriber(benchmark: BenchmarkFixture, publisher: Publisher) -> None:
    benchmark(publish, publisher)


@pytest.mark.benchmark(group="publish, lease and release")
@pytest.mark.parametrize("wake", ["zmq", "futex"])
def test_hand_over(benchmark: BenchmarkFixture, stream: str, publisher: Publisher, wake: str) -> None:
    def hand_over() -> None:
        publish(publisher)
        with subscriber.receive(1) as frame:
            frame.pixels  # noqa: B018

    with Subscriber(stream, wake=wake) as subscriber:  # type: ignore[arg-type]
        benchmark(hand_over)


@pytest.mark.benchmark(group="attach and first frame")
def test_attach(benchmark: BenchmarkFixture, stream: str, publisher: Publisher) -> None:
    def attach() -> None:
        with Subscriber(stream) as subscriber:
            subscriber.receive(1).release()

    publish(publisher)
    benchmark.pedantic(attach, rounds=30)


@pytest.mark.benchmark(group="floor")
def test_copy_of_a_panorama(benchmark: BenchmarkFixture) -> None:
    source, target = np.zeros(PANORAMA.shape, np.uint8), np.zeros(PANORAMA.shape, np.uint8)
    benchmark(np.copyto, target, source)
