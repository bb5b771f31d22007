"""The comparison of detectors counts hits and false boxes correctly."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest

from bench import detect
from services.detector.boxes import Boxes, Floats
from services.detector.models.model import Model
from services.detector.tiles import Pixels

FIRST, SECOND, THIRD = [10, 10, 50, 90], [200, 10, 240, 90], [400, 10, 440, 90]


def xyxy(*boxes: list[int]) -> Floats:
    return np.array(boxes, np.float32).reshape(-1, 4)


class Told:
    """A model that finds the given people in every tile."""

    labels = ("person", "car")
    input_px = (480, 480)
    batch = 1

    def __init__(self, boxes: Floats) -> None:
        self._boxes = boxes

    def detect(self, tiles: list[Pixels]) -> list[Boxes]:
        count = len(self._boxes)
        labels = np.zeros(count, np.intp)
        return [Boxes(self._boxes, np.full(count, 0.9, np.float32), labels) for _ in tiles]


def test_people_are_those_on_which_two_models_agree() -> None:
    found = [xyxy(FIRST, SECOND), xyxy([12, 12, 51, 91]), xyxy(SECOND, THIRD)]
    np.testing.assert_array_equal(detect.agreed(found), xyxy(FIRST, SECOND))
    assert detect.agreed([xyxy(), xyxy()]).shape == (0, 4)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_recall_and_false_boxes_are_counted(scale: float) -> None:
    picture = np.zeros((500, 600, 3), np.uint8)
    model = cast("Model", Told(xyxy(FIRST, THIRD) * np.float32(scale)))
    recall, false = detect.judge(model, [(picture, xyxy(FIRST, SECOND))], scale)
    assert (recall, false) == (0.5, 1.0)


def test_a_smaller_picture_lies_in_the_corner_of_a_tile() -> None:
    picture = detect.scaled(np.full((600, 800, 3), 255, np.uint8), 0.5)
    assert picture.shape == (688, 688, 3)
    assert picture[299, 399].tolist() == [255] * 3
    assert picture[300, 0].tolist() == [detect.GREY] * 3
