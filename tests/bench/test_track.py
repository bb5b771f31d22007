"""The comparison of trackers counts correctly."""

from __future__ import annotations

import numpy as np
import pytest

from bench.track import Looked, Own, Tally
from services.detector.boxes import Boxes, Floats

LEFT, MIDDLE, RIGHT = [0, 0, 40, 100], [300, 0, 340, 100], [600, 0, 640, 100]


def xyxy(*boxes: list[int]) -> Floats:
    return np.array(boxes, np.float32).reshape(-1, 4)


def test_right_found_and_astray_are_counted() -> None:
    tally = Tally()
    tally.add(["a", "b"], xyxy(LEFT, MIDDLE), xyxy(LEFT, RIGHT), [1, 2])
    tally.add(["a"], xyxy(LEFT), xyxy(), [])
    assert (tally.right, tally.told, tally.there, tally.astray) == (1, 2, 3, 1)
    assert tally.row() == "0.50 | 0.33 | 0.50 | 0.40 | 0 | 2"


def test_of_two_boxes_on_one_person_one_is_right() -> None:
    tally = Tally()
    tally.add(["a"], xyxy(LEFT), xyxy(LEFT, [2, 0, 42, 100]), [1, 2])
    assert (tally.right, tally.told, tally.astray) == (1, 2, 0)


@pytest.mark.parametrize(
    ("numbers", "idf1", "switches"), [([1, 1, 1, 1], 1.0, 0), ([1, 1, 1, 2], 0.75, 1), ([1, 2, 1, 2], 0.5, 3)]
)
def test_only_one_number_of_a_person_counts(numbers: list[int], idf1: float, switches: int) -> None:
    tally = Tally()
    for number in numbers:
        tally.add(["a"], xyxy(LEFT), xyxy(LEFT), [number])
    assert (tally.idf1, tally.switches) == (idf1, switches)


def test_a_number_counts_for_one_person_only() -> None:
    tally = Tally()
    for person in ("a", "a", "b"):
        tally.add([person], xyxy(LEFT), xyxy(LEFT), [1])
    assert tally.idf1 == pytest.approx(2 / 3)


def test_a_small_share_looks_at_fewer_tiles_and_still_reports_people_that_stand() -> None:
    pixels = np.zeros((688, 2000, 3), np.uint8)
    model = Looked("told", "1", ("person",), (480, 480), tile_s=0.1)
    model.frame = pixels
    person = Boxes(xyxy([300, 200, 340, 300]), np.ones(1, np.float32), np.zeros(1, np.intp))
    nobody = Boxes(xyxy(), np.ones(0, np.float32), np.zeros(0, np.intp))
    own = Own(0.1, model)
    model.boxes = dict.fromkeys(range(2000), nobody) | {0: person}
    told = [own.update(index, pixels) for index in range(40)]
    assert model.spent_s < 0.3 * 40 * 3 * 0.1, "of the time that all tiles would take"
    assert [len(boxes) for boxes, _ in told[5:]] == [1] * 35
    assert {number for _, numbers in told[5:] for number in numbers} == {1}
