"""Loans: slots into which a program writes a frame."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from types import TracebackType
from typing import Any, NoReturn, Protocol

import msgpack
import numpy as np

from framebus.bus.formats import FrameFormat, Pixels, chroma, luma
from framebus.bus.served_stream import PreparedFormat
from framebus.errors import FramebusError, FrameReleased, InvalidMetadata
from framebus.ring.claims import Claim
from framebus.ring.layout import MAX_METADATA_BYTES


class Lender(Protocol):
    """The publisher of a loan."""

    def _publish(self, loan: Loan, claim: Claim, prepared: PreparedFormat) -> int: ...

    def _abandon(self, claim: Claim) -> None: ...


class Loan:
    """A free slot of the ring, to write a frame into and publish it.

    :meth:`publish` makes the frame visible to subscribers. If the loan is abandoned, or no longer referenced, its slot
    is given back, and subscribers never see what was written.

    At the end of a ``with`` block, the loan is published; if the block raises, it is abandoned. ``break``, ``continue``
    and ``return`` also end the block and publish. If a block may end early, use :meth:`publish` without ``with``. A
    block that neither accesses ``pixels`` nor sets an attribute publishes nothing.

    Do not keep views on ``pixels`` after the publication: writing through them would modify a frame that subscribers
    read.
    """

    __slots__ = {  # with the descriptions that help() shows
        "_array": "",  # sorts before _claim: slots are cleared in this order, and the view holds the claim
        "_claim": "",
        "_lender": "",
        "_prepared": "",
        "captured_ns": "When the frame was captured, CLOCK_MONOTONIC; the time of the loan until set.",
        "captured_wall_ns": "When the frame was captured, nanoseconds since 1970; the time of the loan until set.",
        "metadata": "A small map that travels with the frame; msgpack packs it into at most 832 bytes.",
        "sequence": "The frame's sequence, once it is published.",
    }

    def __init__(self, prepared: PreparedFormat, claim: Claim, now_ns: int, lender: Lender) -> None:
        self.captured_ns: int = now_ns
        """When the frame was captured, CLOCK_MONOTONIC; the time of the loan until set."""
        self.captured_wall_ns: int = claim.now_wall_ns
        """When the frame was captured, nanoseconds since 1970; the time of the loan until set."""
        self.metadata: Mapping[str, Any] = {}
        """A small map that travels with the frame; msgpack packs it into at most 832 bytes."""
        self.sequence: int | None = None
        """The frame's sequence, once it is published."""
        self._array: Pixels | None = None
        self._claim = claim
        self._lender = lender
        self._prepared = prepared

    @property
    def format(self) -> FrameFormat:
        """Format of the frame."""
        return self._prepared.frame_format

    @property
    def pixels(self) -> Pixels:
        """Writable, C-contiguous array on the slot itself, of the format's shape.

        Raises:
            FrameReleased: The loan was published or abandoned.
        """
        pixels = self._array
        if pixels is None:
            claim = self._claim
            if not claim.is_open:
                raise FrameReleased("the loan was published or abandoned: its pixels are no longer the publisher's")
            prepared = self._prepared
            if (arrays := prepared.arrays) is None:
                pixels = np.ndarray(prepared.shape, prepared.dtype, claim.memory)
            else:  # a view takes fewer instructions than a new array: 10 us less with cold caches
                pixels = arrays[claim.slot][...]
            self._array = pixels
        return pixels

    @property
    def luma(self) -> Pixels:
        """Writable view on the luma of a frame in ``nv12`` or ``i420``, of shape ``(height, width)``.

        Raises:
            FrameReleased: The loan was published or abandoned.
            InvalidArgument: The format is not ``nv12`` or ``i420``.
        """
        return luma(self.pixels, self.format)

    @property
    def chroma(self) -> Pixels:
        """Writable view on the chroma: ``(height // 2, width // 2, 2)`` in ``nv12``, ``(2, …)`` first in ``i420``.

        Raises:
            FrameReleased: The loan was published or abandoned.
            InvalidArgument: The format is not ``nv12`` or ``i420``.
        """
        return chroma(self.pixels, self.format)

    def publish(self) -> int:
        """Publish the frame and return its sequence.

        After ``Closed``, ``InvalidMetadata``, ``TypeError`` and ``OverflowError``, the slot is given back.

        Raises:
            FrameReleased: The loan was published or abandoned before.
            Closed: The publisher was closed.
            InvalidMetadata: The metadata is too large, or a subscriber could not read it.
            TypeError: A time of capture is not an integer.
            OverflowError: A time of capture does not fit in a signed 64-bit number.
            WrongThread: Another thread owns the publisher and keeps the loan.
        """
        claim = self._claim
        if not claim.is_open:
            raise FrameReleased("the loan was published or abandoned before")
        try:
            self.sequence = sequence = self._lender._publish(self, claim, self._prepared)
        except BaseException:
            if not claim.is_open:  # after WrongThread it is still open, and its owner keeps it
                self._freeze()
            raise
        self._freeze()
        return sequence

    def abandon(self) -> None:
        """Give the slot back without publishing it. May be called again.

        Raises:
            WrongThread: Another thread owns the publisher and keeps the loan.
        """
        if self._claim.is_open:
            self._lender._abandon(self._claim)
            self._freeze()

    def __enter__(self) -> Loan:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            with contextlib.suppress(FramebusError):  # an error here must not replace the exception of the block
                self.abandon()
        elif self._claim.is_open:
            # An untouched loan is still an older frame, which must not be published again.
            self.abandon() if self._is_untouched() else self.publish()

    def _freeze(self) -> None:
        pixels = self._array
        if pixels is not None:
            self._array = None
            # The frame is published: a later write through this array must fail instead of changing it.
            pixels.setflags(False)  # type: ignore[call-arg]  # as a keyword argument it takes 2,000 more instructions

    def _is_untouched(self) -> bool:
        claim = self._claim
        times = ((self.captured_ns, claim.now_ns), (self.captured_wall_ns, claim.now_wall_ns))
        return (
            self._array is None
            # Compare exact types, because a subclass may define its own equality.
            and type(self.metadata) is dict
            and not self.metadata
            and all(type(found) is int and found == given for found, given in times)
        )

    def __reduce__(self) -> NoReturn:
        raise TypeError("a loan is a slot that this process has locked, and cannot be pickled: send what goes into it")

    def __repr__(self) -> str:
        ended = f"published as {self.sequence}" if self.sequence else "abandoned"
        state = "open" if self._claim.is_open else ended
        return f"<Loan {self.format.shape} {self.format.dtype} {self.format.pixel_format} {state}>"


def pack_metadata(metadata: Mapping[str, Any] | None) -> bytes:
    """Pack a frame's metadata.

    Returns:
        A msgpack map; no bytes if the metadata is empty.

    Raises:
        InvalidMetadata: The metadata is not a map of strings to values that msgpack can pack and unpack, or takes more
            than 832 bytes.
    """
    if metadata is None or (type(metadata) is dict and not metadata):
        return b""
    if not isinstance(metadata, Mapping):
        raise InvalidMetadata(f"metadata is a map with strings as keys, not {type(metadata).__name__}")
    try:
        content: bytes = msgpack.packb(dict(metadata))
        if len(content) <= MAX_METADATA_BYTES:
            msgpack.unpackb(content)  # as a subscriber does: at any depth, it accepts only strings as keys
    except (TypeError, ValueError, OverflowError, msgpack.UnpackException) as error:
        raise InvalidMetadata(
            f"the metadata cannot be sent: {error}; use strings as keys, and numbers, strings, bytes, lists and maps "
            "of these as values"
        ) from None
    if len(content) > MAX_METADATA_BYTES:
        raise InvalidMetadata(f"the metadata takes {len(content)} bytes, a slot has room for {MAX_METADATA_BYTES}")
    return content
