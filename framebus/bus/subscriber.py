"""The side that reads frames from the ring."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from threading import get_ident
from typing import Final, Unpack, get_args

from framebus.arguments import check_environment, one_of, seconds, whole_number
from framebus.bus import lifecycle
from framebus.bus.attachment import TICK_S, Attachment
from framebus.bus.frames import Frame
from framebus.bus.options import Mode, SubscriberOptions, Wake
from framebus.bus.statistics import SubscriberStatistics
from framebus.errors import AlreadyInUse, ReceiveTimeout, StreamNotFound
from framebus.ring.admission import new_record
from framebus.ring.layout import MAX_SLOTS
from framebus.ring.subscriber_ring import StaleRing
from framebus.shm.paths import check_name

MAX_UID: Final = (1 << 32) - 2


class Subscriber(lifecycle.Endpoint):
    """Receives the frames of a stream, without a copy.

    It belongs to the thread that first receives with it, and one call at a time; frames may be released in any thread,
    and :meth:`close` may be called from any. After a fork it belongs to the parent. Iterate over it, or ``async for``,
    or call :meth:`receive`. One that was not closed is closed when it is collected, or when the interpreter exits.
    """

    kind = "subscriber"
    advice = (
        "open one in each thread, and in asyncio await receive_async() in place of asyncio.to_thread(), which takes "
        "any thread of its pool"
    )
    # Until it is open, for the close of one whose opening failed.
    _receiving = False
    _current: Frame | None = None

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
                follow; each counts as a lease while it is held. With ``every``, none since the subscription is left
                out, even if the ring was empty.
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
        max_leases = whole_number(max_leases, "max_leases", 1, MAX_SLOTS)
        history = whole_number(history, "history", 0, MAX_SLOTS)
        if publisher_uid is not None:
            publisher_uid = whole_number(publisher_uid, "publisher_uid", 0, MAX_UID)
        gone_after_s = seconds(gone_after_s, "gone_after_s")
        # Of the instance: the interpreter finds the class's own values by a slower way, at every frame.
        self._forked = self._receiving = False
        self._thread = None
        self._attachment = Attachment(
            stream,
            new_record(name, mode, wake, max_leases),
            history=history,
            publisher_uid=publisher_uid,
            attach_timeout_s=attach_timeout_s,
            gone_after_s=gone_after_s,
        )
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
        return self._attachment.statistics

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

        Source: fcntl(2), "Open file description locks"; offsets in docs/spec.md.
        """
        deadline_s = None if timeout_s is None else time.monotonic() + (seconds(timeout_s, "timeout_s") or 0.0)
        if get_ident() != self._thread or self._receiving:
            self._check_use()
        self._receiving = True
        try:
            if self._closed:  # by another thread, since the check above
                self._check_open()
            attachment = self._attachment
            attachment.check_leases()
            while (lease := attachment.find()) is None:
                lease = attachment.wait(self._slice(deadline_s))
                if self._closed or self._forked:
                    self._check_open()
                if lease is not None:
                    break
            return attachment.deliver(lease)
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
        deadline_s = None if timeout_s is None else time.monotonic() + (seconds(timeout_s, "timeout_s") or 0.0)
        ready = asyncio.Event()
        self._check_use()
        self._receiving = True
        descriptor = -1
        try:
            self._check_open()
            descriptor = self.fileno()  # which stays open from here on
            loop.add_reader(descriptor, ready.set)
            attachment = self._attachment
            attachment.check_leases()
            while (lease := attachment.find()) is None:
                slice_s = self._slice(deadline_s)
                ready.clear()
                with contextlib.suppress(TimeoutError):  # the slice is over
                    async with asyncio.timeout(slice_s):
                        await ready.wait()
                self._check_open()
            return attachment.deliver(lease)
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
        try:
            return self._attachment.fileno()
        except (ValueError, OSError):
            self._check_open()  # another thread has closed it meanwhile
            raise

    def close(self) -> None:
        """Leave the stream; from any thread, and in the middle of a receive, which then raises :class:`Closed`.

        Frames and views still held stay readable, and hold their slots until they go.
        """
        self._begin_close()
        attachment: Attachment | None = self.__dict__.get("_attachment")
        if attachment is not None:
            # At once: a daemon thread that receives goes no further when the interpreter exits.
            attachment.retire()
            if not self._receiving:
                self._leave()

    def _leave(self) -> None:
        """Release all that the subscriber holds; while no thread is in the middle of a receive."""
        self._current = None  # not released: a loop in another thread may be reading it
        self._attachment.leave()

    def _slice(self, deadline_s: float | None) -> float:
        left_s = TICK_S if deadline_s is None else deadline_s - time.monotonic()
        if left_s <= 0:
            raise ReceiveTimeout(f"no new frame of {self.stream!r} in time")
        return min(TICK_S, left_s)

    def _check_use(self) -> None:
        self._check_owner()
        if self._receiving:
            raise AlreadyInUse(
                "this subscriber is in the middle of a receive: open one for each task, and do not receive in a signal "
                "handler"
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
