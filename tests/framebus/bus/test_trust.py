"""Which user's frames a subscriber accepts: publisher, subscriber and a false publisher are three users."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.synchronize import Event

import pytest

from framebus import FrameFormat, PermissionDenied, Publisher, StreamGone, StreamNotFound, Subscriber
from tests.people import Person, shared_event
from tests.support import PATIENCE_S, SHM, wait_until

pytestmark = [pytest.mark.root, pytest.mark.slow]

SMALL = FrameFormat(4, 6)
SLOTS = 6
PUBLISHER, SUBSCRIBER, FALSE = 40011, 40012, 40013


@pytest.fixture
def people() -> Iterator[Callable[..., Person]]:
    """Starts people, and kills those that still run at the end of the test."""
    started: list[Person] = []

    def start(*arguments: object) -> Person:
        started.append(Person(*arguments))  # type: ignore[arg-type]
        return started[-1]

    yield start
    for person in started:
        person.end()


def publish(stream: str, value: int, stop: Event) -> None:
    """Publish frames of one value until the event is set."""
    with Publisher(stream, SMALL, slots=SLOTS) as publisher:
        while not stop.wait(0.01):
            with publisher.loan() as loan:
                loan.pixels[:] = value


def publish_later(stream: str, value: int, start: Event, stop: Event) -> None:
    """Publish as :func:`publish` does, as soon as an event is set: without the time that a fork takes."""
    assert start.wait(PATIENCE_S)
    publish(stream, value, stop)


def take(stream: str, publisher_uid: int | None) -> int:
    """Receive one frame and return its value."""
    with Subscriber(stream, publisher_uid=publisher_uid) as subscriber:
        return int(subscriber.receive(10).pixels[0, 0, 0])


def test_frames_of_the_user_that_is_named_are_taken(stream: str, people: Callable[..., Person]) -> None:
    stop = shared_event()
    publisher = people(PUBLISHER, publish, stream, 7, stop)
    assert people(SUBSCRIBER, take, stream, PUBLISHER).result() == 7
    assert people(SUBSCRIBER, take, stream, None).result() == 7
    stop.set()
    publisher.result()


def test_a_ring_of_another_user_is_refused_and_both_are_named(stream: str, people: Callable[..., Person]) -> None:
    stop = shared_event()
    publisher = people(FALSE, publish, stream, 9, stop)
    assert people(SUBSCRIBER, take, stream, None).result() == 9
    with pytest.raises(PermissionDenied) as caught:
        people(SUBSCRIBER, take, stream, PUBLISHER).result()
    assert str(caught.value) == (
        f"/dev/shm/framebus.{stream}.ring belongs to user {FALSE} (unknown), and only frames of user {PUBLISHER} "
        f"(unknown) are accepted: stop the publisher of user {FALSE}, or name that user if you trust it"
    )
    stop.set()
    publisher.result()


def cut(stream: str) -> None:
    """Put a false ring in place, and truncate it repeatedly."""
    path = SHM / f"framebus.{stream}.ring"
    path.write_bytes(b"FRAMEBUS" * 1024)
    path.chmod(0o644)
    end_s = time.monotonic() + 0.5
    while time.monotonic() < end_s:
        os.truncate(path, 0)
        path.write_bytes(b"FRAMEBUS" * 1024)


def attach_again_and_again(stream: str) -> set[str]:
    errors = set()
    end_s = time.monotonic() + 0.5
    while time.monotonic() < end_s:
        try:
            Subscriber(stream, publisher_uid=PUBLISHER).close()
        except (PermissionDenied, StreamNotFound) as error:
            errors.add(type(error).__name__)
    return errors


def test_a_truncated_false_ring_does_not_end_a_subscriber_that_named_the_publisher(
    stream: str, people: Callable[..., Person]
) -> None:
    cutter = people(FALSE, cut, stream)
    wait_until((SHM / f"framebus.{stream}.ring").exists, "there is a false ring")
    assert people(SUBSCRIBER, attach_again_and_again, stream).result() <= {"PermissionDenied", "StreamNotFound"}
    cutter.result()
    (SHM / f"framebus.{stream}.ring").unlink()


def follow(
    stream: str, publisher_uid: int | None, gone_after_s: float, told: Mapping[int, Event], until: int = 0
) -> list[int | str]:
    """Receive frames until one has the value ``until``, or an error comes.

    Args:
        stream: The stream.
        publisher_uid: Whose frames to take.
        gone_after_s: As of Subscriber.
        told: What to set when a frame of a value has come.
        until: The last value to wait for; 0 for none.

    Returns:
        The values, each once, and the error.
    """
    seen: list[int | str] = []
    with Subscriber(stream, attach_timeout_s=10, gone_after_s=gone_after_s, publisher_uid=publisher_uid) as subscriber:
        try:
            for frame in subscriber:
                value = int(frame.pixels[0, 0, 0])
                if value not in seen:
                    seen.append(value)
                    told[value].set()
                if value == until:
                    return seen
        except (PermissionDenied, StreamGone) as error:
            return [*seen, str(error)]
    return seen


def test_a_ring_of_another_user_is_refused_in_the_place_of_the_first_too(
    stream: str, people: Callable[..., Person]
) -> None:
    stop, start_false, stop_false, trusting_saw, careful_saw, trusting_saw_false = (shared_event() for _ in range(6))
    false = people(FALSE, publish_later, stream, 9, start_false, stop_false)
    first = people(PUBLISHER, publish, stream, 7, stop)
    trusting = people(SUBSCRIBER, follow, stream, None, 20, {7: trusting_saw, 9: trusting_saw_false}, 9)
    careful = people(SUBSCRIBER, follow, stream, PUBLISHER, 2, {7: careful_saw})
    assert trusting_saw.wait(PATIENCE_S)
    assert careful_saw.wait(PATIENCE_S)
    stop.set()
    first.result()
    start_false.set()
    values = careful.result()
    assert values[:-1] == [7]
    assert f"belongs to user {FALSE} (unknown), and only frames of user {PUBLISHER}" in str(values[-1])
    assert trusting.result() == [7, 9]
    stop_false.set()
    false.result()


def test_the_right_publisher_is_taken_again_after_a_false_one(stream: str, people: Callable[..., Person]) -> None:
    stops = [shared_event() for _ in range(3)]
    saw = {7: shared_event(), 8: shared_event()}
    first = people(PUBLISHER, publish, stream, 7, stops[0])
    careful = people(SUBSCRIBER, follow, stream, PUBLISHER, PATIENCE_S, saw, 8)
    assert saw[7].wait(PATIENCE_S)
    stops[0].set()
    first.result()
    false = people(FALSE, publish, stream, 9, stops[1])
    assert people(SUBSCRIBER, take, stream, FALSE).result() == 9
    stops[1].set()
    false.result()
    again = people(PUBLISHER, publish, stream, 8, stops[2])
    assert careful.result() == [7, 8]
    stops[2].set()
    again.result()
