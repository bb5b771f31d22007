"""Select a network's boxes by class and score, and reject invalid ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from services.detector.boxes import Flags, Floats, Integers

SLACK = 1e-3
"""Tolerance above 1 of a score, for rounding of float16 and int8."""
FARTHEST = 2.0
"""A box that extends beyond its tile by more than this many of the tile's sides is out of range."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """Selected rows of a network's output, each with its best wanted class."""

    rows: Integers
    scores: Floats
    labels: Integers
    """Index into the wanted labels."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """Boxes of one tile, before validation."""

    xyxy: Floats
    """Left, top, right and bottom in pixels of the network's input: ``(n, 4)``."""
    scores: Floats
    labels: Integers


class Chooser:
    """Selects rows by class and score. It also selects scores that are NaN, to have them counted as invalid."""

    def __init__(self, classes: tuple[int, ...], thresholds: tuple[float, ...]) -> None:
        """Prepare the selection.

        Args:
            classes: Index of each wanted class in the network's output.
            thresholds: Least score of each, 0 to 1.
        """
        self._columns = np.array(classes, np.intp)
        self._thresholds = np.array(thresholds, np.float32)
        self._least = self._thresholds.min()
        self._label_of = np.full(max(classes) + 1, -1, np.intp)
        self._label_of[self._columns] = np.arange(len(classes))

    def dense(self, scores: npt.NDArray[np.floating], factor: npt.NDArray[np.floating] | None = None) -> Chosen:
        """Select from scores ``(rows, classes)``, multiplied by an optional factor for each row."""
        # A class a row, because NumPy reduces over long contiguous rows several times as fast as over short ones.
        by_class = np.asarray(scores.T[self._columns], np.float32)
        products = by_class
        if factor is not None:
            # A network may give any number. What is not finite is counted as invalid later.
            with np.errstate(invalid="ignore", over="ignore"):
                products = by_class * np.asarray(factor, np.float32)
        # "Not below" instead of "at least": a comparison with NaN is false, so this selects NaN too.
        # Nearly all rows are below every threshold, so find the best class of the others only.
        rows = np.flatnonzero(~(products.max(axis=0) < self._least))
        labels = by_class[:, rows].argmax(axis=0)
        best = products[labels, rows]
        kept = ~(best < self._thresholds[labels])
        return Chosen(rows[kept], best[kept], labels[kept])

    def listed(self, scores: npt.NDArray[np.floating], classes: npt.NDArray[np.generic]) -> Chosen:
        """Select from rows with one score and one class each: two arrays ``(rows,)``."""
        values = np.asarray(scores, np.float32)
        numbers = np.asarray(classes, np.float64)
        # Keep rows whose class is not a number: with NaN as score and a wanted class, they are counted as invalid.
        finite = np.isfinite(numbers)
        values = np.where(finite, values, np.float32(np.nan))
        numbers = np.where(finite, np.rint(numbers), self._columns[0])
        known = (numbers >= 0) & (numbers < len(self._label_of))
        labels = np.where(known, self._label_of[np.where(known, numbers, 0).astype(np.intp)], -1)
        rows = np.flatnonzero((labels >= 0) & ~(values < self._thresholds[labels]))
        return Chosen(rows, values[rows], labels[rows])


def usable(xyxy: Floats, scores: Floats, height_px: int, width_px: int) -> Flags:
    """Return which boxes are valid: finite, not inverted, in range, with a score of at most 1.

    Args:
        xyxy: Boxes in pixels of the tile, ``(n, 4)``; not clipped yet.
        scores: Score of each.
        height_px: Height of the tile.
        width_px: Width of the tile.
    """
    sides = np.array([width_px, height_px, width_px, height_px], np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        # A comparison with NaN is false, and infinity is out of range.
        in_range = (xyxy > -FARTHEST * sides) & (xyxy < (1 + FARTHEST) * sides)
        # A box that lies beyond the tile has no area within it.
        clipped = np.minimum(np.maximum(xyxy, 0), sides)
        has_area = clipped[:, 2:] > clipped[:, :2]
        good: Flags = in_range.all(axis=1) & has_area.all(axis=1) & (scores <= 1 + SLACK)
    return good
