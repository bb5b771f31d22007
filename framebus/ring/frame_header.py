"""What a slot says of its frame: the header's bytes from the epoch on. docs/spec.md has the table."""

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
"""numpy's typestr of the element types that a frame may have, and their bytes."""
DESCRIPTION: Final = struct.Struct("<IIII8s16sI")
"""A slot header's fields from height to arrangement, which are mostly those of the frame before."""
NUMBERS: Final = "QQqqq"
"""A slot header's fields from epoch to published_ns, each a word, as the struct module codes them."""
SLOT: Final = struct.Struct(f"<{NUMBERS}{DESCRIPTION.size}s")
SLOT_DESCRIPTION: Final = SLOT_FIELDS + SLOT.size - DESCRIPTION.size
METADATA_BYTES: Final = SLOT_DESCRIPTION + struct.calcsize("<III")


class Arrangement(IntEnum):
    """How the values of a frame lie in its slot, and so the shape of its array."""

    INTERLEAVED = 0
    """``(height, width, channels)``"""
    PLANE = 1
    """``(height, width)``"""
    PLANAR = 2
    """``(channels, height, width)``"""
    NV12 = 3
    """``(height * 3 // 2, width)``: Y, then U and V by turns at half the width and height. OpenCV's form of 4:2:0."""
    I420 = 4
    """``(height * 3 // 2, width)``: Y, then U, then V, each at half the width and height."""

    @property
    def is_subsampled(self) -> bool:
        """Whether the chroma has half the luma's width and height."""
        return self >= Arrangement.NV12

    def shape(self, height: int, width: int, channels: int) -> tuple[int, ...]:
        """Shape of the array of a frame."""
        if self is Arrangement.INTERLEAVED:
            return height, width, channels
        if self is Arrangement.PLANAR:
            return channels, height, width
        return (height * 3 // 2 if self.is_subsampled else height), width


class FrameHeader(NamedTuple):
    """What a slot says of its frame."""

    epoch: int
    """Which life of the publisher it comes from."""
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
    """What the values mean, in the publisher's words."""
    arrangement: int
    """How the values lie in the slot, one of :class:`Arrangement`."""
    shape: tuple[int, ...]
    """Shape of the frame's array."""

    @classmethod
    def unpack_from(cls, buffer: Buffer, offset: int, slot_bytes: int) -> FrameHeader:
        """Parse and validate the untrusted slot header at ``offset``.

        Raises:
            LayoutMismatch: The frame does not fit a slot of ``slot_bytes``, or has no known type or arrangement.
        """
        fields = SLOT.unpack_from(buffer, offset + SLOT_FIELDS)
        return tuple.__new__(cls, fields[:-1] + check_description(fields[-1], slot_bytes))


class Description(NamedTuple):
    """What is known of a frame before its pixels are."""

    height: int
    width: int
    channels: int
    dtype: str
    pixel_format: str
    arrangement: Arrangement = Arrangement.INTERLEAVED

    def pack(self) -> bytes:
        """A slot header's bytes from height to arrangement, with no metadata."""
        dtype, pixel_format = self.dtype.encode(), self.pixel_format.encode()
        return DESCRIPTION.pack(self.height, self.width, self.channels, 0, dtype, pixel_format, self.arrangement)


@lru_cache(maxsize=16)  # it is nearly always that of the frame before
def check_description(
    description: bytes, slot_bytes: int
) -> tuple[int, int, int, int, str, str, Arrangement, tuple[int, ...]]:
    """A slot header's fields from height to arrangement, of their bytes, and the shape that follows from them.

    Raises:
        LayoutMismatch: As :meth:`FrameHeader.unpack_from`.
    """
    height, width, channels, metadata_bytes, packed_dtype, pixel_format, code = DESCRIPTION.unpack(description)
    dtype = text(packed_dtype)
    element_bytes = DTYPES.get(dtype)
    if element_bytes is None:
        raise LayoutMismatch(f"a slot tells of elements of type {dtype!r}: it is damaged")
    try:
        arrangement = Arrangement(code)
    except ValueError:
        raise LayoutMismatch(f"a slot tells of an arrangement {code} of its values: it is damaged") from None
    shape = arrangement.shape(height, width, channels)
    frame_bytes = prod(shape) * element_bytes
    if not 0 < frame_bytes <= slot_bytes or metadata_bytes > MAX_METADATA_BYTES:
        raise LayoutMismatch(f"a slot of {slot_bytes} bytes tells of a frame of {frame_bytes}: it is damaged")
    if arrangement.is_subsampled and (height % 2 or width % 2 or element_bytes > 1):
        raise LayoutMismatch(f"a slot tells of a frame of {width}x{height} in 4:2:0: it is damaged")
    return height, width, channels, metadata_bytes, dtype, text(pixel_format), arrangement, shape
