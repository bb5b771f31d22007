"""The side that renders frames into the ring."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from threading import get_ident
from time import monotonic
from typing import Any, Final, NoReturn

import numpy as np

from framebus.arguments import check_environment, seconds, shown, truth, whole_number
from framebus.bus import lifecycle
from framebus.bus.formats import FrameFormat
from framebus.bus.loans import Loan, PreparedFormat, pack_metadata
from framebus.errors import (
    Closed,
    FormatMismatch,
    FramebusError,
    FrameTooLarge,
    InvalidArgument,
    LoanOutstanding,
    NoFreeSlot,
    StreamExists,
    WrongThread,
)
from framebus.notify.local_socket import socket_path
from framebus.notify.notification import notification_message, topic
from framebus.notify.server import NotificationServer
from framebus.ring.claims import Claim
from framebus.ring.layout import MAX_LOANS, MAX_SLOTS, MIN_SLOTS, Geometry
from framebus.ring.rings import PublisherRing
from framebus.shm.locks import EXCLUSION_PATIENCE_S, take_exclusion
from framebus.shm.paths import check_name, companion_path

REPLACE_AFTER_S: Final = 1.0
"""How long no slot may be free before the ring is replaced."""
REPLACE_EVERY_S: Final = 10.0
"""The ring is replaced at most once in that time."""
FREE_SLOT_TICK_S: Final = 0.001
"""How often :meth:`Publisher.loan` looks for a free slot while it waits: a subscriber that lets go wakes nothing."""
NO_WAIT: Final = 0.0
_INT64: Final = (-(1 << 63), (1 << 63) - 1)


@dataclass(frozen=True, slots=True)
class PublisherStatistics:
    """What a publisher has done since it opened."""

    published: int
    """Frames published."""
    abandoned: int
    """Loans given back unpublished, the lost ones included."""
    lost: int
    """Loans that were given back because nothing referenced them any more."""
    dropped: int
    """Loans refused because no slot was free."""
    replaced: int
    """Times the ring was replaced because another process held its slots and did not let go."""
    adopted: bool
    """Whether the ring of an earlier publisher was taken over."""
    epoch: int
    """The random number that marks this life of the publisher."""
    sequence: int
    """Sequence of the newest frame published; 0 before the first of a new ring."""


class Publisher(lifecycle.Closable):
    """Publishes frames on a stream, without ever waiting for a subscriber.

    It belongs to the thread that first publishes or asks for a loan; :meth:`close` may be called from any. After a fork
    it belongs to the parent. One that was not closed is closed when it is collected, or when the interpreter exits.
    """

    _closed = True  # until it is open, for what ends an opening that failed
    _forked = _is_replacing = False

    def __init__(
        self,
        stream: str,
        frame_format: FrameFormat,
        *,
        slots: int = 8,
        max_loans: int = 1,
        keep_ring: bool = False,
    ) -> None:
        """Open the stream: adopt the ring that a crash left, or create one with all its memory.

        Args:
            stream: Name of the stream: letters, digits, ``-`` and ``_``.
            frame_format: The largest frame, and the format of a loan that names none.
            slots: Slots of the ring, 3 to 255: one for the newest frame, ``max_loans``, and as many as all subscribers
                may lease together.
            max_loans: Loans that may be out at the same time; each takes a slot from the subscribers.
            keep_ring: Leave the ring in /dev/shm at close, for the next publisher to adopt.

        Raises:
            InvalidArgument: An argument is of the wrong type or out of range.
            InvalidName: ``stream`` cannot be a file's name.
            StreamExists: Another publisher serves the stream.
            NotEnoughSharedMemory: /dev/shm has no room for the ring.
            PermissionDenied: A file of the stream belongs to another user.
            ResourceExhausted: The process has no descriptor, or no memory to map, left.
            UnsupportedEnvironment: gevent or eventlet has patched the standard library.
        """
        check_environment()
        self.stream: str = check_name(stream)
        """The stream's name."""
        if not isinstance(frame_format, FrameFormat):
            raise InvalidArgument(f"frame_format is a FrameFormat, as FrameFormat.of(array), not {shown(frame_format)}")
        self.format = frame_format
        """The largest frame, and the format of a loan that names none."""
        geometry = Geometry.for_frames(
            whole_number(slots, "slots", MIN_SLOTS, MAX_SLOTS),
            frame_format.frame_bytes,
            whole_number(max_loans, "max_loans", 1, MAX_LOANS),
        )
        self._keep_ring = truth(keep_ring, "keep_ring")
        self._thread: int | None = None
        self._abandoned = self._dropped = self._replaced = 0
        self._lost_before = 0
        self._full_since_s: float | None = None
        self._replace_not_before_s = 0.0
        self._lock_path = companion_path(stream, "lock")
        exclusion = take_exclusion(self._lock_path.name, EXCLUSION_PATIENCE_S)
        if exclusion is None:
            raise StreamExists(f"another publisher serves the stream {stream!r}")
        self._exclusion = exclusion
        try:
            self._ring = PublisherRing(stream, geometry)
            self._first_sequence = self._ring.writer.next_sequence
            self._use_ring()
            self._server = NotificationServer(socket_path(stream), topic(stream))
        except BaseException:
            ring: PublisherRing | None = self.__dict__.pop("_ring", None)
            if ring is not None:
                ring.close(unlink=not ring.adopted, then=lambda: None)
            with contextlib.suppress(OSError):  # a signal handler may have raised just after it was bound
                companion_path(stream, "sock").unlink(missing_ok=True)
            self._let_exclusion_go(unlink=True)
            raise
        self._closed = False
        lifecycle.register(self)

    @property
    def statistics(self) -> PublisherStatistics:
        """Counters since the publisher opened."""
        writer = self._ring.writer
        lost = self._lost_before + writer.lost
        return PublisherStatistics(
            writer.next_sequence - self._first_sequence,
            self._abandoned + lost,
            lost,
            self._dropped,
            self._replaced,
            self._ring.adopted,
            self._ring.epoch,
            writer.next_sequence - 1,
        )

    def publish(
        self,
        array: Any,
        *,
        captured_ns: int | None = None,
        captured_wall_ns: int | None = None,
        metadata: Mapping[str, Any] | None = None,
        timeout_s: float | None = NO_WAIT,
    ) -> int:
        """Copy an array into a free slot and publish it. To render without this copy, use :meth:`loan`.

        Args:
            array: Pixels of the shape and type of :attr:`format`; anything that numpy makes such an array of.
            captured_ns: When the frame was captured, CLOCK_MONOTONIC; ``None`` for now.
            captured_wall_ns: When the frame was captured, nanoseconds since 1970; ``None`` for now.
            metadata: A small map that travels with the frame, at most 832 bytes as msgpack.
            timeout_s: As for :meth:`loan`.

        Returns:
            The frame's sequence.

        Raises:
            FormatMismatch: The array has another shape or type.
            InvalidMetadata: The metadata is larger than its room, or a subscriber could not read it.
            InvalidArgument: A time is not a whole number of 64 bits, or ``timeout_s`` is not a time.
            NoFreeSlot, LoanOutstanding, WrongThread, Closed: As for :meth:`loan`.
        """
        self._check_use()
        pixels = self._check_array(array)
        pack_metadata(metadata)
        times = {"captured_ns": captured_ns, "captured_wall_ns": captured_wall_ns}
        given = {name: whole_number(value, name, *_INT64) for name, value in times.items() if value is not None}
        loan = self.loan(timeout_s=timeout_s)
        try:
            loan.pixels[...] = pixels
            for name, value in given.items():
                setattr(loan, name, value)
            loan.metadata = metadata or {}
            return loan.publish()
        except BaseException:
            loan.abandon()
            raise

    def loan(self, frame_format: FrameFormat | None = None, *, timeout_s: float | None = NO_WAIT) -> Loan:
        """Take the oldest free slot to write the next frame into.

        Args:
            frame_format: Format of this frame; it must fit the slot. ``None`` takes the stream's.
            timeout_s: Seconds to wait for a slot while none is free; ``None`` waits for ever. Honest subscribers leave
                one free, so only a process that pins slots makes it wait; it then looks every millisecond, at some 2 %
                of a core, and the frames that are captured meanwhile are late.

        Returns:
            Loan whose ``pixels`` is a writable, C-contiguous array of the format's shape on the slot itself. Its
            content is that of an older frame.

        Raises:
            NoFreeSlot: Every slot is held; the frame is to be dropped, and is counted as such.
            FrameTooLarge: The format needs more than a slot.
            LoanOutstanding: ``max_loans`` loans are neither published nor abandoned, and still referenced.
            InvalidArgument: ``frame_format`` is not a format, or ``timeout_s`` is not a time.
            WrongThread: Another thread owns the publisher.
            Closed: The publisher was closed.
        """
        if get_ident() != self._thread:
            self._check_use()
        prepared, description = self._prepared, self._description
        if frame_format is not None and frame_format is not self.format:
            prepared = self._prepare(frame_format)
            description = prepared.description
        if timeout_s is not NO_WAIT:
            timeout_s = seconds(timeout_s, "timeout_s")
        claim = self._ring.writer.claim(description)
        if claim is None:
            claim = self._claim_with_patience(description, timeout_s)
            if prepared.arrays is not None:
                prepared = self._prepared  # the claim may be in a new ring
        self._full_since_s = None
        now_ns = claim.now_ns
        if now_ns >= self._server.poll_at_ns:
            self._server.poll(now_ns)
        return Loan(prepared, claim, now_ns, self)

    def close(self) -> None:
        """Tell the subscribers, and leave nothing in /dev/shm (but the ring if it is kept). From any thread.

        Loans that are out can no longer be published. In another thread's call the publisher ends when that call does.
        """
        ring: PublisherRing | None = self.__dict__.get("_ring")
        if ring is None or self._forked:
            return
        self._closed = True
        self._thread = None  # so that the owner's next call looks closer, and finds it closed
        if not self._is_replacing:
            ring.close(unlink=not self._keep_ring, then=self._close_rest)

    def _close_rest(self) -> None:
        self._server.close()
        self._let_exclusion_go(unlink=not self._keep_ring)

    def _let_exclusion_go(self, *, unlink: bool) -> None:
        # Unlinked while it is locked: whoever locks it later sees that the path names another file, and begins anew.
        if unlink:
            with contextlib.suppress(OSError):
                self._lock_path.unlink(missing_ok=True)
        self._exclusion.close()

    def after_fork_in_child(self) -> None:
        """Leave the stream to the parent."""
        self._forked = True
        self._thread = None

    def _check_use(self) -> None:
        if self._closed:
            raise Closed("the publisher was closed")
        if self._forked:
            raise Closed("the publisher belongs to the parent process: open one after the fork")
        thread = get_ident()
        if self._thread is None:
            self._thread = thread
        if self._thread != thread:
            raise WrongThread(
                "a publisher belongs to the thread that first used it: open and use it in one thread, and from asyncio "
                "call it directly, since a loan does not wait; asyncio.to_thread and thread pools take any thread"
            )

    def _check_array(self, array: Any) -> np.ndarray[Any, Any]:
        shape, dtype = self._prepared.shape, self._prepared.dtype
        wanted = f"an array of shape {shape} and type {dtype}"
        try:
            pixels = np.asarray(array)
        except (TypeError, ValueError, RuntimeError) as error:
            raise FormatMismatch(f"{wanted} is wanted, and {type(array).__name__} makes none: {error}") from None
        if pixels.shape != shape or pixels.dtype != dtype:
            raise FormatMismatch(
                f"{wanted} is wanted, not {pixels.shape} and {pixels.dtype}: convert it, or open the publisher with "
                "FrameFormat.of(array)"
            )
        return pixels

    def _claim_with_patience(self, description: bytes, timeout_s: float | None) -> Claim:
        """Find out why there is no slot, and wait for one if that can help.

        Raises:
            LoanOutstanding: The loans are out.
            NoFreeSlot: No slot became free in time.
            Closed: The publisher was closed.
        """
        deadline_s = None if timeout_s is None else monotonic() + timeout_s
        while True:
            self._check_use()
            self._check_loans()
            claim = self._ring.writer.claim(description) or self._claim_in_new_ring(description)
            if claim is not None:
                return claim
            if deadline_s is not None and monotonic() >= deadline_s:
                break
            time.sleep(FREE_SLOT_TICK_S)
        self._check_use()
        self._dropped += 1
        raise NoFreeSlot(
            f"all {self._ring.geometry.slots} slots of {self.stream!r} are held: drop this frame, and see in "
            "'framebus top' which subscriber holds them"
        )

    def _check_loans(self) -> None:
        geometry = self._ring.geometry
        if self._ring.writer.loans < geometry.max_loans:
            return
        lifecycle.collect_garbage()  # loans in reference cycles, as an exception's traceback makes them, are lost too
        if self._ring.writer.loans >= geometry.max_loans:
            raise LoanOutstanding(
                f"{geometry.max_loans} of {geometry.max_loans} loans are neither published nor abandoned, and variables"
                " or views hold them: publish, abandon or delete one, or open the publisher with larger max_loans"
            )

    def _claim_in_new_ring(self, description: bytes) -> Claim | None:
        """When slots have been held for long, go on in a new ring.

        Seats keep honest subscribers from holding every slot, so whatever does is not honest, or stopped. Loans that
        are out belong to the old ring, and would never be seen: while there are any, it stays.
        """
        now_s = monotonic()
        if self._full_since_s is None:
            self._full_since_s = now_s
            return None
        writer = self._ring.writer
        if now_s - self._full_since_s < REPLACE_AFTER_S or now_s < self._replace_not_before_s or writer.loans:
            return None
        self._replace_not_before_s = now_s + REPLACE_EVERY_S
        self._is_replacing = True
        try:
            self._ring.replace(self.stream)
        except FramebusError:
            return None  # no room, or a neighbour was at the new file too: the next try is REPLACE_EVERY_S later
        finally:
            self._is_replacing = False
            if self._closed:
                self.close()
        self._use_ring()
        self._lost_before += writer.lost
        self._replaced += 1
        return self._ring.writer.claim(description)

    def _prepare(self, frame_format: FrameFormat) -> PreparedFormat:
        """Work out what is the same for all frames of a format."""
        if not isinstance(frame_format, FrameFormat):
            raise InvalidArgument(f"frame_format is a FrameFormat or None, not {shown(frame_format)}")
        if frame_format.frame_bytes > self._ring.geometry.slot_bytes:
            raise FrameTooLarge(
                f"a frame of {frame_format.frame_bytes} bytes does not fit a slot of {self._ring.geometry.slot_bytes}: "
                "open the publisher with the largest format"
            )
        description = frame_format.description
        message = notification_message(self.stream, self._ring.epoch, description)
        shape, dtype = frame_format.shape, np.dtype(frame_format.dtype)
        return PreparedFormat(frame_format, shape, dtype, description.pack(), message, None)

    def _use_ring(self) -> None:
        """Prepare the stream's own format, with an array on each slot of the ring."""
        prepared, ring = self._prepare(self.format), self._ring
        arrays = ring.slot_arrays(prepared.shape, self.format.typestr)
        ring.writer.watch(arrays)
        self._prepared, self._description = replace(prepared, arrays=arrays), prepared.description

    def _publish(self, loan: Loan, claim: Claim, prepared: PreparedFormat) -> int:
        # Hot path: every extra call here costs a few microseconds of cold-cache latency.
        if get_ident() != self._thread:
            self._check_use_of(claim)
        writer = self._ring.writer
        sequence = writer.next_sequence
        try:
            metadata = loan.metadata
            if type(metadata) is not dict or metadata:
                self._ring.write_metadata(claim.slot, pack_metadata(metadata))
            writer.publish(claim, loan.captured_ns, loan.captured_wall_ns, self._server.listening, prepared.message)
        except BaseException:
            if claim.is_open:
                claim.abandon()
                self._abandoned += 1
            self._check_use()
            raise
        return sequence

    def _abandon(self, claim: Claim) -> None:
        thread = self._thread
        if thread is not None and get_ident() != thread:
            self._check_use()
        if claim.is_open and not self._forked:
            claim.abandon()
            self._abandoned += 1

    def _check_use_of(self, claim: Claim) -> None:
        """Like :meth:`_check_use`; a closed publisher lets go of the claim."""
        try:
            self._check_use()
        except Closed:
            if not self._forked:
                claim.abandon()
            raise

    def __reduce__(self) -> NoReturn:
        raise TypeError("a publisher holds locks of its process, and cannot be pickled: open one in the other process")
