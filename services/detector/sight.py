"""What a tracked object looks like, and where that is in the next frame.

So a box moves as its object does between two looks of the model, at a hundredth of what a look costs. The patch is the
upper part of the box, since legs change with each step, in samples of the green channel, as few as tell it apart. It is
looked for around the place where the object is expected, by normalised cross-correlation, whose peak is refined between
the samples by a parabola.

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
"""Of a patch, about."""
INNER_WIDTH, INNER_TOP, INNER_HEIGHT = 0.8, 0.05, 0.6
"""Of the box: what the patch takes in the middle, and from where down."""
REACH = 1.0, 0.25
"""How far from the expected place the patch is looked for, in widths and heights of the box."""
LEAST_REACH_PX = 10.0, 6.0
USUAL_S, MOST_FURTHER = 0.2, 2.0
"""The reach is that of so many seconds; after longer it is larger, up to so many times."""
MOST_REACH_PX = 100.0
LEAST_SIDE = 4
"""Samples of a patch in each direction."""
ALIKE = 0.5
"""Correlation from which it is the same object."""
LEAST_CONTRAST = 4.0
"""Standard deviation of grey values: below, everything looks alike."""


@dataclass(frozen=True, slots=True)
class Sight:
    """A patch of an object."""

    patch: npt.NDArray[np.uint8]
    step_px: int
    """Pixels from one sample to the next."""
    offset: tuple[float, float]
    """From the box's left upper corner to the patch's first sample, in pixels."""

    def find(self, pixels: Pixels, expected: Floats, elapsed_s: float = USUAL_S) -> Floats | None:
        """Where the box is in another frame, ``None`` if the object is not seen there.

        Args:
            pixels: The frame, uint8 BGR of shape ``(height, width, 3)``.
            expected: Where the box should be: left, upper, right and lower edge.
            elapsed_s: Since it was where the expectation comes from.
        """
        left, upper, right, lower = expected.tolist()
        step = self.step_px
        further = min(MOST_FURTHER, max(1.0, elapsed_s / USUAL_S))
        reach = [
            math.ceil(min(MOST_REACH_PX, max(least, part * side) * further) / step) * step
            for least, part, side in zip(LEAST_REACH_PX, REACH, (right - left, lower - upper), strict=True)
        ]
        x, y = round(left + self.offset[0]) - reach[0], round(upper + self.offset[1]) - reach[1]
        rows, columns = self.patch.shape
        area = _samples(pixels, (x, y), (columns + 2 * reach[0] // step, rows + 2 * reach[1] // step), step)
        if area is None:
            return None
        alike = cv2.matchTemplate(area, self.patch, cv2.TM_CCOEFF_NORMED)
        _, best, _, (column, row) = cv2.minMaxLoc(alike)
        if best < ALIKE or not (0 < column < alike.shape[1] - 1 and 0 < row < alike.shape[0] - 1):
            return None
        column_part = _peak(*alike[row, column - 1 : column + 2].tolist())
        row_part = _peak(*alike[row - 1 : row + 2, column].tolist())
        moved_x = x + (column + column_part) * step - self.offset[0] - left
        moved_y = y + (row + row_part) * step - self.offset[1] - upper
        moved: Floats = expected + np.array([moved_x, moved_y, moved_x, moved_y], np.float32)
        return moved


def look_at(pixels: Pixels, corners: Floats) -> Sight | None:
    """The sight of what is in a box; ``None`` where it is too small, too even or not all in the frame."""
    left, upper, right, lower = corners.tolist()
    width, height = INNER_WIDTH * (right - left), INNER_HEIGHT * (lower - upper)
    step = max(1, round(math.sqrt(width * height / SAMPLES)))
    x, y = round((left + right - width) / 2), round(upper + INNER_TOP * (lower - upper))
    patch = _samples(pixels, (x, y), (int(width / step), int(height / step)), step)
    if patch is None or min(patch.shape) < LEAST_SIDE or patch.std() < LEAST_CONTRAST:
        return None
    return Sight(patch, step, (x - left, y - upper))


def _samples(
    pixels: Pixels, first: tuple[int, int], counts: tuple[int, int], step: int
) -> npt.NDArray[np.uint8] | None:
    """So many columns and rows of samples from a place on; ``None`` where they are not all in the frame."""
    (x, y), (columns, rows) = first, counts
    if x < 0 or y < 0 or x + columns * step > pixels.shape[1] or y + rows * step > pixels.shape[0]:
        return None
    return np.ascontiguousarray(pixels[y : y + rows * step : step, x : x + columns * step : step, GREEN])


def _peak(before: float, at: float, after: float) -> float:
    """Where the parabola through three values, of which the middle one is the highest, has its top: -0.5 to 0.5."""
    curve = before - 2 * at + after
    return 0.0 if curve >= 0 else max(-0.5, min(0.5, 0.5 * (before - after) / curve))
