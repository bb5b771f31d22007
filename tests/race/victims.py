"""Lives of publishers and subscribers that are interrupted at one point of their work."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, Final

from framebus import FrameFormat, NoFreeSlot, Publisher, StreamNotFound, Subscriber, SubscriberLimitReached
from framebus.bus import served_stream
from framebus.ring import _ring_py as steps
from framebus.ring import backend
from framebus.ring.file import ring_name
from framebus.ring.words import LOCK_READ
from framebus.shm import segment as shm
from tests.race.points import (
    AT_RANDOM,
    CLOSING,
    IN_STEPS,
    LEAVING,
    OPENING,
    PIXELS,
    PUBLISHING,
    RECEIVING,
    REPLACING,
    STORES,
    SUBSCRIBING,
    TWO_LOANS,
    before_store,
    interrupt,
)

FORMAT: Final = FrameFormat(30, 50)
MAX_LOANS: Final = 2
"""Of every publisher that is interrupted, and of those that come before and after it."""
STUCK_AFTER_S: Final = 20.0
FOR_EVER: Final = 1_000_000


def fork(function: Callable[..., Any], *arguments: Any) -> int:
    """Run the function in a child; it ends with status 0, or 1 and a traceback when the function raises."""
    pid = os.fork()
    if pid:
        return pid
    gc.freeze()  # a collection of the parent's objects would copy the memory of all of them
    sys.unraisablehook = sys.__unraisablehook__  # pytest's would keep for its parent what this process is to say
    try:
        function(*arguments)
        gc.collect()
        os._exit(0)
    except (StreamNotFound, SubscriberLimitReached):
        os._exit(0)  # no publisher serves the stream now, or all seats are taken: an honest answer
    except BaseException:  # noqa: BLE001  it must not run on as a second server
        traceback.print_exc()
        os._exit(1)


def choose_steps(point: str) -> None:
    """Take the steps in Python where the point is in one of them; else those that a program has."""
    if point in IN_STEPS:
        backend.steps = steps


def publish(stream: str, point: str, frames: int, slots: int, *, more: int = 0) -> None:
    """A publisher's life: some good frames, then what leads to the point, then ``more`` frames."""
    choose_steps(point)
    if point in OPENING:
        OPENING[point]()
    with Publisher(stream, FORMAT, slots=slots, max_loans=MAX_LOANS, keep_ring=point not in CLOSING) as publisher:
        for number in range(frames if point != AT_RANDOM else FOR_EVER):
            if number % 2:
                write_two(publisher)
            else:
                write(publisher)
            time.sleep(0.0005)
        if point in PUBLISHING:
            PUBLISHING[point]()
        if point in REPLACING:
            with pinned(stream, slots):
                served_stream.REPLACE_AFTER_S = 0.0  # type: ignore[misc]
                REPLACING[point]()
                write(publisher)
                write(publisher)
        if point in TWO_LOANS:
            write_two(publisher, point)
        else:
            write(publisher, point)
        for _ in range(more):
            write(publisher)
            time.sleep(0.0005)
        if point in CLOSING:
            CLOSING[point]()


def write(publisher: Publisher, point: str = "") -> None:
    """Publish a frame whose every byte is its sequence modulo 251."""
    with contextlib.suppress(NoFreeSlot), publisher.loan() as loan:
        value, half = (publisher.statistics.sequence + 1) % 251, loan.format.height // 2
        loan.pixels[:half] = value
        if point == PIXELS:
            interrupt()
        loan.pixels[half:] = value
        if point in STORES:
            before_store(publisher._served.ring.segment, STORES.index(point) + 1)


def write_two(publisher: Publisher, point: str = "") -> None:
    """Publish two frames of :func:`write`'s kind, the later loan first, while a half-written loan is out.

    The half-written one is published last. Where the point is its end by another way, it is abandoned or lost.
    """
    half = FORMAT.height // 2
    with contextlib.suppress(NoFreeSlot):
        earlier, later = publisher.loan(), publisher.loan()
        later.pixels[:] = (publisher.statistics.sequence + 1) % 251
        earlier.pixels[:half] = 250
        if point == TWO_LOANS[0]:
            interrupt()
        later.publish()
        if point == TWO_LOANS[1]:
            interrupt()
        if point == TWO_LOANS[2]:
            earlier.abandon()
            interrupt()
        elif point == TWO_LOANS[3]:
            del earlier
            interrupt()
        else:
            earlier.pixels[:] = (publisher.statistics.sequence + 1) % 251
            earlier.publish()


@contextlib.contextmanager
def pinned(stream: str, slots: int) -> Iterator[None]:
    """Hold every slot of the ring, as a neighbour does that means harm."""
    pins = shm.attach(ring_name(stream))
    for slot in range(slots):
        pins.try_lock(LOCK_READ[slot])
    yield
    pins.close()


def subscribe(
    stream: str, point: str, frames: int, _slots: int = 0, *, tell: Callable[[int], None] | None = None
) -> None:
    """A subscriber's life: some frames, then what leads to the point.

    Args:
        stream: Name of the stream.
        point: Where it is interrupted.
        frames: How many frames it receives before.
        tell: Called with the sequence of every frame received after; without it the subscriber leaves.
    """
    choose_steps(point)
    if point in SUBSCRIBING:
        SUBSCRIBING[point]()
    leases = 2 if point in SUBSCRIBING else 1
    with Subscriber(
        stream, name="victim", attach_timeout_s=STUCK_AFTER_S, gone_after_s=None, max_leases=leases
    ) as subscriber:
        for _ in range(frames if point != AT_RANDOM else FOR_EVER):
            subscriber.receive(STUCK_AFTER_S).release()
        if point in RECEIVING:
            RECEIVING[point]()
        if tell is None:
            subscriber.receive(STUCK_AFTER_S).release()
        while tell is not None:
            with subscriber.receive(STUCK_AFTER_S) as frame:
                assert (frame.pixels == frame.sequence % 251).all()
                tell(frame.sequence)
        if point in LEAVING:
            LEAVING[point]()
