"""Frames in garbage are not held; those that are held are named."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from framebus import Frame, Publisher, ReceiveTimeout, Subscriber, TooManyLeases
from framebus.bus.options import Wake
from tests.framebus.cases.support import SMALL, WAKES
from tests.framebus.interruptions import Interrupted, each_point, interrupt
from tests.support import publish

pytestmark = pytest.mark.usefixtures("each_steps")


@pytest.fixture(autouse=True)
def _no_automatic_collection() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


def by_traceback(frame: Frame) -> None:
    def work(held: Frame) -> None:
        try:
            raise ValueError  # noqa: TRY301  what is raised here is what is caught
        except ValueError as error:
            kept = error  # noqa: F841  a variable that holds its own traceback

    work(frame)


def by_closure(frame: Frame) -> None:
    corner = frame.pixels[:2, :2]

    def callback() -> object:
        return corner, callback

    callback()


def by_memoryview(frame: Frame) -> None:
    cycle: list[Any] = [frame.pixels.data[1:]]
    cycle.append(cycle)


def by_generator(frame: Frame) -> None:
    def wait() -> Iterator[object]:
        held = frame, generator
        yield held

    generator = wait()
    next(generator)


def by_dlpack(frame: Frame) -> None:
    cycle: list[Any] = [np.from_dlpack(frame)]
    cycle.append(cycle)


@pytest.mark.parametrize("forget", [by_traceback, by_closure, by_memoryview, by_generator, by_dlpack])
def test_frames_in_garbage_are_not_held(stream: str, forget: Callable[[Frame], None]) -> None:
    with Publisher(stream, SMALL) as publisher, Subscriber(stream) as subscriber:
        for value in range(12):
            publish(publisher, value)
            forget(subscriber.receive(5))
        publish(publisher)
        assert subscriber.receive(5).sequence == 13
        assert publisher.statistics.dropped == 0


def test_the_last_traceback_of_an_interactive_session_holds_its_frames(stream: str) -> None:
    def work(kept: Frame) -> None:
        raise ValueError(kept.sequence)

    with Publisher(stream, SMALL) as publisher, Subscriber(stream) as subscriber:
        for _ in range(3):
            publish(publisher)
            try:
                work(subscriber.receive(5))
            except ValueError as error:
                sys.last_traceback = error.__traceback__  # as the interactive interpreter and IPython do
        publish(publisher)
        kept = subscriber.receive(5)
        with pytest.raises(TooManyLeases, match=r"with the sequences 3, 4: .* a traceback .*max_leases=3"):
            subscriber.receive(0)
        del sys.last_traceback
        publish(publisher)
        assert (subscriber.receive(5).sequence, kept.sequence) == (5, 4)


@pytest.mark.parametrize(
    "hold",
    [
        lambda frame: frame,
        lambda frame: frame.pixels,
        lambda frame: frame.pixels[0],
        lambda frame: frame.pixels.data,
        np.asarray,
        np.from_dlpack,
        lambda frame: lambda: frame.pixels[0],
        lambda frame: iter(frame.pixels),
    ],
)
def test_the_error_names_the_frames_that_are_held(stream: str, hold: Callable[[Frame], object]) -> None:
    with Publisher(stream, SMALL) as publisher, Subscriber(stream, max_leases=1) as subscriber:
        publish(publisher, 7)
        held = hold(subscriber.receive(5))
        for value in range(20):
            publish(publisher, value)
        with pytest.raises(TooManyLeases, match="with the sequences 1: "):
            subscriber.receive(0)
        del held
        assert subscriber.receive(5).sequence == 21


@WAKES
def test_an_exception_at_any_point_of_a_receive_holds_nothing(
    stream: str, wake: Wake, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An exception in __del__ goes no further, and pytest's hook would keep what it is about to end.
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)
    for points in each_point(interrupt):
        with Publisher(stream, SMALL, slots=4) as publisher, Subscriber(stream, wake=wake) as subscriber:
            publish(publisher, 5)
            try:
                with points:
                    subscriber.receive(5).pixels  # noqa: B018  which maps them
                    subscriber.receive(0.001)
            except (Interrupted, ReceiveTimeout):
                pass
            with contextlib.suppress(ReceiveTimeout):  # the frame, if the exception came before it
                subscriber.receive(0).release()
            for value in range(8):
                publish(publisher, value)
                with subscriber.receive(5) as frame:
                    assert (frame.pixels == value).all(), points.done
            assert subscriber.statistics.leases == 0
            assert publisher.statistics.dropped == 0


def test_a_consumer_of_a_frame_cannot_write_it(stream: str) -> None:
    with Publisher(stream, SMALL) as publisher, Subscriber(stream) as subscriber:
        publish(publisher, 7)
        frame = subscriber.receive(5)
        views: list[Any] = [frame.pixels, np.asarray(frame), np.from_dlpack(frame), frame.pixels.data]
        for view in views:
            with pytest.raises((ValueError, TypeError), match="read-only"):
                view[0] = 1
        for consumer in (frame.__dlpack__, frame.pixels.__dlpack__):
            with pytest.raises(BufferError):
                consumer()  # an old consumer cannot be told that the pixels are read-only
        copy = np.from_dlpack(frame, copy=True)
        copy[:] = 1
        assert (frame.pixels == 7).all()


def test_a_frame_that_was_waited_for_in_an_event_loop_is_held_by_its_receiver_alone(stream: str) -> None:
    async def wait() -> int:
        task = asyncio.create_task(subscriber.receive_async(5))
        await asyncio.sleep(0.12)  # more than a slice of the wait
        publish(publisher)
        (await task).release()
        return subscriber.statistics.leases

    with Publisher(stream, SMALL) as publisher, Subscriber(stream) as subscriber:
        assert asyncio.run(wait()) == 0
