"""One box an object, from the boxes of overlapping tiles.

A tile shows its neighbour's objects too, and cuts those on its edge in pieces. So, for each label on its own:

1. Of boxes that end well inside their tile, *whole* ones, non-maximum suppression keeps the most certain.
2. A box that ends at an inner edge of its tile, a *cut* one, goes where it lies mostly inside a whole one: another
   tile sees all of that object.
3. Cut boxes that meet across the facing edges of two tiles, or lie mostly in one another, become one box around both:
   the object is larger than the overlap.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from services.detector.boxes import (
    Boxes,
    Flags,
    Floats,
    Integers,
    concatenate,
    intersection_over_smaller,
)
from services.detector.tiles import Tile

EDGE_FRACTION = 0.03
"""A box is cut when it ends within this part of the tile's side of an inner edge: the network does not aim better."""
FACING_OVERLAP = 0.6
"""How much of the shorter piece's side lies beside the longer one's, for two pieces to be one object."""


def merge(tiles: Sequence[Tile], found: Sequence[Boxes], iou_threshold: float, inside_threshold: float) -> Boxes:
    """Merge the boxes of all tiles of a frame.

    Args:
        tiles: The tiles.
        found: The boxes of each, in pixels of the tile.
        iou_threshold: Boxes of one label whose intersection over union is above this are one object.
        inside_threshold: A cut box of which more than this lies in another box is a piece of that one's object.

    Returns:
        The boxes in pixels of the frame, most certain first.
    """
    together = concatenate(_in_frame(tile, boxes) for tile, boxes in zip(tiles, found, strict=True))
    cut_edges = np.concatenate(
        [np.zeros((0, 4), np.bool_), *(_cut_edges(tile, boxes) for tile, boxes in zip(tiles, found, strict=True))]
    )
    cut = cut_edges.any(axis=1)
    whole = together.take(_suppress(together, np.flatnonzero(~cut), iou_threshold))
    pieces_of = _suppress(together, np.flatnonzero(cut), iou_threshold)
    pieces = together.take(pieces_of)
    alone = ~_inside(pieces, whole, inside_threshold)
    joined = _join(pieces.take(alone), cut_edges[pieces_of][alone], inside_threshold)
    everything = concatenate([whole, joined])
    return everything.take(np.argsort(-everything.scores, kind="stable"))


def _in_frame(tile: Tile, boxes: Boxes) -> Boxes:
    offset = np.array([tile.x_px, tile.y_px, tile.x_px, tile.y_px], np.float32)
    return Boxes(boxes.corners + offset, boxes.scores, boxes.labels)


def _cut_edges(tile: Tile, boxes: Boxes) -> Flags:
    """Which of its left, upper, right and lower edge each box, in pixels of the tile, shares with a cut of the tile."""
    margin_x, margin_y = EDGE_FRACTION * tile.width_px, EDGE_FRACTION * tile.height_px
    left, upper, right, lower = boxes.corners.T
    at_edge = np.stack(
        [left < margin_x, upper < margin_y, right > tile.width_px - margin_x, lower > tile.height_px - margin_y], axis=1
    )
    cut: Flags = at_edge & np.array(tile.inner_edges)
    return cut


def _suppress(boxes: Boxes, which: Integers, iou_threshold: float) -> Integers:
    """Those of ``which`` that remain after non-maximum suppression for each label."""
    if not which.size:
        return which
    corners = boxes.corners[which]
    rectangles = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    kept = cv2.dnn.NMSBoxesBatched(
        rectangles.tolist(), boxes.scores[which].tolist(), boxes.labels[which].tolist(), 0.0, iou_threshold
    )
    return which[np.asarray(kept, np.intp)]


def _inside(pieces: Boxes, whole: Boxes, inside_threshold: float) -> Flags:
    same = pieces.labels[:, None] == whole.labels[None, :]
    covered = intersection_over_smaller(pieces.corners, whole.corners) > inside_threshold
    inside: Flags = (same & covered).any(axis=1)
    return inside


def _join(pieces: Boxes, cut_edges: Flags, inside_threshold: float) -> Boxes:
    """Put pieces of one object together, the most certain first, until no two belong together."""
    corners = list(pieces.corners)
    scores = list(pieces.scores)
    labels = list(pieces.labels)
    edges = list(cut_edges)
    index = 0
    while index < len(corners):
        for other in range(index + 1, len(corners)):
            if labels[index] == labels[other] and _belong_together(
                corners[index], edges[index], corners[other], edges[other], inside_threshold
            ):
                corners[index], edges[index] = _union(corners[index], edges[index], corners[other], edges[other])
                scores[index] = max(scores[index], scores[other])
                for values in (corners, scores, labels, edges):
                    del values[other]
                index = -1
                break
        index += 1
    if not corners:
        return pieces
    return Boxes(np.stack(corners), np.array(scores, np.float32), np.array(labels, np.intp))


def _belong_together(
    first: Floats, first_edges: Flags, second: Floats, second_edges: Flags, inside_threshold: float
) -> bool:
    common = np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2])
    if (common <= 0).any():
        return False
    if intersection_over_smaller(first[None], second[None])[0, 0] > inside_threshold:
        return True
    beside = common / np.maximum(np.minimum(first[2:] - first[:2], second[2:] - second[:2]), np.float32(1e-6))
    return any(
        ((first_edges[axis + 2] and second_edges[axis]) or (first_edges[axis] and second_edges[axis + 2]))
        and beside[1 - axis] > FACING_OVERLAP
        for axis in (0, 1)
    )


def _union(first: Floats, first_edges: Flags, second: Floats, second_edges: Flags) -> tuple[Floats, Flags]:
    """The box around two, with the cut edges that are still on its rim."""
    corners = np.concatenate([np.minimum(first[:2], second[:2]), np.maximum(first[2:], second[2:])])
    tolerance = np.float32(1.0)
    rim = np.array(
        [
            (first_edges[edge] and abs(first[edge] - corners[edge]) < tolerance)
            or (second_edges[edge] and abs(second[edge] - corners[edge]) < tolerance)
            for edge in range(4)
        ]
    )
    return corners, rim
