"""Project directions into pictures: pinhole cameras and cylinders around one centre, as pure functions.

A direction is (yaw, v): yaw in radians to the right, v the tangent of the pitch, growing downwards as image rows do.
The centre of pixel (i, j) has the coordinates (i, j); the picture spans -0.5 to size - 0.5.

A pinhole camera that looks along (yaw0, 0) with focal length f sees the direction (yaw, v) at
``x = cx + f tan(yaw - yaw0)``, ``y = cy + f v / cos(yaw - yaw0)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Maps = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Two float32 arrays (height, width): source column and source row of each pixel, as required by ``cv2.remap``."""


@dataclass(frozen=True)
class Camera:
    """A pinhole camera without distortion, directed at the horizon."""

    name: str
    yaw_rad: float
    """Direction of the optical axis, radians to the right."""
    hfov_rad: float
    """Horizontal field of view, from edge to edge of the picture."""
    width_px: int
    height_px: int

    @property
    def focal_px(self) -> float:
        """Focal length in pixels, the same along both axes."""
        return self.width_px / 2 / math.tan(self.hfov_rad / 2)

    def project(self, yaw: Floats, v: Floats) -> tuple[Floats, Floats]:
        """Return pixel coordinates (x, y) of directions; NaN at 90 degrees or more from the optical axis."""
        off_axis = np.asarray(yaw, np.float64) - self.yaw_rad
        # What is behind the camera would be projected through its centre into the picture.
        cosine = np.cos(off_axis)
        cosine = np.where(cosine > 1e-6, cosine, np.nan)
        x = (self.width_px - 1) / 2 + self.focal_px * np.sin(off_axis) / cosine
        y = (self.height_px - 1) / 2 + self.focal_px * np.asarray(v, np.float64) / cosine
        return x, y

    def direction(self, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        """Return the directions (yaw, v) of pixel coordinates: the inverse of :meth:`project`."""
        right = (np.asarray(x, np.float64) - (self.width_px - 1) / 2) / self.focal_px
        down = (np.asarray(y, np.float64) - (self.height_px - 1) / 2) / self.focal_px
        return self.yaw_rad + np.arctan(right), down / np.hypot(1.0, right)


@dataclass(frozen=True)
class Cylinder:
    """A cylindrical picture: columns are equal steps of yaw, rows equal steps of v."""

    width_px: int
    height_px: int
    yaw_min_rad: float
    """Yaw of the left edge of the first column."""
    yaw_max_rad: float
    """Yaw of the right edge of the last column."""
    v_min: float
    """v of the top of the first row."""
    v_max: float
    """v of the bottom of the last row."""

    def project(self, yaw: Floats, v: Floats) -> tuple[Floats, Floats]:
        """Return pixel coordinates (x, y) of directions."""
        x = (np.asarray(yaw, np.float64) - self.yaw_min_rad) * self.width_px / (self.yaw_max_rad - self.yaw_min_rad)
        y = (np.asarray(v, np.float64) - self.v_min) * self.height_px / (self.v_max - self.v_min)
        return x - 0.5, y - 0.5

    def direction(self, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        """Return the directions (yaw, v) of pixel coordinates: the inverse of :meth:`project`."""
        yaw = self.yaw_min_rad + (np.asarray(x, np.float64) + 0.5) * (
            (self.yaw_max_rad - self.yaw_min_rad) / self.width_px
        )
        v = self.v_min + (np.asarray(y, np.float64) + 0.5) * ((self.v_max - self.v_min) / self.height_px)
        return yaw, v


def lookup(picture: Camera | Cylinder, source: Cylinder) -> Maps:
    """Return the position of each pixel of ``picture`` in the cylinder ``source``."""
    x, y = np.meshgrid(np.arange(picture.width_px, dtype=np.float64), np.arange(picture.height_px, dtype=np.float64))
    columns, rows = source.project(*picture.direction(x, y))
    return columns.astype(np.float32), rows.astype(np.float32)
