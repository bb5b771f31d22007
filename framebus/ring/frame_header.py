"""The header of a slot, which describes its frame. docs/spec.md specifies its bytes."""

from __future__ import annotations

import struct
from enum import IntEnum
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, Final, NamedTuple

from framebus.errors import LayoutMismatch
from framebus.ring.layout import MAX_METADATA_BYTES, SLOT_FIELDS, text

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

DTYPES: Final = {
    "|b1": 1, "|u1": 1, "|i1": 1, "<u2": 2, "<i2": 2, "<u4": 4, "<i4": 4, "<u8": 8, "<i8": 8,
    "<f2": 2, "<f4": 4, "<f8": 8,
}  # fmt: skip
"""Element types that a frame may have, as numpy's typestr, and their size in bytes."""
DESCRIPTION: Final = struct.Struct("<IIII8s16sI")
"""A slot header's fields from height to arrangement, which rarely change from one frame to the next."""
NUMBERS: Final = "QQqqq"
"""A slot header's fields from epoch to published_ns, each one word, as codes of the struct module."""
SLOT: Final = struct.Struct(f"<{NUMBERS}{DESCRIPTION.size}s")
SLOT_DESCRIPTION: Final = SLOT_FIELDS + SLOT.size - DESCRIPTION.size
METADATA_BYTES: Final = SLOT_DESCRIPTION + struct.calcsize("<III")


class Arrangement(IntEnum):
    """How the values of a frame are laid out in its slot, which determines the shape of its array."""

    INTERLEAVED = 0
    """``(height, width, channels)``"""
    PLANE = 1
    """``(height, width)``"""
    PLANAR = 2
    """``(channels, height, width)``"""
    NV12 = 3
    """``(height * 3 // 2, width)``: Y, then U and V interleaved at half the width and height, as in OpenCV."""
    I420 = 4
    """``(height * 3 // 2, width)``: Y, then U, then V, each at half the width and height."""

    @property
    def is_subsampled(self) -> bool:
        """Whether the chroma has half the luma's width and height."""
        return self >= Arrangement.NV12

    def shape(self, height: int, width: int, channels: int) -> tuple[int, ...]:
        """Return the shape of the array of a frame."""
        if self is Arrangement.INTERLEAVED:
            return height, width, channels
        if self is Arrangement.PLANAR:
            return channels, height, width
        return (height * 3 // 2 if self.is_subsampled else height), width


class FrameHeader(NamedTuple):
    """The header of a slot, which describes its frame."""

    epoch: int
    """Random number that identifies the publisher instance that published the frame."""
    sequence: int
    """Number of the frame, from 1."""
    captured_ns: int
    """When it was captured, CLOCK_MONOTONIC."""
    captured_wall_ns: int
    """When it was captured, nanoseconds since 1970."""
    published_ns: int
    """When it was published, CLOCK_MONOTONIC."""
    height: int
    """Rows, in pixels."""
    width: int
    """Columns, in pixels."""
    channels: int
    """Values of a pixel."""
    metadata_bytes: int
    """Size of the metadata, packed."""
    dtype: str
    """numpy's typestr of a value, such as ``|u1``."""
    pixel_format: str
    """What the values mean, as the publisher labels them."""
    arrangement: int
    """How the values are laid out in the slot, one of :class:`Arrangement`."""
    shape: tuple[int, ...]
    """Shape of the frame's array."""

    @classmethod
    def unpack_from(cls, buffer: Buffer, offset: int, slot_bytes: int) -> FrameHeader:
        """Parse and validate the untrusted slot header at ``offset``.

        Raises:
            LayoutMismatch: The frame does not fit in ``slot_bytes``, or its type or arrangement is unknown.
        """
        fields = SLOT.unpack_from(buffer, offset + SLOT_FIELDS)
        return tuple.__new__(cls, fields[:-1] + check_description(fields[-1], slot_bytes))


class Description(NamedTuple):
    """The fields of a slot header that are known before the pixels are written."""

    height: int
    width: int
    channels: int
    dtype: str
    pixel_format: str
    arrangement: Arrangement = Arrangement.INTERLEAVED

    def pack(self) -> bytes:
        """Return a slot header's bytes from height to arrangement, for a frame without metadata."""
        dtype, pixel_format = self.dtype.encode(), self.pixel_format.encode()
        return DESCRIPTION.pack(self.height, self.width, self.channels, 0, dtype, pixel_format, self.arrangement)


@lru_cache(maxsize=16)  # the description is nearly always that of the previous frame
def check_description(
    description: bytes, slot_bytes: int
) -> tuple[int, int, int, int, str, str, Arrangement, tuple[int, ...]]:
    """Parse and validate a slot header's bytes from height to arrangement; return the fields and the frame's shape.

    Raises:
        LayoutMismatch: As for :meth:`FrameHeader.unpack_from`.
    """
    height, width, channels, metadata_bytes, packed_dtype, pixel_format, code = DESCRIPTION.unpack(description)
    dtype = text(packed_dtype)
    element_bytes = DTYPES.get(dtype)
    if element_bytes is None:
        raise LayoutMismatch(f"a slot's header declares elements of type {dtype!r}: it is corrupted")
    try:
        arrangement = Arrangement(code)
    except ValueError:
        raise LayoutMismatch(f"a slot's header declares the arrangement {code}: it is corrupted") from None
    shape = arrangement.shape(height, width, channels)
    frame_bytes = prod(shape) * element_bytes
    # A larger frame would reach into the next slot, which this lease does not lock.
    if not 0 < frame_bytes <= slot_bytes or metadata_bytes > MAX_METADATA_BYTES:
        raise LayoutMismatch(
            f"the header of a slot of {slot_bytes} bytes declares a frame of {frame_bytes} bytes: it is corrupted"
        )
    if arrangement.is_subsampled and (height % 2 or width % 2 or element_bytes > 1):
        raise LayoutMismatch(f"a slot's header declares a frame of {width}x{height} in 4:2:0: it is corrupted")
    return height, width, channels, metadata_bytes, dtype, text(pixel_format), arrangement, shape
