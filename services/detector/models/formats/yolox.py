"""One output ``(N, cells, 5 + classes)`` of centre, size, objectness and classes: YOLOX, YOLOv5 and YOLOv7.

YOLOX: BGR from 0 to 255, padded with grey below and to the right; boxes relative to a grid of strides 8, 16 and 32
unless exported with ``--decode_in_inference``. YOLOv5 and YOLOv7: three boxes for each cell, in pixels; RGB from 0 to
1, padded on all sides.

Source: Megvii-BaseDetection/YOLOX, yolox/utils/demo_utils.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np

from services.detector.models.choose import Candidates, Chooser
from services.detector.models.formats.base import Array, Format, Graph, Grid, around
from services.detector.models.prepare import Preparation

STRIDES = (8, 16, 32)
ANCHORS = 3
"""Boxes of each cell of YOLOv5 and YOLOv7."""
NEAR_CELLS = 4.0
"""A decoded centre lies within this many cells of its own; one that is relative to the grid is far from most cells."""


class Yolox(Format):
    """An objectness for each cell, which multiplies the scores of its classes."""

    name = "yolox"
    known = "(N, cells, 5 + classes)"

    def __init__(self, preparation: Preparation, classes: int, grid: Grid | None) -> None:
        """Keep the grid that boxes are relative to; None if they are in pixels."""
        super().__init__(preparation, classes)
        self._grid = grid

    @classmethod
    def recognise(cls, graph: Graph) -> Self | None:
        """Recognise as many rows as cells, or three times as many."""
        if len(graph.outputs) != 1 or len(graph.shapes[0]) != 3:
            return None
        _, rows, columns = graph.shapes[0]
        cells = graph.cells(STRIDES)
        if columns < 6:
            return None
        # YOLOv5 and YOLOv7, whose larger models have a fourth grid.
        if rows == ANCHORS * cells or rows == ANCHORS * graph.cells((*STRIDES, 64)):
            return cls(graph.preparation(scale=1 / 255, fit="centre"), columns - 5, None)
        if rows != cells:
            return None
        grid = Grid.over(graph.height_px, graph.width_px, STRIDES, 0.0)
        preparation = graph.preparation(colour="bgr", fit="corner")
        if _decoded(next(iter(graph.outputs.values()))[0], grid):
            return cls(preparation, columns - 5, None)
        return cls(preparation, columns - 5, grid)

    def decode(self, outputs: Sequence[Array], chooser: Chooser) -> Candidates:
        """Decode ``(cells, 5 + classes)``."""
        output = outputs[0]
        chosen = chooser.dense(output[:, 5:], output[:, 4])
        boxes = np.asarray(output[chosen.rows, :4], np.float32)
        if self._grid is not None:
            strides = self._grid.strides[chosen.rows, None]
            # Sizes are logarithms. One that overflows becomes infinite, and is dropped as out of range.
            with np.errstate(over="ignore", invalid="ignore"):
                centres = boxes[:, :2] * strides + self._grid.centres[chosen.rows]
                sizes = np.exp(boxes[:, 2:]) * strides
        else:
            centres, sizes = boxes[:, :2], boxes[:, 2:]
        return Candidates(around(centres, sizes), chosen.scores, chosen.labels)


def _decoded(output: Array, grid: Grid) -> bool:
    """Return whether the centres of the first run are in pixels already."""
    distance = np.abs(np.asarray(output[:, :2], np.float32) - grid.centres) / grid.strides[:, None]
    # The median, because single cells may predict a centre anywhere.
    return bool(np.median(distance) < NEAR_CELLS)
