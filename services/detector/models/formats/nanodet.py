"""NanoDet: its own exports, whose boxes are distributions of distances, and those that decode them in the graph.

- NanoDet-Plus: one output ``(N, cells, classes + 4 * bins)``, strides 8 to 64, distances from a cell's corner.
- NanoDet: for each stride an output of scores and one of distances, from a cell's centre.
- Decoded: ``boxes`` and ``scores`` as :mod:`~services.detector.models.formats.ssd` has them, with a row for each cell.

BGR, stretched. The decoded kind normalises in the graph; the others require normalised input.

Source: RangiLyu/nanodet, nanodet/model/head/nanodet_plus_head.py and gfl_head.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from services.detector.models.choose import Candidates, Chooser
from services.detector.models.formats.base import Array, Format, Graph, Grid
from services.detector.models.formats.ssd import Ssd, boxes_and_scores, is_nanodet
from services.detector.models.prepare import Preparation

MEAN, STD = (103.53, 116.28, 123.675), (57.375, 57.12, 58.395)
"""Mean and standard deviation of blue, green and red, 0 to 255."""
BINS = (8, 11)
"""Numbers of bins of a distribution: that of most configurations, and that of NanoDet-g and EfficientLite."""
PLUS_STRIDES, OLD_STRIDES = (8, 16, 32, 64), (8, 16, 32)
MOST_CLASSES = 1000


class NanoDet(Format):
    """Distributions of the distances to the four sides."""

    name = "nanodet"
    known = "(N, cells, classes + 4 * bins), or scores and distances for each stride"

    def __init__(self, preparation: Preparation, classes: int, bins: int, grid: Grid, order: Sequence[int]) -> None:
        """Keep the grid, and the indices of the outputs: each stride's scores, then its distances; empty for one."""
        super().__init__(preparation, classes)
        self._bins = bins
        self._grid = grid
        self._order = order

    @classmethod
    def recognise(cls, graph: Graph) -> Self | None:
        """Recognise the number of cells and a number of channels that leaves a known number of bins."""
        preparation = graph.preparation(colour="bgr", mean=MEAN, std=STD)
        shapes = graph.shapes
        if any(len(shape) != 3 for shape in shapes):
            return None
        if len(shapes) == 1:
            bins = _bins(shapes[0][2], graph)
            if shapes[0][1] != graph.cells(PLUS_STRIDES) or bins is None:
                return None
            grid = Grid.over(graph.height_px, graph.width_px, PLUS_STRIDES, 0.0)
            return cls(preparation, shapes[0][2] - 4 * bins, bins, grid, ())
        order = _by_stride(graph)
        if order is None:
            return None
        scores, distances = shapes[order[0]][2], shapes[order[len(order) // 2]][2]
        strides = OLD_STRIDES if len(order) == 2 * len(OLD_STRIDES) else PLUS_STRIDES
        grid = Grid.over(graph.height_px, graph.width_px, strides, 0.5)
        return cls(preparation, scores, distances // 4, grid, order)

    def decode(self, outputs: Sequence[Array], chooser: Chooser) -> Candidates:
        """Decode the selected rows only: a softmax of every row would dominate the cost."""
        if self._order:
            half = len(self._order) // 2
            scores = np.concatenate([outputs[place] for place in self._order[:half]])
            distances = np.concatenate([outputs[place] for place in self._order[half:]])
        else:
            scores, distances = outputs[0][:, : self.classes], outputs[0][:, self.classes :]
        chosen = chooser.dense(scores)
        bins = np.asarray(distances[chosen.rows], np.float32).reshape(-1, 4, self._bins)
        with np.errstate(over="ignore", invalid="ignore"):
            # The distance to a side is the mean of its distribution, in strides.
            weights = np.exp(bins - bins.max(axis=2, keepdims=True))
            reach = (weights * np.arange(self._bins, dtype=np.float32)).sum(axis=2) / weights.sum(axis=2)
            reach *= self._grid.strides[chosen.rows, None]
        centres = self._grid.centres[chosen.rows]
        xyxy = np.concatenate([centres - reach[:, :2], centres + reach[:, 2:]], axis=1)
        return Candidates(xyxy, chosen.scores, chosen.labels)


class DecodedNanoDet(Ssd):
    """Boxes and scores, a row for each cell, from a BGR picture."""

    name = "nanodet-decoded"
    known = "boxes (N, cells, 4) with scores (N, cells, classes)"

    @classmethod
    def recognise(cls, graph: Graph) -> Self | None:
        """Recognise the outputs by their names, shapes and the number of cells."""
        order = boxes_and_scores(graph)
        if order is None or not is_nanodet(graph):
            return None
        return cls(graph.preparation(**cls.wanted()), graph.shapes[order[1]][2], order)

    @classmethod
    def wanted(cls) -> dict[str, Any]:
        """Return the colours of NanoDet's training, blue first."""
        return {"colour": "bgr"}


def _bins(channels: int, graph: Graph) -> int | None:
    """Return the number of bins of each distribution, from the number of channels and, if known, of classes."""
    if graph.names is not None:
        count = channels - len(graph.names)
        return count // 4 if count % 4 == 0 and count // 4 > 1 else None
    # Prefer the number of bins that leaves COCO's 80 classes.
    for bins in sorted(BINS, key=lambda bins: channels - 4 * bins != 80):
        if 0 < channels - 4 * bins <= MOST_CLASSES:
            return bins
    return None


def _by_stride(graph: Graph) -> list[int] | None:
    """Return the indices of the outputs with each stride's scores, then its distances; None if it has others."""
    shapes = graph.shapes
    strides = OLD_STRIDES if len(shapes) == 2 * len(OLD_STRIDES) else PLUS_STRIDES
    if len(shapes) != 2 * len(strides):
        return None
    kinds: list[list[int]] = [[], []]
    for stride in strides:
        places = [place for place, shape in enumerate(shapes) if shape[1] == graph.cells((stride,))]
        if len(places) != 2:
            return None
        names = list(graph.outputs)
        # Distances have a known number of bins for each of four sides.
        widths = sorted({shapes[place][2] for place in places} & {4 * bins for bins in BINS})
        if not widths:
            return None
        # If there are as many classes as distances, distinguish by name: cls_pred_stride_8, dis_pred_stride_8.
        of_boxes = next((p for p in places if any(part in names[p] for part in ("dis", "reg", "bbox"))), None)
        if of_boxes is None:
            of_boxes = next(place for place in places if shapes[place][2] == widths[0])
        places.remove(of_boxes)
        kinds[0].append(places[0])
        kinds[1].append(of_boxes)
    return [*kinds[0], *kinds[1]]
