import functools

import cv2
import numpy as np
import pytest

from services.simulator.scene import LEAST_VISIBLE, Drawn, Scene, ground_truth, scene
from tests.services.simulator.clips import SMALL

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def stage() -> Scene:
    return scene(SMALL)


@functools.cache
def composed(index: int) -> tuple[np.ndarray, list[Drawn]]:
    canvas = scene(SMALL).still.copy()
    return canvas, scene(SMALL).compose(index, canvas)


@pytest.mark.long
def test_the_truth_covers_exactly_the_moving_parts(stage: Scene) -> None:
    canvas, drawn = composed(11)
    changed = cv2.absdiff(canvas, stage.still).max(axis=2) > 40
    boxes = np.zeros(changed.shape, bool)
    for told in stage.truth(drawn):
        (left, right), (top, bottom) = stage.cylinder.project(
            np.array([told["yaw_min_rad"], told["yaw_max_rad"]]), np.array([told["v_min"], told["v_max"]])
        )
        rows, columns = slice(max(0, round(top)), round(bottom) + 1), slice(max(0, round(left)), round(right) + 1)
        boxes[rows, columns] = True
        if told["id"] < 200 and told["visible"] == 1:
            inside = changed[rows, columns]
            assert inside.any(axis=0).mean() > 0.6
            assert inside.any(axis=1).mean() > 0.8
    assert changed.sum() > 10_000
    assert boxes[changed].mean() > 0.9, "every large difference from the still picture is in a box"


def test_people_and_vehicles_are_in_the_truth_and_large_enough(stage: Scene) -> None:
    told = stage.truth(composed(0)[1])
    people = [one for one in told if one["label"] == "person"]
    assert len(people) > SMALL.walkers / 2
    assert any(one["label"] == "vehicle" for one in told)
    assert all(one["visible"] >= LEAST_VISIBLE for one in told)
    for one in people:
        assert (one["v_max"] - one["v_min"]) * 2058.7 > 120 * one["visible"]
    whole = [one for one in people if one["visible"] == 1]
    assert min((one["v_max"] - one["v_min"]) * 2058.7 for one in whole) >= 170


def test_identities_are_unique_in_a_frame_and_constant_over_frames(stage: Scene) -> None:
    first, later = ([one["id"] for one in stage.truth(composed(index)[1])] for index in (5, 6))
    assert len(set(first)) == len(first)
    assert len(set(first) & set(later)) >= len(first) - 2


def test_camera_boxes_are_projections_inside_the_picture(stage: Scene) -> None:
    seen = set()
    for one in stage.truth(composed(3)[1]):
        for name, (x, y, width, height) in one["cameras"].items():
            seen.add(name)
            camera = next(camera for camera in stage.cameras if camera.name == name)
            assert x >= 0
            assert y >= 0
            assert x + width <= camera.width_px + 0.01
            assert y + height <= camera.height_px + 0.01
            middle, _ = camera.direction(np.array([x + width / 2]), np.array([y + height / 2]))
            assert one["yaw_min_rad"] - 0.01 < middle[0] < one["yaw_max_rad"] + 0.01
    assert seen == {"cam0", "cam1", "cam2", "cam3", "cam4"}


def test_the_loop_has_no_seam(stage: Scene) -> None:
    np.testing.assert_array_equal(composed(0)[0], composed(SMALL.frames)[0])
    steps = []
    for index in (10, SMALL.frames - 1):
        before, after = ({one.identity: one for one in composed(i)[1]} for i in (index, index + 1))
        shared = before.keys() & after.keys() - {101}
        steps.append(max(abs(before[i].area[1].start - after[i].area[1].start) for i in shared))
    assert steps[1] <= steps[0] + 6, "no person jumps where the loop starts again"


def test_erasing_restores_the_still_picture(stage: Scene) -> None:
    canvas, drawn = composed(7)
    canvas = canvas.copy()
    stage.erase(drawn, canvas)
    np.testing.assert_array_equal(canvas, stage.still)


def test_the_scene_is_the_same_every_time() -> None:
    again = Scene(SMALL)
    np.testing.assert_array_equal(again.still, scene(SMALL).still)
    canvas = again.still.copy()
    again.compose(9, canvas)
    np.testing.assert_array_equal(canvas, composed(9)[0])


def test_ground_truth_is_a_panorama_without_black() -> None:
    panorama = ground_truth(SMALL, 4, 1224, 172, -1.699, 1.699, -0.2387, 0.2387)
    assert panorama.shape == (172, 1224, 3)
    assert panorama.dtype == np.uint8
    assert panorama.max(axis=2).min() >= 16
    np.testing.assert_array_equal(
        panorama, ground_truth(SMALL, 4 + SMALL.frames, 1224, 172, -1.699, 1.699, -0.2387, 0.2387)
    )


def test_every_overlap_has_features_of_its_own(stage: Scene) -> None:
    finder = cv2.ORB.create(4000)
    for yaw in (-54, -18, 18, 54):
        (left, right), _ = stage.cylinder.project(np.radians([yaw - 7, yaw + 7]), np.zeros(2))
        part = np.ascontiguousarray(stage.still[:, round(left) : round(right)])
        points = finder.detect(part, None)
        thirds = np.bincount([int(point.pt[1] * 3 / part.shape[0]) for point in points], minlength=3)
        assert len(points) > 150
        assert thirds.min() > 15, "from the top to the bottom"
