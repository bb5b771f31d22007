"""A subscriber's attachment to a stream: its ring, seats, record and waiter, and the move to the next ring."""

from __future__ import annotations

import time
from typing import Final

from framebus.bus import lifecycle
from framebus.bus.frames import Frame
from framebus.bus.statistics import SubscriberStatistics
from framebus.bus.waiting import Waiter, waiter_for
from framebus.errors import (
    FramebusError,
    LayoutMismatch,
    PermissionDenied,
    ResourceExhausted,
    StreamGone,
    StreamNotFound,
    SubscriberLimitReached,
    TooManyLeases,
)
from framebus.ring.admission import RecordFile, remove_dead_records, take_seats
from framebus.ring.leases import Lease, Reader
from framebus.ring.record import SubscriberRecord
from framebus.ring.subscriber_ring import StaleRing, SubscriberRing

TICK_S: Final = 0.05
"""Longest sleep, because a publisher that is killed does not wake its subscribers."""
MAX_ATTACH_RETRIES: Final = 16


class Attachment:
    """A subscriber's resources of a stream. The subscriber's thread uses it; :meth:`retire` is thread-safe."""

    # Defaults for leave(), which the constructor calls if it fails before it has set these.
    _record: RecordFile | None = None
    _last_statistics: SubscriberStatistics | None = None
    _has_left = False

    def __init__(
        self,
        stream: str,
        record: SubscriberRecord,
        *,
        history: int,
        publisher_uid: int | None,
        attach_timeout_s: float | None,
        gone_after_s: float | None,
    ) -> None:
        """Attach to the ring of a live publisher.

        Args:
            stream: Name of the stream.
            record: The subscriber's record, which also determines its mode and how many leases it may hold.
            history: How many of the frames that the ring already holds to take first.
            publisher_uid: The user whose frames are accepted; ``None`` accepts those of any user.
            attach_timeout_s: Seconds to wait for a publisher; ``None`` waits forever.
            gone_after_s: Seconds that the publisher may be gone before :meth:`find` raises; ``None`` never raises.

        Raises:
            FramebusError: As the constructor of :class:`~framebus.Subscriber` documents.
        """
        self._stream = stream
        self._every = record.mode == "every"
        self._max_leases = record.max_leases
        self._history = history
        self._publisher_uid = publisher_uid
        self._gone_after_s = gone_after_s
        self._gone_since_s: float | None = None
        self._obstacle: FramebusError | None = None
        self._check_at_s = 0.0
        self._event = 0
        """The ring's event word, read before the last attempt to find a frame."""
        self._reattached = 0
        try:
            self._ring = self._wait_for_ring(attach_timeout_s)
            self._reader: Reader = self._ring.reader
            # Each new subscriber removes leftovers, so that they do not accumulate without ``framebus gc``.
            remove_dead_records(stream)
            self._record = RecordFile(stream, record)
            self._reader.report_to(self._record.segment)
            self._waiter: Waiter = waiter_for(record.wake, stream)
        except BaseException:
            self.leave()
            raise

    def find(self) -> Lease | None:
        """Lease the next frame, or return ``None`` when the caller should wait.

        This is the body of both receive loops, synchronous and asynchronous, which differ only in how they wait. Before
        it returns ``None``, it does the work that may delay a frame: prefaulting, and checking whether the publisher
        lives.

        Raises:
            StreamGone: The publisher is gone for longer than ``gone_after_s``.
            PermissionDenied, LayoutMismatch, SubscriberLimitReached, ResourceExhausted: The publisher is gone, and the
                subscriber cannot attach to the ring that replaced its ring.
        """
        while True:
            ring = self._ring
            # Read the event before searching. A frame that is published later changes the word, so a wait on the value
            # read here returns immediately.
            self._event = ring.event()
            if (lease := self._reader.take()) is not None:
                return lease
            self._waiter.drain()
            # Prefault one slot at a time while there is no frame, so that a frame that arrives waits for one slot at
            # most.
            if ring.event() == self._event and not ring.prefault_one():
                self._watch_publisher()
                return None

    def wait(self, timeout_s: float) -> Lease | None:
        """Wait for an event of the ring, for at most ``timeout_s``. Some ways to wait also lease the frame."""
        # The value from before the search, so that a frame published since then ends the wait at once.
        return self._waiter.wait(self._reader, self._event, timeout_s)

    def fileno(self) -> int:
        """Return a descriptor that is readable while there are notifications.

        Raises:
            InvalidArgument: The subscriber's way to wait has no descriptor.
        """
        return self._waiter.fileno()

    def deliver(self, lease: Lease) -> Frame:
        """Create a frame from a lease, and ensure that the pages of its slot are mapped."""
        ring = self._ring
        if ring.unmapped_slots and lease.slot in ring.unmapped_slots:
            ring.prefault(lease.slot)
        self._waiter.delivered = lease.header
        return Frame(lease)

    def check_leases(self) -> None:
        """Ensure that one more frame may be leased.

        Raises:
            TooManyLeases: ``max_leases`` frames are still held; the message lists their sequences.
        """
        reader = self._reader
        if reader.leases < self._max_leases:
            return
        lifecycle.collect_garbage()  # frees the frames in reference cycles, as a traceback creates them
        if reader.leases < self._max_leases:
            return
        # The sequences help to find the variable that still holds a frame.
        held = ", ".join(map(str, reader.held()))
        raise TooManyLeases(
            f"{self._max_leases} frames are still held, with the sequences {held}: a variable of an earlier turn, a "
            "slice or view of the pixels, a list, a traceback or a tensor that shares memory holds its frame; copy "
            "what you keep (pixels.copy()), release or delete the others, or subscribe with "
            f"max_leases={self._max_leases + 1}"
        )

    @property
    def statistics(self) -> SubscriberStatistics:
        """The counters. After :meth:`leave`, their last values."""
        reader: Reader | None = self.__dict__.get("_reader")
        if reader is None:
            assert self._last_statistics is not None
            return self._last_statistics
        return SubscriberStatistics(
            reader.received,
            reader.skipped,
            reader.overruns,
            reader.rejected,
            self._waiter.rejected,
            self._reattached,
            reader.leases,
        )

    def retire(self) -> None:
        """Remove the subscriber's record, so that other processes no longer list it."""
        if self._record is not None:
            self._record.remove()

    def leave(self) -> None:
        """Release everything. The ring stays mapped until the last frame goes.

        Each step may be repeated, because a signal handler may raise between any two, and two threads may close at the
        same time.
        """
        if self._has_left:
            return
        waiter: Waiter | None = self.__dict__.get("_waiter")
        if waiter is not None:  # the constructor completed
            self._last_statistics = self.statistics
            waiter.close()
        self.retire()
        # Drop the references now instead of with this object, which a traceback may keep alive for long.
        self.__dict__.pop("_reader", None)
        self.__dict__.pop("_ring", None)
        self._has_left = True

    def _watch_publisher(self) -> None:
        """Move to the ring that replaced this one, and detect when the publisher is gone."""
        now_s = time.monotonic()
        ring = self._ring
        # The state word is in mapped memory, so this costs no system call.
        if now_s < self._check_at_s and ring.is_open():
            return
        # The checks below take system calls, so repeat them only once a tick, or when the state word says so.
        self._check_at_s = now_s + TICK_S
        live = ring.is_live()
        if live and ring.is_current():
            self._gone_since_s = None
            return
        # If the old file is still locked, its publisher is in the middle of the move, and not gone.
        if self._reattach() or live:
            self._gone_since_s = None
            return
        if self._gone_since_s is None:
            self._gone_since_s = now_s
        if self._gone_after_s is not None and now_s - self._gone_since_s >= self._gone_after_s:
            if self._obstacle is not None:
                # The reason why the next ring cannot be used helps more than the fact that this publisher is gone.
                raise self._obstacle
            raise StreamGone(f"the publisher of {self._stream!r} is gone for {self._gone_after_s:g} s")

    def _reattach(self) -> bool:
        if self._ring.is_current():
            return False  # the next publisher may adopt this file, in which this subscriber holds its seats
        try:
            ring = self._attach()
        except StreamNotFound:
            self._obstacle = None
            return False
        except (LayoutMismatch, PermissionDenied, ResourceExhausted, SubscriberLimitReached) as error:
            self._obstacle = error
            return False
        # Continue the sequences, so that frames missed during the move are counted as skipped.
        ring.reader.resume_from(self._reader, ring.header.first_sequence)
        self._reattached += 1
        if self._record is not None:
            ring.reader.report_to(self._record.segment)
        self._ring, self._reader = ring, ring.reader
        # The event word of the new file is unrelated to that of the old one.
        self._event = 0
        return True

    def _attach(self) -> SubscriberRing:
        for _ in range(MAX_ATTACH_RETRIES):
            ring = SubscriberRing(self._stream, self._publisher_uid, every=self._every, history=self._history)
            # Seats first, because a lease without a seat could block the publisher.
            take_seats(ring.segment, ring.geometry, self._max_leases)
            # A publisher may have replaced the file before the seats were taken: they must be in the current one.
            if ring.is_current():
                return ring
        raise StreamNotFound(f"the ring of {self._stream!r} is replaced again and again")

    def _wait_for_ring(self, attach_timeout_s: float | None) -> SubscriberRing:
        deadline_s = None if attach_timeout_s is None else time.monotonic() + attach_timeout_s
        while True:
            try:
                return self._attach()
            except (StreamNotFound, StaleRing):
                if deadline_s is not None and time.monotonic() >= deadline_s:
                    raise
            time.sleep(TICK_S)
