"""Following a stream: frames arrive again after every end of its publisher, and a stop ends it in every state."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from functools import partial
from typing import TypeVar

import numpy as np
import pytest
from structlog.testing import capture_logs

from framebus import Frame, FrameFormat, LayoutMismatch, Publisher, Subscriber
from services.common.follow import Attached, Quiet, Waiting, follow
from tests.support import SHM, Program, files_of, publish

SMALL = FrameFormat(height=4, width=6, channels=3)
LARGE = FrameFormat(height=8, width=10, channels=3)
PATIENCE_S = 30.0
"""A loaded machine is slow; nothing here waits so long unless it fails."""

Event = Frame | Attached | Waiting | Quiet
Events = Generator[Event]
E = TypeVar("E", Attached, Waiting, Quiet, Frame)


@pytest.fixture
def stop() -> threading.Event:
    return threading.Event()


@pytest.fixture
def events(stream: str, stop: threading.Event) -> Iterator[Events]:
    with closing(following(stream, stop)) as found:
        yield found


def following(
    stream: str,
    stop: threading.Event,
    *,
    retry_s: float = 0.01,
    tolerate: tuple[type[LayoutMismatch], ...] = (),
    max_leases: int = 2,
) -> Events:
    subscribe = partial(Subscriber, stream, wake="futex", max_leases=max_leases, attach_timeout_s=0, gone_after_s=0.2)
    return follow(stream, subscribe, stop, slice_s=0.05, retry_s=retry_s, tolerate=tolerate)


def next_of(kind: type[E], events: Events) -> E:
    """Return the next event, which must be of this kind. Quiet slices are skipped."""
    deadline_s = time.monotonic() + PATIENCE_S
    while isinstance(event := next(events), Quiet) and kind is not Quiet:
        assert time.monotonic() < deadline_s, f"in vain waited for {kind.__name__}"
    assert isinstance(event, kind), event
    return event


def value_of(frame: Frame) -> int:
    """Return the value of all elements of the frame, and release it."""
    with frame:
        assert np.ptp(frame.pixels) == 0
        return int(frame.pixels.flat[0])


def test_a_stream_that_is_absent_appears(stream: str, events: Events) -> None:
    with capture_logs() as log:
        assert next_of(Waiting, events).reason == f"stream {stream} has not started"
        starting = threading.Timer(0.1, lambda: started.append(Publisher(stream, SMALL)))
        started: list[Publisher] = []
        starting.start()
        next_of(Attached, events)
        starting.join()
        with started[0] as publisher:
            next_of(Quiet, events)
            publish(publisher, 7)
            assert value_of(next_of(Frame, events)) == 7
    assert [entry["event"] for entry in log] == ["waiting for the stream", "attached"]


def test_after_a_publisher_closes_its_successor_is_followed(stream: str, events: Events) -> None:
    with Publisher(stream, SMALL) as publisher:
        next_of(Attached, events)
        publish(publisher, 1)
        assert value_of(next_of(Frame, events)) == 1
    assert next_of(Waiting, events).reason == f"stream {stream} has ended"
    assert files_of(stream) == [], "the subscription has ended"
    with Publisher(stream, LARGE) as publisher:
        next_of(Attached, events)
        publish(publisher, 2)
        with next_of(Frame, events) as frame:
            assert frame.pixels.shape == (8, 10, 3)
            assert frame.pixels[0, 0, 0] == 2


def test_a_killed_publisher_is_reported_as_lost(
    stream: str, events: Events, start_program: Callable[..., Program]
) -> None:
    program = start_program("publish", stream, "4", "6", "6")
    assert program.read() == "open"
    next_of(Attached, events)
    program.process.kill()
    program.process.wait()
    assert next_of(Waiting, events).reason == f"stream {stream} has ended"
    with Publisher(stream, SMALL) as publisher:
        next_of(Attached, events)
        publish(publisher, 3)
        assert value_of(next_of(Frame, events)) == 3


@pytest.mark.parametrize("later", [SMALL, LARGE])
def test_a_quick_restart_is_not_reported_as_a_loss(stream: str, events: Events, later: FrameFormat) -> None:
    with Publisher(stream, SMALL) as publisher:
        next_of(Attached, events)
        publish(publisher, 1)
        first = next_of(Frame, events)
        first.release()
    with Publisher(stream, later) as publisher:
        publish(publisher, 2)
        with next_of(Frame, events) as frame:
            assert frame.pixels.shape == (later.height, later.width, 3)
            assert frame.epoch != first.epoch


def test_a_frame_outlives_the_loss_of_its_stream(stream: str, events: Events) -> None:
    with Publisher(stream, SMALL) as publisher:
        next_of(Attached, events)
        publish(publisher, 5)
        frame = next_of(Frame, events)
    next_of(Waiting, events)
    assert value_of(frame) == 5


def test_the_iterator_does_not_hold_a_frame_that_the_caller_has_dropped(stream: str, stop: threading.Event) -> None:
    with Publisher(stream, SMALL) as publisher, closing(following(stream, stop, max_leases=1)) as events:
        next_of(Attached, events)
        for value in range(1, 4):
            publish(publisher, value)
            assert next_of(Frame, events).pixels[0, 0, 0] == value


def test_an_error_that_is_not_tolerated_is_raised(stream: str, stop: threading.Event) -> None:
    (SHM / f"framebus.{stream}.ring").write_bytes(b"not a ring")
    with pytest.raises(LayoutMismatch):
        next(following(stream, stop))
    (SHM / f"framebus.{stream}.ring").unlink()


def test_a_tolerated_error_is_reported_once_and_retried(stream: str, stop: threading.Event) -> None:
    ring = SHM / f"framebus.{stream}.ring"
    ring.write_bytes(b"not a ring")
    with capture_logs() as log, closing(following(stream, stop, tolerate=(LayoutMismatch,))) as events:
        reason = next_of(Waiting, events).reason
        threading.Timer(0.1, ring.unlink).start()
        assert next_of(Waiting, events).reason == f"stream {stream} has not started"
    assert [entry["reason"] for entry in log] == [reason, f"stream {stream} has not started"]
    assert "ring" in reason


def test_a_stop_ends_the_wait_for_a_stream(stream: str, stop: threading.Event) -> None:
    events = following(stream, stop, retry_s=10 * PATIENCE_S)
    next_of(Waiting, events)
    threading.Timer(0.1, stop.set).start()
    assert list(events) == [], "without a retry, or the test would time out"


def test_a_stop_ends_the_wait_for_a_frame_and_the_subscription(
    stream: str, stop: threading.Event, events: Events
) -> None:
    with Publisher(stream, SMALL):
        next_of(Attached, events)
        assert any(".sub." in name for name in files_of(stream))
        threading.Timer(0.1, stop.set).start()
        assert {type(event) for event in events} <= {Quiet}
        assert not any(".sub." in name for name in files_of(stream))


def test_leaving_the_loop_ends_the_subscription(stream: str, stop: threading.Event) -> None:
    with Publisher(stream, SMALL):
        with closing(following(stream, stop)) as events:
            next_of(Attached, events)
            assert any(".sub." in name for name in files_of(stream))
        assert not any(".sub." in name for name in files_of(stream))


def test_if_stop_is_set_already_no_subscription_is_made(stream: str, stop: threading.Event) -> None:
    stop.set()
    with Publisher(stream, SMALL):
        assert list(following(stream, stop)) == []
