"""Loans that are lost: no variable has them any more, and the publisher goes on."""

from __future__ import annotations

import contextlib
import gc
import signal
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from framebus import LoanOutstanding, Publisher, Subscriber
from framebus.inspect.streams import inspect
from tests.framebus.cases.support import SMALL
from tests.framebus.interruptions import Interrupted, each_point, interrupt
from tests.support import publish

pytestmark = pytest.mark.usefixtures("each_steps")


def works(publisher: Publisher, subscriber: Subscriber) -> None:
    """Every slot can be written and read, one after the other."""
    for value in range(2 * inspect(publisher.stream).slots):
        publish(publisher, value)
        with subscriber.receive(5) as frame:
            assert (frame.pixels == value).all()


def test_a_loan_that_no_variable_holds_is_given_back(stream: str) -> None:
    with Publisher(stream, SMALL, slots=3) as publisher, Subscriber(stream, max_leases=1) as subscriber:
        for lost in range(1, 20):
            publisher.loan()
            assert publish(publisher) == lost
            assert publisher.statistics.lost == lost
        subscriber.receive(5).release()
        works(publisher, subscriber)


def test_clearing_a_list_of_loans_returns_them(stream: str) -> None:
    with Publisher(stream, SMALL, max_loans=3) as publisher, Subscriber(stream) as subscriber:
        loans = [publisher.loan() for _ in range(3)]
        with pytest.raises(LoanOutstanding):
            publisher.loan()
        kept = loans[1]
        loans.clear()
        assert len([publisher.loan(), publisher.loan()]) == 2
        kept.pixels[:] = 8
        kept.publish()
        assert (subscriber.receive(5).pixels == 8).all()
        works(publisher, subscriber)
        assert publisher.statistics.lost == 4


def test_a_loan_in_a_traceback_is_lost_with_it(stream: str) -> None:
    def fail() -> None:
        loan = publisher.loan()
        loan.pixels[:] = 1
        raise ValueError

    gc.disable()
    try:
        with Publisher(stream, SMALL) as publisher, Subscriber(stream) as subscriber:
            for _ in range(5):
                kept: list[BaseException] = []
                try:
                    fail()
                except ValueError as error:
                    kept.append(error)
                    error.kept = kept  # type: ignore[attr-defined]
                del kept
                publish(publisher)
                subscriber.receive(5).release()
            works(publisher, subscriber)
            assert publisher.statistics.lost == 5
    finally:
        gc.enable()


def test_a_traceback_that_is_held_holds_its_loan(stream: str) -> None:
    def fail() -> None:
        loan = publisher.loan()
        raise ValueError(loan.sequence)

    with Publisher(stream, SMALL) as publisher:
        with pytest.raises(ValueError, match="None") as held:
            fail()
        with pytest.raises(LoanOutstanding, match="variables or views hold them"):
            publisher.loan()
        del held
        gc.collect()
        publish(publisher)


@pytest.mark.parametrize(
    "keep", [lambda loan: loan.pixels, lambda loan: loan.pixels[1:, ::2].T, lambda loan: loan.pixels.data]
)
def test_pixels_that_are_kept_hold_the_slot_when_their_loan_has_gone(stream: str, keep: Any) -> None:
    with Publisher(stream, SMALL) as publisher, Subscriber(stream) as subscriber:
        kept = keep(publisher.loan())
        with pytest.raises(LoanOutstanding):
            publisher.loan()
        np.asarray(kept)[...] = 200
        del kept
        publish(publisher, 3)
        assert (subscriber.receive(5).pixels == 3).all()


def points_seen(stream: str, monkeypatch: pytest.MonkeyPatch, use: Callable[[Publisher], object]) -> set[str]:
    """Let an exception come at each point of a publication of nines, one after the other; the functions it came in.

    Whatever the point, the frame is published whole or not at all, and the slot is free afterwards.
    """
    # An exception in __del__ goes no further, and pytest's hook would keep what it is about to end.
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)
    seen = set()
    with Publisher(stream, SMALL, slots=4) as publisher, Subscriber(stream) as subscriber:
        for points in each_point(interrupt):
            before = publish(publisher)
            subscriber.receive(5).release()
            try:
                with points:
                    use(publisher)
            except Interrupted:
                seen.add(points.done.split(":")[0])
            if publisher.statistics.sequence > before:
                assert (subscriber.receive(5).pixels == 9).all()
            works(publisher, subscriber)
            assert inspect(stream).slots_held == 0
        assert publisher.statistics.dropped == 0
    return seen


def test_an_alarm_between_loan_and_with_loses_no_slot(stream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exception comes at each point from the call of loan() to the end of the block, one after the other."""

    def use(publisher: Publisher) -> None:
        with publisher.loan() as loan:
            loan.pixels[:] = 9
            loan.metadata = {"x": 1}

    assert {"Publisher.loan", "Publisher._publish", "Loan._freeze"} <= points_seen(stream, monkeypatch, use)


def test_an_exception_at_any_point_of_publish_loses_no_slot(stream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.full((4, 6, 3), 9, np.uint8)

    def use(publisher: Publisher) -> None:
        publisher.publish(array, captured_ns=1, metadata={"x": 1})

    seen = points_seen(stream, monkeypatch, use)
    assert {"Publisher.publish", "Publisher.loan", "Publisher._publish"} <= seen


def test_a_loan_describes_itself(stream: str) -> None:
    with Publisher(stream, SMALL) as publisher:
        loan = publisher.loan()
        assert repr(loan) == "<Loan (4, 6, 3) uint8 bgr open>"
        loan.publish()
        assert repr(loan) == "<Loan (4, 6, 3) uint8 bgr published as 1>"
        with publisher.loan() as given_back:
            given_back.abandon()
        assert repr(given_back) == "<Loan (4, 6, 3) uint8 bgr abandoned>"


def test_a_real_alarm_at_any_time_loses_no_slot(stream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # An exception in __del__ goes no further, and pytest's hook would keep what it is about to end.
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)

    def ring(*_: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGPROF, ring)
    try:
        with Publisher(stream, SMALL, slots=4) as publisher, Subscriber(stream) as subscriber:
            for number in range(150):
                try:
                    signal.setitimer(signal.ITIMER_PROF, 1e-6 * (1 + number))
                    for _ in range(20):
                        with publisher.loan() as loan:
                            loan.pixels[:] = 9
                            loan.metadata = {"x": 1}
                        with subscriber.receive(5) as frame:
                            assert (frame.pixels == 9).all()
                except Interrupted:
                    loan = frame = None  # type: ignore[assignment]
            with contextlib.suppress(Interrupted):  # the last alarm, if that many frames took less than its time
                signal.setitimer(signal.ITIMER_PROF, 0)
            publish(publisher, 9)
            subscriber.receive(5).release()
            works(publisher, subscriber)
            assert inspect(stream).slots_held == 0
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
