"""Publisher and Subscriber against a small model of them, in whatever order Hypothesis thinks of.

A crash closes the descriptors, as the kernel does for a process that was killed: the locks are free, nothing is marked
and nothing is removed.
"""

from __future__ import annotations

import contextlib
import secrets
from dataclasses import dataclass, field
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from framebus import (
    Frame,
    FrameFormat,
    Loan,
    Publisher,
    ReceiveTimeout,
    StreamExists,
    StreamNotFound,
    Subscriber,
    SubscriberLimitReached,
    TooManyLeases,
    remove_leftovers,
)
from framebus.bus import publisher as publisher_module
from tests.support import files_of

Pixels = np.ndarray[Any, Any]


@dataclass(eq=False)
class ExpectedRing:
    """What one file holds, in the model: a sequence and a value for each slot, and who holds which."""

    slots: int
    room: int
    first_sequence: int
    frames: dict[int, tuple[int, int]] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)
    newest: int = -1
    seats: int = 0
    held: list[int] = field(default_factory=list)
    """The slot of each lease."""

    def highest(self) -> int:
        return max([self.first_sequence - 1, *(sequence for sequence, _ in self.frames.values())])

    def adopt(self) -> None:
        self.order = sorted(range(self.slots), key=lambda slot: self.frames.get(slot, (0, 0)))
        self.newest = self.order[-1] if self.frames else -1

    def claim(self) -> int:
        slot = next(slot for slot in self.order if slot != self.newest and slot not in self.held)
        self.frames.pop(slot, None)
        return slot

    def publish(self, slot: int, sequence: int, value: int) -> None:
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
    last: int = -1
    received: int = 0
    skipped: int = 0
    frames: list[View] = field(default_factory=list)

    def leases(self) -> int:
        return sum(view.ring is self.ring for view in self.frames)

    def next_slot(self) -> int | None:
        ring = self.ring
        if self.mode == "newest" or self.last < 0:
            later = [ring.newest] if ring.newest >= 0 and ring.frames[ring.newest][0] > self.last else []
        else:
            later = [slot for slot, (sequence, _) in ring.frames.items() if sequence > self.last]
        return min(later, key=lambda slot: ring.frames[slot], default=None)


@dataclass(eq=False)
class View:
    """Something that keeps a frame: the frame itself, or only an array made of its pixels."""

    ring: ExpectedRing
    slot: int
    value: int
    frame: Frame | None
    pixels: Pixels

    def drop(self) -> None:
        self.ring.held.remove(self.slot)
        del self.frame, self.pixels


class Bus(RuleBasedStateMachine):
    """One stream: at most one publisher that lives, up to four subscribers, every geometry in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.stream = f"test-{secrets.token_hex(6)}"
        self.publisher: Publisher | None = None
        self.loan: tuple[Loan, int] | None = None
        self.keeps = False
        self.path: ExpectedRing | None = None
        self.sequence = 0
        self.readers: list[Reader] = []
        self.loose: list[View] = []
        """Views of subscribers that were closed."""
        self.closed_seats: list[tuple[ExpectedRing, int, list[View]]] = []
        self.epochs: set[int] = set()

    # The publisher

    @initialize()
    def begin(self) -> None:
        self.open(4, 2, keep=True)

    @precondition(lambda self: self.publisher is None)
    @rule(slots=st.sampled_from([4, 4, 5]), height=st.sampled_from([2, 2, 40]), keep=st.booleans())
    def open(self, slots: int, height: int, keep: bool) -> None:
        self.publisher = Publisher(self.stream, FrameFormat(height, 64, 2), slots=slots, keep_ring=keep)
        self.keeps = keep
        room = -(-height * 128 // 4096)
        ring = self.path
        adopted = ring is not None and (ring.slots, ring.room) == (slots, room)
        if not adopted:
            ring = ExpectedRing(slots, room, 1 + (self.path.highest() if self.path else 0))
            self.path = ring
        assert ring is not None
        ring.adopt()
        self.sequence = ring.highest()
        statistics = self.publisher.statistics
        assert (statistics.adopted, statistics.sequence) == (adopted, self.sequence)
        assert statistics.epoch not in self.epochs
        self.epochs.add(statistics.epoch)

    @precondition(lambda self: self.publisher is not None)
    @rule()
    def no_second_publisher(self) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(publisher_module, "EXCLUSION_PATIENCE_S", 0.0)
            with pytest.raises(StreamExists):
                Publisher(self.stream, FrameFormat(2, 64, 2))

    @precondition(lambda self: self.publisher is not None and self.loan is None)
    @rule()
    def take_loan(self) -> None:
        assert self.publisher is not None
        assert self.path is not None
        loan = self.publisher.loan()  # never NoFreeSlot, since admission leaves it a slot
        loan.pixels[: loan.pixels.shape[0] // 2] = 255
        self.loan = loan, self.path.claim()

    @precondition(lambda self: self.loan is not None)
    @rule()
    def publish(self) -> None:
        assert self.loan is not None
        assert self.path is not None
        (loan, slot), self.loan = self.loan, None
        self.sequence += 1
        value = self.sequence % 251
        loan.pixels[:] = value
        loan.metadata = {"value": value}
        assert loan.publish() == self.sequence
        self.path.publish(slot, self.sequence, value)

    @precondition(lambda self: self.publisher is not None and self.loan is None)
    @rule(count=st.integers(1, 6))
    def publish_some(self, count: int) -> None:
        for _ in range(count):
            self.take_loan()
            self.publish()

    @precondition(lambda self: self.loan is not None)
    @rule()
    def abandon(self) -> None:
        assert self.loan is not None
        self.loan[0].abandon()
        self.loan = None

    @precondition(lambda self: self.publisher is not None)
    @rule()
    def publisher_crashes(self) -> None:
        assert self.publisher is not None
        self.loan = None
        self.publisher._ring.segment.close()
        self.publisher._exclusion.close()
        self.publisher._notifier.close()
        self.publisher = None

    @precondition(lambda self: self.publisher is not None)
    @rule()
    def publisher_closes(self) -> None:
        assert self.publisher is not None
        self.publisher.close()
        self.publisher = self.loan = None
        if not self.keeps:
            self.path = None

    # Subscribers

    @precondition(lambda self: len(self.readers) < 4)
    @rule(
        mode=st.sampled_from(["newest", "every"]),
        wake=st.sampled_from(["futex", "predict", "busy"]),
        max_leases=st.integers(1, 2),
    )
    def subscribe(self, mode: Any, wake: Any, max_leases: int) -> None:
        def attach() -> Subscriber:
            return Subscriber(
                self.stream, mode=mode, wake=wake, max_leases=max_leases, attach_timeout_s=0, gone_after_s=None
            )

        if self.publisher is None:
            with pytest.raises(StreamNotFound):
                attach()
            return
        ring = self.path
        assert ring is not None
        if ring.seats + max_leases > ring.slots - 2:
            with pytest.raises(SubscriberLimitReached):
                attach()
            return
        ring.seats += max_leases
        self.readers.append(Reader(attach(), ring, mode, max_leases))

    @precondition(lambda self: self.readers)
    @rule(data=st.data(), keeps=st.sampled_from(["frame", "view", "nothing"]))
    def receive(self, data: st.DataObject, keeps: str) -> None:
        reader = data.draw(st.sampled_from(self.readers))
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
        """Nothing new: a tick, on which the subscriber may move on to the file that has the name now."""
        reader.subscriber._look_at_s = 0.0
        with pytest.raises(ReceiveTimeout):
            reader.subscriber.receive(0)
        path = self.path
        if self.publisher is None or path is None or path is reader.ring:
            return
        if path.seats + reader.max_leases > path.slots - 2:
            return  # no seat there: it stays, and asks again
        path.seats += reader.max_leases
        old = [view for view in reader.frames if view.ring is reader.ring]
        self._leave(reader.ring, reader.max_leases, old)
        reader.ring, reader.last = path, min(reader.last, path.first_sequence - 1)

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

    @precondition(lambda self: self.readers)
    @rule(data=st.data())
    def subscriber_closes(self, data: st.DataObject) -> None:
        reader = data.draw(st.sampled_from(self.readers))
        self.readers.remove(reader)
        reader.subscriber.close()
        self._leave(reader.ring, reader.max_leases, [view for view in reader.frames if view.ring is reader.ring])
        self.loose += reader.frames

    @precondition(lambda self: self.readers)
    @rule(data=st.data())
    def subscriber_crashes(self, data: st.DataObject) -> None:
        reader = data.draw(st.sampled_from(self.readers))
        self.readers.remove(reader)
        for view in reader.frames:
            self._drop(view)
        reader.ring.seats -= reader.max_leases
        reader.subscriber._ring.segment.close()
        assert reader.subscriber._record is not None
        reader.subscriber._record.segment.close()

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
            assert self.publisher.statistics.dropped == self.publisher.statistics.replaced == 0

    def teardown(self) -> None:
        # Whoever else keeps a reader, as Hypothesis does what it drew, must keep no view.
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
        self.publisher = self.loan = None
        remove_leftovers(self.stream)
        assert files_of(self.stream) == []


TestBus = Bus.TestCase
TestBus.settings = settings(max_examples=60, stateful_step_count=40, deadline=None, derandomize=True, database=None)
