"""The neural network: what a tile shows.

COCO-SSD (SSDLite on MobileNetV2), run by ONNX Runtime on one thread of the CPU. The folder ``model`` holds the weights
with their licence, their origin and the script that converted them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import onnxruntime

from services.detector.boxes import Boxes
from services.detector.coco import COCO_COLUMNS
from services.detector.tiles import Pixels

INPUT_PX = 300
INPUT_SHAPE = [1, INPUT_PX, INPUT_PX, 3]
ANCHORS = 1917
CATEGORIES = 90
OUTPUT_SHAPES = {"boxes": [1, ANCHORS, 4], "scores": [1, ANCHORS, CATEGORIES]}


class NetworkError(Exception):
    """The model cannot be used; the message is one sentence for the operator."""


class Network:
    """The network, loaded. Owned by one thread."""

    def __init__(self, path: Path, labels: tuple[str, ...], score_threshold: float) -> None:
        """Load the network.

        Args:
            path: The ONNX file.
            labels: What to look for, keys of :data:`COCO_COLUMNS`.
            score_threshold: Boxes of a lower score are left out.

        Raises:
            NetworkError: The file is missing, is no ONNX model, or one of other inputs or outputs.
        """
        self.labels = labels
        self._columns = np.array([COCO_COLUMNS[label] for label in labels])
        self._score_threshold = score_threshold
        self._session = _load(path)
        self._input = np.empty(INPUT_SHAPE, np.uint8)

    def detect(self, view: Pixels) -> Boxes:
        """Find objects in a picture.

        Args:
            view: uint8 BGR of shape ``(height, width, 3)``, of any size and with any row stride; it is squeezed into
                the network's 300 x 300 pixels. It is read only.

        Returns:
            Every box above the score threshold, not yet freed of duplicates, in pixels of the view and within it. Each
            of the network's anchors gives at most one, of its most certain label.
        """
        height_px, width_px = view.shape[:2]
        # Bilinear, as the network's own first step was; an area average costs ten times as much and finds no more.
        small = cv2.resize(view, (INPUT_PX, INPUT_PX), interpolation=cv2.INTER_LINEAR)
        cv2.cvtColor(small, cv2.COLOR_BGR2RGB, dst=self._input[0])
        boxes, scores = self._session.run(["boxes", "scores"], {"image": self._input})
        return self._select(boxes[0], scores[0], height_px, width_px)

    def _select(
        self, boxes: npt.NDArray[np.float32], scores: npt.NDArray[np.float32], height_px: int, width_px: int
    ) -> Boxes:
        wanted = scores[:, self._columns]
        best = wanted.argmax(axis=1)
        best_scores = np.take_along_axis(wanted, best[:, None], axis=1)[:, 0]
        kept = np.flatnonzero(best_scores >= self._score_threshold)
        corners = np.clip(boxes[kept][:, [1, 0, 3, 2]], 0, 1)
        corners *= np.array([width_px, height_px, width_px, height_px], np.float32)
        return Boxes(corners, best_scores[kept], best[kept])


def _load(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    # A thread that waits must sleep: the cores are shared with the stitcher.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise NetworkError(f"the model {path} cannot be read: {error.strerror}") from None
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001  onnxruntime's own errors share no base but Exception
        raise NetworkError(f"the model {path} is not a usable ONNX file: {' '.join(str(error).split())}") from None
    inputs = {value.name: (value.type, value.shape) for value in session.get_inputs()}
    outputs = {value.name: (value.type, value.shape) for value in session.get_outputs()}
    if inputs != {"image": ("tensor(uint8)", INPUT_SHAPE)}:
        raise NetworkError(f"the model {path} takes {inputs}; one input 'image', uint8 {INPUT_SHAPE}, is needed")
    if outputs != {name: ("tensor(float)", shape) for name, shape in OUTPUT_SHAPES.items()}:
        raise NetworkError(f"the model {path} gives {outputs}; float {OUTPUT_SHAPES} are needed")
    return session
