"""Merge the boxes of overlapping tiles into one box per object.

A tile also shows its neighbour's objects, and cuts those on its edge into pieces. A box that ends at an inner edge of
its tile is a *piece*; any other box is *whole*. An object has at most one box in each tile, and two tiles show the same
part of it where they overlap. Therefore:

1. In each tile, non-maximum suppression keeps the box with the highest score among those of one label or of rival
   labels.
2. Boxes of different tiles are linked, the most similar first: two whole boxes of one label by their overlap; a piece
   and any other box by their overlap within the area that both tiles show. The latter ignores labels, because the end
   of a van may be taken for a car. Two boxes of one tile are never linked.
3. Linked boxes become one: the whole box with the highest score, or the box around the pieces. Its label is the one
   with the largest sum of area times score.
4. A piece that was not linked is dropped if it lies mostly inside a larger box that extends beyond the tile's edge.

Sorting finds all pairs that touch, so the time grows with the number of boxes and of touching pairs, not with the
square of the number of boxes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from services.detector.boxes import Boxes, Flags, Floats, Integers, areas, concatenate, overlap_of_pairs
from services.detector.tiles import Tile

EDGE_FRACTION = 0.03
"""A box is a piece if it ends within this share of the tile's side from an inner edge. The model places edges no more
precisely."""
FACING_OVERLAP = 0.6
"""Least intersection over union of the extents along a tile's edge for a box to continue a piece."""
SAME_LABEL_BONUS = 0.25
"""Added to the likeness of two boxes of one group of labels, so that they are linked before others."""
MAX_BOXES_PER_TILE = 300
"""Largest number of boxes of a tile, by score. It bounds the time that a broken model can cost."""
MAX_BOXES = 1500
"""Largest number of boxes of a frame, by score. That many boxes that all touch take 46 ms of CPU."""

CHECKED_AFTER = 1024
"""Pairs between two checks whether to stop."""


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules for merging boxes into objects."""

    iou_threshold: float
    """Boxes whose intersection over union is above this are one object."""
    inside_threshold: float
    """A piece of which more than this share lies in another box belongs to that object."""
    groups: Integers
    """For each label, the number of its group: labels of one group are rivals, of which an object has one."""


@dataclass(frozen=True, slots=True)
class Merged:
    """One box per object."""

    boxes: Boxes
    """Boxes in pixels of the frame, by descending score."""
    open_edges: Flags
    """Which of left, top, right and bottom of each box is a tile's edge and not the object's: ``(n, 4)``."""


@dataclass(frozen=True, slots=True)
class _Found:
    """The boxes of all tiles."""

    boxes: Boxes
    """Boxes in pixels of the frame."""
    tile_of: Integers
    """Index of each box's tile."""
    frames: Floats
    """Left, top, right and bottom of each box's tile."""
    cut: Flags
    """Which edges of each box are its tile's: ``(n, 4)``."""


@dataclass(slots=True)
class _Cluster:
    members: list[int]
    tiles: int
    """A bit for each tile that has a member."""

    @property
    def alone(self) -> bool:
        return len(self.members) == 1


def group_labels(labels: Sequence[str], rivals: Sequence[Sequence[str]]) -> Integers:
    """Number the groups of labels, for :attr:`Rules.groups`.

    Args:
        labels: The labels in the model's order.
        rivals: Groups of labels that the model confuses; a label in none of them forms its own group.
    """
    group_of = {label: len(labels) + number for number, group in enumerate(rivals) for label in group}
    return np.array([group_of.get(label, index) for index, label in enumerate(labels)], np.intp)


def merge(
    tiles: Sequence[Tile], found: Sequence[Boxes], rules: Rules, check: Callable[[], None] = lambda: None
) -> Merged:
    """Merge the boxes of all tiles of a frame.

    Args:
        tiles: The tiles, in any order.
        found: The boxes of each, in pixels of the tile.
        rules: The rules for merging.
        check: Called between the steps; its exceptions end the merge.
    """
    # Step 1 of the module's description.
    per_tile = [_suppress(boxes, rules) for boxes in found]
    check()
    together = concatenate(per_tile)
    if not len(together):
        return Merged(together, np.zeros((0, 4), np.bool_))
    # All boxes at once, because each step of NumPy costs as much for one tile as for all.
    tile_of = np.repeat(np.arange(len(tiles)), [len(boxes) for boxes in per_tile])
    cut = _cut_edges(together.xyxy, tiles, tile_of)
    frames = np.array([tile.xyxy for tile in tiles], np.float32)[tile_of]
    together = Boxes(together.xyxy + np.tile(frames[:, :2], 2), together.scores, together.labels)
    if len(together) > MAX_BOXES:
        best = np.argsort(-together.scores, kind="stable")[:MAX_BOXES]
        together, tile_of, frames, cut = together.take(best), tile_of[best], frames[best], cut[best]
    clusters = _link(_Found(together, tile_of, frames, cut), rules, check)  # step 2
    check()
    merged = _combine(together, cut, clusters)  # step 3
    merged = _drop_pieces(merged, rules)  # step 4
    # A merged box is larger than its pieces, and may now overlap another one of the same object.
    kept = _suppressed(merged.boxes, rules)
    kept = kept[np.argsort(-merged.boxes.scores[kept], kind="stable")]
    return Merged(merged.boxes.take(kept), merged.open_edges[kept])


def _cut_edges(xyxy: Floats, tiles: Sequence[Tile], tile_of: Integers) -> Flags:
    """Return which of left, top, right and bottom of each box, in pixels of its tile, is at an inner edge."""
    margins = [(EDGE_FRACTION * tile.width_px, EDGE_FRACTION * tile.height_px) for tile in tiles]
    farthest = [(tile.width_px - x, tile.height_px - y) for tile, (x, y) in zip(tiles, margins, strict=True)]
    at_start = xyxy[:, :2] < np.array(margins, np.float32)[tile_of]
    at_end = xyxy[:, 2:] > np.array(farthest, np.float32)[tile_of]
    inner = np.array([tile.inner_edges for tile in tiles])[tile_of]
    cut: Flags = np.concatenate([at_start, at_end], axis=1) & inner
    return cut


def _suppress(boxes: Boxes, rules: Rules) -> Boxes:
    if len(boxes) > MAX_BOXES_PER_TILE:
        boxes = boxes.take(np.argsort(-boxes.scores, kind="stable")[:MAX_BOXES_PER_TILE])
    return boxes.take(_suppressed(boxes, rules))


def _suppressed(boxes: Boxes, rules: Rules) -> Integers:
    """Return the indices of the boxes that remain after non-maximum suppression in each group of labels."""
    if len(boxes) < 2:
        # As NMSBoxesBatched() does. Most tiles show an object or none, and need not pay for its conversions.
        return np.flatnonzero(boxes.scores > 0)
    rectangles = np.concatenate([boxes.xyxy[:, :2], boxes.xyxy[:, 2:] - boxes.xyxy[:, :2]], axis=1)
    kept = cv2.dnn.NMSBoxesBatched(
        rectangles.tolist(), boxes.scores.tolist(), rules.groups[boxes.labels].tolist(), 0.0, rules.iou_threshold
    )
    return np.asarray(kept, np.intp).reshape(-1)


def _touching(xyxy: Floats) -> tuple[Integers, Integers]:
    """Return the indices of all pairs of boxes that touch, by a sweep from left to right."""
    # In the order of their left edges, a box touches at most those that follow it up to its right edge.
    order = np.argsort(xyxy[:, 0], kind="stable")
    positions = np.arange(len(order))
    ends = np.searchsorted(xyxy[order, 0], xyxy[order, 2], side="right")
    counts = np.maximum(ends - positions - 1, 0)
    first = np.repeat(positions, counts)
    second = first + 1 + np.arange(len(first)) - np.repeat(np.cumsum(counts) - counts, counts)
    one, other = order[first], order[second]
    beside = np.minimum(xyxy[one, 3], xyxy[other, 3]) >= np.maximum(xyxy[one, 1], xyxy[other, 1])
    return one[beside], other[beside]


def _link(found: _Found, rules: Rules, check: Callable[[], None]) -> list[_Cluster]:
    """Link the boxes of one object, at most one from each tile."""
    xyxy, frames, cut, tile_of = found.boxes.xyxy, found.frames, found.cut, found.tile_of
    margins = EDGE_FRACTION * (frames[:, 2:] - frames[:, :2])
    outward = np.concatenate([-margins, margins], axis=1)
    # Extend pieces beyond their tile, so that the two pieces of an object touch if their tiles hardly overlap.
    first, second = _touching(np.where(cut, frames + outward, xyxy).astype(np.float32))
    apart = tile_of[first] != tile_of[second]
    first, second = first[apart], second[apart]
    check()
    whole = np.asarray(~cut.any(axis=1))
    groups = rules.groups[found.boxes.labels]
    same = groups[first] == groups[second]
    both_whole = whole[first] & whole[second]
    likeness = np.where(
        both_whole,
        overlap_of_pairs(xyxy[first], xyxy[second]),
        _likeness_in_common(xyxy, frames, cut, first, second),
    )
    linked = np.flatnonzero((likeness > rules.iou_threshold) & (same | ~both_whole))
    best_first = linked[np.argsort(-(likeness[linked] + SAME_LABEL_BONUS * same[linked]), kind="stable")]
    # Link the most similar pairs first: a link excludes later ones, because a cluster has one box of each tile.
    clusters = [_Cluster([index], 1 << int(tile)) for index, tile in enumerate(tile_of)]
    for count, pair in enumerate(best_first.tolist()):
        if count % CHECKED_AFTER == 0:
            check()
        one, other = clusters[first[pair]], clusters[second[pair]]
        if one is not other and not one.tiles & other.tiles:
            one.members += other.members
            one.tiles |= other.tiles
            for member in other.members:  # all members refer to the same cluster
                clusters[member] = one
    return list({id(cluster): cluster for cluster in clusters}.values())


def _likeness_in_common(xyxy: Floats, frames: Floats, cut: Flags, first: Integers, second: Integers) -> Floats:
    """Return the intersection over union of pairs of boxes within the area that both tiles show."""
    starts = np.maximum(frames[first, :2], frames[second, :2])
    ends = np.minimum(frames[first, 2:], frames[second, 2:])
    # If two tiles hardly overlap, an object on their edge extends beyond it, so compare the extended boxes.
    sides = np.minimum(frames[first, 2:] - frames[first, :2], frames[second, 2:] - frames[second, :2])
    grown = np.maximum(EDGE_FRACTION * sides - (ends - starts), 0) / 2
    outward = np.concatenate([-grown, grown], axis=1)
    bottom, top = np.tile(starts - grown, 2), np.tile(ends + grown, 2)

    def seen(which: Integers) -> Floats:
        extended = np.where(cut[which] & (outward != 0), frames[which] + outward, xyxy[which])
        clipped: Floats = np.clip(extended, bottom, np.maximum(bottom, top))
        return clipped

    return overlap_of_pairs(seen(first), seen(second))


def _combine(boxes: Boxes, cut: Flags, clusters: Sequence[_Cluster]) -> Merged:
    alone = np.array([cluster.members[0] for cluster in clusters if cluster.alone], np.intp)
    several = [cluster.members for cluster in clusters if not cluster.alone]
    # Plain numbers, because a cluster has two or three boxes, for which NumPy costs several times as much.
    scores, weights = boxes.scores.tolist(), (boxes.scores * areas(boxes.xyxy)).tolist()
    labels, whole = boxes.labels.tolist(), np.asarray(~cut.any(axis=1)).tolist()
    xyxy, open_edges = np.zeros((len(several), 4), np.float32), np.zeros((len(several), 4), np.bool_)
    best_labels, best_scores = [], []
    for row, unsorted in enumerate(several):
        members = sorted(unsorted, key=lambda member: -scores[member])
        best_whole = next((member for member in members if whole[member]), None)
        if best_whole is None:
            xyxy[row], open_edges[row] = _around_pieces(boxes.xyxy[members], cut[members])
        else:
            xyxy[row] = boxes.xyxy[best_whole]
        label = _label([(labels[member], weights[member]) for member in members])
        best_labels.append(label)
        best_scores.append(next(scores[member] for member in members if labels[member] == label))
    joined = Boxes(xyxy, np.array(best_scores, np.float32), np.array(best_labels, np.intp))
    return Merged(concatenate([boxes.take(alone), joined]), np.concatenate([cut[alone], open_edges]))


def _around_pieces(pieces: Floats, open_edges: Flags) -> tuple[Floats, Flags]:
    """Return the box around the pieces of an object, and its open edges."""
    xyxy: Floats = np.concatenate([pieces[:, :2].min(axis=0), pieces[:, 2:].max(axis=0)])
    # An edge stays open if the piece that reaches farthest is cut there.
    return xyxy, (open_edges & (np.abs(pieces - xyxy) < 1)).any(axis=0)


def _label(weighted: Sequence[tuple[int, float]]) -> int:
    """Return the label with the largest sum of weights; in a tie, the first."""
    totals: dict[int, float] = {}
    for label, weight in weighted:
        totals[label] = totals.get(label, 0.0) + weight
    return max(totals, key=totals.__getitem__)


def _drop_pieces(merged: Merged, rules: Rules) -> Merged:
    """Drop the remaining pieces that lie mostly inside a larger box of the same object."""
    xyxy = merged.boxes.xyxy
    first, second = _touching(xyxy)
    sizes = areas(xyxy)
    smaller_first = sizes[first] <= sizes[second]
    piece, other = np.where(smaller_first, first, second), np.where(smaller_first, second, first)
    candidates = merged.open_edges[piece].any(axis=1)
    piece, other = piece[candidates], other[candidates]
    starts = np.maximum(xyxy[piece, :2], xyxy[other, :2])
    ends = np.minimum(xyxy[piece, 2:], xyxy[other, 2:])
    inside = areas(np.concatenate([starts, ends], axis=1)) > rules.inside_threshold * sizes[piece]
    groups = rules.groups[merged.boxes.labels]
    belongs = (groups[piece] == groups[other]) | _continues(xyxy[piece], merged.open_edges[piece], xyxy[other])
    kept = np.ones(len(merged.boxes), np.bool_)
    kept[piece[inside & belongs]] = False
    return Merged(merged.boxes.take(kept), merged.open_edges[kept])


def _continues(pieces: Floats, open_edges: Flags, others: Floats) -> Flags:
    """Return where another box extends beyond an open edge of a piece and has the same extent along it."""
    common = np.minimum(pieces[:, 2:], others[:, 2:]) - np.maximum(pieces[:, :2], others[:, :2])
    around = np.maximum(pieces[:, 2:], others[:, 2:]) - np.minimum(pieces[:, :2], others[:, :2])
    # A left or right edge is vertical, so the extents along it are those in y, and vice versa.
    alike = np.maximum(common, 0) > FACING_OVERLAP * around
    along = np.stack([alike[:, 1], alike[:, 0], alike[:, 1], alike[:, 0]], axis=1)
    beyond = np.concatenate([others[:, :2] < pieces[:, :2], others[:, 2:] > pieces[:, 2:]], axis=1)
    continues: Flags = (open_edges & beyond & along).any(axis=1)
    return continues
