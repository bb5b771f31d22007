"""Publisher and Subscriber against a small model of them, in whatever order Hypothesis thinks of.

A crash closes the descriptors, as the kernel does for a process that was killed: the locks are free, nothing is marked
and nothing is removed.
"""

from __future__ import annotations

import contextlib
import math
import secrets
import sys
from dataclasses import dataclass, field
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from framebus import (
    Closed,
    Frame,
    FrameFormat,
    Loan,
    LoanOutstanding,
    NoFreeSlot,
    Publisher,
    ReceiveTimeout,
    StreamExists,
    StreamNotFound,
    Subscriber,
    SubscriberLimitReached,
    TooManyLeases,
    remove_leftovers,
)
from framebus.bus import served_stream
from tests.support import files_of

Pixels = np.ndarray[Any, Any]


@dataclass(eq=False)
class ExpectedRing:
    """Content of one file in the model: a sequence, a value and the holders of each slot."""

    slots: int
    room: int
    max_loans: int
    first_sequence: int
    frames: dict[int, tuple[int, int]] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)
    newest: int = -1
    seats: int = 0
    held: list[int] = field(default_factory=list)
    """The slot of each lease."""
    loaned: list[int] = field(default_factory=list)
    """The slot of each loan, those of closed publishers included."""

    def room_for(self, max_leases: int) -> bool:
        return self.seats + max_leases <= self.slots - 1 - self.max_loans

    def highest(self) -> int:
        return max([self.first_sequence - 1, *(sequence for sequence, _ in self.frames.values())])

    def adopt(self) -> None:
        self.order = sorted(range(self.slots), key=lambda slot: self.frames.get(slot, (0, 0)))
        self.newest = self.order[-1] if self.frames else -1

    def claim(self) -> int | None:
        taken = {self.newest, *self.held, *self.loaned}
        slot = next((slot for slot in self.order if slot not in taken), None)
        if slot is not None:
            self.frames.pop(slot, None)
            self.loaned.append(slot)
        return slot

    def publish(self, slot: int, sequence: int, value: int) -> None:
        self.loaned.remove(slot)
        self.frames[slot] = sequence, value
        self.order.remove(slot)
        self.order.append(slot)
        self.newest = slot


@dataclass(eq=False)
class Reader:
    """A real subscriber and what the model knows of it."""

    subscriber: Subscriber
    ring: ExpectedRing
    mode: str
    max_leases: int
    history: int
    history_after: int = 0
    history_end: int = -1
    last: int = -1
    received: int = 0
    skipped: int = 0
    frames: list[View] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.attach(self.ring)

    def attach(self, ring: ExpectedRing) -> None:
        """Begin with the last ``history`` frames in the ring. A subscriber that takes every frame misses none."""
        self.ring = ring
        self.last = min(self.last, ring.first_sequence - 1)
        newest = ring.frames[ring.newest][0] if self.history and ring.newest >= 0 else 0
        resumes = self.mode == "every" and self.last >= 0
        self.history_after = 0 if resumes else max(newest - self.history, 0)
        self.history_end = sys.maxsize if self.mode == "every" and self.history else newest or -1

    def leases(self) -> int:
        return sum(view.ring is self.ring for view in self.frames)

    def next_slot(self) -> int | None:
        ring = self.ring
        if self.last < self.history_end or (self.mode == "every" and self.last >= 0):
            after = max(self.last, self.history_after)
            later = [slot for slot, (sequence, _) in ring.frames.items() if sequence > after]
        else:
            later = [ring.newest] if ring.newest >= 0 and ring.frames[ring.newest][0] > self.last else []
        return min(later, key=lambda slot: ring.frames[slot], default=None)


@dataclass(eq=False)
class View:
    """An object that keeps a frame: the frame itself, or only an array on its pixels."""

    ring: ExpectedRing
    slot: int
    value: int
    frame: Frame | None
    pixels: Pixels

    def drop(self) -> None:
        self.ring.held.remove(self.slot)
        del self.frame, self.pixels


class Bus(RuleBasedStateMachine):
    """One stream: at most one live publisher, up to four subscribers, every geometry in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(served_stream, "REPLACE_AFTER_S", math.inf)  # however slow the machine is
        self.stream = f"test-{secrets.token_hex(6)}"
        self.publisher: Publisher | None = None
        self.loans: list[tuple[Loan, int]] = []
        self.orphans: list[tuple[Loan, ExpectedRing, int]] = []
        """Loans of publishers that were closed, which keep their slots until they go."""
        self.abandoned = self.lost = self.dropped = 0
        self.keeps = False
        self.path: ExpectedRing | None = None
        self.sequence = 0
        self.readers: list[Reader] = []
        self.loose: list[View] = []
        """Views of subscribers that were closed."""
        self.closed_seats: list[tuple[ExpectedRing, int, list[View]]] = []
        self.epochs: set[int] = set()

    # The publisher

    @initialize(history=st.sampled_from([0, 2, 8]))
    def begin(self, history: int) -> None:
        self.open((7, 2), 2, keep=True)
        self.subscribe("every", "futex", 1, history)
        self.subscribe("newest", "predict", 2, history)

    @precondition(lambda self: self.publisher is None)
    @rule(
        geometry=st.sampled_from([(7, 2), (7, 2), (4, 1), (8, 3)]),
        height=st.sampled_from([2, 2, 40]),
        keep=st.booleans(),
    )
    def open(self, geometry: tuple[int, int], height: int, keep: bool) -> None:
        slots, max_loans = geometry
        self.publisher = Publisher(
            self.stream, FrameFormat(height, 64, 2), slots=slots, max_loans=max_loans, keep_ring=keep
        )
        self.keeps = keep
        self.abandoned = self.lost = self.dropped = 0
        room = -(-height * 128 // 4096)
        ring = self.path
        adopted = ring is not None and (ring.slots, ring.room, ring.max_loans) == (slots, room, max_loans)
        if not adopted:
            ring = ExpectedRing(slots, room, max_loans, 1 + (self.path.highest() if self.path else 0))
            self.path = ring
        assert ring is not None
        ring.adopt()
        self.sequence = ring.highest()
        statistics = self.publisher.statistics
        assert (statistics.adopted, statistics.sequence) == (adopted, self.sequence)
        assert statistics.epoch not in self.epochs
        self.epochs.add(statistics.epoch)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(served_stream, "LOCK_TIMEOUT_S", 0.0)
            with pytest.raises(StreamExists):
                Publisher(self.stream, FrameFormat(2, 64, 2))

    @precondition(lambda self: self.publisher is not None)
    @rule()
    def take_loan(self) -> None:
        assert self.publisher is not None
        assert self.path is not None
        if len(self.loans) == self.path.max_loans:
            with pytest.raises(LoanOutstanding):
                self.publisher.loan()
            return
        slot = self.path.claim()
        if slot is None:
            assert any(ring is self.path for _, ring, _ in self.orphans), "admission leaves a slot for each loan"
            with pytest.raises(NoFreeSlot):
                self.publisher.loan()
            self.dropped += 1
            return
        loan = self.publisher.loan()
        loan.pixels[: loan.pixels.shape[0] // 2] = 255
        self.loans.append((loan, slot))

    @precondition(lambda self: self.loans)
    @rule(data=st.data())
    def publish(self, data: st.DataObject) -> None:
        self._publish(data.draw(st.integers(0, len(self.loans) - 1)))

    def _publish(self, number: int) -> None:
        assert self.path is not None
        loan, slot = self.loans.pop(number)
        self.sequence += 1
        value = self.sequence % 251
        loan.pixels[:] = value
        loan.metadata = {"value": value}
        assert loan.publish() == self.sequence
        self.path.publish(slot, self.sequence, value)

    @precondition(lambda self: self.publisher is not None)
    @rule(count=st.integers(1, 6))
    def publish_some(self, count: int) -> None:
        for _ in range(count):
            before = len(self.loans)
            self.take_loan()
            if len(self.loans) > before:
                self._publish(before)

    @precondition(lambda self: self.publisher is not None)
    @rule()
    def publish_an_array(self) -> None:
        assert self.publisher is not None
        assert self.path is not None
        value = (self.sequence + 1) % 251
        array = np.full(self.publisher.format.shape, value, np.uint8)
        if len(self.loans) == self.path.max_loans:
            with pytest.raises(LoanOutstanding):
                self.publisher.publish(array)
        elif (slot := self.path.claim()) is None:
            with pytest.raises(NoFreeSlot):
                self.publisher.publish(array)
            self.dropped += 1
        else:
            self.sequence += 1
            assert self.publisher.publish(array, metadata={"value": value}) == self.sequence
            self.path.publish(slot, self.sequence, value)

    @precondition(lambda self: self.loans)
    @rule(data=st.data(), by=st.sampled_from(["abandon", "loss", "exception"]))
    def end_a_loan(self, data: st.DataObject, by: str) -> None:
        assert self.path is not None
        loan, slot = self.loans.pop(data.draw(st.integers(0, len(self.loans) - 1)))
        self.path.loaned.remove(slot)
        self.abandoned += 1
        if by == "abandon":
            loan.abandon()
        elif by == "loss":
            self.lost += 1
            del loan
        else:
            with pytest.raises(ZeroDivisionError), loan:
                loan.pixels[:] = 1 // 0

    # One rule for both ends, so that there usually is a publisher, and subscribers with frames to receive.
    @precondition(lambda self: self.publisher is not None)
    @rule(crashes=st.booleans())
    def publisher_ends(self, crashes: bool) -> None:
        self._crash() if crashes else self._close()

    def _crash(self) -> None:
        assert self.publisher is not None
        assert self.path is not None
        for _, slot in self.loans:
            self.path.loaned.remove(slot)
        self.loans.clear()
        self.publisher._served.ring.segment.close()
        self.publisher._served._lock.close()
        self.publisher._served.server.close()
        self.publisher = None

    def _close(self) -> None:
        assert self.publisher is not None
        assert self.path is not None
        self.publisher.close()
        self.orphans += [(loan, self.path, slot) for loan, slot in self.loans]
        self.loans.clear()
        self.publisher = None
        if not self.keeps:
            self.path = None

    @precondition(lambda self: self.orphans)
    @rule(by=st.sampled_from(["publication", "abandon", "loss"]))
    def end_a_loan_of_a_closed_publisher(self, by: str) -> None:
        loan, ring, slot = self.orphans.pop(0)
        if by == "publication":
            with pytest.raises(Closed):
                loan.publish()
        elif by == "abandon":
            loan.abandon()
        else:
            del loan
        ring.loaned.remove(slot)

    # Subscribers

    @precondition(lambda self: len(self.readers) < 4)
    @rule(
        mode=st.sampled_from(["newest", "every"]),
        wake=st.sampled_from(["futex", "predict", "busy"]),
        max_leases=st.integers(1, 2),
        history=st.sampled_from([0, 0, 2, 8]),
    )
    def subscribe(self, mode: Any, wake: Any, max_leases: int, history: int) -> None:
        def attach() -> Subscriber:
            return Subscriber(
                self.stream,
                mode=mode,
                wake=wake,
                max_leases=max_leases,
                history=history,
                attach_timeout_s=0,
                gone_after_s=None,
            )

        if self.publisher is None:
            with pytest.raises(StreamNotFound):
                attach()
            return
        ring = self.path
        assert ring is not None
        if not ring.room_for(max_leases):
            with pytest.raises(SubscriberLimitReached):
                attach()
            return
        ring.seats += max_leases
        self.readers.append(Reader(attach(), ring, mode, max_leases, history))

    @precondition(lambda self: self.readers)
    @rule(data=st.data(), keeps=st.sampled_from(["frame", "view", "nothing"]))
    def receive(self, data: st.DataObject, keeps: str) -> None:
        self._receive(data.draw(st.sampled_from(self.readers)), keeps)

    @precondition(lambda self: self.readers)
    @rule(count=st.integers(1, 5))
    def all_receive(self, count: int) -> None:
        for reader in self.readers:
            for _ in range(count):
                self._receive(reader, "nothing")

    def _receive(self, reader: Reader, keeps: str) -> None:
        subscriber = reader.subscriber
        if reader.leases() == reader.max_leases:
            with pytest.raises(TooManyLeases):
                subscriber.receive(0)
            return
        slot = reader.next_slot()
        if slot is None:
            self._look_after(reader)
            return
        ring = reader.ring
        sequence, value = ring.frames[slot]
        frame = subscriber.receive(0)
        skipped = sequence - reader.last - 1 if reader.last >= 0 else 0
        assert (frame.sequence, frame.skipped, frame.metadata) == (sequence, skipped, {"value": value})
        assert frame.epoch in self.epochs
        assert not frame.pixels.flags.writeable
        reader.last = sequence
        reader.received += 1
        reader.skipped += skipped
        view = View(ring, slot, value, None, frame.pixels[::2, 1:])
        if keeps == "frame":
            view.frame = frame
        elif keeps == "view":
            frame.release()
        else:
            return
        ring.held.append(slot)
        reader.frames.append(view)

    def _look_after(self, reader: Reader) -> None:
        """There is no new frame: on its tick, the subscriber may move to the file that has the name now."""
        reader.subscriber._attachment._check_at_s = 0.0
        with pytest.raises(ReceiveTimeout):
            reader.subscriber.receive(0)
        path = self.path
        if self.publisher is None or path is None or path is reader.ring:
            return
        if not path.room_for(reader.max_leases):
            return  # there is no free seat, so it stays and tries again
        path.seats += reader.max_leases
        old = [view for view in reader.frames if view.ring is reader.ring]
        self._leave(reader.ring, reader.max_leases, old)
        reader.attach(path)

    def _leave(self, ring: ExpectedRing, seats: int, views: list[View]) -> None:
        """Seats go with the last view on the file."""
        if views:
            self.closed_seats.append((ring, seats, views))
        else:
            ring.seats -= seats

    @precondition(lambda self: any(reader.frames for reader in self.readers))
    @rule(data=st.data())
    def drop_a_view(self, data: st.DataObject) -> None:
        reader = data.draw(st.sampled_from([reader for reader in self.readers if reader.frames]))
        self._drop(reader.frames.pop(data.draw(st.integers(0, len(reader.frames) - 1))))

    @precondition(lambda self: self.loose)
    @rule()
    def drop_a_closed_subscribers_view(self) -> None:
        self._drop(self.loose.pop())

    def _drop(self, view: View) -> None:
        view.drop()
        for entry in list(self.closed_seats):
            ring, seats, views = entry
            if view in views:
                views.remove(view)
                if not views:
                    ring.seats -= seats
                    self.closed_seats.remove(entry)

    @precondition(lambda self: len(self.readers) > 1)
    @rule(data=st.data(), crashes=st.booleans())
    def subscriber_ends(self, data: st.DataObject, crashes: bool) -> None:
        reader = data.draw(st.sampled_from(self.readers))
        self.readers.remove(reader)
        if crashes:
            self._crash_subscriber(reader)
            return
        reader.subscriber.close()
        self._leave(reader.ring, reader.max_leases, [view for view in reader.frames if view.ring is reader.ring])
        self.loose += reader.frames

    def _crash_subscriber(self, reader: Reader) -> None:
        for view in reader.frames:
            self._drop(view)
        reader.ring.seats -= reader.max_leases
        reader.subscriber._attachment._ring.segment.close()
        if (record := reader.subscriber._attachment._record) is not None:
            record.segment.close()

    # What holds at any time

    @invariant()
    def every_view_shows_its_frame(self) -> None:
        for view in [*self.loose, *(view for reader in self.readers for view in reader.frames)]:
            assert (view.pixels == view.value).all()

    @invariant()
    def the_counters_agree(self) -> None:
        for reader in self.readers:
            statistics = reader.subscriber.statistics
            assert (statistics.received, statistics.skipped) == (reader.received, reader.skipped)
            assert (statistics.leases, statistics.rejected) == (reader.leases(), 0)
        if self.publisher is not None:
            counted = self.publisher.statistics
            assert (counted.sequence, counted.dropped, counted.replaced) == (self.sequence, self.dropped, 0)
            assert (counted.abandoned, counted.lost) == (self.abandoned, self.lost)

    def teardown(self) -> None:
        self.patch.undo()
        # Other code may keep a reader, as Hypothesis keeps drawn values, but must keep no view.
        for view in [*self.loose, *(view for reader in self.readers for view in reader.frames)]:
            view.drop()
        for reader in self.readers:
            reader.subscriber.close()
            reader.frames.clear()
        self.readers.clear()
        self.loose.clear()
        self.closed_seats.clear()
        with contextlib.suppress(AttributeError):
            if self.publisher is not None:
                self.publisher.close()
        self.publisher = None
        self.loans.clear()
        self.orphans.clear()
        remove_leftovers(self.stream)
        assert files_of(self.stream) == []


class BusAtLength(Bus):
    """The same test, several times as long."""


TestBus = pytest.mark.slow(Bus.TestCase)
TestBus.settings = settings(max_examples=12, stateful_step_count=40, deadline=None, derandomize=True, database=None)
TestBusAtLength = pytest.mark.timeout(600)(pytest.mark.long(BusAtLength.TestCase))
TestBusAtLength.settings = settings(
    max_examples=150, stateful_step_count=50, deadline=None, derandomize=True, database=None
)
