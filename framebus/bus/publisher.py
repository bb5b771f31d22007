"""The publisher, which writes frames into the ring."""

from __future__ import annotations

import time
from collections.abc import Mapping
from threading import get_ident
from time import monotonic
from typing import Any, Final

from framebus.arguments import boolean, check_environment, seconds, short_repr, whole_number
from framebus.bus import lifecycle
from framebus.bus.formats import FrameFormat
from framebus.bus.loans import Loan, pack_metadata
from framebus.bus.served_stream import PreparedFormat, ServedStream
from framebus.bus.statistics import PublisherStatistics
from framebus.errors import Closed, InvalidArgument, LoanOutstanding, NoFreeSlot
from framebus.ring.claims import Claim
from framebus.ring.layout import MAX_LOANS, MAX_SLOTS, MIN_SLOTS, Geometry
from framebus.shm.paths import check_name

FREE_SLOT_TICK_S: Final = 0.001
"""How often :meth:`Publisher.loan` retries for a slot, because a subscriber that releases one wakes no process."""
NO_WAIT: Final = 0.0
_INT64: Final = (-(1 << 63), (1 << 63) - 1)


class Publisher(lifecycle.Endpoint):
    """Publishes frames on a stream, without waiting for subscribers.

    A publisher belongs to the thread that first publishes or requests a loan. :meth:`close` may be called from any
    thread. After a fork, it belongs to the parent. It is closed automatically when it is garbage-collected, or when the
    interpreter exits.
    """

    kind = "publisher"
    advice = (
        "open and use it in one thread; in asyncio call it directly, because a loan does not wait, while "
        "asyncio.to_thread and thread pools use any thread"
    )

    def __init__(
        self,
        stream: str,
        frame_format: FrameFormat,
        *,
        slots: int = 8,
        max_loans: int = 1,
        keep_ring: bool = False,
    ) -> None:
        """Open the stream: adopt the ring that an earlier publisher left, or create one and allocate its memory.

        Args:
            stream: Name of the stream: letters, digits, ``-`` and ``_``.
            frame_format: The largest frame, and the default format of loans.
            slots: Slots of the ring, 3 to 255: one for the newest frame, ``max_loans`` for loans, and the others for
                the leases of all subscribers.
            max_loans: Loans that may be open at a time. Each reduces the slots for subscribers by one.
            keep_ring: Whether to leave the ring in /dev/shm at close, for the next publisher to adopt.

        Raises:
            InvalidArgument: An argument is of the wrong type or out of range.
            InvalidName: ``stream`` is not a valid name.
            StreamExists: Another publisher serves the stream.
            NotEnoughSharedMemory: The ring does not fit in /dev/shm.
            PermissionDenied: A file of the stream belongs to another user.
            ResourceExhausted: The process has run out of descriptors or of memory to map.
            UnsupportedEnvironment: gevent or eventlet has patched the standard library.
        """
        check_environment()
        self.stream: str = check_name(stream)
        """The stream's name."""
        if not isinstance(frame_format, FrameFormat):
            raise InvalidArgument(
                f"frame_format is a FrameFormat, as FrameFormat.of(array), not {short_repr(frame_format)}"
            )
        self.format = frame_format
        """The largest frame, and the default format of loans."""
        geometry = Geometry.for_frames(
            whole_number(slots, "slots", MIN_SLOTS, MAX_SLOTS),
            frame_format.frame_bytes,
            whole_number(max_loans, "max_loans", 1, MAX_LOANS),
        )
        # Set on the instance, because looking up a class attribute would be slower, at every frame.
        self._thread = None
        self._forked = False
        self._abandoned = self._dropped = 0
        self._served = ServedStream(stream, frame_format, geometry, keep_ring=boolean(keep_ring, "keep_ring"))
        self._first_sequence = self._served.writer.next_sequence
        self._closed = False
        lifecycle.register(self)

    @property
    def statistics(self) -> PublisherStatistics:
        """Counters since the publisher opened."""
        served = self._served
        writer, ring = served.writer, served.ring
        lost = served.lost + writer.lost
        return PublisherStatistics(
            writer.next_sequence - self._first_sequence,
            self._abandoned + lost,
            lost,
            self._dropped,
            served.replaced,
            ring.adopted,
            ring.epoch,
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
        """Copy an array into a free slot and publish it. To avoid the copy, render into a :meth:`loan`.

        Args:
            array: Pixels of the shape and type of :attr:`format`, as any object that numpy can convert.
            captured_ns: When the frame was captured, CLOCK_MONOTONIC; ``None`` for now.
            captured_wall_ns: When the frame was captured, nanoseconds since 1970; ``None`` for now.
            metadata: A small map that travels with the frame, at most 832 bytes as msgpack.
            timeout_s: As for :meth:`loan`.

        Returns:
            The frame's sequence.

        Raises:
            FormatMismatch: The array has another shape or type.
            InvalidMetadata: The metadata is too large, or a subscriber could not read it.
            InvalidArgument: A time of capture is not a 64-bit integer, or ``timeout_s`` is not a number of seconds.
            NoFreeSlot, LoanOutstanding, WrongThread, Closed: As for :meth:`loan`.
        """
        self._check_owner()
        # Validate everything first, to avoid claiming a slot for an invalid call.
        pixels = self._served.prepared.check(array)
        pack_metadata(metadata)
        times = {"captured_ns": captured_ns, "captured_wall_ns": captured_wall_ns}
        given = {name: whole_number(value, name, *_INT64) for name, value in times.items() if value is not None}
        loan = self.loan(timeout_s=timeout_s)
        try:
            # The only copy of this call. A loan avoids it.
            loan.pixels[...] = pixels
            for name, value in given.items():
                setattr(loan, name, value)
            loan.metadata = metadata or {}
            return loan.publish()
        except BaseException:
            loan.abandon()
            raise

    def loan(self, frame_format: FrameFormat | None = None, *, timeout_s: float | None = NO_WAIT) -> Loan:
        """Borrow the oldest free slot, to write the next frame into it.

        If ``timeout_s`` is 0, raise :class:`~framebus.NoFreeSlot` when every slot is held. This happens only if a
        process holds more slots than admission grants it. If ``timeout_s`` is positive or ``None``, retry every
        millisecond, which takes some 2 % of a core, and delays the frames that are captured meanwhile.

        Args:
            frame_format: Format of this frame, which must fit in a slot; ``None`` for the stream's format.
            timeout_s: Seconds to wait for a free slot; ``None`` waits forever.

        Returns:
            A loan, whose ``pixels`` is a writable, C-contiguous array of the format's shape on the slot itself. It
            still contains an older frame.

        Raises:
            NoFreeSlot: Every slot is held. The caller should drop the frame, which the statistics count.
            FrameTooLarge: A frame of the format does not fit in a slot.
            LoanOutstanding: ``max_loans`` loans are neither published nor abandoned, and still referenced.
            InvalidArgument: ``frame_format`` is not a format, or ``timeout_s`` is not a number of seconds.
            WrongThread: Another thread owns the publisher.
            Closed: The publisher was closed.
        """
        if get_ident() != self._thread:
            self._check_owner()
        served = self._served
        prepared = served.prepared
        if frame_format is not None and frame_format is not self.format:
            prepared = served.prepare(frame_format)
        if timeout_s is not NO_WAIT:  # the default requires no validation
            timeout_s = seconds(timeout_s, "timeout_s")
        # Hot path: the full checks run only if this first attempt finds no slot.
        claim = served.writer.claim(prepared.description)
        if claim is None:
            claim = self._retry_claim(prepared.description, timeout_s)
            if prepared.arrays is not None:
                prepared = served.prepared  # the claim may be in a new ring, with other arrays
        # A slot was free, so the time until the ring is replaced starts again.
        served.full_since_s = None
        now_ns = claim.now_ns
        server = served.server
        # Poll here instead of at the publication, because no subscriber waits for a loan.
        if now_ns >= server.poll_at_ns:
            server.poll(now_ns)
        return Loan(prepared, claim, now_ns, self)

    def close(self) -> None:
        """Close the stream, and remove its files from /dev/shm, except the ring if it is kept.

        May be called from any thread. If another thread is in the middle of a call, the stream closes when that call
        ends. Open loans can no longer be published.
        """
        served: ServedStream | None = self.__dict__.get("_served")
        # The constructor may have failed before it opened the stream, and a child must not close the parent's.
        if served is None or self._forked:
            return
        self._begin_close()
        served.close()

    def _retry_claim(self, description: bytes, timeout_s: float | None) -> Claim:
        """Claim a slot after the first attempt found none: check why, and retry until the time-out.

        Raises:
            LoanOutstanding: ``max_loans`` loans are open.
            NoFreeSlot: No slot became free in time.
            Closed: The publisher was closed.
        """
        served = self._served
        deadline_s = None if timeout_s is None else monotonic() + timeout_s
        while True:
            self._check_owner()
            # claim() also returns None while all loans are open: tell this case from a ring without a free slot.
            self._check_loans()
            claim = served.writer.claim(description) or served.claim_in_new_ring(description)
            if claim is not None:
                return claim
            if deadline_s is not None and monotonic() >= deadline_s:
                break
            time.sleep(FREE_SLOT_TICK_S)
        self._check_owner()
        # Counted only here: a loan that is refused for other reasons drops no frame.
        self._dropped += 1
        raise NoFreeSlot(
            f"all {served.ring.geometry.slots} slots of {self.stream!r} are held: drop this frame, and see in "
            "'framebus top' which subscriber holds them"
        )

    def _check_loans(self) -> None:
        served = self._served
        limit = served.ring.geometry.max_loans
        if served.writer.loans < limit:
            return
        lifecycle.collect_garbage()  # frees the loans in reference cycles, as a traceback creates them
        if served.writer.loans >= limit:
            raise LoanOutstanding(
                f"{limit} of {limit} loans are neither published nor abandoned, and variables or views hold them: "
                "publish, abandon or delete one, or open the publisher with larger max_loans"
            )

    def _publish(self, loan: Loan, claim: Claim, prepared: PreparedFormat) -> int:
        # Hot path: every extra call here costs a few microseconds of cold-cache latency.
        if get_ident() != self._thread:
            self._check_owner_of(claim)
        served = self._served
        writer = served.writer
        sequence = writer.next_sequence
        try:
            metadata = loan.metadata
            if type(metadata) is not dict or metadata:
                served.ring.write_metadata(claim.slot, pack_metadata(metadata))
            writer.publish(claim, loan.captured_ns, loan.captured_wall_ns, served.server.listening, prepared.message)
        except BaseException:
            if claim.is_open:
                claim.abandon()
                self._abandoned += 1
            self._check_owner()
            raise
        return sequence

    def _abandon(self, claim: Claim) -> None:
        thread = self._thread
        if thread is not None and get_ident() != thread:
            self._check_owner()
        # In a forked child the lock belongs to the parent.
        if claim.is_open and not self._forked:
            claim.abandon()
            self._abandoned += 1

    def _check_owner_of(self, claim: Claim) -> None:
        """Check as :meth:`_check_owner` does; if the publisher is closed, abandon the claim."""
        try:
            self._check_owner()
        except Closed:
            if not self._forked:
                claim.abandon()
            raise
