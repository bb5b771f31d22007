"""Follow a tracked object by its appearance between two runs of the model.

This moves a box with its object at a hundredth of the model's cost. The template is the upper part of the box, because
legs change with each step, sampled sparsely in the green channel. It is searched for around the object's expected
position by normalised cross-correlation; a parabola refines the peak between the samples.

Source: J. P. Lewis, "Fast Normalized Cross-Correlation", 1995; OpenCV, matchTemplate, TM_CCOEFF_NORMED.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from services.detector.activity import GREEN
from services.detector.boxes import Floats
from services.detector.tiles import Pixels

SAMPLES = 500
"""Approximate number of samples of a patch."""
INNER_WIDTH, INNER_TOP, INNER_HEIGHT = 0.8, 0.05, 0.6
"""The patch, as shares of the box: width in the middle, offset of its top, and height."""
REACH = 1.0, 0.25
"""Search range around the expected position, in widths and heights of the box."""
LEAST_REACH_PX = 10.0, 6.0
"""Least search range, to the sides and up or down."""
USUAL_S, MOST_FURTHER = 0.2, 2.0
"""The range applies to this many seconds; after a longer time it grows in proportion, up to this factor."""
MOST_REACH_PX = 100.0
"""Largest search range."""
LEAST_SIDE = 4
"""Least samples of a patch in each direction."""
ALIKE = 0.5
"""Least correlation of the same object."""
LEAST_CONTRAST = 4.0
"""Least standard deviation of a patch's grey values; flatter patches match everything."""


@dataclass(frozen=True, slots=True)
class Sight:
    """The template of an object."""

    patch: npt.NDArray[np.uint8]
    step_px: int
    """Pixels from one sample to the next."""
    offset: tuple[float, float]
    """Offset from the box's top left corner to the patch's first sample, in pixels."""

    def find(self, pixels: Pixels, expected: Floats, elapsed_s: float = USUAL_S) -> Floats | None:
        """Return the box's position in another frame, or ``None`` if the object is not found.

        Args:
            pixels: The frame, uint8 BGR of shape ``(height, width, 3)``.
            expected: Expected box: left, top, right and bottom.
            elapsed_s: Time since the last known position.
        """
        left, top, right, bottom = expected.tolist()
        step = self.step_px
        further = min(MOST_FURTHER, max(1.0, elapsed_s / USUAL_S))
        reach = [
            math.ceil(min(MOST_REACH_PX, max(least, part * side) * further) / step) * step
            for least, part, side in zip(LEAST_REACH_PX, REACH, (right - left, bottom - top), strict=True)
        ]
        x, y = round(left + self.offset[0]) - reach[0], round(top + self.offset[1]) - reach[1]
        rows, columns = self.patch.shape
        area = _samples(pixels, (x, y), (columns + 2 * reach[0] // step, rows + 2 * reach[1] // step), step)
        if area is None:
            return None
        alike = cv2.matchTemplate(area, self.patch, cv2.TM_CCOEFF_NORMED)
        _, best, _, (column, row) = cv2.minMaxLoc(alike)
        # A peak at the border of the range may rise further outside of it, and cannot be refined.
        if best < ALIKE or not (0 < column < alike.shape[1] - 1 and 0 < row < alike.shape[0] - 1):
            return None
        column_part = _peak(*alike[row, column - 1 : column + 2].tolist())
        row_part = _peak(*alike[row - 1 : row + 2, column].tolist())
        moved_x = x + (column + column_part) * step - self.offset[0] - left
        moved_y = y + (row + row_part) * step - self.offset[1] - top
        moved: Floats = expected + np.array([moved_x, moved_y, moved_x, moved_y], np.float32)
        return moved


def look_at(pixels: Pixels, xyxy: Floats) -> Sight | None:
    """Return the template of a box, or ``None`` if it is too small, too flat or partly outside the frame."""
    left, top, right, bottom = xyxy.tolist()
    width, height = INNER_WIDTH * (right - left), INNER_HEIGHT * (bottom - top)
    # As many samples for a large object as for a small one, so that the search takes about the same time.
    step = max(1, round(math.sqrt(width * height / SAMPLES)))
    x, y = round((left + right - width) / 2), round(top + INNER_TOP * (bottom - top))
    patch = _samples(pixels, (x, y), (int(width / step), int(height / step)), step)
    if patch is None or min(patch.shape) < LEAST_SIDE or cv2.meanStdDev(patch)[1][0, 0] < LEAST_CONTRAST:
        return None
    return Sight(patch, step, (x - left, y - top))


def _samples(
    pixels: Pixels, first: tuple[int, int], counts: tuple[int, int], step: int
) -> npt.NDArray[np.uint8] | None:
    """Return a grid of samples, or ``None`` if it is partly outside the frame."""
    (x, y), (columns, rows) = first, counts
    if x < 0 or y < 0 or x + columns * step > pixels.shape[1] or y + rows * step > pixels.shape[0]:
        return None
    # A copy: a template outlives the frame's slot, and matchTemplate() requires contiguous rows.
    return np.ascontiguousarray(pixels[y : y + rows * step : step, x : x + columns * step : step, GREEN])


def _peak(before: float, at: float, after: float) -> float:
    """Return the vertex of the parabola through three values with the highest in the middle: -0.5 to 0.5."""
    curve = before - 2 * at + after
    # Without a curvature, as between equal values, the vertex is undefined.
    return 0.0 if curve >= 0 else max(-0.5, min(0.5, 0.5 * (before - after) / curve))
