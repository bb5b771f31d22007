"""Lists of detections: one output ``(N, detections, 6)`` of left, top, right, bottom, score and class, in pixels.

YOLOv10, YOLO26 and Ultralytics' exports with ``nms=True``; RGB from 0 to 1, padded with grey on all sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np

from services.detector.models.choose import Candidates, Chooser
from services.detector.models.formats.base import MOST_QUERIES, Array, Format, Graph


class EndToEnd(Format):
    """One row for each detection, without duplicates; unused rows have a score of 0."""

    name = "end-to-end"
    known = "(N, detections, 6)"

    @classmethod
    def recognise(cls, graph: Graph) -> Self | None:
        """Recognise six columns, unless there is a row for each cell: that is YOLOX with one class."""
        if len(graph.outputs) != 1 or len(graph.shapes[0]) != 3:
            return None
        _, detections, columns = graph.shapes[0]
        # RT-DETR by Ultralytics also has six columns if it has two classes. Its exporter writes its name.
        other = "rtdetr" in graph.metadata.get("description", "").lower().replace("-", "")
        if columns != 6 or not 0 < detections <= MOST_QUERIES or detections == graph.cells((8, 16, 32)) or other:
            return None
        return cls(graph.preparation(scale=1 / 255, fit="centre"), None)

    def decode(self, outputs: Sequence[Array], chooser: Chooser) -> Candidates:
        """Decode ``(detections, 6)``."""
        rows = np.asarray(outputs[0], np.float32)
        chosen = chooser.listed(rows[:, 4], rows[:, 5])
        return Candidates(rows[chosen.rows, :4], chosen.scores, chosen.labels)
