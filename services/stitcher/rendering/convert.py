"""Convert a decoder's output to the planes that are warped: 8-bit Y, U and V.

The usual pixel formats are read in place, without a copy. Matrix and range are passed along and applied in the
conversion to BGR after the warp.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from av.video.frame import VideoFrame
from av.video.plane import VideoPlane
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from services.stitcher.rendering.colour import BT601, UNSPECIFIED, is_known

Image = npt.NDArray[np.uint8]

FULL_RANGE = 2
_CHROMA_STEPS = {"420": (2, 2), "422": (1, 2), "444": (1, 1), "440": (2, 1)}
PLANAR = {
    f"yuv{full}{name}p{depth}": (step, int(depth[:2] or 8))
    for name, step in _CHROMA_STEPS.items()
    for full in ("", "j")
    for depth in (("",) if full else ("", "10le", "12le"))
}
"""Formats of three planes: rows and columns per chroma sample, and bits per sample."""
GREY = {"gray": 8, "gray10le": 10, "gray12le": 12}
"""Formats of one plane, and bits per sample."""


@dataclass(frozen=True, slots=True)
class Planes:
    """A picture as uint8 planes, which keep their memory alive."""

    y: Image
    """Shape ``(height, width)``."""
    u: Image
    """Shape of ``y`` divided by ``chroma_step``, rounded up. As in MPEG-2, a sample lies on the first of its columns
    and in the middle of its rows."""
    v: Image
    """Like ``u``."""
    matrix: int = BT601
    """Colour matrix, by its number in ISO/IEC 23091-2."""
    is_full_range: bool = False
    """Whether luma runs from 0 to 255, not from 16 to 235."""
    chroma_step: tuple[int, int] = (2, 2)
    """Rows and columns per sample of ``u`` and ``v``."""


class Converter:
    """Converts one camera's pictures to planes. Owned by one thread."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()
        self._last: VideoFrame | None = None
        self._converted: Planes | None = None

    def planes(self, frame: VideoFrame, width_px: int, height_px: int) -> Planes:
        """Return the planes of a picture.

        Args:
            frame: Decoded picture, in any pixel format.
            width_px: Required width; a picture of another size is scaled.
            height_px: Required height.
        """
        matrix, name = int(frame.colorspace), frame.format.name
        matrix = BT601 if matrix == UNSPECIFIED else matrix
        is_right_size = (frame.width, frame.height) == (width_px, height_px)
        if is_right_size and is_known(matrix) and name in PLANAR and PLANAR[name][1] == 8:
            y, u, v = (_view(plane) for plane in frame.planes)
            return Planes(y, u, v, matrix, _is_full_range(frame), PLANAR[name][0])
        # A late or slow camera's picture is shown again, so keep its conversion.
        kept = self._converted
        if kept is None or frame is not self._last or kept.y.shape != (height_px, width_px):
            kept = (_repack(frame, matrix) if is_right_size and is_known(matrix) else None) or self._scale(
                frame, width_px, height_px
            )
            self._last, self._converted = frame, kept
        return kept

    def _scale(self, frame: VideoFrame, width_px: int, height_px: int) -> Planes:
        """Convert with FFmpeg, which supports every format."""
        scaled = self._reformatter.reformat(
            frame,
            width_px,
            height_px,
            "yuv420p",
            dst_colorspace=Colorspace.ITU601,
            dst_color_range=ColorRange.MPEG,
        )
        y, u, v = (_view(plane) for plane in scaled.planes)
        return Planes(y, u, v)


def _is_full_range(frame: VideoFrame) -> bool:
    name = frame.format.name
    # FFmpeg treats grey pictures as full range regardless of their tag, and converts them to it.
    return int(frame.color_range) == FULL_RANGE or name.startswith("yuvj") or name in GREY


def _repack(frame: VideoFrame, matrix: int) -> Planes | None:
    """Repack a picture into three planes of 8 bits, colours unchanged. Return ``None`` for unsupported formats."""
    name = frame.format.name
    is_full = _is_full_range(frame)
    if name in PLANAR:
        step, bits = PLANAR[name]
        y, u, v = (_narrow(plane, bits, is_full) for plane in frame.planes)
        return Planes(y, u, v, matrix, is_full, step)
    if name in GREY:
        y = _narrow(frame.planes[0], GREY[name], is_full)
        # Renderers take three planes: 128 is a U or V without colour.
        none = np.full(((y.shape[0] + 1) // 2, (y.shape[1] + 1) // 2), 128, np.uint8)
        return Planes(y, none, none, matrix, is_full)
    if name in {"nv12", "nv21"}:
        chroma = _view(frame.planes[1], 2)
        first, second = (np.asarray(one, np.uint8) for one in cv2.split(chroma.reshape(chroma.shape[0], -1, 2)))
        u, v = (first, second) if name == "nv12" else (second, first)
        return Planes(_view(frame.planes[0]), u, v, matrix, is_full)
    return None


def _narrow(plane: VideoPlane, bits: int, is_full: bool) -> Image:
    if bits == 8:
        return _view(plane)
    # Limited range scales the levels by a power of two; full range ends at the largest number.
    factor = 255 / (2**bits - 1) if is_full else 2.0 ** (8 - bits)
    wide = _view(plane, 2).view(np.uint16)
    return np.asarray(cv2.convertScaleAbs(wide, alpha=factor), np.uint8)


def _view(plane: VideoPlane, bytes_a_sample: int = 1) -> Image:
    """Return a view of the plane's bytes, without the padding of its rows."""
    # The decoder pads each row to line_size bytes.
    padded = np.frombuffer(memoryview(plane), np.uint8, plane.line_size * plane.height)
    return padded.reshape(plane.height, plane.line_size)[:, : plane.width * bytes_a_sample]
