"""From whatever a decoder gives to the planes that are warped: 8-bit YUV 4:2:0, BT.601, limited range.

This is what most cameras send, and then the planes are read where the decoder left them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from av.video.frame import VideoFrame
from av.video.plane import VideoPlane
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

Image = npt.NDArray[np.uint8]

BT601_MATRICES = (2, 5, 6)
"""ISO/IEC 23091-2 colour matrices: unspecified, and the two names of BT.601."""
FULL_RANGE = 2


@dataclass(frozen=True, slots=True)
class Planes:
    """A picture as uint8 planes, whose memory lives as long as they do."""

    y: Image
    """Shape ``(height, width)``."""
    u: Image
    """Half of that, rounded up. As MPEG-2 has it, a sample lies on every other column and between two rows."""
    v: Image
    """Like ``u``."""


class Converter:
    """Gives the planes of one camera's pictures. Owned by one thread."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()
        self._last: VideoFrame | None = None
        self._converted: VideoFrame | None = None

    def planes(self, frame: VideoFrame, width_px: int, height_px: int) -> Planes:
        """The planes of a picture.

        Args:
            frame: As decoded, in any pixel format.
            width_px: Width wanted; a picture of another size is scaled.
            height_px: Height wanted.
        """
        if not _is_plain(frame) or (frame.width, frame.height) != (width_px, height_px):
            frame = self._convert(frame, width_px, height_px)
        y, u, v = (_view(plane) for plane in frame.planes)
        return Planes(y, u, v)

    def _convert(self, frame: VideoFrame, width_px: int, height_px: int) -> VideoFrame:
        """Converted by FFmpeg, which knows every format; a late camera's picture, shown again, only once."""
        kept = self._converted
        if kept is None or frame is not self._last or (kept.width, kept.height) != (width_px, height_px):
            kept = self._reformatter.reformat(
                frame,
                width_px,
                height_px,
                "yuv420p",
                dst_colorspace=Colorspace.ITU601,
                dst_color_range=ColorRange.MPEG,
            )
            self._last, self._converted = frame, kept
        return kept


def _view(plane: VideoPlane) -> Image:
    """The plane's pixels; the decoder pads their rows."""
    padded = np.frombuffer(memoryview(plane), np.uint8, plane.line_size * plane.height)
    return padded.reshape(plane.height, plane.line_size)[:, : plane.width]


def _is_plain(frame: VideoFrame) -> bool:
    return (
        frame.format.name == "yuv420p"
        and int(frame.colorspace) in BT601_MATRICES
        and int(frame.color_range) != FULL_RANGE
    )
