"""Plan the panorama: which part of the world it shows, and which camera shows which columns.

The panorama is a cylinder: a column is a direction (yaw, in rad), a row is ``v = tan(pitch)``, and both have the same
scale, so that vertical lines stay straight. A cropped panorama is the largest rectangle of the given proportions in
which a camera sees every pixel. A fitted panorama shows everything that the cameras see, with bars elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from services.common.geometry import PanoramaGeometry
from services.stitcher.calibration.poses import Calibration, CalibrationError, CameraPose
from services.stitcher.rendering.coverage import Coverage, cover
from services.stitcher.rendering.view import COLUMNS, STEP_RAD, Indices, Sight, directions, look, unroll

Map = npt.NDArray[np.float32]
Positions = npt.NDArray[np.floating[Any]]
View = Literal["crop", "fit"]

NOT_SEEN = 1e3
"""Cost of a column that the camera does not see."""
UNCOVERED = 4.0
"""Cost of a column of which the camera sees none of the requested rows. For comparison, the offset from the middle of
its picture, by which two cameras share their overlap, costs at most 1."""
FAR_PX = -30000.0
"""Map position of pixels that a camera cannot see: outside any picture, but within the 16 bits of a fixed-point map."""
MAP_ROWS = 64
"""Rows projected at a time: the float64 rays of a whole large panorama would take hundreds of megabytes."""


@dataclass(frozen=True, slots=True)
class Panorama:
    """The panorama's geometry and parts."""

    width_px: int
    height_px: int
    scale_px: float
    """Pixels per radian of yaw, and per unit of v."""
    yaw_min_rad: float
    """Yaw of the left edge; pixel x is at ``yaw_min_rad + (x + 0.5) / scale_px``."""
    v_min: float
    """tan(pitch) of the top edge, negative above the horizon; pixel y is at ``v_min + (y + 0.5) / scale_px``."""
    edges_px: tuple[int, ...]
    """Part i, from left to right, has the columns from ``edges_px[i]`` up to ``edges_px[i + 1]``, exclusive."""
    owners: tuple[int | None, ...]
    """Which camera of the calibration shows each part; ``None`` where no camera sees anything. A camera has two parts
    if the panorama is a whole circle, which is cut through one."""
    coverage: Coverage
    """How much it shows of the cameras' pictures."""
    view: View

    @property
    def geometry(self) -> PanoramaGeometry:
        """Return the geometry for the frames' metadata."""
        return PanoramaGeometry(self.scale_px, self.yaw_min_rad, self.v_min, self.width_px, self.height_px)


@dataclass(frozen=True, slots=True)
class _Window:
    """Columns of the grid, numbered continuously around the circle, and their place in the panorama."""

    start: int
    count: int
    scale_px: float
    yaw_min_rad: float
    v_min: float


def plan(calibration: Calibration, width_px: int, height_px: int, view: View = "crop") -> Panorama:
    """Choose the part of the world to show, and the seams.

    Args:
        calibration: The placed cameras.
        width_px: Width of the panorama, a multiple of 4.
        height_px: Height of the panorama, a multiple of 4.
        view: ``crop`` fills the panorama, ``fit`` shows everything, with bars.

    Raises:
        CalibrationError: The pictures of two neighbours do not touch, or nothing can be shown in this shape.
    """
    cameras = calibration.cameras
    sight, order = unroll(look(cameras))
    if not order:
        raise CalibrationError("no camera looks less than 76 degrees up or down: calibrate again")
    if view == "fit":
        window = _fit(sight, width_px, height_px)
        owner = _assign(sight, (float(sight.low.min()), float(sight.high.max())))
    else:
        _check_joined(sight, order, cameras)
        owner = _assign(sight, None)
        window = _crop(sight, owner, width_px, height_px)
        for _ in range(2):  # the second pass uses the visible rows, which may allow for more columns
            owner = _assign(sight, (window.v_min, window.v_min + height_px / window.scale_px))
            window = _crop(sight, owner, width_px, height_px)
    edges_px, owners = _parts(sight, order, owner, window, (width_px, height_px))
    coverage = cover(cameras, sight, window.scale_px, edges_px, owners)
    return Panorama(
        width_px,
        height_px,
        window.scale_px,
        window.yaw_min_rad,
        window.v_min,
        edges_px,
        owners,
        coverage,
        view,
    )


def source_maps(panorama: Panorama, camera: CameraPose, x0: int, x1: int) -> tuple[Map, Map]:
    """Return the positions of columns ``x0`` up to ``x1`` in the camera's picture: x and y in its pixels, float32.

    Pixels that the camera cannot see get a position far outside the picture.
    """
    # Middles of pixels: see Panorama.
    yaw = panorama.yaw_min_rad + (np.arange(x0, x1, dtype=np.float64) + 0.5) / panorama.scale_px
    v = panorama.v_min + (np.arange(panorama.height_px, dtype=np.float64) + 0.5) / panorama.scale_px
    maps = np.empty((2, panorama.height_px, x1 - x0), np.float32)
    for top in range(0, panorama.height_px, MAP_ROWS):
        rows = slice(top, top + MAP_ROWS)
        pixels = camera.project(directions(yaw[None, :], v[rows, None]))
        maps[:, rows] = np.nan_to_num(np.moveaxis(pixels, -1, 0), nan=FAR_PX, posinf=FAR_PX).clip(FAR_PX, -FAR_PX)
    return maps[0], maps[1]


def is_inside(camera: CameraPose, map_x: Map, map_y: Map) -> bool:
    """Return whether the whole map lies in the camera's picture."""
    return bool(inside(camera, map_x, map_y).all())


def inside(camera: CameraPose, map_x: Positions, map_y: Positions) -> npt.NDArray[np.bool_]:
    """Return which pixels of the map lie in the camera's picture."""
    return np.asarray((map_x >= 0) & (map_x <= camera.width_px - 1) & (map_y >= 0) & (map_y <= camera.height_px - 1))


def _is_circle(sight: Sight) -> bool:
    return len(sight.yaws) == COLUMNS


def _span_rad(sight: Sight, count: int) -> float:
    """Return the span of ``count`` columns: one interval less than columns, except on the full circle."""
    return (count if _is_circle(sight) and count == COLUMNS else max(count - 1, 1)) * STEP_RAD


def _check_joined(sight: Sight, order: Sequence[int], cameras: tuple[CameraPose, ...]) -> None:
    seen = sight.height > 0
    gaps = np.flatnonzero(~seen.any(axis=0))
    if gaps.size:
        left = max(place for place in range(len(order)) if seen[place, : gaps[0]].any())
        right = next(place for place in range(len(order)) if seen[place, gaps[0] :].any())
        names = f"{cameras[order[left]].name} and {cameras[order[right]].name}"
        raise CalibrationError(f"the pictures of {names} do not touch: calibrate again")


def _assign(sight: Sight, rows: tuple[float, float] | None) -> Indices:
    """Assign each column to a place in the order, at the least cost. Each place gets at most one run of columns.

    Args:
        sight: What the cameras see, in their order.
        rows: Range of v to show. If it is None, prefer the camera that sees most of a column.
    """
    if rows is None:
        covered = sight.height / sight.height.max()
    else:
        covered = (np.minimum(sight.high, rows[1]) - np.maximum(sight.low, rows[0])).clip(0) / (rows[1] - rows[0])
    cost = np.where(sight.height > 0, UNCOVERED * (1 - covered) + sight.offset, NOT_SEEN)
    if _is_circle(sight):
        cost[1:-1, [0, -1]] = len(sight.yaws) * NOT_SEEN  # the cut goes through one camera, which must have both ends
    # Dynamic programming: the least cost of all columns so far, by the place that owns the last of them. Places only
    # increase from left to right, so each one gets a single run of columns.
    total = cost[:, 0]
    places = np.arange(len(cost))
    came_from = np.zeros(cost.shape, np.intp)
    for column in range(1, cost.shape[1]):
        best = np.minimum.accumulate(total)
        came_from[:, column] = np.maximum.accumulate(np.where(total <= best, places, 0))
        total = best + cost[:, column]
    owner = np.empty(cost.shape[1], np.intp)
    owner[-1] = int(total.argmin())
    for column in range(cost.shape[1] - 1, 0, -1):
        owner[column - 1] = came_from[owner[column], column]
    return owner


def _fit(sight: Sight, width_px: int, height_px: int) -> _Window:
    low, high = float(sight.low.min()), float(sight.high.max())
    count = len(sight.yaws)
    span_rad = _span_rad(sight, count)
    scale_px = min(width_px / span_rad, height_px / (high - low))
    middle_rad = float(sight.yaws[0] + sight.yaws[-1]) / 2
    return _Window(0, count, scale_px, middle_rad - width_px / scale_px / 2, (low + high - height_px / scale_px) / 2)


def _crop(sight: Sight, owner: Indices, width_px: int, height_px: int) -> _Window:
    """Return the widest rectangle in which each column is covered by its owner."""
    count = len(sight.yaws)
    low, high = sight.low[owner, np.arange(count)], sight.high[owner, np.arange(count)]
    if _is_circle(sight):
        # The rectangle may extend across the ends of the arrays, which meet.
        low, high = np.tile(low, 2), np.tile(high, 2)

    def slack(columns: int) -> tuple[float, int, float]:
        lows = np.lib.stride_tricks.sliding_window_view(low, columns).max(axis=1)
        highs = np.lib.stride_tricks.sliding_window_view(high, columns).min(axis=1)
        spare = highs - lows - _span_rad(sight, columns) * height_px / width_px
        # Of equally good positions, take the one in the middle.
        preference = 1e-6 * np.abs(np.arange(len(spare)) - (count - columns) / 2)
        best = int((spare - preference).argmax())
        return float(spare[best]), best, float(lows[best] + spare[best] / 2)

    # A part of a covered rectangle is covered too, so bisect for the largest number of columns.
    fitting, too_wide = 0, count + 1
    while too_wide - fitting > 1:
        columns = (fitting + too_wide) // 2
        if slack(columns)[0] >= 0:
            fitting = columns
        else:
            too_wide = columns
    if fitting < 2:
        raise CalibrationError("the cameras' pictures leave no room for a panorama of this shape: calibrate again")
    _, start, v_min = slack(fitting)
    scale_px = width_px / _span_rad(sight, fitting)
    # Columns stand for their middles, but a full circle begins at the edge of its first column.
    half = STEP_RAD / 2 if fitting == COLUMNS else 0.0
    return _Window(start, fitting, scale_px, float(sight.yaws[0]) + start * STEP_RAD - half, v_min)


def _parts(
    sight: Sight, order: Sequence[int], owner: Indices, window: _Window, size_px: tuple[int, int]
) -> tuple[tuple[int, ...], tuple[int | None, ...]]:
    """Return the edges of the parts and their owners, without empty parts."""
    width_px, height_px = size_px
    columns = (window.start + np.arange(window.count)) % len(sight.yaws)
    places = owner[columns]
    seen = sight.height[places, columns] > 0
    cameras = [order[place] if is_seen else None for place, is_seen in zip(places, seen, strict=True)]
    rows = window.v_min, window.v_min + height_px / window.scale_px
    full = (sight.low <= rows[0]) & (sight.high >= rows[1])
    half = 0.5 if window.count == COLUMNS else 0.0
    edges, owners = [-half], [cameras[0]]
    for index in range(1, window.count):
        if cameras[index] == cameras[index - 1]:
            continue
        # Cut midway between the two columns. If only one of the cameras sees both of them, cut on the other's column,
        # which both see.
        left, right = full[places[index - 1], columns[index]], full[places[index], columns[index - 1]]
        edges.append(index - 0.5 + (0.5 * (int(left) - int(right))))
        owners.append(cameras[index])
    edges.append(window.count - 1 + half)
    first_rad = float(sight.yaws[0]) + window.start * STEP_RAD
    at_px = [(first_rad + edge * STEP_RAD - window.yaw_min_rad) * window.scale_px for edge in edges]
    # Even edges, because a sample of chroma serves two columns.
    edges_px = [0, *(min(max(round(x / 2) * 2, 0), width_px) for x in at_px), width_px]
    parts = [
        (start, end, camera)
        for start, end, camera in zip(edges_px, edges_px[1:], [None, *owners, None], strict=False)
        if end > start
    ]
    return (*(start for start, _, _ in parts), width_px), tuple(camera for _, _, camera in parts)
