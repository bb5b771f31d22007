"""Out of descriptors, or of memory: one error that says what to do, and nothing is left behind."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from framebus import (
    FrameFormat,
    NotEnoughSharedMemory,
    Publisher,
    ReceiveTimeout,
    ResourceExhausted,
    Subscriber,
    companion_paths,
    remove_leftovers,
    streams,
)
from framebus.bus.options import Wake
from framebus.shm import space
from tests.framebus.cases.support import SMALL, WAKES, descriptors, in_child, left_open
from tests.support import files_of, publish


@contextlib.contextmanager
def descriptors_left(count: int) -> Iterator[list[int]]:
    """This process has so many descriptors left; those that take the others are in the list."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    fillers: list[int] = []
    try:
        with contextlib.suppress(OSError):
            while True:
                fillers.append(os.dup(0))
        for _ in range(count):
            os.close(fillers.pop())
        yield fillers
    finally:
        for filler in fillers:
            os.close(filler)


def exhausts_at_every_count(stream: str, open_it: Callable[[], Any], needs: int) -> None:
    """With fewer descriptors than it needs it is refused, with as many it opens, and neither leaves anything."""
    files, before = files_of(stream), descriptors()
    for left in range(needs + 1):
        with descriptors_left(left):
            try:
                opened = open_it()
            except ResourceExhausted as error:
                told = error.errno == errno.EMFILE and "RLIMIT_NOFILE" in str(error)
                assert told and left < needs, "it needs more"  # noqa: PT018
            else:
                assert left == needs, "it needs less"
                opened.close()
                del opened
        assert not left_open(before), left
        assert files_of(stream) == files, left


@pytest.mark.usefixtures("each_steps")
def test_a_publisher_with_too_few_descriptors_raises_and_leaks_none(stream: str) -> None:
    # The lock, the ring and its mapping, then the socket and the poll set in the mapping's place.
    assert in_child(lambda: exhausts_at_every_count(stream, lambda: Publisher(stream, SMALL), 4)) == 0


@WAKES
def test_a_subscriber_with_too_few_descriptors_raises_and_leaks_none(stream: str, wake: Wake) -> None:
    def use() -> None:
        exhausts_at_every_count(stream, lambda: Subscriber(stream, wake=wake), 3)

    with Publisher(stream, SMALL) as publisher:
        assert in_child(use) == 0
        with Subscriber(stream, wake=wake) as subscriber:
            publish(publisher)
            assert subscriber.receive(5).sequence == 1


@pytest.mark.parametrize("call", [streams, lambda: remove_leftovers("test"), lambda: companion_paths("test", "*")])
def test_a_look_into_dev_shm_with_too_few_descriptors(stream: str, call: Callable[[], object]) -> None:
    def use() -> None:
        with Publisher(stream, SMALL):
            before = descriptors()
            for left in range(5):
                with descriptors_left(left), contextlib.suppress(ResourceExhausted):
                    call()
                assert not left_open(before)

    assert in_child(use) == 0


def test_a_subscriber_without_a_descriptor_for_fileno_and_for_a_new_connection(stream: str) -> None:
    def use() -> None:
        with Publisher(stream, SMALL) as publisher, Subscriber(stream) as subscriber:
            publish(publisher)
            listener = subscriber._attachment._waiter._listener  # type: ignore[attr-defined]
            with descriptors_left(0) as fillers:
                with pytest.raises(ResourceExhausted, match="RLIMIT_NOFILE"):
                    subscriber.fileno()
                assert subscriber.receive(5).sequence == 1
                listener._disconnect()
                fillers.append(os.dup(0))
                for sequence in (2, 3):
                    publish(publisher)
                    assert subscriber.receive(5).sequence == sequence
            with pytest.raises(ReceiveTimeout):
                subscriber.receive(0.1)
            assert listener._socket is not None
            assert subscriber.fileno() >= 0

    assert in_child(use) == 0


def test_a_publisher_without_descriptors_for_connections_keeps_publishing(stream: str) -> None:
    def use() -> None:
        with Publisher(stream, SMALL) as publisher, Subscriber(stream) as subscriber, descriptors_left(0):
            for sequence in range(1, 6):
                publish(publisher)
                assert subscriber.receive(5).sequence == sequence

    assert in_child(use) == 0


def test_a_ring_that_cannot_be_opened_anew_is_met_with_the_reason(stream: str) -> None:
    def use() -> None:
        publisher = Publisher(stream, SMALL)
        subscriber = Subscriber(stream, wake="futex", gone_after_s=0.1)
        publisher.close()
        publisher = Publisher(stream, FrameFormat(20, 20))
        publish(publisher)
        with descriptors_left(0), pytest.raises(ResourceExhausted, match="RLIMIT_NOFILE"):
            subscriber.receive(5)
        assert subscriber.receive(5).pixels.shape == (20, 20, 3)
        subscriber.close()
        publisher.close()

    assert in_child(use) == 0


@pytest.mark.parametrize("number", [errno.ENFILE, errno.ENOMEM, errno.EMFILE])
def test_a_host_without_descriptors_is_reported(stream: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    open_file = os.open

    def refuse(path: Any, *arguments: Any, **named: Any) -> int:
        if stream in str(path):
            raise OSError(number, os.strerror(number))
        return open_file(path, *arguments, **named)

    with Publisher(stream, SMALL):
        files, before = files_of(stream), descriptors()
        monkeypatch.setattr(os, "open", refuse)
        for attempt in (lambda: Subscriber(stream), lambda: Publisher(f"{stream}-b", SMALL)):
            with pytest.raises(OSError, match=r"descriptors|memory") as error:
                attempt()
            assert isinstance(error.value, (ResourceExhausted, NotEnoughSharedMemory))
            assert error.value.errno == number
            del error
        monkeypatch.undo()
        assert (files_of(stream), left_open(before)) == (files, frozenset())


def test_a_too_small_address_space_is_reported(stream: str) -> None:
    large = FrameFormat(4096, 4096)

    def publish_it() -> None:
        before, files = descriptors(), files_of(stream)
        limit = space.MIB * 64 + int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        with pytest.raises((ResourceExhausted, NotEnoughSharedMemory), match="memory"):
            Publisher(f"{stream}-b", large, slots=3)
        with pytest.raises(ResourceExhausted, match="RLIMIT_AS"):
            Subscriber(stream)
        assert (left_open(before), files_of(stream), files_of(f"{stream}-b")) == (frozenset(), files, [])

    with Publisher(stream, large, slots=3):
        assert in_child(publish_it) == 0
