"""Frames that were there before: ``history``; several loans, and waiting for a slot."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from framebus import (
    FrameFormat,
    InvalidArgument,
    LoanOutstanding,
    NoFreeSlot,
    Publisher,
    ReceiveTimeout,
    StreamNotFound,
    Subscriber,
    SubscriberLimitReached,
)
from framebus.bus.options import Mode
from framebus.ring.words import LOCK_READ
from framebus.shm import segment as shm
from tests.support import publish

pytestmark = pytest.mark.usefixtures("each_steps")

SMALL = FrameFormat(4, 6)


def received(subscriber: Subscriber) -> list[tuple[int, int, int]]:
    """Sequence, skipped frames and value of all frames that are there."""
    seen = []
    while True:
        try:
            with subscriber.receive(0) as frame:
                seen.append((frame.sequence, frame.skipped, int(frame.pixels[0, 0, 0])))
        except ReceiveTimeout:
            return seen


@pytest.mark.parametrize("mode", ["newest", "every"])
def test_a_late_subscriber_gets_the_last_frames_in_order_first(stream: str, mode: Mode) -> None:
    with Publisher(stream, SMALL, slots=8) as publisher:
        for value in range(1, 7):
            publish(publisher, value)
        with Subscriber(stream, mode=mode, history=3) as subscriber:
            assert received(subscriber) == [(4, 0, 4), (5, 0, 5), (6, 0, 6)]
            for value in (7, 8):
                publish(publisher, value)
            assert received(subscriber) == ([(8, 1, 8)] if mode == "newest" else [(7, 0, 7), (8, 0, 8)])
        with Subscriber(stream, mode=mode) as without:
            assert received(without) == [(8, 0, 8)]


@pytest.mark.parametrize("mode", ["newest", "every"])
def test_only_what_the_ring_still_holds_can_be_had(stream: str, mode: Mode) -> None:
    with Publisher(stream, SMALL, slots=5) as publisher, Subscriber(stream, mode=mode, history=9) as early:
        assert received(early) == []
        for value in range(1, 10):
            publish(publisher, value)
        with Subscriber(stream, mode=mode, history=200, max_leases=1, name="late") as late:
            assert [sequence for sequence, _, _ in received(late)] == [5, 6, 7, 8, 9]
            assert (late.statistics.received, late.statistics.skipped) == (5, 0)


@pytest.mark.parametrize("before", [0, 1, 2])
def test_every_frame_since_the_subscription_follows_the_history(stream: str, before: int) -> None:
    with Publisher(stream, SMALL, slots=8) as publisher:
        for value in range(1, before + 1):
            publish(publisher, value)
        with Subscriber(stream, mode="every", history=8) as subscriber:
            for value in range(before + 1, before + 4):
                publish(publisher, value)
            assert received(subscriber) == [(value, 0, value) for value in range(1, before + 4)]


def test_frames_of_the_history_count_as_leases(stream: str) -> None:
    with Publisher(stream, SMALL, slots=8) as publisher:
        for value in range(1, 6):
            publish(publisher, value)
        with Subscriber(stream, history=5, max_leases=2) as subscriber:
            first, second = subscriber.receive(0), subscriber.receive(0)
            assert subscriber.statistics.leases == 2
            for value in range(6, 16):
                publish(publisher, value)
            assert (first.pixels == 1).all()
            assert (second.pixels == 2).all()


def test_a_returning_publisher_of_another_geometry_continues_the_history(stream: str) -> None:
    with Publisher(stream, SMALL, slots=8) as publisher:
        publish(publisher, 1)
        subscriber = Subscriber(stream, history=2, gone_after_s=None)
        assert received(subscriber) == [(1, 0, 1)]
    with Publisher(stream, SMALL, slots=9) as publisher:
        for value in (2, 3, 4):
            publish(publisher, value)
        with subscriber.receive(5) as frame:
            assert frame.sequence >= 1
        assert [value for _, _, value in received(subscriber)][-1:] == [4]
        subscriber.close()


class TestLoans:
    def test_loans_are_numbered_as_they_are_published(self, stream: str) -> None:
        with (
            Publisher(stream, SMALL, slots=6, max_loans=3) as publisher,
            Subscriber(stream, mode="every") as subscriber,
        ):
            publish(publisher)
            assert received(subscriber) == [(1, 0, 1)]
            loans = [publisher.loan() for _ in range(3)]
            for value, loan in enumerate(loans):
                loan.pixels[:] = value
            with pytest.raises(LoanOutstanding, match="3 of 3 loans"):
                publisher.loan()
            loans[1].abandon()
            assert loans[2].publish() == 2
            assert loans[0].publish() == 3
            assert received(subscriber) == [(2, 0, 2), (3, 0, 0)]
            assert publisher.statistics.abandoned == 1

    def test_each_loan_keeps_its_slot_whatever_else_is_published(self, stream: str) -> None:
        with Publisher(stream, SMALL, slots=5, max_loans=2) as publisher, Subscriber(stream) as subscriber:
            waiting = publisher.loan()
            waiting.pixels[:] = 77
            for value in range(20):
                publish(publisher, value)
            assert (waiting.pixels == 77).all()
            assert waiting.publish() == 21
            with subscriber.receive(5) as frame:
                assert (frame.pixels == 77).all()

    def test_subscribers_get_what_the_loans_leave(self, stream: str) -> None:
        with (
            Publisher(stream, SMALL, slots=6, max_loans=3) as publisher,
            Subscriber(stream, max_leases=2) as subscriber,
        ):
            with pytest.raises(SubscriberLimitReached, match="6 slots leave 2 leases"):
                Subscriber(stream, max_leases=1)
            publish(publisher)
            held = [subscriber.receive(5)]
            publish(publisher)
            held.append(subscriber.receive(5))
            for _ in range(10):
                loans = [publisher.loan() for _ in range(3)]
                for loan in loans:
                    loan.publish()
            assert publisher.statistics.dropped == 0

    @pytest.mark.parametrize("max_loans", [0, 5, 254, 1.0, None, "2"])
    def test_a_ring_leaves_a_slot_to_subscribers(self, stream: str, max_loans: int) -> None:
        with pytest.raises(InvalidArgument, match="loans"):
            Publisher(stream, SMALL, slots=6, max_loans=max_loans)

    def test_a_lost_loan_is_returned_and_counted(self, stream: str) -> None:
        with Publisher(stream, SMALL) as publisher:
            publisher.loan().pixels[:] = 1
            pixels = publisher.loan().pixels
            with pytest.raises(LoanOutstanding):
                publisher.loan()
            pixels[:] = 2, 2, 2
            assert publisher.statistics.lost == 1, "a view holds it as well"
            part = pixels[1:]
            del pixels
            with pytest.raises(LoanOutstanding):
                publisher.loan()
            del part
            assert publish(publisher) == 1
            assert (publisher.statistics.lost, publisher.statistics.abandoned) == (2, 2)


class TestWaiting:
    def test_a_loan_waits_for_a_slot_that_is_released(self, stream: str) -> None:
        with Publisher(stream, SMALL, slots=3) as publisher:
            publish(publisher)
            pins = shm.attach(f"framebus.{stream}.ring")
            for slot in range(3):
                assert pins.try_lock(LOCK_READ[slot])
            with pytest.raises(NoFreeSlot):
                publisher.loan(timeout_s=0.05)
            timer = threading.Timer(0.1, pins.close)
            timer.start()
            assert publisher.loan(timeout_s=None).publish() == 2
            timer.join()
            assert publisher.statistics.dropped == 1

    @pytest.mark.parametrize("timeout_s", [-1, float("nan"), float("inf"), "1"])
    def test_waiting_times_must_be_finite(self, stream: str, timeout_s: float) -> None:
        with Publisher(stream, SMALL) as publisher, Subscriber(stream) as subscriber:
            for call in (publisher.loan, subscriber.receive):
                with pytest.raises(InvalidArgument, match="timeout_s is a finite number of seconds"):
                    call(timeout_s=timeout_s)


class TestAttach:
    def test_other_tasks_run_while_it_waits(self, stream: str) -> None:
        async def work() -> tuple[int, int]:
            turns = 0

            async def count() -> None:
                nonlocal turns
                while True:
                    turns += 1
                    await asyncio.sleep(0)

            counting = asyncio.create_task(count())
            opening = asyncio.get_running_loop().call_later(0.2, opened.append, Publisher(stream, SMALL))
            with pytest.raises(InvalidArgument):
                await Subscriber.attach(stream, attach_timeout_s=float("nan"))
            async with await Subscriber.attach(stream, name="task") as subscriber:
                publish(opened[0] if opened else (await wait_for_publisher()))
                frame = await subscriber.receive_async(5)
            counting.cancel()
            opening.cancel()
            return frame.sequence, turns

        async def wait_for_publisher() -> Publisher:
            while not opened:
                await asyncio.sleep(0.01)
            return opened[0]

        opened: list[Publisher] = []
        sequence, turns = asyncio.run(work())
        assert sequence == 1
        assert turns > 10
        opened[0].close()

    def test_waiting_for_a_slot_times_out_and_can_be_cancelled(self, stream: str) -> None:
        async def work() -> None:
            with pytest.raises(StreamNotFound):
                await Subscriber.attach(stream, attach_timeout_s=0.1)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await Subscriber.attach(stream, attach_timeout_s=None)

        asyncio.run(work())

    def test_either_side_may_start_first(self, stream: str) -> None:
        seen: list[int] = []

        def subscribe() -> None:
            with Subscriber(stream) as subscriber:
                seen.append(subscriber.receive(10).sequence)

        thread = threading.Thread(target=subscribe)
        thread.start()
        time.sleep(0.2)
        with Publisher(stream, SMALL) as publisher:
            while not seen:
                publish(publisher)
                time.sleep(0.01)
            thread.join()
