"""The side that renders frames into the ring."""

from __future__ import annotations

from dataclasses import dataclass
from threading import get_ident
from time import monotonic
from typing import Final, NoReturn

import numpy as np

from framebus.bus.frames import FrameFormat, Loan, Pixels
from framebus.curve import CurveServer
from framebus.errors import (
    Closed,
    FramebusError,
    FrameTooLarge,
    LoanOutstanding,
    RingFull,
    StreamExists,
    WrongThread,
)
from framebus.layout import Geometry, check_name, describe
from framebus.notify import Notifier, notification_template
from framebus.ring import PublisherRing
from framebus.segment import companion_path, take_exclusion
from framebus.steps import Template

EXCLUSION_PATIENCE_S: Final = 0.2
"""``framebus gc`` and ``doctor`` hold the exclusion for a moment, while no publisher lives."""
REPLACE_AFTER_S: Final = 1.0
"""How long no slot may be free before the ring is replaced."""
REPLACE_EVERY_S: Final = 10.0
"""The ring is replaced at most once in that time."""


@dataclass(frozen=True, slots=True)
class PublisherStatistics:
    """What a publisher has done since it opened."""

    published: int
    """Frames published."""
    abandoned: int
    """Loans given back unpublished."""
    dropped: int
    """Loans refused because no slot was free."""
    replaced: int
    """Times the ring was replaced because somebody held its slots and did not let go."""
    adopted: bool
    """Whether the ring of an earlier publisher was taken over."""
    epoch: int
    """The random number that marks this life of the publisher."""
    sequence: int
    """Sequence of the newest frame published; 0 before the first of a new ring."""
    refused: int
    """Handshakes at the further endpoint with a key that is not allowed."""


class Publisher:
    """Publishes frames on a stream, without a copy and without ever waiting for a subscriber.

    It belongs to the thread that first asks it for a loan. After a fork it belongs to the parent.
    """

    def __init__(
        self,
        stream: str,
        frame_format: FrameFormat,
        *,
        slots: int = 8,
        keep_ring: bool = False,
        endpoint: str | None = None,
        curve: CurveServer | None = None,
    ) -> None:
        """Open the stream: adopt the ring that a crash left, or create one with all its memory.

        Args:
            stream: Name of the stream: letters, digits, ``-`` and ``_``.
            frame_format: The largest frame, and the format of a loan that names none.
            slots: Slots of the ring, 3 to 255: two, and as many as all subscribers may lease together.
            keep_ring: Leave the ring in /dev/shm at close, for the next publisher to adopt.
            endpoint: A further ZeroMQ endpoint for the notifications, such as ``tcp://127.0.0.1:5555``; ``*`` for the
                port takes a free one, see :attr:`endpoint`. Beyond the loopback it needs ``curve``.
            curve: Keys for ``endpoint``: who has none of the allowed ones hears nothing there.

        Raises:
            StreamExists: Another publisher serves the stream.
            NotEnoughSharedMemory: /dev/shm has no room for the ring.
            PermissionDenied: A file of the stream belongs to another user.
            InvalidName: ``stream`` cannot be a file's name.
            UnprotectedEndpoint: ``endpoint`` can be reached from outside the host, and there is no ``curve``.
            InvalidKey: ``curve`` names a file that is missing, open to others, or no key.
            OSError: ``endpoint`` cannot be bound.
        """
        geometry = Geometry.for_frames(slots, frame_format.frame_bytes)
        self.stream = check_name(stream)
        """The stream's name."""
        self.format = frame_format
        """The largest frame, and the format of a loan that names none."""
        self._keep_ring = keep_ring
        self._closed = False
        self._thread: int | None = None
        self._loan: Loan | None = None
        self._slot = -1
        self._abandoned = self._dropped = self._replaced = 0
        self._full_since_s: float | None = None
        self._replace_not_before_s = 0.0
        self._lock_path = companion_path(stream, "lock")
        exclusion = take_exclusion(self._lock_path.name, EXCLUSION_PATIENCE_S)
        if exclusion is None:
            raise StreamExists(f"another publisher serves the stream {stream!r}")
        self._exclusion = exclusion
        try:
            self._ring = PublisherRing(stream, geometry)
            self._use_ring()
            self._first_sequence = self._ring.writer.next_sequence
            self._description, self._own_template = self._pack(frame_format)
            self._notifier = Notifier(stream, endpoint, curve)
        except BaseException:
            if hasattr(self, "_ring"):
                self._ring.close(unlink=not self._ring.adopted)
            self._let_exclusion_go(unlink=True)
            raise

    @property
    def statistics(self) -> PublisherStatistics:
        """Counters since the publisher opened."""
        return PublisherStatistics(
            self._ring.writer.next_sequence - self._first_sequence,
            self._abandoned,
            self._dropped,
            self._replaced,
            self._ring.adopted,
            self._ring.epoch,
            self._ring.writer.next_sequence - 1,
            self._notifier.refused,
        )

    @property
    def endpoint(self) -> str | None:
        """Where the further endpoint is bound, with the number of its port; ``None`` without one."""
        return self._notifier.endpoint

    def loan(self, frame_format: FrameFormat | None = None) -> Loan:
        """Take the oldest free slot to write the next frame into. Never waits.

        Args:
            frame_format: Format of this frame; it must fit the slot. ``None`` takes the stream's.

        Returns:
            Loan whose ``pixels`` is a writable, C-contiguous array of the format's shape on the slot itself. Its
            content is that of an older frame.

        Raises:
            RingFull: Every slot is held; the frame is to be dropped, and is counted as such.
            FrameTooLarge: The format needs more than a slot.
            LoanOutstanding: The loan before is neither published nor abandoned.
            WrongThread: Another thread owns the publisher.
            Closed: The publisher was closed.
        """
        if get_ident() != self._thread or self._loan is not None:
            self._check_loan()
        if frame_format is None or frame_format is self.format:
            frame_format, description, self._template = self.format, self._description, self._own_template
        else:
            description, self._template = self._pack(frame_format)
        claimed = self._ring.writer.claim(description)
        slot, now_ns, now_wall_ns = claimed if claimed is not None else self._claim_in_new_ring(description)
        self._full_since_s = None
        if now_ns >= self._notifier.look_at_ns:
            self._notifier.look(now_ns)
        # A view, so that the pixels of an earlier loan stay read-only.
        pixels = self._pixels[slot][...] if frame_format is self.format else self._map_pixels(slot, frame_format)
        self._loan = loan = Loan(pixels, frame_format, now_ns, now_wall_ns, self)
        self._slot = slot
        return loan

    def close(self) -> None:
        """Abandon an open loan, tell the subscribers, and leave nothing in /dev/shm (but the ring if it is kept)."""
        if self._closed or self._exclusion.fd < 0:
            return
        if self._loan is not None:
            self._loan.abandon()
        self._closed = True
        self._thread = None  # nobody's: the next call looks closer, and finds it closed
        self._ring.close(unlink=not self._keep_ring)
        self._notifier.close()
        self._let_exclusion_go(unlink=not self._keep_ring)

    def _let_exclusion_go(self, *, unlink: bool) -> None:
        # Unlinked while it is locked: who locks it later sees that the path names another file, and begins anew.
        if unlink:
            self._lock_path.unlink(missing_ok=True)
        self._exclusion.close()

    def _check_use(self) -> None:
        if self._closed:
            raise Closed("the publisher was closed")
        if self._exclusion.fd < 0:
            raise Closed("the publisher belongs to the parent process: open one after the fork")
        thread = get_ident()
        if self._thread is None:
            self._thread = thread
        if self._thread != thread:
            raise WrongThread("a publisher belongs to the thread that first used it: open one publisher in one thread")

    def _check_loan(self) -> None:
        self._check_use()
        if self._loan is not None:
            raise LoanOutstanding("publish or abandon the loan before you take the next")

    def _claim_in_new_ring(self, description: bytes) -> tuple[int, int, int]:
        """Count the dropped frame; when slots have been held for long, go on in a new ring.

        Seats keep honest subscribers from holding every slot, so whoever does is not honest, or stopped.
        """
        self._check_use()
        now_s = monotonic()
        claimed = None
        if self._full_since_s is None:
            self._full_since_s = now_s
        elif now_s - self._full_since_s >= REPLACE_AFTER_S and now_s >= self._replace_not_before_s:
            self._replace_not_before_s = now_s + REPLACE_EVERY_S
            try:
                self._ring.replace(self.stream)
            except FramebusError:
                pass  # no room, or a neighbour was at the new file too: the next try is REPLACE_EVERY_S later
            else:
                self._use_ring()
                self._replaced += 1
                claimed = self._ring.writer.claim(description)
        if claimed is None:
            self._dropped += 1
            raise RingFull(
                f"all {self._ring.geometry.slots} slots of {self.stream!r} are held: drop this frame, "
                "and see in 'framebus top' who holds them"
            )
        return claimed

    def _pack(self, frame_format: FrameFormat) -> tuple[bytes, Template]:
        """What a format is in a slot's header, and in notifications."""
        if frame_format.frame_bytes > self._ring.geometry.slot_bytes:
            raise FrameTooLarge(
                f"a frame of {frame_format.frame_bytes} bytes does not fit a slot of {self._ring.geometry.slot_bytes}: "
                "open the publisher with the largest format"
            )
        parts = frame_format.shape, frame_format.typestr, frame_format.pixel_format
        return describe(*parts), notification_template(self.stream, self._ring.epoch, *parts)

    def _use_ring(self) -> None:
        self._pixels = [self._map_pixels(slot, self.format) for slot in range(self._ring.geometry.slots)]

    def _map_pixels(self, slot: int, frame_format: FrameFormat) -> Pixels:
        return np.ndarray(
            frame_format.shape,
            frame_format.typestr,
            buffer=self._ring.segment.buffer,
            offset=self._ring.geometry.pixels(slot),
        )

    def _publish(self, loan: Loan) -> int:
        # Each call more is a few microseconds in which a subscriber waits, for the caches have seen other things since.
        if loan is not self._loan or get_ident() != self._thread:
            self._refuse(loan)
        self._loan = None
        writer, slot, captured_ns = self._ring.writer, self._slot, loan.captured_ns
        notifier, template = self._notifier, self._template
        sequence = writer.next_sequence
        try:
            if loan.metadata:
                self._check_use()  # a forked child has the loan too, and must not write
                self._ring.write_metadata(slot, loan.packed_metadata())
            published_ns = writer.publish(slot, captured_ns, loan.captured_wall_ns, notifier.local.listening, template)
        except BaseException:
            self._give_up()
            self._check_use()
            raise
        if notifier.is_heard_further:
            notifier.notify_further(template, sequence, slot, captured_ns, published_ns)
        return sequence

    def _abandon(self, loan: Loan) -> None:
        self._check_use()
        if loan is not self._loan:
            self._refuse(loan)
        self._loan = None
        self._give_up()

    def _refuse(self, loan: Loan) -> NoReturn:
        self._check_use()
        raise FramebusError(f"the loan of {loan.format.frame_bytes} bytes is not this publisher's last")

    def _give_up(self) -> None:
        self._ring.abandon(self._slot)
        self._abandoned += 1

    def __enter__(self) -> Publisher:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()
