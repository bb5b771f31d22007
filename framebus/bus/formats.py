"""The format of a frame: the type and meaning of its pixels, and the layout of its array."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from framebus.arguments import boolean, short_repr, whole_number
from framebus.errors import FramebusError, InvalidArgument
from framebus.ring.frame_header import DTYPES, Arrangement, Description, FrameHeader

Pixels = npt.NDArray[Any]

MAX_SIDE: Final = (1 << 32) - 1
MAX_LABEL: Final = 16
SUBSAMPLED: Final = {"nv12": Arrangement.NV12, "i420": Arrangement.I420}
_LABELS: Final = {None: "gray", 1: "gray", 3: "bgr", 4: "bgra"}


@dataclass(frozen=True, slots=True)
class FrameFormat:
    """The format of a frame.

    It determines the shape of the array: ``(height, width, channels)``; ``(height, width)`` with ``channels=None``;
    ``(channels, height, width)`` with ``planar=True``; and for the pixel formats ``nv12`` and ``i420``, of 8 bits in
    4:2:0, ``(height * 3 // 2, width)``, as in OpenCV.
    """

    height: int
    """Rows, in pixels."""
    width: int
    """Columns, in pixels."""
    channels: int | None = 3
    """Values of a pixel; ``None`` for an array without an axis for them."""
    dtype: str = "uint8"
    """numpy's name of the type of a value. A numpy dtype or scalar type is accepted too."""
    pixel_format: str = ""
    """What the channels mean, up to 16 ASCII letters. ``nv12`` and ``i420`` change the layout; framebus passes on all
    other values. The default is ``gray``, ``bgr`` or ``bgra``, depending on the number of channels."""
    planar: bool = False
    """Whether each channel is a plane of its own."""

    def __post_init__(self) -> None:
        set_field = object.__setattr__  # bypasses frozen=True, to normalise the arguments
        for name in ("height", "width"):
            set_field(self, name, whole_number(getattr(self, name), f"a frame's {name}", 1, MAX_SIDE))
        if self.channels is not None:
            set_field(self, "channels", whole_number(self.channels, "the number of channels", 1, MAX_SIDE))
        # Store numpy's name, so that formats given by a name, a type or a dtype are equal.
        set_field(self, "dtype", _dtype_name(self.dtype))
        set_field(self, "planar", boolean(self.planar, "planar"))
        label = self.pixel_format
        if not isinstance(label, str) or not (label.isascii() and label.isprintable()) or len(label) > MAX_LABEL:
            raise InvalidArgument(f"a pixel format is up to {MAX_LABEL} ASCII letters, not {short_repr(label)}")
        if label in SUBSAMPLED:
            self._check_subsampled()
        elif self.planar and self.channels is None:
            raise InvalidArgument("a planar frame has a number of channels, not None")
        if not label:
            set_field(self, "pixel_format", _LABELS.get(self.channels, ""))

    def _check_subsampled(self) -> None:
        if self.height % 2 or self.width % 2 or self.dtype != "uint8" or self.channels not in (3, None) or self.planar:
            raise InvalidArgument(
                f"{self.pixel_format} requires uint8, 3 channels or None, not planar, even height and width, not "
                f"{self.height} x {self.width} x {self.channels} {self.dtype}{' planar' if self.planar else ''}"
            )
        # With three channels, the format equals the one that is read back from a slot's header.
        object.__setattr__(self, "channels", 3)

    @classmethod
    def of(cls, array: Any, pixel_format: str = "", *, planar: bool = False) -> FrameFormat:
        """Return the format of an array, to open a publisher for arrays like it.

        Args:
            array: Any object that numpy can wrap as an array without a copy: ``(height, width)``, ``(height, width,
                channels)``, with ``planar`` ``(channels, height, width)``, with ``nv12`` or ``i420`` ``(height * 3 //
                2, width)``.
            pixel_format: What the channels mean; the default depends on their number.
            planar: Whether each channel is a plane of its own.

        Raises:
            InvalidArgument: A frame cannot have this shape or values of this type.
        """
        try:
            pixels = np.asarray(array)
        except (TypeError, ValueError, RuntimeError, FramebusError) as error:
            raise InvalidArgument(f"a frame is made of an array, not of {type(array).__name__}: {error}") from None
        shape, dtype, planar = pixels.shape, pixels.dtype, boolean(planar, "planar")
        # The array of these formats has one and a half times the rows of the picture.
        if isinstance(pixel_format, str) and pixel_format in SUBSAMPLED:
            if len(shape) != 2 or shape[0] % 3:
                raise InvalidArgument(f"an array in {pixel_format} has the shape (height * 3 // 2, width), not {shape}")
            return cls(shape[0] * 2 // 3, shape[1], 3, _dtype_name(dtype), pixel_format, planar)
        if len(shape) == 2:
            height, width = shape
            return cls(height, width, None, _dtype_name(dtype), pixel_format, planar)
        if len(shape) != 3:
            raise InvalidArgument(f"a frame's array has two or three axes, not the shape {shape}")
        channels, height, width = shape if planar else (shape[2], shape[0], shape[1])
        return cls(height, width, channels, _dtype_name(dtype), pixel_format, planar)

    @classmethod
    def from_header(cls, header: FrameHeader) -> FrameFormat:
        """Return the format of a received frame."""
        plane = header.arrangement == Arrangement.PLANE
        return cls(
            header.height,
            header.width,
            None if plane else header.channels,
            np.dtype(header.dtype).name,
            header.pixel_format,
            header.arrangement == Arrangement.PLANAR,
        )

    @property
    def arrangement(self) -> Arrangement:
        """How the values are laid out in the slot."""
        if self.channels is None:
            return Arrangement.PLANE
        if self.planar:
            return Arrangement.PLANAR
        return SUBSAMPLED.get(self.pixel_format, Arrangement.INTERLEAVED)

    @property
    def description(self) -> Description:
        """The fields of the slot header of such a frame."""
        channels = self.channels or 1
        return Description(self.height, self.width, channels, self.typestr, self.pixel_format, self.arrangement)

    @property
    def typestr(self) -> str:
        """Numpy's short name of the element type, with its byte order."""
        return np.dtype(self.dtype).str

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the frame's array."""
        return self.arrangement.shape(self.height, self.width, self.channels or 1)

    @property
    def frame_bytes(self) -> int:
        """Bytes of the pixels."""
        return prod(self.shape) * DTYPES[self.typestr]


def luma(pixels: Pixels, frame_format: FrameFormat) -> Pixels:
    """Return a view on the luma of a frame in 4:2:0, of shape ``(height, width)``.

    Raises:
        InvalidArgument: The frame is not in ``nv12`` or ``i420``.
    """
    _require_subsampled(frame_format)
    return pixels[: frame_format.height]


def chroma(pixels: Pixels, frame_format: FrameFormat) -> Pixels:
    """Return a view on the chroma of a frame in 4:2:0.

    Its shape is ``(height // 2, width // 2, 2)`` for ``nv12`` and ``(2, height // 2, width // 2)`` for ``i420``; U is
    first.

    Raises:
        InvalidArgument: The frame is not in ``nv12`` or ``i420``.
    """
    _require_subsampled(frame_format)
    height, width = frame_format.height // 2, frame_format.width // 2
    planes = pixels[frame_format.height :]
    return planes.reshape((height, width, 2) if frame_format.arrangement is Arrangement.NV12 else (2, height, width))


def _require_subsampled(frame_format: FrameFormat) -> None:
    if not frame_format.arrangement.is_subsampled:
        raise InvalidArgument(f"frames in {frame_format.pixel_format!r} have no luma and chroma: nv12 and i420 have")


def _dtype_name(dtype: Any) -> str:
    allowed = ", ".join(np.dtype(typestr).name for typestr in DTYPES)
    found = None
    # numpy also accepts None, lists and dicts, and would turn them into types that were not meant.
    if isinstance(dtype, (str, type, np.dtype)):
        try:
            found = np.dtype(dtype)
        except (TypeError, ValueError, SyntaxError, OverflowError, RecursionError, Warning):
            found = None
    # typestr includes the byte order, so this rejects arrays in the other one.
    if found is None or found.str not in DTYPES:
        raise InvalidArgument(
            f"the values of a frame are {allowed}, in this machine's byte order, not {short_repr(dtype)}"
        )
    return found.name
