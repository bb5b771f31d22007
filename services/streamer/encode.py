"""Half-size JPEG pictures of the stream's frames."""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

PIXEL_FORMATS: Final = {"bgr": 3, "gray": 1}
"""What can be shown, and how many channels it has."""


class UnsupportedFrame(ValueError):
    """A frame that is no picture of 8-bit grey or BGR."""


class HalfSizeEncoder:
    """Shrinks frames to half their width and height, and encodes them. Owned by one thread.

    Averaging two by two pixels (``INTER_AREA`` at exactly one half) has a vectorised path in OpenCV, and the buffer of
    the small picture is used again. JPEG is baseline with the standard Huffman tables and 4:2:0 chroma: optimised
    tables cost two and a half times as much for a few percent of the size, 4:4:4 more than half as much again.

    Source: OpenCV, ``cv::resize`` and ``ImwriteFlags``.
    """

    def __init__(self, quality: int) -> None:
        cv2.setNumThreads(1)
        self._parameters = (
            cv2.IMWRITE_JPEG_QUALITY,
            quality,
            cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
            cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
            cv2.IMWRITE_JPEG_OPTIMIZE,
            0,
        )
        self._small: NDArray[np.uint8] = np.empty((0, 0, 3), np.uint8)

    def shrink(self, pixels: NDArray[np.uint8], pixel_format: str = "bgr") -> NDArray[np.uint8]:
        """Average two by two pixels; an odd last row or column is left out.

        Args:
            pixels: ``(height, width, channels)`` uint8, at least 2x2.
            pixel_format: What the channels mean: a key of :data:`PIXEL_FORMATS`.

        Returns:
            ``(height // 2, width // 2, channels)``, valid until the next call.

        Raises:
            UnsupportedFrame: The array is anything else.
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
        cv2.resize(pixels[: height * 2, : width * 2], (width, height), dst=self._small, interpolation=cv2.INTER_AREA)
        return self._small

    def encode(self, small: NDArray[np.uint8]) -> bytes:
        """The JPEG file of a picture that :meth:`shrink` returned.

        Raises:
            UnsupportedFrame: It is larger than a JPEG can be (65,500 pixels either way).
        """
        try:
            done, buffer = cv2.imencode(".jpg", small, self._parameters)
        except cv2.error as error:
            raise UnsupportedFrame(f"a picture of {small.shape[1]}x{small.shape[0]} has no JPEG: {error.err}") from None
        if not done:
            raise UnsupportedFrame(f"a picture of {small.shape[1]}x{small.shape[0]} has no JPEG")
        return buffer.tobytes()
