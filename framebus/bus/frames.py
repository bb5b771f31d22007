"""Frames as a program sees them: their format, a loan to write, a frame to read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

import msgpack
import numpy as np
import numpy.typing as npt

from framebus.errors import FrameReleased, FrameTooLarge, LayoutMismatch, WrongThread
from framebus.layout import DTYPES, MAX_METADATA_BYTES
from framebus.ring import read_metadata
from framebus.steps import Lease

Pixels = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class FrameFormat:
    """What the pixels of a frame are."""

    height: int
    """Rows, in pixels."""
    width: int
    """Columns, in pixels."""
    channels: int = 3
    """Values of a pixel."""
    dtype: str = "uint8"
    """numpy's name of the type of a value."""
    pixel_format: str = "bgr"
    """What the channels mean, up to 16 ASCII letters: a label, which framebus passes on and does not interpret."""

    def __post_init__(self) -> None:
        if min(self.height, self.width, self.channels) < 1 or max(self.height, self.width, self.channels) >= 1 << 32:
            raise ValueError(f"a frame of {self.height} x {self.width} x {self.channels} has no pixels to share")
        if self.typestr not in DTYPES:
            raise ValueError(f"{self.dtype!r} is no element type of a frame: take one of {', '.join(_dtype_names())}")
        if not self.pixel_format.isascii() or len(self.pixel_format) > 16:
            raise ValueError(f"{self.pixel_format!r} is no pixel format: take up to 16 ASCII letters")

    @property
    def typestr(self) -> str:
        """Numpy's short name of the element type, with its byte order."""
        try:
            return np.dtype(self.dtype).str
        except TypeError:
            return ""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width, channels."""
        return self.height, self.width, self.channels

    @property
    def frame_bytes(self) -> int:
        """Bytes of the pixels."""
        return self.height * self.width * self.channels * DTYPES[self.typestr]


def _dtype_names() -> list[str]:
    return [np.dtype(typestr).name for typestr in DTYPES]


class Lender(Protocol):
    """Who has given a loan, and takes it back."""

    def _publish(self, loan: Loan) -> int: ...

    def _abandon(self, loan: Loan) -> None: ...


class Loan:
    """A free slot of the ring, to be written and published.

    Leaving its ``with`` block publishes the frame; an exception abandons the slot and nobody sees what was written.
    Keep no view on ``pixels`` beyond that: it would write into a frame that others read.
    """

    __slots__ = (
        "_lender",
        "_pixels",
        "captured_ns",
        "captured_wall_ns",
        "format",
        "metadata",
        "sequence",
    )

    def __init__(
        self,
        pixels: Pixels,
        frame_format: FrameFormat,
        now_ns: int,
        now_wall_ns: int,
        lender: Lender,
    ) -> None:
        self.format = frame_format
        """What the pixels are."""
        self.captured_ns = now_ns
        """When the frame was captured, CLOCK_MONOTONIC; the time of the loan until set."""
        self.captured_wall_ns = now_wall_ns
        """When the frame was captured, nanoseconds since 1970; the time of the loan until set."""
        self.metadata: Mapping[str, Any] = {}
        """A small map that travels with the frame; msgpack packs it into at most 832 bytes."""
        self.sequence: int | None = None
        """The frame's sequence, once it is published."""
        self._pixels: Pixels | None = pixels
        self._lender = lender

    @property
    def pixels(self) -> Pixels:
        """Writable, C-contiguous array on the slot itself, of shape (height, width, channels).

        Raises:
            FrameReleased: The loan was published or abandoned.
        """
        if self._pixels is None:
            raise FrameReleased("the loan was published or abandoned: its pixels are no longer the publisher's")
        return self._pixels

    def publish(self) -> int:
        """Hand the frame to the subscribers and return its sequence.

        Raises:
            FrameReleased: It was published or abandoned before.
            FrameTooLarge: The metadata is larger than its room; as with the next two, the slot is abandoned.
            TypeError: A time of capture is no integer.
            OverflowError: It is no signed 64-bit number.
        """
        if self._pixels is None:
            raise FrameReleased("the loan was published or abandoned before")
        pixels, self._pixels = self._pixels, None
        try:
            self.sequence = sequence = self._lender._publish(self)
        except WrongThread:
            self._pixels = pixels  # the loan is still its owner's
            raise
        pixels.setflags(write=False)
        return sequence

    def abandon(self) -> None:
        """Give the slot back unpublished; harmless when that was done before."""
        if self._pixels is None:
            return
        pixels, self._pixels = self._pixels, None
        try:
            self._lender._abandon(self)
        except WrongThread:
            self._pixels = pixels
            raise
        pixels.setflags(write=False)

    def packed_metadata(self) -> bytes:
        """The metadata's bytes.

        Raises:
            FrameTooLarge: They do not fit the slot's header, or a value is none that msgpack packs.
        """
        try:
            content: bytes = msgpack.packb(dict(self.metadata))
        except (TypeError, ValueError, OverflowError) as error:
            raise FrameTooLarge(f"the metadata cannot be packed by msgpack: {error}") from None
        if len(content) > MAX_METADATA_BYTES:
            raise FrameTooLarge(f"the metadata takes {len(content)} bytes, a slot has room for {MAX_METADATA_BYTES}")
        return content

    def __enter__(self) -> Loan:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self.abandon()
        elif self._pixels is not None:
            self.publish()


class Frame:
    """A frame that the subscriber holds: the publisher cannot reuse its slot while it, or any view on it, lives."""

    __slots__ = ("_lease", "_metadata", "_pixels", "header", "skipped")

    def __init__(self, lease: Lease) -> None:
        self._lease: Lease | None = lease
        self._pixels: Pixels | None = None
        self._metadata: Mapping[str, Any] | None = None
        self.header = lease.header
        """All that the slot's header says of the frame."""
        self.skipped = lease.skipped
        """Frames missed since the one received before."""

    @property
    def pixels(self) -> Pixels:
        """Read-only, C-contiguous array on the slot itself, of shape (height, width, channels).

        Raises:
            FrameReleased: The frame was released.
        """
        if self._pixels is None:
            self._pixels = np.asarray(self._held())
        return self._pixels

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What the publisher put beside the pixels.

        Raises:
            FrameReleased: The frame was released before its metadata was read.
            LayoutMismatch: It is no msgpack map.
        """
        if self._metadata is None:
            content = read_metadata(self._held())
            if not isinstance(content, dict):
                raise LayoutMismatch("the frame's metadata is no map")
            self._metadata = content
        return self._metadata

    @property
    def sequence(self) -> int:
        """Number of the frame, from 1, one more for each published."""
        return self.header.sequence

    @property
    def epoch(self) -> int:
        """Which life of the publisher it comes from."""
        return self.header.epoch

    @property
    def captured_ns(self) -> int:
        """When it was captured, CLOCK_MONOTONIC."""
        return self.header.captured_ns

    @property
    def captured_wall_ns(self) -> int:
        """When it was captured, nanoseconds since 1970."""
        return self.header.captured_wall_ns

    @property
    def published_ns(self) -> int:
        """When it was published, CLOCK_MONOTONIC."""
        return self.header.published_ns

    @property
    def pixel_format(self) -> str:
        """What the channels mean, in the publisher's words."""
        return self.header.pixel_format

    def release(self) -> None:
        """Give up the frame's own hold; the slot is free once no other view on its pixels lives."""
        self._pixels = None
        self._lease = None

    def _held(self) -> Lease:
        if self._lease is None:
            raise FrameReleased("the frame was released; keep a view on its pixels, or a copy, to use them longer")
        return self._lease

    def __enter__(self) -> Frame:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.release()

    def __repr__(self) -> str:
        state = "released" if self._lease is None else "held"
        return f"<Frame {self.sequence} {self.header.shape} {self.header.dtype} {self.pixel_format} {state}>"
