"""Boxes as arrays, and their overlaps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.intp]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Boxes:
    """Boxes with scores and labels: three arrays of the same length."""

    xyxy: Floats
    """Left, top, right and bottom of each box, in pixels: float32 of shape ``(n, 4)``."""
    scores: Floats
    """Confidence of the model for each box, 0 to 1: float32 of shape ``(n,)``."""
    labels: Integers
    """Label of each box, as an index into the wanted labels: shape ``(n,)``."""

    def __len__(self) -> int:
        return len(self.scores)

    def take(self, which: Integers | Flags | slice) -> Boxes:
        """Return the boxes selected by indices, a slice or a mask."""
        return Boxes(self.xyxy[which], self.scores[which], self.labels[which])


def no_boxes() -> Boxes:
    """Return no boxes."""
    return Boxes(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.intp))


def concatenate(parts: Iterable[Boxes]) -> Boxes:
    """Concatenate boxes, in order."""
    # np.concatenate() requires at least one array.
    parts = [no_boxes(), *parts]
    return Boxes(
        np.concatenate([part.xyxy for part in parts]),
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.labels for part in parts]),
    )


def areas(xyxy: Floats) -> Floats:
    """Return the area of each box, in square pixels. The argument has shape ``(..., 4)``."""
    # The intersection of disjoint boxes has negative sides, and an area of 0.
    sides = np.maximum(xyxy[..., 2:] - xyxy[..., :2], 0)
    product: Floats = sides[..., 0] * sides[..., 1]
    return product


def overlap_of_pairs(first: Floats, second: Floats) -> Floats:
    """Return the intersection over union of corresponding boxes of ``first`` and ``second``: shape ``(n,)``."""
    starts = np.maximum(first[:, :2], second[:, :2])
    ends = np.minimum(first[:, 2:], second[:, 2:])
    common = areas(np.concatenate([starts, ends], axis=1))
    ratio: Floats = common / np.maximum(areas(first) + areas(second) - common, np.float32(1e-6))
    return ratio


def intersections(first: Floats, second: Floats) -> Floats:
    """Return the area of intersection of each box of ``first`` with each of ``second``: ``(first, second)``."""
    starts = np.maximum(first[:, None, :2], second[None, :, :2])
    ends = np.minimum(first[:, None, 2:], second[None, :, 2:])
    return areas(np.concatenate([starts, ends], axis=2))


def intersection_over_union(first: Floats, second: Floats) -> Floats:
    """Return the intersection over union of each box of ``first`` with each of ``second``: ``(first, second)``."""
    common = intersections(first, second)
    union = areas(first)[:, None] + areas(second)[None, :] - common
    ratio: Floats = common / np.maximum(union, np.float32(1e-6))
    return ratio


def distance_of_pairs(first: Floats, second: Floats) -> Floats:
    """Return the distance-IoU of pairs of boxes, 1 (equal) down to -1 (far apart). ``(..., 4)`` gives shape ``(...)``.

    It is the intersection over union minus the squared distance of the centres over the squared diagonal of the box
    around both, which also ranks boxes that do not touch.

    Source: Zheng et al., "Distance-IoU Loss: Faster and Better Learning for Bounding Box Regression", AAAI 2020.
    """
    starts = np.maximum(first[..., :2], second[..., :2])
    ends = np.minimum(first[..., 2:], second[..., 2:])
    common = areas(np.concatenate([starts, ends], axis=-1))
    union = areas(first) + areas(second) - common
    centres = (first[..., :2] + first[..., 2:] - second[..., :2] - second[..., 2:]) / 2
    around = np.maximum(first[..., 2:], second[..., 2:]) - np.minimum(first[..., :2], second[..., :2])
    least = np.float32(1e-6)
    distance = np.sum(np.square(centres), axis=-1) / np.maximum(np.sum(np.square(around), axis=-1), least)
    likeness: Floats = common / np.maximum(union, least) - distance
    return likeness
