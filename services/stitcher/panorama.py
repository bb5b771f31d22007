"""The shape of the panorama: which part of the world it shows, and which camera shows which columns.

The panorama is a cylinder: a column is a direction (yaw, in rad), a row is ``v = tan(pitch)``, and both have the same
scale, so straight plumb lines stay straight. It is cropped to the largest rectangle of the wanted proportions in which
every pixel is seen by its camera.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from services.stitcher.calibration import Calibration, CalibrationError, CameraPose

Array = npt.NDArray[np.float64]
Map = npt.NDArray[np.float32]

GRID = 2000
MARGIN_PX = 1.0
"""Distance to the picture's edge that bilinear interpolation needs."""


@dataclass(frozen=True, slots=True)
class Panorama:
    """What the panorama shows."""

    width_px: int
    height_px: int
    scale_px: float
    """Pixels a radian of yaw, and a unit of v."""
    yaw_min_rad: float
    """Yaw of the left edge; pixel x is at ``yaw_min_rad + (x + 0.5) / scale_px``."""
    v_min: float
    """tan(pitch) of the upper edge, negative above the horizon; pixel y is at ``v_min + (y + 0.5) / scale_px``."""
    edges_px: tuple[int, ...]
    """Camera i, from left to right, owns the columns from ``edges_px[i]`` to before ``edges_px[i + 1]``."""


def plan(calibration: Calibration, width_px: int, height_px: int) -> Panorama:
    """Choose the crop and the seams.

    Raises:
        CalibrationError: The pictures of two neighbours do not touch, or no column is covered.
    """
    cameras = calibration.cameras
    first, last = cameras[0].yaw_rad, cameras[-1].yaw_rad
    margin = min(math.pi / 2, (2 * math.pi - (last - first)) / 2)
    yaws = np.linspace(first - margin, last + margin, GRID)
    spans = [_visible(camera, yaws) for camera in cameras]
    heights = np.array([np.maximum(high - low, 0) for low, high in spans])
    seams = [_seam(heights, yaws, cameras, i) for i in range(len(cameras) - 1)]
    owner = np.searchsorted(np.array(seams), np.arange(GRID), side="right")
    low = np.array([spans[camera][0][column] for column, camera in enumerate(owner)])
    high = np.array([spans[camera][1][column] for column, camera in enumerate(owner)])
    covered = np.flatnonzero(high > low)
    step = float(yaws[1] - yaws[0])
    start, columns, v_min = _crop(
        low[covered[0] : covered[-1] + 1], high[covered[0] : covered[-1] + 1], step, height_px / width_px
    )
    scale_px = width_px / (columns * step)
    yaw_min = float(yaws[covered[0] + start])
    edges = [round((float(yaws[seam]) - yaw_min) * scale_px / 2) * 2 for seam in seams]
    inner = np.clip(np.maximum.accumulate(np.array(edges, int)), 0, width_px).tolist()
    return Panorama(width_px, height_px, scale_px, yaw_min, v_min, (0, *inner, width_px))


def source_maps(panorama: Panorama, camera: CameraPose, x0: int, x1: int) -> tuple[Map, Map]:
    """Where columns ``x0`` to before ``x1`` are in the camera's picture: x and y in its pixels, float32 each."""
    yaw = panorama.yaw_min_rad + (np.arange(x0, x1) + 0.5) / panorama.scale_px
    v = panorama.v_min + (np.arange(panorama.height_px) + 0.5) / panorama.scale_px
    directions = np.empty((panorama.height_px, x1 - x0, 3))
    directions[..., 0], directions[..., 1], directions[..., 2] = np.sin(yaw)[None, :], v[:, None], np.cos(yaw)[None, :]
    pixels = camera.project(directions)
    return _finite(pixels[..., 0]), _finite(pixels[..., 1])


def is_inside(camera: CameraPose, map_x: Map, map_y: Map) -> bool:
    """Whether the whole map lies in the camera's picture."""
    return bool(
        (map_x >= 0).all()
        and (map_x <= camera.width_px - 1).all()
        and (map_y >= 0).all()
        and (map_y <= camera.height_px - 1).all()
    )


def _finite(values: Array) -> Map:
    return np.ascontiguousarray(np.nan_to_num(values, nan=-1e6), dtype=np.float32)


def _visible(camera: CameraPose, yaws: Array) -> tuple[Array, Array]:
    """From and to which v the camera sees each yaw: all its edges are lines, so linear in v."""
    turned = camera.r.T
    at_zero = turned @ np.stack([np.sin(yaws), np.zeros_like(yaws), np.cos(yaws)])
    slope = turned[:, 1][:, None]
    low, high = np.full_like(yaws, -np.inf), np.full_like(yaws, np.inf)
    f, cx, cy = camera.focal_px, camera.center_x_px, camera.center_y_px
    for row in (
        (0.0, 0.0, 1.0),
        (f, 0.0, cx - MARGIN_PX),
        (-f, 0.0, camera.width_px - 1 - MARGIN_PX - cx),
        (0.0, f, cy - MARGIN_PX),
        (0.0, -f, camera.height_px - 1 - MARGIN_PX - cy),
    ):
        constant, factor = np.array(row) @ at_zero, float((np.array(row) @ slope)[0])
        if factor > 1e-12:
            low = np.maximum(low, -constant / factor)
        elif factor < -1e-12:
            high = np.minimum(high, -constant / factor)
        else:
            high = np.where(constant > 0, high, -np.inf)
    return low, high


def _seam(heights: Array, yaws: Array, cameras: tuple[CameraPose, ...], left: int) -> int:
    """First column of the grid that the right neighbour sees better than the left one."""
    between = np.flatnonzero((yaws >= cameras[left].yaw_rad) & (yaws <= cameras[left + 1].yaw_rad))
    better = between[heights[left + 1, between] > heights[left, between]]
    seam = int(better[0]) if better.size else int(between[-1]) if between.size else 0
    if not between.size or not heights[left, max(seam - 1, 0)] or not heights[left + 1, seam]:
        raise CalibrationError(
            f"the pictures of {cameras[left].name} and {cameras[left + 1].name} do not touch: calibrate again"
        )
    return seam


def _crop(low: Array, high: Array, step: float, proportion: float) -> tuple[int, int, float]:
    """First column, number of columns and upper v of the widest covered rectangle; ``proportion`` is height/width."""

    def fit(columns: int) -> tuple[float, int, float]:
        lows = np.lib.stride_tricks.sliding_window_view(low, columns).max(axis=1)
        highs = np.lib.stride_tricks.sliding_window_view(high, columns).min(axis=1)
        slack = highs - lows - columns * step * proportion
        best = int(slack.argmax())
        return float(slack[best]), best, float(lows[best] + slack[best] / 2)

    fitting, too_wide = 0, len(low) + 1
    while too_wide - fitting > 1:
        columns = (fitting + too_wide) // 2
        if fit(columns)[0] >= 0:
            fitting = columns
        else:
            too_wide = columns
    if not fitting:
        raise CalibrationError("the cameras' pictures leave no room for a panorama of this shape: calibrate again")
    # Columns are intervals of the grid, of which there is one less than points.
    columns = max(fitting - 1, 1)
    _, start, v_min = fit(columns)
    return start, columns, v_min
