"""A slot that a program writes a frame into."""

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
    """The publisher that has given a loan, and takes it back."""

    def _publish(self, loan: Loan, claim: Claim, prepared: PreparedFormat) -> int: ...

    def _abandon(self, claim: Claim) -> None: ...


class Loan:
    """A free slot of the ring, to be written and published.

    :meth:`publish` hands it to the subscribers. A loan that is abandoned, or that nothing references any more, gives
    its slot back, and no subscriber sees what was written.

    In a ``with`` block, the end of the block publishes what was rendered, and an exception abandons it. ``break``,
    ``continue`` and ``return`` end the block as its last line does: where it may be left early, call :meth:`publish`
    yourself, without ``with``. A block that never asks for ``pixels`` and sets nothing publishes nothing.

    Keep no view on ``pixels`` beyond the publication: it would write into a frame that others read.
    """

    __slots__ = {  # with what help() shows of them
        "_array": "",  # before _claim: slots are cleared by their names, and a view would hold the claim's slot
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
        """What the pixels are."""
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
            InvalidArgument: The format is another one.
        """
        return luma(self.pixels, self.format)

    @property
    def chroma(self) -> Pixels:
        """Writable view on the chroma: ``(height // 2, width // 2, 2)`` in ``nv12``, ``(2, …)`` first in ``i420``.

        Raises:
            FrameReleased: The loan was published or abandoned.
            InvalidArgument: The format is another one.
        """
        return chroma(self.pixels, self.format)

    def publish(self) -> int:
        """Hand the frame to the subscribers and return its sequence.

        Raises:
            FrameReleased: It was published or abandoned before.
            Closed: The publisher was closed; as with the next three, the slot is given back.
            InvalidMetadata: The metadata is larger than its room, or a subscriber could not read it.
            TypeError: A time of capture is not an integer.
            OverflowError: It does not fit a signed 64-bit number.
            WrongThread: Another thread owns the publisher; the loan stays its owner's.
        """
        claim = self._claim
        if not claim.is_open:
            raise FrameReleased("the loan was published or abandoned before")
        try:
            self.sequence = sequence = self._lender._publish(self, claim, self._prepared)
        except BaseException:
            if not claim.is_open:  # else another thread wanted to publish it, and it stays its owner's
                self._freeze()
            raise
        self._freeze()
        return sequence

    def abandon(self) -> None:
        """Give the slot back unpublished; harmless when that was done before.

        Raises:
            WrongThread: Another thread owns the publisher; the loan stays its owner's.
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
            with contextlib.suppress(FramebusError):  # never in the place of the exception that is on its way
                self.abandon()
        elif self._claim.is_open:
            self.abandon() if self._is_as_it_came() else self.publish()

    def _freeze(self) -> None:
        pixels = self._array
        if pixels is not None:
            self._array = None
            pixels.setflags(False)  # type: ignore[call-arg]  # by its name it takes 2,000 instructions more

    def _is_as_it_came(self) -> bool:
        claim = self._claim
        times = ((self.captured_ns, claim.now_ns), (self.captured_wall_ns, claim.now_wall_ns))
        return (
            self._array is None
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
        A msgpack map, or nothing if the metadata is empty.

    Raises:
        InvalidMetadata: It is not a map of strings to values that msgpack packs and reads again, or takes more than
            832 bytes.
    """
    if metadata is None or (type(metadata) is dict and not metadata):
        return b""
    if not isinstance(metadata, Mapping):
        raise InvalidMetadata(f"metadata is a map with strings as keys, not {type(metadata).__name__}")
    try:
        content: bytes = msgpack.packb(dict(metadata))
        if len(content) <= MAX_METADATA_BYTES:
            msgpack.unpackb(content)  # as the subscriber will: it takes no other keys than strings, at any depth
    except (TypeError, ValueError, OverflowError, msgpack.UnpackException) as error:
        raise InvalidMetadata(
            f"the metadata cannot be sent: {error}; take strings as keys, and numbers, strings, bytes, lists and maps "
            "of these as values"
        ) from None
    if len(content) > MAX_METADATA_BYTES:
        raise InvalidMetadata(f"the metadata takes {len(content)} bytes, a slot has room for {MAX_METADATA_BYTES}")
    return content
