"""Boxes as arrays, and how much they overlap."""

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
    """Some boxes with what they show: three arrays of the same length."""

    corners: Floats
    """Left, upper, right and lower edge of each box, in pixels: float32 of shape ``(n, 4)``."""
    scores: Floats
    """How sure the model is of each, 0 to 1: float32 of shape ``(n,)``."""
    labels: Integers
    """What each box shows, as an index of the wanted labels: shape ``(n,)``."""

    def __len__(self) -> int:
        return len(self.scores)

    def take(self, which: Integers | Flags | slice) -> Boxes:
        """The boxes at some indices, of a slice, or where a mask is true."""
        return Boxes(self.corners[which], self.scores[which], self.labels[which])


def no_boxes() -> Boxes:
    """Return no boxes."""
    return Boxes(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.intp))


def concatenate(parts: Iterable[Boxes]) -> Boxes:
    """All boxes of several, in order."""
    parts = [no_boxes(), *parts]
    return Boxes(
        np.concatenate([part.corners for part in parts]),
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.labels for part in parts]),
    )


def areas(corners: Floats) -> Floats:
    """Area of each box of ``(..., 4)`` corners, in square pixels."""
    sides = np.maximum(corners[..., 2:] - corners[..., :2], 0)
    product: Floats = sides[..., 0] * sides[..., 1]
    return product


def overlap_of_pairs(first: Floats, second: Floats) -> Floats:
    """Intersection over union of each box of ``first`` with the one of ``second`` at the same place: shape ``(n,)``."""
    starts = np.maximum(first[:, :2], second[:, :2])
    ends = np.minimum(first[:, 2:], second[:, 2:])
    common = areas(np.concatenate([starts, ends], axis=1))
    ratio: Floats = common / np.maximum(areas(first) + areas(second) - common, np.float32(1e-6))
    return ratio


def intersections(first: Floats, second: Floats) -> Floats:
    """Area that each box of ``first`` has in common with each of ``second``: shape ``(len(first), len(second))``."""
    starts = np.maximum(first[:, None, :2], second[None, :, :2])
    ends = np.minimum(first[:, None, 2:], second[None, :, 2:])
    return areas(np.concatenate([starts, ends], axis=2))


def intersection_over_union(first: Floats, second: Floats) -> Floats:
    """How alike boxes are, 0 (apart) to 1 (the same): shape ``(len(first), len(second))``."""
    common = intersections(first, second)
    union = areas(first)[:, None] + areas(second)[None, :] - common
    ratio: Floats = common / np.maximum(union, np.float32(1e-6))
    return ratio


def distance_of_pairs(first: Floats, second: Floats) -> Floats:
    """How alike pairs of boxes are, 1 (the same) down to -1 (far apart): ``(..., 4)`` corners give shape ``(...)``.

    Intersection over union, less the squared distance of the centres over the squared diagonal of the box around both,
    so that boxes that do not touch are told apart too.

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
