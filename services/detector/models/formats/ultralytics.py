"""Ultralytics YOLOv8 to YOLO11: one output ``(N, 4 + classes, cells)``, boxes as centre and size in pixels.

Source: the exporter of Ultralytics; RGB from 0 to 1, padded with grey to the middle of the input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from services.detector.models.choose import Candidates, Chooser
from services.detector.models.formats.base import MOST_QUERIES, Array, Format, Graph, around

STRIDES = ((8, 16, 32), (8, 16, 32, 64), (4, 8, 16, 32))
"""Strides of the usual heads, and of those for larger and for smaller objects."""


class Ultralytics(Format):
    """A box and a score of each class for each cell, transposed; no objectness."""

    name = "ultralytics"
    known = "(N, 4 + classes, cells)"

    @classmethod
    def recognise(cls, graph: Graph) -> Self | None:
        """Recognise the output by its second axis; other tasks' outputs have more channels than names."""
        if len(graph.outputs) != 1 or len(graph.shapes[0]) != 3:
            return None
        _, channels, cells = graph.shapes[0]
        if graph.metadata.get("task", "detect") != "detect" or channels < 5:
            return None
        # Custom heads have other strides; the number of names then recognises them.
        named = graph.names is not None and channels == 4 + len(graph.names)
        laid = any(cells == graph.cells(strides) for strides in STRIDES)
        if not (laid or (named and cells > channels and channels <= MOST_QUERIES)):
            return None
        return cls(graph.preparation(scale=1 / 255, fit="centre"), channels - 4)

    def decode(self, outputs: Sequence[Array], chooser: Chooser) -> Candidates:
        """Decode ``(4 + classes, cells)``."""
        output = outputs[0]
        chosen = chooser.dense(output[4:].T)
        boxes = output[:4, chosen.rows].T
        return Candidates(around(boxes[:, :2], boxes[:, 2:]), chosen.scores, chosen.labels)
