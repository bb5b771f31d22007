"""Finds people in SAHI's slices, with the detector's model: run by the Python of an environment that has SAHI.

``PYTHONPATH=CHECKOUT PYTHON -m bench.sahi_worker TILE_PX OVERLAP_PX`` reads the path of a ``.npy`` picture from each
line of its input, and prints a line of JSON for it: the people's boxes, and the seconds of CPU and of the clock.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import cv2
import numpy as np
from sahi.models.base import DetectionModel
from sahi.predict import get_sliced_prediction
from sahi.prediction import ObjectPrediction

from services.detector.config import DetectorSection
from services.detector.models.model import load_model


class Ours(DetectionModel):  # type: ignore[misc]  # the package has no types here
    """The detector's default model, with the interface of SAHI."""

    def set_model(self, model: Any, **_: Any) -> None:
        """Set the model, which is already loaded."""
        self.model = model

    @property
    def category_names(self) -> list[str]:
        """Return the labels of the model."""
        return list(self.model.labels)

    @property
    def has_mask(self) -> bool:
        """Return False: the model gives boxes, not masks."""
        return False

    @property
    def num_categories(self) -> int:
        """Return the number of labels."""
        return len(self.model.labels)

    def perform_inference(self, image: np.ndarray[Any, Any]) -> None:
        """Run the model on a slice."""
        (self._original_predictions,) = self.model.detect([image])

    def _create_object_prediction_list_from_original_predictions(
        self, shift_amount_list: Any = ((0, 0),), full_shape_list: Any = None
    ) -> None:
        boxes = self._original_predictions
        height, width = full_shape_list[0]
        self._object_prediction_list_per_image = [
            [
                ObjectPrediction(
                    bbox=xyxy.tolist(),
                    category_id=int(label),
                    category_name=self.model.labels[label],
                    score=float(score),
                    shift_amount=list(shift_amount_list[0]),
                    full_shape=[height, width],
                )
                for xyxy, score, label in zip(boxes.xyxy, boxes.scores, boxes.labels, strict=True)
            ]
        ]


def main() -> None:
    """Process each picture, and print its boxes and times."""
    tile_px, overlap_px = (int(argument) for argument in sys.argv[1:])
    cv2.setNumThreads(1)
    own = load_model(DetectorSection())
    # The lowest threshold, because the model applies those of its classes itself.
    model = Ours(model=own, confidence_threshold=min(own.thresholds))
    ratio = overlap_px / tile_px

    def look(pixels: np.ndarray[Any, Any]) -> Any:
        return get_sliced_prediction(
            pixels,
            model,
            slice_height=tile_px,
            slice_width=tile_px,
            overlap_height_ratio=ratio,
            overlap_width_ratio=ratio,
            # The detector does not run on the whole frame either.
            perform_standard_pred=False,
            verbose=0,
        )

    for line in sys.stdin:
        pixels = np.load(line.rstrip("\n"))
        begun = time.process_time(), time.perf_counter()
        found = look(pixels).object_prediction_list
        taken = [now - before for now, before in zip((time.process_time(), time.perf_counter()), begun, strict=True)]
        boxes = [one.bbox.to_xyxy() for one in found if one.category.name == "person"]
        print(json.dumps({"boxes": boxes, "cpu_s": taken[0], "wall_s": taken[1]}), flush=True)


if __name__ == "__main__":
    main()
