"""Encode one camera's clip: its view of the canvas, as H.264 in MPEG-TS."""

from __future__ import annotations

from pathlib import Path

import av
import cv2
import numpy as np

from services.simulator.camera import Camera, Cylinder, lookup
from services.simulator.config import FRAMES_PER_SECOND, KEY_FRAME_INTERVAL
from services.simulator.footage import Picture
from services.simulator.scene import Drawn, Scene

BT601, LIMITED_RANGE = 6, 1
"""ISO/IEC 23091-2 colour matrix (SMPTE 170M) and range, the defaults of OpenCV's and FFmpeg's conversions."""


class View:
    """One camera's view of the canvas, in YUV 4:2:0."""

    def __init__(self, camera: Camera, scene: Scene) -> None:
        self._cylinder: Cylinder = scene.cylinder
        self._camera = camera
        columns, rows = lookup(camera, scene.cylinder)
        self._maps = cv2.convertMaps(columns, rows, cv2.CV_16SC2)
        self._still = self._see(scene.still, slice(0, camera.height_px), slice(0, camera.width_px))

    def frame(self, canvas: Picture, drawn: list[Drawn]) -> Picture:
        """Return the camera's picture. Only the areas with actors are recomputed.

        Returns:
            (height * 3 / 2, width) uint8: the planes Y, U, V one after the other (I420), BT.601, limited range.
        """
        frame = self._still.copy()
        planes = _planes(frame, self._camera.height_px)
        for one in drawn:
            part = self._where(one.area)
            if part is not None:
                # The part has even bounds, because a sample of chroma serves 2x2 pixels.
                rows, columns = part
                seen = _planes(self._see(canvas, rows, columns), rows.stop - rows.start)
                planes[0][rows, columns] = seen[0]
                half = slice(rows.start // 2, rows.stop // 2), slice(columns.start // 2, columns.stop // 2)
                planes[1][half], planes[2][half] = seen[1], seen[2]
        return frame

    def _see(self, canvas: Picture, rows: slice, columns: slice) -> Picture:
        first, second = (np.ascontiguousarray(table[rows, columns]) for table in self._maps)
        seen = cv2.remap(canvas, first, second, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return np.asarray(cv2.cvtColor(seen, cv2.COLOR_BGR2YUV_I420), np.uint8)

    def _where(self, area: tuple[slice, slice]) -> tuple[slice, slice] | None:
        """Return the rows and columns of the picture, in whole pairs, that cover an area of the canvas."""
        # A straight edge of the canvas is a curve in the picture, so project several points of it.
        xs = np.linspace(area[1].start - 1, area[1].stop, 9)
        ys = np.array([area[0].start - 1, area[0].stop], np.float64)
        yaw, v = self._cylinder.direction(*np.meshgrid(xs, ys))
        if np.abs(yaw - self._camera.yaw_rad).max() > self._camera.hfov_rad:
            return None
        # The margin covers the curve between the points, and the interpolation.
        x, y = self._camera.project(yaw, v)
        rows = _pairs(y.min() - 2, y.max() + 3, self._camera.height_px)
        columns = _pairs(x.min() - 2, x.max() + 3, self._camera.width_px)
        return None if rows.start >= rows.stop or columns.start >= columns.stop else (rows, columns)


def _pairs(start: float, stop: float, limit: int) -> slice:
    return slice(max(0, int(start) // 2 * 2), min(limit, -(-int(stop) // 2) * 2))


def _planes(frame: Picture, height: int) -> tuple[Picture, Picture, Picture]:
    """Return views of Y, U and V of an I420 frame."""
    width = frame.shape[1]
    quarter = height // 2 * (width // 2)
    colour = frame[height:].reshape(-1)
    half = (height // 2, width // 2)
    return frame[:height], colour[:quarter].reshape(half), colour[quarter:].reshape(half)


class Clip:
    """A clip being written: one closed group of pictures per second, no B-frames, cheap to decode."""

    def __init__(self, path: Path, camera: Camera, scene: Scene, quality: int) -> None:
        self._view = View(camera, scene)
        self._container = av.open(str(path), "w", format="mpegts")
        self._stream = self._container.add_stream("libx264", rate=FRAMES_PER_SECOND)
        self._stream.width, self._stream.height, self._stream.pix_fmt = camera.width_px, camera.height_px, "yuv420p"
        self._stream.codec_context.colorspace = BT601
        self._stream.codec_context.color_range = LIMITED_RANGE
        # A server starts clients at a key frame and repeats the loop, so groups are closed and of equal length, and the
        # order of decoding is that of display.
        self._stream.options = {
            "preset": "ultrafast",
            "tune": "fastdecode",
            "crf": str(quality),
            "x264-params": f"keyint={KEY_FRAME_INTERVAL}:min-keyint={KEY_FRAME_INTERVAL}:scenecut=0:bframes=0"
            ":open-gop=0:rc-lookahead=0:sync-lookahead=0:threads=1",
        }
        self._next = 0

    def write(self, canvas: Picture, drawn: list[Drawn]) -> None:
        """Encode the next frame."""
        frame = av.VideoFrame.from_ndarray(self._view.frame(canvas, drawn), format="yuv420p")
        frame.pts = self._next
        self._next += 1
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Flush the encoder, and close the file."""
        self._container.mux(self._stream.encode(None))
        self._container.close()
