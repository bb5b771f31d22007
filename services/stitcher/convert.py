"""From a decoder's planes to BGR, in memory that is kept.

New arrays of 6 MB for each picture would cost a page fault for every 4 KiB: a quarter of a core for five cameras.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
from av.video.frame import VideoFrame
from av.video.plane import VideoPlane

Image = npt.NDArray[np.uint8]

OPENCV_MATRICES = (2, 5, 6)
"""ISO/IEC 23091-2 colour matrices that OpenCV's conversion fits: unspecified, and the two names of BT.601."""
FULL_RANGE = 2


class Converter:
    """Converts the pictures of one camera. Owned by one thread."""

    def __init__(self) -> None:
        self._last: VideoFrame | None = None
        self._colours: Image = np.empty((0, 0, 2), np.uint8)
        self._bgr: Image = np.empty((0, 0, 3), np.uint8)

    def bgr(self, frame: VideoFrame, width_px: int, height_px: int) -> Image:
        """The picture in BGR; valid until the next call.

        Args:
            frame: As decoded, in any pixel format.
            width_px: Width wanted; a picture of another size is scaled.
            height_px: Height wanted.

        Returns:
            uint8 of shape ``(height_px, width_px, 3)``.
        """
        shape = (height_px, width_px, 3)
        if frame is self._last and self._bgr.shape == shape:
            return self._bgr
        if _is_plain(frame) and (frame.height, frame.width) == shape[:2]:
            if self._bgr.shape != shape or not self._bgr.flags.writeable:
                self._bgr = np.empty(shape, np.uint8)
                self._colours = np.empty((height_px // 2, width_px // 2, 2), np.uint8)
            # Only the small colour planes are copied, side by side; the large one is read where the decoder left it.
            y, u, v = (_view(plane) for plane in frame.planes)
            cv2.merge([u, v], dst=self._colours)
            cv2.cvtColorTwoPlane(y, self._colours, cv2.COLOR_YUV2BGR_NV12, dst=self._bgr)
        else:
            # FFmpeg's conversion knows every pixel format, matrix and range.
            converted = frame.to_ndarray(format="bgr24", width=width_px, height=height_px)
            self._bgr = np.asarray(converted, np.uint8)
            self._bgr.flags.writeable = False
        self._last = frame
        return self._bgr


def _view(plane: VideoPlane) -> Image:
    """The plane's pixels; the decoder pads their rows."""
    padded = np.frombuffer(memoryview(plane), np.uint8, plane.line_size * plane.height)
    return padded.reshape(plane.height, plane.line_size)[:, : plane.width]


def _is_plain(frame: VideoFrame) -> bool:
    return (
        frame.format.name == "yuv420p"
        and frame.width % 2 == 0
        and frame.height % 2 == 0
        and int(frame.colorspace) in OPENCV_MATRICES
        and int(frame.color_range) != FULL_RANGE
    )
