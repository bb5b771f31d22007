from __future__ import annotations

import threading

import numpy as np
import pytest

from services.stitcher.calibration.poses import CalibrationError
from services.stitcher.calibration.worker import calibrate_apart
from tests.services.stitcher.scene import paint_world, photograph, rig

pytestmark = pytest.mark.slow


@pytest.mark.long
def test_the_result_comes_from_another_process() -> None:
    world = paint_world()
    pictures = {camera.name: photograph(world, camera) for camera in rig((-18, 18)).cameras}
    steps: list[tuple[int, int]] = []
    found = calibrate_apart(pictures, threading.Event(), progress=lambda *step: steps.append(step))
    assert found is not None
    assert steps == [(1, 4), (2, 4), (3, 4)]
    assert [camera.name for camera in found.cameras] == ["cam0", "cam1"]


def test_an_error_comes_from_the_other_process() -> None:
    blank = np.zeros((90, 160, 3), np.uint8)
    with pytest.raises(CalibrationError, match="no two of the cameras a, b match"):
        calibrate_apart({"a": blank, "b": blank}, threading.Event())


def test_the_process_ends_on_request() -> None:
    stop = threading.Event()
    stop.set()
    blank = np.zeros((90, 160, 3), np.uint8)
    assert calibrate_apart({"a": blank, "b": blank}, stop) is None


def test_a_process_that_dies_is_an_error() -> None:
    # An object that the child cannot unpickle ends it.
    with pytest.raises(CalibrationError, match="process died with status 1"):
        calibrate_apart({"a": Unreadable()}, threading.Event())  # type: ignore[dict-item]


class Unreadable:
    def __reduce__(self) -> tuple[object, tuple[int]]:
        return int, ("no number",)  # type: ignore[return-value]
