"""The side that reads frames from the ring."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from threading import get_ident
from typing import Final, Literal, NoReturn, TypedDict, Unpack, get_args

from framebus.arguments import check_environment, one_of, seconds, whole_number
from framebus.bus import lifecycle
from framebus.bus.frames import Frame
from framebus.bus.pace import Pace
from framebus.errors import (
    AlreadyInUse,
    Closed,
    FramebusError,
    InvalidArgument,
    LayoutMismatch,
    PermissionDenied,
    ReceiveTimeout,
    ResourceExhausted,
    StreamGone,
    StreamNotFound,
    SubscriberLimitReached,
    TooManyLeases,
    WrongThread,
)
from framebus.notify.listener import Listener
from framebus.ring.admission import Record, new_record, remove_dead_records, take_seats
from framebus.ring.frame_header import FrameHeader
from framebus.ring.layout import MAX_SLOTS
from framebus.ring.leases import Lease
from framebus.ring.rings import StaleRing, SubscriberRing
from framebus.shm.paths import check_name

TICK_S: Final = 0.05
"""A wait is cut into slices of that length: nothing wakes a waiter when the publisher is killed."""

Mode = Literal["newest", "every"]
Wake = Literal["zmq", "futex", "predict", "busy"]
BUSY_NS: Final = 500_000
"""How long to look without a rehearsal: its effect wears off."""
MAX_UID: Final = (1 << 32) - 2


class SubscriberOptions(TypedDict, total=False):
    """The keyword arguments of :class:`Subscriber`, but for the time to wait for a publisher."""

    name: str
    mode: Mode
    wake: Wake
    max_leases: int
    history: int
    gone_after_s: float | None
    publisher_uid: int | None


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
    """Messages on the notification socket that were not of this stream."""
    reattached: int
    """Times another ring file took the place of the first."""
    leases: int
    """Frames held now."""


class Subscriber(lifecycle.Closable):
    """Receives the frames of a stream, without a copy.

    It belongs to the thread that first receives with it, and one call at a time; frames may be released in any thread,
    and :meth:`close` may be called from any. After a fork it belongs to the parent. Iterate over it, or ``async for``,
    or call :meth:`receive`. One that was not closed is closed when it is collected, or when the interpreter exits.
    """

    # Until it is open, for what ends an opening that failed.
    _closed = True
    _forked = _receiving = _left = False
    _current: Frame | None = None
    _record: Record | None = None
    _listener: Listener | None = None

    def __init__(
        self,
        stream: str,
        *,
        name: str = "subscriber",
        mode: Mode = "newest",
        wake: Wake = "zmq",
        max_leases: int = 2,
        history: int = 0,
        attach_timeout_s: float | None = 10.0,
        gone_after_s: float | None = 10.0,
        publisher_uid: int | None = None,
    ) -> None:
        """Attach to the stream of a publisher that lives.

        Args:
            stream: Name of the stream.
            name: What ``framebus top`` shows for this subscriber.
            mode: ``newest`` skips what was missed; ``every`` takes all in order while the ring still has them.
            wake: How to wait for a frame. ``zmq`` waits on a socket, which has a descriptor for poll and asyncio.
                ``futex`` waits in the kernel, on a word of the ring, and wakes sooner. ``predict`` learns the stream's
                pace and looks for a frame from shortly before it is due: faster again, for a few hundred microseconds
                of CPU a frame where the pace is steady, up to a quarter of a core where it is not; where there is no
                pace, it is ``futex``. ``busy`` looks all the time, and takes a whole core. docs/benchmarks.md has
                figures.
            max_leases: Frames that may be held at once, views on their pixels included.
            history: How many of the frames that the ring still holds to receive first, in order, before those that
                follow; each counts as a lease while it is held.
            attach_timeout_s: Seconds to wait for a publisher, so that the two sides may start in any order; 0 looks
                once, ``None`` waits for ever. In an event loop use :meth:`attach`.
            gone_after_s: Seconds that a publisher may be gone before :meth:`receive` raises; ``None``: for ever.
            publisher_uid: The user, by number, whose frames are wanted. Whoever serves a ring can also cut it short
                under its readers, which ends them with SIGBUS; a ring of another user is not even mapped. ``None``
                takes anybody's.

        Raises:
            InvalidArgument: An argument is of the wrong type or out of range.
            InvalidName: ``stream`` or ``name`` holds other than letters, digits, ``-`` and ``_``.
            StreamNotFound: No publisher within ``attach_timeout_s``.
            SubscriberLimitReached: The ring has too few slots left for ``max_leases``.
            LayoutMismatch: The ring is of another version of the layout, or damaged.
            PermissionDenied: The ring is closed to this user, and the message names the group to run with; or it does
                not belong to ``publisher_uid``.
            NotEnoughSharedMemory: /dev/shm has no room for the subscriber's record, of one page.
            ResourceExhausted: The process has no descriptor, or no memory to map, left.
            UnsupportedEnvironment: gevent or eventlet has patched the standard library.
        """
        check_environment()
        self.stream: str = check_name(stream)
        """The stream's name."""
        self.name: str = check_name(name, "subscriber")
        """What ``framebus top`` shows for this subscriber."""
        one_of(mode, "mode", get_args(Mode))
        one_of(wake, "wake", get_args(Wake))
        attach_timeout_s = seconds(attach_timeout_s, "attach_timeout_s")
        self._mode = mode
        self._wake = wake
        self._pace = Pace() if wake == "predict" else None
        self._max_leases = whole_number(max_leases, "max_leases", 1, MAX_SLOTS)
        self._history = whole_number(history, "history", 0, MAX_SLOTS)
        if publisher_uid is not None:
            publisher_uid = whole_number(publisher_uid, "publisher_uid", 0, MAX_UID)
        self._publisher_uid = publisher_uid
        self._gone_after_s = seconds(gone_after_s, "gone_after_s")
        # Of the instance: the interpreter finds the class's own values by a slower way, at every frame.
        self._forked = self._receiving = False
        self._listener = None
        self._obstacle: FramebusError | None = None
        self._gone_since_s: float | None = None
        self._look_at_s = 0.0
        self._thread: int | None = None
        self._event = 0
        self._reattached = 0
        self._delivered: FrameHeader | None = None
        try:
            self._ring = self._wait_for_ring(attach_timeout_s)
            remove_dead_records(stream)
            self._record = Record(stream, new_record(name, mode, wake, self._max_leases))
            self._ring.reader.report_to(self._record.segment)
            if wake == "zmq":
                self._listener = Listener(stream)
        except BaseException:
            self.close()
            raise
        self._closed = False
        lifecycle.register(self)

    @classmethod
    async def attach(
        cls, stream: str, *, attach_timeout_s: float | None = 10.0, **options: Unpack[SubscriberOptions]
    ) -> Subscriber:
        """Like ``Subscriber(...)``, for an event loop: other tasks run while this one waits for a publisher.

        ``async with await Subscriber.attach("panorama") as subscriber`` closes it at the end of the block.

        Args:
            stream: Name of the stream.
            attach_timeout_s: Seconds to wait for a publisher; ``None`` waits for ever.
            **options: The other keyword arguments of :class:`Subscriber`.
        """
        timeout_s = seconds(attach_timeout_s, "attach_timeout_s")
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            try:
                return cls(stream, attach_timeout_s=0.0, **options)
            except (StreamNotFound, StaleRing):
                if deadline_s is not None and time.monotonic() >= deadline_s:
                    raise
            await asyncio.sleep(TICK_S)

    @property
    def statistics(self) -> SubscriberStatistics:
        """Counters since the subscriber attached; after its close, the last ones."""
        ring: SubscriberRing | None = self.__dict__.get("_ring")
        return self._final_statistics if ring is None else self._count(ring)

    def _count(self, ring: SubscriberRing) -> SubscriberStatistics:
        reader = ring.reader
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
            Frame whose ``pixels`` is read-only, C-contiguous, of the shape that its format says. ``captured_ns`` is
            CLOCK_MONOTONIC; ``skipped`` counts frames missed since the previous one.

        Raises:
            ReceiveTimeout: No new frame within ``timeout_s``.
            TooManyLeases: ``max_leases`` earlier frames are still viewed; the message names them.
            StreamGone: The publisher closed or died, and none came back within ``gone_after_s``.
            PermissionDenied, LayoutMismatch, SubscriberLimitReached: The same, and a ring that this subscriber cannot
                attach to is in its place.
            InvalidArgument: ``timeout_s`` is not a time.
            WrongThread: Another thread owns the subscriber.
            AlreadyInUse: Another task, or what a signal handler interrupted, is receiving.
            Closed: The subscriber was closed, before or meanwhile.

        Source: fcntl(2), "Open file description locks"; offsets in layout.py.
        """
        deadline_s = None
        if timeout_s is not None:
            deadline_s = time.monotonic() + (seconds(timeout_s, "timeout_s") or 0.0)
        if get_ident() != self._thread or self._receiving:
            self._check_use()
        self._receiving = True
        try:
            if self._closed:  # by another thread, while this one looked whose it is
                self._check_open()
            self._check_leases()
            while (lease := self._take()) is None:
                if self._is_quiet():
                    self._look_after_publisher()
                    lease = self._wait(self._slice(deadline_s))
                    if self._closed or self._forked:
                        self._check_open()
                    if lease is not None:
                        break
            return self._deliver(lease)
        finally:
            self._receiving = False
            if self._closed:
                self._leave()

    async def receive_async(self, timeout_s: float | None = None) -> Frame:
        """Like :meth:`receive`, for an event loop: other tasks run while this one waits. A cancel loses no frame.

        One task receives at a time.

        Raises:
            InvalidArgument: The subscriber was not opened with ``wake="zmq"``: an event loop can wait for nothing else.
        """
        loop = asyncio.get_running_loop()
        self.fileno()
        deadline_s = None
        if timeout_s is not None:
            deadline_s = time.monotonic() + (seconds(timeout_s, "timeout_s") or 0.0)
        ready = asyncio.Event()
        if self._receiving:
            self._check_use()
        self._receiving = True
        descriptor = -1
        lease = None
        try:
            self._check_open()
            descriptor = self.fileno()  # which stays open from here on
            loop.add_reader(descriptor, ready.set)
            while True:
                self._check_open()
                self._check_leases()
                if (lease := self._take()) is not None:
                    return self._deliver(lease)
                if not self._is_quiet():
                    continue
                self._look_after_publisher()
                slice_s = self._slice(deadline_s)
                ready.clear()
                with contextlib.suppress(TimeoutError):  # the slice is over
                    async with asyncio.timeout(slice_s):
                        await ready.wait()
        finally:
            lease = None  # the traceback of a slice's TimeoutError may keep these variables
            if descriptor >= 0:
                loop.remove_reader(descriptor)
            self._receiving = False
            if self._closed:
                self._leave()

    def fileno(self) -> int:
        """Descriptor for poll(2) and event loops, of a subscriber opened with ``wake="zmq"``.

        It is readable while notifications have come; call ``receive(timeout_s=0)`` until it raises
        :class:`ReceiveTimeout`, which takes them. Look at least every 50 ms without it too, for nothing makes it
        readable when a publisher opens.

        Raises:
            InvalidArgument: The subscriber was opened with another ``wake``.
            ResourceExhausted: The process has no descriptor left.
            WrongThread, Closed: As for :meth:`receive`.
        """
        if get_ident() != self._thread:
            self._check_use()
        if self._listener is None:
            raise InvalidArgument(f"a subscriber with wake={self._wake!r} has no descriptor: open it with wake='zmq'")
        try:
            return self._listener.fileno()
        except (ValueError, OSError):
            self._check_open()  # another thread has closed it meanwhile
            raise

    def close(self) -> None:
        """Leave the stream; from any thread, and in the middle of a receive, which then raises :class:`Closed`.

        Frames and views still held stay readable, and hold their slots until they go.
        """
        self._closed = True
        self._thread = None  # so that the owner's next call looks closer, and finds it closed
        if self._record is not None:
            # At once: a daemon thread that receives goes no further when the interpreter exits.
            self._record.remove()
        if not self._receiving:
            self._leave()

    def after_fork_in_child(self) -> None:
        """Leave the subscription to the parent."""
        self._forked = True
        self._thread = None

    def _leave(self) -> None:
        """Give up all that the subscriber holds; while no thread is in the middle of a receive.

        Each step may be taken again, for a signal handler may raise between any two, and two threads may close at once.
        """
        if self._left:
            return
        ring: SubscriberRing | None = self.__dict__.get("_ring")
        if ring is not None:
            self._current = None  # not released: a loop in another thread may be reading it
            self._final_statistics = self._count(ring)
            self.__dict__.pop("_ring", None)  # the file is unmapped when the last view goes
        if self._listener is not None:
            self._listener.close()
        self._left = True

    def _take(self) -> Lease | None:
        """Lease what is there."""
        ring = self._ring
        self._event = ring.event()
        return ring.take()

    def _deliver(self, lease: Lease) -> Frame:
        ring = self._ring
        if ring.cold and lease.slot in ring.cold:
            ring.prefault(lease.slot)
        self._delivered = lease.header
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
            if self._delivered is not None:  # learnt here, where no frame waits for it
                self._pace.learn(self._delivered.sequence, self._delivered.published_ns)
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
            if self._obstacle is not None:
                raise self._obstacle
            raise StreamGone(f"the publisher of {self.stream!r} is gone for {self._gone_after_s:g} s")

    def _reattach(self) -> bool:
        if self._ring.segment.is_current():
            return False  # no other file is in its place; this one may be adopted, and its seats are ours
        try:
            ring = self._attach()
        except StreamNotFound:
            self._obstacle = None
            return False
        except (LayoutMismatch, PermissionDenied, ResourceExhausted, SubscriberLimitReached) as error:
            self._obstacle = error
            return False
        ring.reader.resume_from(self._ring.reader, ring.header.first_sequence)
        self._reattached += 1
        if self._record is not None:
            ring.reader.report_to(self._record.segment)
        self._ring = ring
        self._event = 0
        return True

    def _attach(self) -> SubscriberRing:
        for _ in range(16):
            ring = SubscriberRing(self.stream, self._publisher_uid, every=self._mode == "every", history=self._history)
            take_seats(ring.segment, ring.geometry, self._max_leases)
            if ring.segment.is_current():
                return ring
        raise StreamNotFound(f"the ring of {self.stream!r} is replaced again and again")

    def _wait_for_ring(self, attach_timeout_s: float | None) -> SubscriberRing:
        deadline_s = None if attach_timeout_s is None else time.monotonic() + attach_timeout_s
        while True:
            try:
                return self._attach()
            except (StreamNotFound, StaleRing):
                if deadline_s is not None and time.monotonic() >= deadline_s:
                    raise
            time.sleep(TICK_S)

    def _check_use(self) -> None:
        self._check_open()
        thread = get_ident()
        if self._thread is None:
            self._thread = thread
        if self._thread != thread:
            raise WrongThread(
                "a subscriber belongs to the thread that first received: open one in each thread, and in asyncio await "
                "receive_async() in place of asyncio.to_thread(), which takes any thread of its pool"
            )
        if self._receiving:
            raise AlreadyInUse(
                "this subscriber is in the middle of a receive: open one for each task, and do not receive in a signal "
                "handler"
            )

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("the subscriber was closed")
        if self._forked:
            raise Closed("the subscriber belongs to the parent process: open one after the fork")

    def _check_leases(self) -> None:
        reader = self._ring.reader
        if reader.leases < self._max_leases:
            return
        lifecycle.collect_garbage()  # nothing holds frames in reference cycles, as an exception's traceback makes them
        if reader.leases < self._max_leases:
            return
        held = ", ".join(map(str, reader.held()))
        raise TooManyLeases(
            f"{self._max_leases} frames are still held, with the sequences {held}: a variable of an earlier turn, a "
            "slice or view of the pixels, a list, a traceback or a tensor that shares memory holds its frame; copy "
            "what you keep (pixels.copy()), release or delete the others, or subscribe with "
            f"max_leases={self._max_leases + 1}"
        )

    def __iter__(self) -> Iterator[Frame]:
        return self

    def __next__(self) -> Frame:
        self._release_current()
        self._current = self.receive()
        return self._current

    def __aiter__(self) -> AsyncIterator[Frame]:
        return self

    async def __anext__(self) -> Frame:
        self._release_current()
        self._current = await self.receive_async()
        return self._current

    def _release_current(self) -> None:
        current, self._current = self._current, None
        if current is not None:
            current.release()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a subscriber holds locks of its process, and cannot be pickled: open one in the other process")
