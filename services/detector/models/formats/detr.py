"""The transformers' lists of queries: RT-DETR and RF-DETR, by each of their exporters. RGB, stretched.

- RT-DETR, D-FINE, DEIM by their authors: inputs ``images`` and ``orig_target_sizes`` (width, height); outputs
  ``labels`` ``(N, queries)``, ``boxes`` ``(N, queries, 4)`` as corners in pixels of that size, and ``scores``. From 0
  to 1.
- RT-DETR by Hugging Face: ``logits`` ``(N, queries, classes)``, ``pred_boxes`` as centre and size, 0 to 1. From 0 to 1.
- RT-DETR by Ultralytics: one output ``(N, queries, 4 + classes)``, scores after the sigmoid, boxes as before. From 0
  to 1.
- RF-DETR: ``dets`` as centre and size, 0 to 1, ``labels`` ``(N, queries, classes)`` as logits. Normalised as ImageNet.

Sources: lyuwenyu/RT-DETR, rtdetrv2_pytorch/tools/export_onnx.py; roboflow/rf-detr, rfdetr/deploy/export.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np

from services.detector.boxes import Floats
from services.detector.models.choose import Candidates, Chooser
from services.detector.models.formats.base import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    MOST_QUERIES,
    Array,
    Format,
    Graph,
    around,
    sigmoid,
)
from services.detector.models.prepare import Preparation

SIZES = "orig_target_sizes"
"""RT-DETR's input for the size to which it scales the boxes. It receives the size of the image input."""


class RtDetr(Format):
    """One label, box and score for each query."""

    name = "rt-detr"
    known = "labels, boxes (N, queries, 4) and scores (N, queries)"

    def __init__(self, preparation: Preparation, order: tuple[int, int, int]) -> None:
        """Keep the indices of the outputs with labels, boxes and scores."""
        super().__init__(preparation, None)
        self._labels, self._boxes, self._scores = order

    @classmethod
    def recognise(cls, graph: Graph) -> Self | None:
        """Recognise the three outputs by their names."""
        names = list(graph.outputs)
        if sorted(names) != ["boxes", "labels", "scores"]:
            return None
        labels, boxes, scores = (graph.outputs[name].shape for name in ("labels", "boxes", "scores"))
        if len(boxes) != 3 or boxes[2] != 4 or labels != boxes[:2] or scores != boxes[:2]:
            return None
        order = (names.index("labels"), names.index("boxes"), names.index("scores"))
        return cls(graph.preparation(scale=1 / 255), order)

    def decode(self, outputs: Sequence[Array], chooser: Chooser) -> Candidates:
        """Decode ``(queries,)``, ``(queries, 4)`` and ``(queries,)``."""
        chosen = chooser.listed(outputs[self._scores], outputs[self._labels])
        xyxy = np.asarray(outputs[self._boxes][chosen.rows], np.float32)
        return Candidates(xyxy, chosen.scores, chosen.labels)


class Queries(Format):
    """Boxes as centre and size, 0 to 1, and a logit for each query and class."""

    name = "rt-detr-logits"
    known = "logits (N, queries, classes) with pred_boxes (N, queries, 4)"
    _box_output, _class_output = "pred_boxes", "logits"

    def __init__(self, preparation: Preparation, classes: int, order: tuple[int, int]) -> None:
        """Keep the indices of the outputs with boxes and classes."""
        super().__init__(preparation, classes)
        self._boxes, self._classes = order

    @classmethod
    def recognise(cls, graph: Graph) -> Self | None:
        """Recognise the two outputs by their names."""
        names = list(graph.outputs)
        if sorted(names) != sorted((cls._box_output, cls._class_output)):
            return None
        boxes, classes = graph.outputs[cls._box_output].shape, graph.outputs[cls._class_output].shape
        if len(boxes) != 3 or len(classes) != 3 or boxes[2] != 4 or boxes[:2] != classes[:2]:
            return None
        order = (names.index(cls._box_output), names.index(cls._class_output))
        return cls(cls._wanted(graph), classes[2], order)

    @classmethod
    def _wanted(cls, graph: Graph) -> Preparation:
        return graph.preparation(scale=1 / 255)

    def decode(self, outputs: Sequence[Array], chooser: Chooser) -> Candidates:
        """Decode ``(queries, 4)`` and ``(queries, classes)``."""
        # Independent scores: there is no class for nothing, and softmax would be wrong.
        chosen = chooser.dense(sigmoid(outputs[self._classes]))
        xyxy = _in_pixels(outputs[self._boxes][chosen.rows], self.preparation)
        return Candidates(xyxy, chosen.scores, chosen.labels)


class RfDetr(Queries):
    """The same outputs under other names, from a normalised picture."""

    name = "rf-detr"
    known = "dets (N, queries, 4) with labels (N, queries, classes)"
    _box_output, _class_output = "dets", "labels"

    @classmethod
    def _wanted(cls, graph: Graph) -> Preparation:
        return graph.preparation(scale=1 / 255, mean=IMAGENET_MEAN, std=IMAGENET_STD)


class UltralyticsRtDetr(Format):
    """One output of boxes and scores, with a row for each query."""

    name = "rt-detr-ultralytics"
    known = "(N, queries, 4 + classes)"

    @classmethod
    def recognise(cls, graph: Graph) -> Self | None:
        """Recognise the columns by the number of names; without names, objectness cannot be told from a class."""
        if len(graph.outputs) != 1 or len(graph.shapes[0]) != 3 or graph.names is None:
            return None
        _, queries, columns = graph.shapes[0]
        # Six columns are also those of an end-to-end list, so require that the exporter names RT-DETR.
        said = "rtdetr" in graph.metadata.get("description", "").lower().replace("-", "")
        if columns != 4 + len(graph.names) or queries > MOST_QUERIES or (columns == 6 and not said):
            return None
        return cls(graph.preparation(scale=1 / 255), columns - 4)

    def decode(self, outputs: Sequence[Array], chooser: Chooser) -> Candidates:
        """Decode ``(queries, 4 + classes)``."""
        chosen = chooser.dense(outputs[0][:, 4:])
        return Candidates(_in_pixels(outputs[0][chosen.rows, :4], self.preparation), chosen.scores, chosen.labels)


def _in_pixels(boxes: Array, preparation: Preparation) -> Floats:
    sides = np.array([preparation.width_px, preparation.height_px], np.float32)
    values = np.asarray(boxes, np.float32)
    return around(values[:, :2] * sides, values[:, 2:] * sides)
