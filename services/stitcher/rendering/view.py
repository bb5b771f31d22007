"""Find what each camera sees of the panorama's cylinder, column by column.

A lens bends the edges of a picture, and a rotated camera sees a column from one side edge to the other, so the outline
has no closed form. It is sampled with the camera's own projection: first on a grid, then each end of a column by
bisection.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from services.stitcher.calibration.poses import CameraPose

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

COLUMNS = 1440
"""Columns of the grid around the full circle, a quarter of a degree each."""
STEP_RAD = 2 * math.pi / COLUMNS
COARSE = 4
"""Step of the columns in the first, coarse pass."""
PITCHES_RAD = np.radians(np.linspace(-76, 76, 128))
"""Rows of the grid. A camera that covers less than their distance (1.2 degrees) of every column may be missed."""
BISECTIONS = 14
"""Halvings of that distance, which find an edge to a ten-thousandth of a degree."""
MARGIN_PX = 1.0
"""Distance from the picture's edge that bilinear interpolation requires."""


@dataclass(frozen=True, slots=True)
class Sight:
    """What some cameras see of some columns. The first axis is the camera, the second the column."""

    yaws: Array
    """Middles of the columns, in rad, increasing in steps of ``STEP_RAD``; shape ``(columns,)``."""
    low: Array
    """Least visible v (tan of the pitch, downwards); inf if the camera sees nothing of the column."""
    high: Array
    """Largest visible v; -inf if the camera sees nothing of the column."""
    offset: Array
    """Distance between the middle of the visible column and the middle of the picture: 0, to 1 at the edge."""

    @property
    def height(self) -> Array:
        """Return the visible height of each column, in units of v."""
        return np.maximum(self.high - self.low, 0.0)

    def take(self, cameras: Sequence[int] | Indices, columns: Indices, yaws: Array) -> Sight:
        """Return some cameras and columns of it, in the given order; the columns are then at ``yaws``."""
        part = np.ix_(np.asarray(cameras, np.intp), columns)
        return Sight(yaws, self.low[part], self.high[part], self.offset[part])


def look(cameras: Sequence[CameraPose]) -> Sight:
    """Find what the cameras see of the full circle."""
    yaws: Array = -math.pi + (np.arange(COLUMNS, dtype=np.float64) + 0.5) * STEP_RAD
    low, high = np.full((len(cameras), COLUMNS), np.inf), np.full((len(cameras), COLUMNS), -np.inf)
    offset = np.ones((len(cameras), COLUMNS))
    for index, camera in enumerate(cameras):
        columns = _columns_of(camera, yaws)
        if not columns.size:
            continue
        start, end = _extent(camera, yaws[columns])
        seen = end > start
        columns, start, end = columns[seen], start[seen], end[seen]
        low[index, columns], high[index, columns] = start, end
        offset[index, columns] = _offset(camera, yaws[columns], (start + end) / 2)
    return Sight(yaws, low, high, offset)


def unroll(sight: Sight) -> tuple[Sight, list[int]]:
    """Cut the circle where no camera sees or, if the cameras cover all of it, through the middle of a camera.

    Returns:
        The columns from the first to the last that any camera sees, with a row for each place in the order of the
        cameras; and that order, from left to right. It begins and ends with the same camera if the cameras cover the
        full circle. It omits cameras that see nothing.
    """
    height = sight.height
    seen = [camera for camera in range(len(height)) if height[camera].any()]
    if not seen:
        nothing = np.empty(0, np.intp)
        return sight.take(nothing, nothing, np.empty(0)), []
    # Angles wrap around, so average points on the unit circle.
    directions = np.exp(1j * sight.yaws)
    middles = {camera: float(np.angle((height[camera] * directions).sum())) for camera in seen}
    covered = np.asarray(height.any(axis=0))
    if covered.all():
        # Cut through the camera that points most to the back, so that yaw 0 is in the middle.
        back = max(seen, key=lambda camera: abs(middles[camera]))
        start = round((middles[back] + math.pi) / STEP_RAD) % COLUMNS
        count = COLUMNS
    else:
        start, count = _after_largest_gap(covered)
        back = None
    first_rad = -math.pi + (start + 0.5) * STEP_RAD
    yaws: Array = first_rad + np.arange(count, dtype=np.float64) * STEP_RAD
    # Centre the yaws about 0 as far as the columns permit, because a calibration has its middle there.
    yaws -= 2 * math.pi * round(float(yaws.mean()) / (2 * math.pi))
    order = sorted(seen, key=lambda camera: (middles[camera] - float(yaws[0])) % (2 * math.pi))
    if back is not None:
        order = [back, *(camera for camera in order if camera != back), back]
    columns = np.asarray((start + np.arange(count)) % COLUMNS, np.intp)
    return sight.take(order, columns, yaws), order


def directions(yaws: Array, v: Array) -> Array:
    """Return the rays to points of the cylinder, of shape ``(..., 3)``. The arguments are broadcast."""
    yaws, v = np.broadcast_arrays(yaws, v)
    return np.stack([np.sin(yaws), v, np.cos(yaws)], axis=-1)


def _after_largest_gap(covered: npt.NDArray[np.bool_]) -> tuple[int, int]:
    """Return the first covered column after the widest gap, and the number of columns up to the last one before it."""
    places = np.flatnonzero(covered)
    gaps = np.diff(places, append=places[0] + COLUMNS)
    widest = int(gaps.argmax())
    start = int(places[(widest + 1) % len(places)])
    return start, COLUMNS - int(gaps[widest]) + 1


def _depth(camera: CameraPose, yaws: Array, v: Array) -> Array:
    """Return how far inside the picture the points are, in pixels beyond the margin; negative outside."""
    pixels = camera.project(directions(yaws, v))
    x, y = pixels[..., 0], pixels[..., 1]
    right, bottom = camera.width_px - 1 - x, camera.height_px - 1 - y
    depth = np.minimum(np.minimum(x, right), np.minimum(y, bottom)) - MARGIN_PX
    return np.where(np.isnan(depth), -np.inf, depth)


def _columns_of(camera: CameraPose, yaws: Array) -> Indices:
    """Return the columns of which the camera may see a part."""
    coarse = _depth(camera, yaws[::COARSE, None], np.tan(PITCHES_RAD)[None, :]).max(axis=1) >= 0
    # An edge may lie between two of the coarse columns. The columns are a circle, as roll() has it.
    near = coarse | np.roll(coarse, 1) | np.roll(coarse, -1)
    return np.asarray(np.flatnonzero(near.repeat(COARSE)), np.intp)


def _extent(camera: CameraPose, yaws: Array) -> tuple[Array, Array]:
    """Return the range of v in which the camera sees each column. If its edge splits a column, take the longer part."""
    rows = np.tan(PITCHES_RAD)
    inside = _depth(camera, yaws[None, :], rows[:, None]) >= 0
    # Find the longest run of rows inside, for all columns at once.
    run, longest, last = (np.zeros(len(yaws), np.intp) for _ in range(3))
    for row in range(len(rows)):
        run = np.where(inside[row], run + 1, 0)
        last = np.where(run > longest, row, last)
        longest = np.maximum(longest, run)
    first = last - longest + 1
    low = _bisect(camera, yaws, rows[np.maximum(first - 1, 0)], rows[np.minimum(first, len(rows) - 1)])
    high = _bisect(camera, yaws, rows[np.minimum(last + 1, len(rows) - 1)], rows[last])
    seen = longest > 0
    return np.where(seen, low, np.inf), np.where(seen, high, -np.inf)


def _bisect(camera: CameraPose, yaws: Array, outside: Array, inside: Array) -> Array:
    """Return the v of the picture's edge, between one outside and one inside; the result is inside."""
    for _ in range(BISECTIONS):
        middle = (outside + inside) / 2
        is_inside = _depth(camera, yaws, middle) >= 0
        inside, outside = np.where(is_inside, middle, inside), np.where(is_inside, outside, middle)
    return inside


def _offset(camera: CameraPose, yaws: Array, v: Array) -> Array:
    pixels = camera.project(directions(yaws, v))
    half = np.array([camera.width_px, camera.height_px]) / 2
    middle = np.array([camera.width_px - 1, camera.height_px - 1]) / 2
    return np.asarray(np.nan_to_num(np.abs((pixels - middle) / half).max(axis=-1), nan=1.0))
