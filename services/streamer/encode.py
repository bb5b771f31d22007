"""Encode the stream's frames as JPEG: at half their size, and smaller for slow lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

PIXEL_FORMATS: Final = {"bgr": 3, "gray": 1}
"""Supported pixel formats, and their number of channels."""


@dataclass(frozen=True, slots=True)
class Level:
    """One of the encodings of a frame."""

    name: str
    """Description on the page."""
    divisor: int
    """Divisor of the half-size picture's width."""
    quality: float
    """Factor of the configured JPEG quality."""


LEVELS: Final = (
    Level("full", 1, 1.0),
    Level("lower quality", 1, 0.55),
    Level("quarter size", 2, 0.75),
    Level("quarter size, lower quality", 2, 0.25),
)
"""From the largest file to the smallest: about 1, 0.55, 0.21 and 0.1 of the first one's bytes."""
SMALLEST: Final = len(LEVELS) - 1
REDUCED_FROM_PX: Final = 100_000
"""Half-size pictures with fewer pixels are small files already, so all levels use the first one."""


class UnsupportedFrame(ValueError):
    """The frame is not a picture of 8-bit grey or BGR."""


class PictureEncoder:
    """Shrinks frames to half their width and height, and encodes them. Owned by one thread.

    Averaging 2x2 pixels (``INTER_AREA`` at exactly one half) has a vectorised path in OpenCV, and the buffer of the
    small picture is reused. JPEG is baseline with the standard Huffman tables and 4:2:0 chroma: optimised tables take
    2.5 times as long and save a few percent of the size; 4:4:4 takes more than 1.5 times as long.

    Source: OpenCV, ``cv::resize`` and ``ImwriteFlags``.
    """

    def __init__(self, quality: int) -> None:
        cv2.setNumThreads(1)
        self._quality = quality
        self._small: NDArray[np.uint8] = np.empty((0, 0, 3), np.uint8)

    def shrink(self, pixels: NDArray[np.uint8], pixel_format: str = "bgr") -> NDArray[np.uint8]:
        """Average 2x2 pixels. An odd last row or column is dropped.

        Args:
            pixels: ``(height, width, channels)`` uint8, at least 2x2.
            pixel_format: A key of :data:`PIXEL_FORMATS`.

        Returns:
            ``(height // 2, width // 2, channels)``, valid until the next call.

        Raises:
            UnsupportedFrame: The array has another format, type or shape.
        """
        if pixels.dtype != np.uint8 or pixels.ndim != len("HWC") or pixels.shape[2] != PIXEL_FORMATS.get(pixel_format):
            raise UnsupportedFrame(
                f"frames of {pixel_format!r}, {pixels.dtype} {pixels.shape}, cannot be shown: "
                "uint8 'bgr' (height, width, 3) and 'gray' (height, width, 1) can"
            )
        height, width, channels = pixels.shape[0] // 2, pixels.shape[1] // 2, pixels.shape[2]
        if not height or not width:
            raise UnsupportedFrame(f"a frame of {pixels.shape[1]}x{pixels.shape[0]} is too small to be shown")
        if self._small.shape != (height, width, channels):
            self._small = np.empty((height, width, channels), np.uint8)
        # Without an odd last row or column: OpenCV's fast path requires exactly one half.
        cv2.resize(pixels[: height * 2, : width * 2], (width, height), dst=self._small, interpolation=cv2.INTER_AREA)
        return self._small

    def encode(self, small: NDArray[np.uint8], level: int = 0) -> bytes:
        """Encode a picture that :meth:`shrink` returned.

        Args:
            small: The picture.
            level: Index into :data:`LEVELS`; see :func:`level_of`.

        Raises:
            UnsupportedFrame: The picture exceeds the limit of JPEG (65,500 pixels in either direction).
        """
        wanted = LEVELS[level]
        if wanted.divisor > 1:
            # From the half-size picture: the frame itself is released by then, and has four times the pixels.
            size = (small.shape[1] // wanted.divisor, small.shape[0] // wanted.divisor)
            small = np.asarray(cv2.resize(small, size, interpolation=cv2.INTER_AREA), np.uint8)
        return _encode(small, max(1, round(self._quality * wanted.quality)))


def level_of(small: NDArray[np.uint8], wanted: int) -> int:
    """Return the level to encode for a viewer that requests ``wanted``, for a half-size picture."""
    return wanted if small.shape[0] * small.shape[1] >= REDUCED_FROM_PX else 0


def message_picture(width_px: int, height_px: int, lines: Sequence[str]) -> bytes:
    """Return a JPEG of a dark panel with lines of ASCII text, for viewers that can show only pictures."""
    panel = np.full((height_px, width_px, 3), 24, np.uint8)
    # As large as the lines' number and the longest line permit.
    scale = min(height_px / 40 / (len(lines) + 1), width_px / 20 / max(map(len, lines), default=1))
    for row, line in enumerate(lines, start=1):
        place = (width_px // 40, round(height_px * row / (len(lines) + 1)))
        cv2.putText(panel, line, place, cv2.FONT_HERSHEY_SIMPLEX, scale, (220, 220, 220), max(1, round(scale * 2)))
    return _encode(panel, 70)


def _encode(picture: NDArray[np.uint8], quality: int) -> bytes:
    parameters = (
        cv2.IMWRITE_JPEG_QUALITY,
        quality,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
        cv2.IMWRITE_JPEG_OPTIMIZE,
        0,
    )
    height, width = picture.shape[:2]
    try:
        done, buffer = cv2.imencode(".jpg", picture, parameters)
    except cv2.error as error:
        raise UnsupportedFrame(f"a picture of {width}x{height} has no JPEG: {error.err}") from None
    if not done:
        raise UnsupportedFrame(f"a picture of {width}x{height} has no JPEG")
    return buffer.tobytes()
