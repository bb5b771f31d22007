"""What each camera sees of the cylinder that the panorama is on, column by column.

A lens bends the edges of a picture, and a turned camera sees a column from one of its side edges to the other, so no
formula gives the outline. It is sampled with the camera's own projection: on a grid first, then each end of a column
by bisection.
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
"""Columns of the grid around the whole circle: a quarter of a degree each."""
STEP_RAD = 2 * math.pi / COLUMNS
COARSE = 4
"""Every so many columns are looked at first."""
PITCHES_RAD = np.radians(np.linspace(-76, 76, 128))
"""Rows of the grid. A camera that sees less of each column than two of them (2.4 degrees) is not seen."""
BISECTIONS = 14
MARGIN_PX = 1.0
"""Distance to the picture's edge that bilinear interpolation needs."""


@dataclass(frozen=True, slots=True)
class Sight:
    """What some cameras see of some columns. The first axis is the camera, the second the column."""

    yaws: Array
    """Middles of the columns, in rad, increasing in steps of ``STEP_RAD``; shape ``(columns,)``."""
    low: Array
    """Least v (tan of the pitch, downwards) that is seen; inf where the camera sees nothing of the column."""
    high: Array
    """Largest v that is seen; -inf where the camera sees nothing of the column."""
    offset: Array
    """Distance to the middle of the picture from the middle of what is seen of the column: 0 to 1 at the edge."""

    @property
    def height(self) -> Array:
        """How much of each column is seen, in units of v; 0 where nothing is."""
        return np.maximum(self.high - self.low, 0.0)

    def take(self, cameras: Sequence[int] | Indices, columns: Indices, yaws: Array) -> Sight:
        """Some cameras and columns of it, in the order given; the columns then are at ``yaws``."""
        part = np.ix_(np.asarray(cameras, np.intp), columns)
        return Sight(yaws, self.low[part], self.high[part], self.offset[part])


def look(cameras: Sequence[CameraPose]) -> Sight:
    """What the cameras see of the whole circle."""
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
    """Cut the circle where no camera sees or, if all of it is seen, through the middle of a camera.

    Returns:
        The columns from the first that is seen to the last, with a row for each place in the order of the cameras, and
        that order, from left to right. It begins and ends with the same camera if the whole circle is seen. Cameras
        that see nothing are not in it.
    """
    height = sight.height
    seen = [camera for camera in range(len(height)) if height[camera].any()]
    if not seen:
        nothing = np.empty(0, np.intp)
        return sight.take(nothing, nothing, np.empty(0)), []
    directions = np.exp(1j * sight.yaws)
    middles = {camera: float(np.angle((height[camera] * directions).sum())) for camera in seen}
    covered = np.asarray(height.any(axis=0))
    if covered.all():
        # The camera that looks most to the back: yaw 0 comes to the middle.
        back = max(seen, key=lambda camera: abs(middles[camera]))
        start = round((middles[back] + math.pi) / STEP_RAD) % COLUMNS
        count = COLUMNS
    else:
        start, count = _after_largest_gap(covered)
        back = None
    first_rad = -math.pi + (start + 0.5) * STEP_RAD
    yaws: Array = first_rad + np.arange(count, dtype=np.float64) * STEP_RAD
    # About 0, so far as the columns let choose: a calibration has its middle there.
    yaws -= 2 * math.pi * round(float(yaws.mean()) / (2 * math.pi))
    order = sorted(seen, key=lambda camera: (middles[camera] - float(yaws[0])) % (2 * math.pi))
    if back is not None:
        order = [back, *(camera for camera in order if camera != back), back]
    columns = np.asarray((start + np.arange(count)) % COLUMNS, np.intp)
    return sight.take(order, columns, yaws), order


def directions(yaws: Array, v: Array) -> Array:
    """The rays to points of the cylinder, of shape ``(..., 3)``; the shapes are broadcast."""
    yaws, v = np.broadcast_arrays(yaws, v)
    return np.stack([np.sin(yaws), v, np.cos(yaws)], axis=-1)


def _after_largest_gap(covered: npt.NDArray[np.bool_]) -> tuple[int, int]:
    """The first covered column after the widest gap, and the number of columns up to the last before it."""
    places = np.flatnonzero(covered)
    gaps = np.diff(places, append=places[0] + COLUMNS)
    widest = int(gaps.argmax())
    start = int(places[(widest + 1) % len(places)])
    return start, COLUMNS - int(gaps[widest]) + 1


def _depth(camera: CameraPose, yaws: Array, v: Array) -> Array:
    """How far inside the picture the points are, in pixels beyond the margin; negative outside."""
    pixels = camera.project(directions(yaws, v))
    x, y = pixels[..., 0], pixels[..., 1]
    right, bottom = camera.width_px - 1 - x, camera.height_px - 1 - y
    depth = np.minimum(np.minimum(x, right), np.minimum(y, bottom)) - MARGIN_PX
    return np.where(np.isnan(depth), -np.inf, depth)


def _columns_of(camera: CameraPose, yaws: Array) -> Indices:
    """The columns that the camera may see anything of."""
    coarse = _depth(camera, yaws[::COARSE, None], np.tan(PITCHES_RAD)[None, :]).max(axis=1) >= 0
    near = coarse | np.roll(coarse, 1) | np.roll(coarse, -1)
    return np.asarray(np.flatnonzero(near.repeat(COARSE)), np.intp)


def _extent(camera: CameraPose, yaws: Array) -> tuple[Array, Array]:
    """From and to which v the camera sees each column; of a column that its edge cuts in two, the longer part."""
    rows = np.tan(PITCHES_RAD)
    inside = _depth(camera, yaws[None, :], rows[:, None]) >= 0
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
    """The v where the picture begins, between one outside and one inside; at the inner side of it."""
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
