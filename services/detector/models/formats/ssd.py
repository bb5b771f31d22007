"""Two outputs, ``boxes`` ``(N, anchors, 4)`` and ``scores`` ``(N, anchors, classes)``: SSD, decoded.

Boxes are top, left, bottom and right as fractions of the input, as the TensorFlow Object Detection API has them; RGB
from 0 to 255.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from services.detector.models.choose import Candidates, Chooser
from services.detector.models.formats.base import Array, Format, Graph
from services.detector.models.prepare import Preparation


class Ssd(Format):
    """A box for each anchor, and a score for each anchor and class."""

    name = "ssd"
    known = "boxes (N, anchors, 4) with scores (N, anchors, classes)"

    def __init__(self, preparation: Preparation, classes: int, order: tuple[int, int]) -> None:
        """Keep the indices of the outputs with boxes and scores."""
        super().__init__(preparation, classes)
        self._boxes, self._scores = order

    @classmethod
    def recognise(cls, graph: Graph) -> Self | None:
        """Recognise the outputs by their names and shapes."""
        order = boxes_and_scores(graph)
        if order is None or is_nanodet(graph):
            return None
        return cls(graph.preparation(**cls.wanted()), graph.shapes[order[1]][2], order)

    @classmethod
    def wanted(cls) -> dict[str, Any]:
        """Return the requirements of the input besides its size and type."""
        return {}

    def decode(self, outputs: Sequence[Array], chooser: Chooser) -> Candidates:
        """Decode ``(anchors, 4)`` and ``(anchors, classes)``."""
        chosen = chooser.dense(outputs[self._scores])
        sides = np.array([self.preparation.width_px, self.preparation.height_px] * 2, np.float32)
        # From top, left, bottom, right to left, top, right, bottom.
        xyxy = np.asarray(outputs[self._boxes][chosen.rows][:, [1, 0, 3, 2]], np.float32) * sides
        return Candidates(xyxy, chosen.scores, chosen.labels)


def boxes_and_scores(graph: Graph) -> tuple[int, int] | None:
    """Return the indices of ``boxes`` and ``scores``, if they are the only outputs and have the same rows."""
    names = list(graph.outputs)
    if sorted(names) != ["boxes", "scores"]:
        return None
    boxes, scores = names.index("boxes"), names.index("scores")
    shapes = graph.shapes
    if len(shapes[boxes]) != 3 or len(shapes[scores]) != 3 or shapes[boxes][2] != 4:
        return None
    return (boxes, scores) if shapes[boxes][1] == shapes[scores][1] else None


def is_nanodet(graph: Graph) -> bool:
    """Return whether there is a row for each cell of NanoDet's grids, rather than for each of SSD's anchors."""
    return any(shape[1] in (graph.cells((8, 16, 32)), graph.cells((8, 16, 32, 64))) for shape in graph.shapes)
