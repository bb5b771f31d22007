"""A process that is stopped at any step of its work, then resumes or is killed: no other process waits for it.

A stopped process lives by the kernel's word, so it keeps what it holds: a subscriber its leases and its seats, a
publisher its stream, until it goes on or is killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from framebus import Publisher, ReceiveTimeout, StreamExists, StreamNotFound, Subscriber
from framebus.bus import served_stream
from framebus.bus.options import Mode, Wake
from framebus.inspect.streams import inspect
from framebus.ring import admission as seats
from tests.race.points import (
    CLOSING,
    NEW_FILE,
    OPENING,
    PIXELS,
    PUBLISHING,
    RECEIVING,
    REPLACING,
    STORES,
    SUBSCRIBING,
    TWO_LOANS,
    choose,
)
from tests.race.upkeep import kind_of, sweep
from tests.race.victims import FOR_EVER, FORMAT, MAX_LOANS, STUCK_AFTER_S, fork, publish, subscribe, write, write_two

pytestmark = pytest.mark.slow

SLOTS = 11
SEQUENCE = struct.Struct("Q")
Start = Callable[..., int]
RESIDENTS: tuple[tuple[Mode, Wake], ...] = (("newest", "futex"), ("every", "predict"), ("newest", "busy"))
end_of_the_stop = pytest.mark.parametrize("then", ["goes on", "is killed"])


@pytest.fixture
def start(capfd: pytest.CaptureFixture[str]) -> Iterator[Start]:
    """Forks lives that SIGSTOP interrupts; the others are killed after the test. None may print an error."""
    started: list[int] = []

    def begin(life: Callable[..., Any], *arguments: Any, **named: Any) -> int:
        def live() -> None:
            choose(signal.SIGSTOP)
            life(*arguments, **named)

        started.append(fork(live))
        return started[-1]

    yield begin
    for pid in started:
        end(pid)
    assert capfd.readouterr().err == ""


def end(pid: int) -> int:
    """Kill the process if it is there still; its status."""
    try:
        ended, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return 0
    if not ended:
        os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
    return status


def has_stopped(pid: int, *, wait: bool = True) -> bool:
    stopped, status = os.waitpid(pid, os.WUNTRACED if wait else os.WUNTRACED | os.WNOHANG)
    assert not stopped or os.WIFSTOPPED(status), f"it ended with status {status} and did not come to the point"
    return stopped == pid


def receive(subscriber: Subscriber, timeout_s: float = STUCK_AFTER_S) -> int:
    """Sequence of the next frame, which is whole."""
    with subscriber.receive(timeout_s) as frame:
        assert (frame.pixels == frame.sequence % 251).all()
        return frame.sequence


def receive_all(subscriber: Subscriber) -> int:
    """Receive until there is nothing new, which is said in time; the last sequence, 0 for none."""
    last = 0
    with contextlib.suppress(ReceiveTimeout):
        while (sequence := receive(subscriber, 0.01)) > last:
            last = sequence
        raise AssertionError(f"{sequence} came after {last}")
    return last


@end_of_the_stop
@pytest.mark.parametrize("point", [*SUBSCRIBING, *RECEIVING])
def test_a_stopped_subscriber_holds_its_own_leases_and_no_more(
    stream: str, start: Start, point: str, then: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seats, "ADMISSION_TIMEOUT_S", 0.01)  # the stopped one may hold the flock
    reader, writer = os.pipe()
    pid = start(subscribe, stream, point, 0, tell=lambda sequence: os.write(writer, SEQUENCE.pack(sequence)))
    with Publisher(stream, FORMAT, slots=SLOTS, max_loans=MAX_LOANS) as publisher:
        while not has_stopped(pid, wait=False):
            write(publisher)
            time.sleep(0.001)
        stopped_at = publisher.statistics.sequence
        with (
            Subscriber(stream, mode="newest", wake="zmq") as newest,
            Subscriber(stream, mode="every", wake="futex") as every,
        ):
            for _ in range(3 * SLOTS):
                write(publisher)
                last = publisher.statistics.sequence
                assert receive(newest) == last
                assert receive(every) == last
            assert publisher.statistics.dropped == 0
            assert inspect(stream).slots_held <= 1
            if then == "is killed":
                assert os.WIFSIGNALED(end(pid))
                info = inspect(stream)
                assert (info.slots_held, info.seats_taken) == (0, 4)
                assert {kind_of(path, stream) for path in sweep(stream)} <= {"sub."}
            else:
                os.kill(pid, signal.SIGCONT)
                told: list[int] = []
                while last not in told:
                    told += SEQUENCE.unpack(os.read(reader, SEQUENCE.size))
                assert [sequence for sequence in told if sequence > stopped_at] == [last]
                assert sweep(stream) == []
            write(publisher)
            assert receive(newest) == receive(every) == last + 1
    end(pid)
    sweep(stream)
    os.close(reader)
    os.close(writer)


def serve(stream: str, told: int) -> None:
    with Publisher(stream, FORMAT, slots=SLOTS, max_loans=MAX_LOANS) as publisher:
        os.write(told, b"\n")
        for _ in range(3):
            write(publisher)
        signal.pause()


@end_of_the_stop
@pytest.mark.parametrize("point", [*OPENING, *PUBLISHING, PIXELS, *TWO_LOANS, *STORES, *REPLACING, *CLOSING])
def test_a_stopped_publisher_blocks_and_tears_nothing(stream: str, start: Start, point: str, then: str) -> None:
    reader, writer = os.pipe()
    first = start(serve, stream, writer)
    os.read(reader, 1)
    os.close(reader)
    os.close(writer)
    residents = [Subscriber(stream, mode=mode, wake=wake, gone_after_s=None) for mode, wake in RESIDENTS]
    assert os.WIFSIGNALED(end(first))
    slots = SLOTS + 2 if point in NEW_FILE else SLOTS
    pid = start(publish, stream, point, 2, slots, more=0 if point in CLOSING else FOR_EVER)
    assert has_stopped(pid)

    seen = [0] * len(residents)
    for number, resident in enumerate(residents):
        seen[number] = receive_all(resident)
    try:
        with Subscriber(stream, wake="futex", attach_timeout_s=0) as late:
            receive_all(late)
    except StreamNotFound:
        assert point in OPENING or point in CLOSING
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(served_stream, "LOCK_TIMEOUT_S", 0.0)
        with pytest.raises(StreamExists):
            Publisher(stream, FORMAT)
    assert sweep(stream) == [], "nothing of a process that is stopped is left over"

    if then == "goes on":
        os.kill(pid, signal.SIGCONT)
        if point in CLOSING:
            assert os.waitpid(pid, 0)[1] == 0
    else:
        assert os.WIFSIGNALED(end(pid))
    if then == "is killed" or point in CLOSING:
        with Publisher(stream, FORMAT, slots=SLOTS, max_loans=MAX_LOANS) as publisher:
            write_two(publisher)
            goes_on(residents, seen, anew=point in CLOSING)
    else:
        goes_on(residents, seen, anew=False)
    for resident in residents:
        resident.close()
    end(pid)
    sweep(stream)


def goes_on(residents: list[Subscriber], seen: list[int], *, anew: bool) -> None:
    """All of them receive a further frame; ``anew``: its sequence is that of a new file."""
    for number, resident in enumerate(residents):
        assert receive(resident) > (0 if anew else seen[number])
