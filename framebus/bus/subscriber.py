"""The subscriber, which reads frames from the ring."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from threading import get_ident
from typing import Final, Unpack, get_args

from framebus.arguments import check_environment, one_of, seconds, whole_number
from framebus.bus import lifecycle
from framebus.bus.attachment import TICK_S, Attachment
from framebus.bus.frames import Frame
from framebus.bus.options import Mode, SubscriberOptions, Wake
from framebus.bus.readiness import Readiness
from framebus.bus.statistics import SubscriberStatistics
from framebus.errors import AlreadyInUse, ReceiveTimeout, StreamNotFound
from framebus.ring.admission import new_record
from framebus.ring.layout import MAX_SLOTS
from framebus.ring.subscriber_ring import StaleRing
from framebus.shm.paths import check_name

MAX_UID: Final = (1 << 32) - 2


class Subscriber(lifecycle.Endpoint):
    """Receives the frames of a stream, without copying them.

    Iterate over the subscriber with ``for`` or ``async for``, or call :meth:`receive`.

    A subscriber belongs to the thread that first receives, which makes one call at a time. Frames may be released, and
    :meth:`close` may be called, from any thread. After a fork, the subscriber belongs to the parent. It is closed
    automatically when it is garbage-collected, or when the interpreter exits.
    """

    kind = "subscriber"
    advice = (
        "open one in each thread, and in asyncio await receive_async() instead of asyncio.to_thread(), which uses "
        "any thread of its pool"
    )
    # Defaults for close(), which also runs if the constructor fails before it has set these.
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
        """Attach to the stream of a live publisher.

        ``wake`` selects how to wait for a frame. docs/benchmarks.md has figures.

        * ``zmq`` waits on a socket. It is the only way with a descriptor for poll(2) and asyncio.
        * ``futex`` waits in the kernel on a word of the ring, and wakes up sooner.
        * ``predict`` predicts the arrival of the next frame, and spins from shortly before it. It is faster again.
          CPU cost grows with jitter: a few hundred microseconds per frame at a steady rate, up to a quarter of a
          core. If the arrival is unpredictable, it waits like ``futex``.
        * ``busy`` always spins, which takes a whole core.

        Args:
            stream: Name of the stream.
            name: Name of this subscriber in ``framebus top``.
            mode: ``newest`` skips frames that the subscriber has missed; ``every`` receives all frames in order while
                the ring still holds them.
            wake: How to wait for a frame: ``zmq``, ``futex``, ``predict`` or ``busy``.
            max_leases: Frames that may be held at a time, including those held by views on their pixels.
            history: How many of the frames that the ring still holds to receive first, in order. Each counts as a lease
                while it is held. With ``every``, frames published since the subscription are not skipped, even if the
                ring was empty.
            attach_timeout_s: Seconds to wait for a publisher, which allows the two sides to start in any order; 0 tries
                once, ``None`` waits forever. In an event loop, use :meth:`attach`.
            gone_after_s: Seconds that the publisher may be gone before :meth:`receive` raises; ``None`` never raises.
            publisher_uid: Number of the user whose frames are accepted; ``None`` accepts those of any user. The owner
                of a ring can truncate it, which ends its readers with SIGBUS, so a ring of another user is not even
                mapped.

        Raises:
            InvalidArgument: An argument is of the wrong type or out of range.
            InvalidName: ``stream`` or ``name`` contains other characters than letters, digits, ``-`` and ``_``.
            StreamNotFound: No publisher opened the stream within ``attach_timeout_s``.
            SubscriberLimitReached: The ring has fewer free leases than ``max_leases``.
            LayoutMismatch: The ring has an unsupported layout version, or is corrupted.
            PermissionDenied: This user may not open the ring, and the message names the group to run with; or the ring
                does not belong to ``publisher_uid``.
            NotEnoughSharedMemory: The subscriber's record, of one page, does not fit in /dev/shm.
            ResourceExhausted: The process has run out of descriptors or of memory to map.
            UnsupportedEnvironment: gevent or eventlet has patched the standard library.
        """
        check_environment()
        self.stream: str = check_name(stream)
        """The stream's name."""
        self.name: str = check_name(name, "subscriber")
        """Name of this subscriber in ``framebus top``."""
        one_of(mode, "mode", get_args(Mode))
        one_of(wake, "wake", get_args(Wake))
        if publisher_uid is not None:
            publisher_uid = whole_number(publisher_uid, "publisher_uid", 0, MAX_UID)
        # Set on the instance, because looking up a class attribute would be slower, at every frame.
        self._forked = self._receiving = False
        self._thread = None
        self._attachment = Attachment(
            stream,
            new_record(name, mode, wake, whole_number(max_leases, "max_leases", 1, MAX_SLOTS)),
            history=whole_number(history, "history", 0, MAX_SLOTS),
            publisher_uid=publisher_uid,
            attach_timeout_s=seconds(attach_timeout_s, "attach_timeout_s"),
            gone_after_s=seconds(gone_after_s, "gone_after_s"),
        )
        self._closed = False
        lifecycle.register(self)

    @classmethod
    async def attach(
        cls, stream: str, *, attach_timeout_s: float | None = 10.0, **options: Unpack[SubscriberOptions]
    ) -> Subscriber:
        """Attach like ``Subscriber(...)``, without blocking the event loop.

        ``async with await Subscriber.attach("panorama") as subscriber`` closes it at the end of the block.

        Args:
            stream: Name of the stream.
            attach_timeout_s: Seconds to wait for a publisher; ``None`` waits forever.
            **options: The other keyword arguments of :class:`Subscriber`.
        """
        timeout_s = seconds(attach_timeout_s, "attach_timeout_s")
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            try:
                # Try once without waiting, and sleep in the event loop instead of in the constructor.
                return cls(stream, attach_timeout_s=0.0, **options)
            except (StreamNotFound, StaleRing):
                if deadline_s is not None and time.monotonic() >= deadline_s:
                    raise
            await asyncio.sleep(TICK_S)

    @property
    def statistics(self) -> SubscriberStatistics:
        """Counters since the subscriber attached. After :meth:`close`, their last values."""
        return self._attachment.statistics

    def receive(self, timeout_s: float | None = None) -> Frame:
        """Receive the newest unseen frame or, in the mode ``every``, the next one, without copying it.

        If ``timeout_s`` is ``None``, block until a frame arrives. If ``timeout_s`` is 0, return a frame that is already
        there, else raise :class:`~framebus.ReceiveTimeout`.

        The publisher cannot reuse the frame's slot while the frame, or any view on its pixels, lives.

        Args:
            timeout_s: Seconds to wait for a frame.

        Returns:
            A frame, whose ``pixels`` is a read-only, C-contiguous array of the format's shape. ``captured_ns`` is
            CLOCK_MONOTONIC. ``skipped`` counts the frames missed since the previous one.

        Raises:
            ReceiveTimeout: No new frame arrived within ``timeout_s``.
            TooManyLeases: ``max_leases`` earlier frames are still held; the message lists them.
            StreamGone: The publisher closed or died, and no other one opened the stream within ``gone_after_s``.
            PermissionDenied, LayoutMismatch, SubscriberLimitReached: The publisher is gone, and this subscriber cannot
                attach to the ring that replaced its ring.
            InvalidArgument: ``timeout_s`` is not a number of seconds.
            WrongThread: Another thread owns the subscriber.
            AlreadyInUse: Another task is receiving, or a signal handler interrupted a receive.
            Closed: The subscriber was closed, before or during the call.

        Sources: fcntl(2), "Open file description locks"; docs/spec.md.
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
        """Receive a frame like :meth:`receive`, without blocking the event loop.

        Only one task may receive at a time. Cancelling it loses no frame.

        Raises:
            InvalidArgument: The subscriber was not opened with ``wake="zmq"``, which an event loop requires.
        """
        deadline_s = None if timeout_s is None else time.monotonic() + (seconds(timeout_s, "timeout_s") or 0.0)
        self._check_use()
        self._receiving = True
        try:
            self._check_open()
            attachment = self._attachment
            with Readiness(self.fileno()) as readiness:
                attachment.check_leases()
                while (lease := attachment.find()) is None:
                    await readiness.wait(self._slice(deadline_s))
                    self._check_open()
                return attachment.deliver(lease)
        finally:
            lease = None  # the traceback of a TimeoutError may keep this variable alive, and with it the slot
            self._receiving = False
            if self._closed:
                self._leave()

    def fileno(self) -> int:
        """Return a descriptor for poll(2) and event loops. It requires ``wake="zmq"``.

        It is readable while there are notifications. To consume them, call ``receive(timeout_s=0)`` until it raises
        :class:`ReceiveTimeout`. Also call it at least every 50 ms, because the descriptor does not become readable when
        a publisher opens the stream.

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
            self._check_open()  # raises Closed if another thread has closed the subscriber meanwhile
            raise

    def close(self) -> None:
        """Leave the stream.

        May be called from any thread. A receive in another thread then raises :class:`Closed`. Frames and views that
        are still held stay readable, and hold their slots until they go.
        """
        self._begin_close()
        attachment: Attachment | None = self.__dict__.get("_attachment")
        if attachment is not None:
            # Remove the record now, because a daemon thread in the middle of a receive never runs again after the
            # interpreter has exited.
            attachment.retire()
            if not self._receiving:
                self._leave()

    def _leave(self) -> None:
        """Release everything that the subscriber holds. No thread may be in the middle of a receive."""
        self._current = None  # dropped, but not released: a loop in another thread may be reading it
        self._attachment.leave()

    def _slice(self, deadline_s: float | None) -> float:
        left_s = TICK_S if deadline_s is None else deadline_s - time.monotonic()
        if left_s <= 0:
            raise ReceiveTimeout(f"no new frame of {self.stream!r} in time")
        # Wake up after a tick at the latest: a publisher that is killed wakes no subscriber.
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
