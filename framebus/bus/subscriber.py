"""The side that reads frames from the ring."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from dataclasses import dataclass
from typing import Final, Literal

from framebus.bus.frames import Frame
from framebus.errors import (
    Closed,
    LayoutMismatch,
    PermissionDenied,
    ReceiveTimeout,
    RingFull,
    StreamGone,
    StreamNotFound,
    TooManyLeases,
    WrongThread,
)
from framebus.layout import check_name
from framebus.notify import Listener
from framebus.ring import SubscriberRing
from framebus.seats import Record, new_record, remove_dead_records, take_seats
from framebus.steps import Lease
from framebus.wake import Pace

TICK_S: Final = 0.05
"""A wait is cut into slices of that length: nothing wakes a waiter when the publisher is killed."""

Mode = Literal["newest", "every"]
Wake = Literal["zmq", "futex", "predict", "busy"]
BUSY_NS: Final = 500_000
"""How long to look without a rehearsal: its effect wears off."""


@dataclass(frozen=True, slots=True)
class SubscriberStatistics:
    """What a subscriber has seen since it subscribed."""

    received: int
    """Frames received."""
    skipped: int
    """Frames missed between those received."""
    overruns: int
    """Slots that the publisher reused before they were leased; looked for again at once."""
    rejected: int
    """Slot headers that made no sense, and were passed over."""
    notifications_rejected: int
    """Messages on the notification socket that were none of this stream."""
    reattached: int
    """Times another ring file took the place of the first."""
    leases: int
    """Frames held now."""


class Subscriber:
    """Receives the frames of a stream, without a copy.

    It belongs to the thread that first receives with it; frames may be released in any. After a fork it belongs to the
    parent. Iterate over it, or ``async for``, or call :meth:`receive`.
    """

    def __init__(
        self,
        stream: str,
        *,
        name: str = "subscriber",
        mode: Mode = "newest",
        wake: Wake = "zmq",
        max_leases: int = 2,
        wait_s: float | None = 0.0,
        gone_after_s: float | None = 10.0,
        publisher_uid: int | None = None,
    ) -> None:
        """Attach to the stream of a publisher that lives.

        Args:
            stream: Name of the stream.
            name: What ``framebus top`` shows for this subscriber.
            mode: ``newest`` skips what was missed; ``every`` takes all in order while the ring still has them.
            wake: How to wait for a frame. ``zmq`` waits on a socket, which has a descriptor for poll and asyncio.
                ``futex`` wakes in about half the time. ``predict`` learns the stream's pace and looks for a frame from
                shortly before it is due: faster again, for a few hundred microseconds of CPU a frame where the pace is
                steady, up to a quarter of a core where it is not; where there is no pace, it is ``futex``. ``busy``
                looks all the time, and takes a whole core. docs/benchmarks.md has figures.
            max_leases: Frames that may be held at once, views on their pixels included.
            wait_s: Seconds to wait for a publisher; ``None`` waits for ever.
            gone_after_s: Seconds that a publisher may be gone before :meth:`receive` raises; ``None``: for ever.
            publisher_uid: The user, by number, whose frames are wanted. Whoever serves a ring can also cut it short
                under its readers, which ends them with SIGBUS; a ring of another user is not even mapped. ``None``
                takes anybody's.

        Raises:
            StreamNotFound: No publisher within ``wait_s``.
            RingFull: The ring has too few slots left for ``max_leases``.
            LayoutMismatch: The ring is of another version of the layout, or damaged.
            PermissionDenied: The ring is closed to this user, and the message names the group to run with; or it does
                not belong to ``publisher_uid``.
            NotEnoughSharedMemory: /dev/shm has no room for the subscriber's record, of one page.
            InvalidName: ``stream`` or ``name`` holds other than letters, digits, ``-`` and ``_``.
        """
        if mode not in ("newest", "every") or wake not in ("zmq", "futex", "predict", "busy"):
            raise ValueError(
                f"mode is 'newest' or 'every', wake is 'zmq', 'futex', 'predict' or 'busy', not {mode!r} and {wake!r}"
            )
        if max_leases < 1:
            raise ValueError(f"max_leases is 1 or more, not {max_leases}")
        self.stream = check_name(stream)
        """The stream's name."""
        self.name = check_name(name, "subscriber")
        """What ``framebus top`` shows for this subscriber."""
        self._mode = mode
        self._wake = wake
        self._pace = Pace() if wake == "predict" else None
        self._max_leases = max_leases
        self._publisher_uid = publisher_uid
        self._gone_after_s = gone_after_s
        self._denied: PermissionDenied | None = None
        self._gone_since_s: float | None = None
        self._look_at_s = 0.0
        self._thread: int | None = None
        self._process = os.getpid()
        self._closed = False
        self._current: Frame | None = None
        self._event = 0
        self._reattached = 0
        self._ring = self._wait_for_ring(wait_s)
        remove_dead_records(stream)
        self._record = Record(stream, new_record(name, mode, wake, max_leases))
        self._ring.reader.report_to(self._record.segment)
        try:
            self._listener = Listener(stream) if wake == "zmq" else None
        except BaseException:
            self._record.remove()
            raise

    @property
    def statistics(self) -> SubscriberStatistics:
        """Counters since the subscriber attached; after its close, the last ones."""
        if self._closed:
            return self._final_statistics
        reader = self._ring.reader
        return SubscriberStatistics(
            reader.received,
            reader.skipped,
            reader.overruns,
            reader.rejected,
            self._listener.rejected if self._listener else 0,
            self._reattached,
            reader.leases,
        )

    def receive(self, timeout_s: float | None = None) -> Frame:
        """Lease the newest unseen frame (mode ``every``: the next), without copying it.

        The publisher cannot reuse the slot while the frame, or any view on its pixels, lives.

        Args:
            timeout_s: Seconds to wait; ``None`` waits for ever, ``0`` polls.

        Returns:
            Frame whose ``pixels`` is read-only, C-contiguous, of shape ``(height, width, channels)``. ``captured_ns``
            is CLOCK_MONOTONIC; ``skipped`` counts frames missed since the previous one.

        Raises:
            ReceiveTimeout: No new frame within ``timeout_s``.
            TooManyLeases: ``max_leases`` earlier frames are still viewed.
            StreamGone: The publisher closed or died, and none came back within ``gone_after_s``.
            PermissionDenied: The same, and a ring that is closed to this user, or that does not belong to
                ``publisher_uid``, is in its place.
            WrongThread: Another thread owns the subscriber.
            Closed: The subscriber was closed.

        Source: fcntl(2), "Open file description locks"; offsets in layout.py.
        """
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        self._check_use()
        self._check_leases()
        while (lease := self._take()) is None:
            if self._is_quiet():
                self._look_after_publisher()
                if (lease := self._wait(self._slice(deadline_s))) is not None:
                    break
        return self._deliver(lease)

    async def receive_async(self, timeout_s: float | None = None) -> Frame:
        """Like :meth:`receive`, for an event loop: other tasks run while this one waits. A cancel loses no frame.

        Raises:
            ValueError: The subscriber was not opened with ``wake="zmq"``: an event loop can wait for nothing else.
        """
        loop = asyncio.get_running_loop()
        descriptor = self.fileno()
        ready = asyncio.Event()
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        loop.add_reader(descriptor, ready.set)
        try:
            while True:
                self._check_use()
                self._check_leases()
                if (lease := self._take()) is not None:
                    return self._deliver(lease)
                if not self._is_quiet():
                    continue
                self._look_after_publisher()
                slice_s = self._slice(deadline_s)
                try:
                    async with asyncio.timeout(slice_s):
                        await ready.wait()
                except TimeoutError:
                    continue  # the slice is over
                finally:
                    ready.clear()
        finally:
            loop.remove_reader(descriptor)

    def fileno(self) -> int:
        """Descriptor for poll(2) and event loops, of a subscriber opened with ``wake="zmq"``.

        It is edge-triggered: after it became readable, call ``receive(timeout_s=0)`` until it raises
        :class:`ReceiveTimeout`. Look at least every 50 ms without it too, for nothing makes it readable when the
        publisher is killed.

        Raises:
            ValueError: The subscriber was opened with another ``wake``.

        Source: zmq_setsockopt(3), ZMQ_FD.
        """
        self._check_use()
        if self._listener is None:
            raise ValueError(f"a subscriber with wake={self._wake!r} has no descriptor: open it with wake='zmq'")
        return self._listener.fileno()

    def close(self) -> None:
        """Leave the stream. Frames and views still held stay readable, and hold their slots until they go."""
        if self._closed:
            return
        self._release_current()
        self._final_statistics = self.statistics
        self._closed = True
        if os.getpid() == self._process:
            self._record.remove()
            if self._listener is not None:
                self._listener.close()
        del self._ring  # the file is unmapped when the last view goes

    def _take(self) -> Lease | None:
        """Lease what is there."""
        ring = self._ring
        self._event = ring.event()
        return ring.take()

    def _deliver(self, lease: Lease) -> Frame:
        ring = self._ring
        if lease.slot in ring.cold:
            ring.prefault(lease.slot)
        if self._pace is not None:
            self._pace.learn(lease.header.sequence, lease.header.published_ns)
        return Frame(lease)

    def _is_quiet(self) -> bool:
        """Take the notifications that have come; whether one may sleep, having nothing to do.

        Mapping what the first lap has not come to yet is to be done, slot by slot, so that no frame waits for all.
        """
        if self._listener is not None:
            self._listener.drain()
        ring = self._ring
        return ring.event() == self._event and not ring.prefault_next()

    def _wait(self, slice_s: float) -> Lease | None:
        """Wait for an event in the subscriber's way, at most ``slice_s``; what came may be leased at once."""
        ring = self._ring
        if self._listener is not None:
            self._listener.wait(slice_s)
            return None
        now_ns = time.monotonic_ns()
        end_ns = now_ns + int(slice_s * 1e9)
        if self._wake == "busy":
            return self._look(min(now_ns + BUSY_NS, end_ns))
        if self._pace is not None:
            begin_ns, until_ns = self._pace.window()
            if begin_ns <= now_ns < until_ns:
                return self._look(min(until_ns, now_ns + BUSY_NS, end_ns))
            if now_ns < begin_ns < end_ns:
                end_ns = begin_ns
        return ring.sleep(self._event, end_ns - now_ns)

    def _look(self, until_ns: int) -> Lease | None:
        """Rehearse taking a frame, then look for one without sleeping."""
        ring = self._ring
        if (lease := ring.rehearse()) is not None:
            Frame(lease).pixels  # noqa: B018  the property maps them
            del lease
        return ring.look(until_ns)

    def _slice(self, deadline_s: float | None) -> float:
        if deadline_s is None:
            return TICK_S
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise ReceiveTimeout(f"no new frame of {self.stream!r} in time")
        return min(TICK_S, left_s)

    def _look_after_publisher(self) -> None:
        now_s = time.monotonic()
        ring = self._ring
        if now_s < self._look_at_s and ring.is_open():
            return
        self._look_at_s = now_s + TICK_S
        live = ring.is_live()
        if live and ring.segment.is_current():
            self._gone_since_s = None
            return
        if self._reattach() or live:
            self._gone_since_s = None
            return
        if self._gone_since_s is None:
            self._gone_since_s = now_s
        if self._gone_after_s is not None and now_s - self._gone_since_s >= self._gone_after_s:
            if self._denied is not None:
                raise self._denied
            raise StreamGone(f"the publisher of {self.stream!r} is gone for {self._gone_after_s:g} s")

    def _reattach(self) -> bool:
        if self._ring.segment.is_current():
            return False  # nobody has put another file in its place; this one may be adopted, and its seats are ours
        try:
            ring = self._attach()
        except (StreamNotFound, LayoutMismatch, PermissionDenied, RingFull) as error:
            self._denied = error if isinstance(error, PermissionDenied) else None
            return False
        ring.reader.go_on(self._ring.reader, ring.header.first_sequence)
        self._reattached += 1
        ring.reader.report_to(self._record.segment)
        self._ring = ring
        self._event = 0
        return True

    def _attach(self) -> SubscriberRing:
        for _ in range(16):
            ring = SubscriberRing(self.stream, self._publisher_uid, every=self._mode == "every")
            take_seats(ring.segment, ring.geometry.slots, self._max_leases)
            if ring.segment.is_current():
                return ring
        raise StreamNotFound(f"the ring of {self.stream!r} is replaced again and again")

    def _wait_for_ring(self, wait_s: float | None) -> SubscriberRing:
        deadline_s = None if wait_s is None else time.monotonic() + wait_s
        while True:
            try:
                return self._attach()
            except StreamNotFound:
                if deadline_s is not None and time.monotonic() >= deadline_s:
                    raise
            time.sleep(TICK_S)

    def _check_use(self) -> None:
        thread = threading.get_ident()
        if self._thread is None:
            self._thread = thread
        if self._thread != thread:
            raise WrongThread("a subscriber belongs to the thread that first received: open one in each thread")
        if self._closed:
            raise Closed("the subscriber was closed")
        if self._ring.segment.fd < 0:
            raise Closed("the subscriber belongs to the parent process: open one after the fork")

    def _check_leases(self) -> None:
        if self._ring.reader.leases >= self._max_leases:
            raise TooManyLeases(
                f"{self._max_leases} frames are still viewed: copy what you keep (pixels.copy()), delete old views, or "
                f"subscribe with max_leases={self._max_leases + 1}"
            )

    def __iter__(self) -> Subscriber:
        return self

    def __next__(self) -> Frame:
        self._release_current()
        self._current = self.receive()
        return self._current

    def __aiter__(self) -> Subscriber:
        return self

    async def __anext__(self) -> Frame:
        self._release_current()
        self._current = await self.receive_async()
        return self._current

    def _release_current(self) -> None:
        if self._current is not None:
            self._current.release()
            self._current = None

    def __enter__(self) -> Subscriber:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()
