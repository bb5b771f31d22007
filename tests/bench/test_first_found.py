"""The count of appearances that are found in time."""

from __future__ import annotations

import numpy as np
import pytest

from bench.first_found import Appearances
from services.detector.boxes import Floats

HERE, ELSEWHERE = [0, 0, 40, 100], [600, 0, 640, 100]


def corners(*boxes: list[int]) -> Floats:
    return np.array(boxes, np.float32).reshape(-1, 4)


def watched(visible: str, found: str) -> Appearances:
    """Count five frames a second. A person is visible, or found, in the frames that are marked with an x."""
    counts = Appearances()
    for frame, (is_visible, is_found) in enumerate(zip(visible, found, strict=True)):
        people = ["a"] if is_visible == "x" else []
        boxes = corners(HERE if is_found == "x" else ELSEWHERE)
        counts.add(frame / 5, people, corners(*[HERE] * len(people)), boxes)
    return counts


@pytest.mark.parametrize(
    ("visible", "found", "judged", "in_time"),
    [
        ("..xxxxxxxx", ".....x....", 1, 1),  # within the second
        ("..xxxxxxxx", ".......x..", 1, 1),  # at its end
        ("..xxxxxxxx", "........x.", 1, 0),  # after it
        ("..xxxxxxxx", "xx........", 1, 0),  # a box at the person's later place does not count
        ("..xxxx....", "..........", 0, 0),  # too short to count
        ("..xxxxxxxx....xxxxxxx", "..x..................", 1, 1),  # out of sight for less than a second
        ("..xxxxxxxx.....xxxxxxx", "..x...................", 2, 1),  # and for a second and more
    ],
)
def test_appearances_are_counted_once_they_are_a_second_old(
    visible: str, found: str, judged: int, in_time: int
) -> None:
    counts = watched(visible, found)
    assert (counts.judged, counts.found) == (judged, in_time)


def test_a_person_present_from_the_beginning_is_not_an_appearance() -> None:
    counts = Appearances()
    counts.skip(0.0, ["a"])
    for frame in range(1, 10):
        counts.add(frame / 5, ["a"], corners(HERE), corners())
    assert counts.judged == 0
