"""Find and match SIFT features of the prepared pictures."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from services.stitcher.calibration.prepare import View

Matrix = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.intp]

FEATURES = 1800
DETECTION_PIXELS = 400_000
"""Approximate size of the picture for SIFT: its time grows with the pixels, and the later tracking adds precision."""
RATIO = 0.82
"""Largest ratio of the distances to the nearest and to the second nearest descriptor (Lowe's ratio test)."""
CELLS = (8, 6)
"""Columns and rows of the cells over which features are spread."""
SAME_PLACE_PX = 3.0
"""A match that moves by less than this is fixed to the picture: overlaid text, or dirt on a dome."""


@dataclass(frozen=True, slots=True)
class Features:
    """Features of one picture, the strongest of each part of the picture first."""

    points: Matrix
    """Shape ``(n, 2)``: working pixels from the centre."""
    descriptors: Floats
    """Shape ``(n, 128)``, of length 1 (RootSIFT)."""


def find_features(view: View) -> Features:
    """Find the features of one picture outside its mask."""
    if view.is_blank:
        return Features(np.zeros((0, 2)), np.zeros((0, 128), np.float32))
    width, height = view.size
    shrink = min(1.0, (DETECTION_PIXELS / (width * height)) ** 0.5)
    size = (round(width * shrink), round(height * shrink))
    small = cv2.resize(view.grey, size, interpolation=cv2.INTER_AREA) if shrink < 1 else view.grey
    mask = cv2.resize(view.mask, size, interpolation=cv2.INTER_NEAREST) if shrink < 1 else view.mask
    # Find more than are kept, so that each cell has some to choose from, but describe only what is kept.
    finder = cv2.SIFT.create(nfeatures=4 * FEATURES, contrastThreshold=0.02)
    found = finder.detect(small, mask)
    if not found:
        return Features(np.zeros((0, 2)), np.zeros((0, 128), np.float32))
    places = np.array([keypoint.pt for keypoint in found], np.float64)
    order = _spread(places, np.array([keypoint.response for keypoint in found]), size)[:FEATURES]
    keypoints, raw = finder.compute(small, [found[number] for number in order])
    scale = np.array([width / size[0], height / size[1]])
    # Positions count from the middle of the first pixel, whereas a change of scale keeps its edge in place.
    points = (np.array([keypoint.pt for keypoint in keypoints]) + 0.5) * scale - 0.5 - view.half
    descriptors = np.asarray(raw, np.float32)
    # RootSIFT (R. Arandjelovic and A. Zisserman, CVPR 2012): the scalar product is then the Hellinger kernel of the
    # histograms, in which the largest bins do not dominate.
    descriptors = np.sqrt(descriptors / np.maximum(descriptors.sum(axis=1, keepdims=True), 1e-9))
    return Features(points, descriptors)


def _spread(places: Matrix, responses: Matrix, size: tuple[int, int]) -> Indices:
    """Return the order in which the strongest of each cell come first, then the second strongest of each, and so on."""
    cells = np.minimum((places / np.array(size) * np.array(CELLS)).astype(int), np.array(CELLS) - 1)
    cell = cells[:, 0] * CELLS[1] + cells[:, 1]
    by_cell = np.lexsort((-responses, cell))
    rank = np.empty(len(places), int)
    starts = np.searchsorted(cell[by_cell], cell[by_cell])
    rank[by_cell] = np.arange(len(places)) - starts
    return np.asarray(np.lexsort((-responses, rank)), np.intp)


def match(a: Features, b: Features) -> Indices:
    """Return the mutually nearest features as pairs, shape ``(n, 2)``, the most distinct first."""
    if min(len(a.points), len(b.points)) < 2:
        return np.zeros((0, 2), np.intp)
    likeness = a.descriptors @ b.descriptors.T
    rows = np.arange(len(a.points))
    best = likeness.argmax(axis=1)
    top = likeness[rows, best]
    is_mutual = likeness.max(axis=0)[best] <= top  # before the best entries are overwritten
    likeness[rows, best] = -1
    second = likeness.max(axis=1)
    # For vectors of length 1, the squared distance is 2 - 2 * likeness.
    ratio = np.sqrt(np.maximum(1 - top, 0) / np.maximum(1 - second, 1e-9))
    moved = np.linalg.norm(a.points - b.points[best], axis=1) > SAME_PLACE_PX
    good = np.flatnonzero(is_mutual & (ratio < RATIO) & moved)
    good = good[np.argsort(ratio[good])]
    return np.stack([good, best[good]], axis=1)
