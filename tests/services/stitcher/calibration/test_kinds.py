"""The calibration of real kinds of cameras: lenses, resolutions, light, and rigs that must be rejected.

Three cameras have all that a row has, an end and a camera between two others; five take three times as long. The long
tests have rigs of up to eight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial

import cv2
import numpy as np
import pytest

from services.stitcher.calibration.calibrate import Image, calibrate
from services.stitcher.calibration.poses import Calibration, CalibrationError, CameraPrior, PointPair
from tests.services.stitcher import worlds
from tests.services.stitcher.calibration_trials import GAINS, SURE_SEAM_PX, attempt, random_rig
from tests.services.stitcher.rigs import Rig, Shot, World, camera, compare, row, with_shot

pytestmark = pytest.mark.slow

SIZE = (640, 360)
SCALE_PX = 550.0


@cache
def street() -> World:
    return worlds.street(1, SCALE_PX)


@cache
def shapes() -> World:
    return worlds.shapes(1, SCALE_PX)


def known_lenses(rig: Rig) -> dict[str, CameraPrior]:
    return {
        name: CameraPrior(hfov_deg=math.degrees(2 * math.atan(pose.width_px / 2 / pose.focal_px)))
        for name, pose in rig.truth.items()
    }


def check(found: Calibration, rig: Rig, missing: Sequence[str] = ()) -> None:
    assert sorted(found.unplaced) == sorted(missing), found.reasons
    assert sorted(found.reasons) == sorted(missing)
    error = compare(found, rig)
    assert error.seam_px < 1.0
    assert error.focal < 0.005
    for pose in found.cameras:
        assert pose.rms_px is not None
        assert pose.rms_px < 1.0
        assert pose.confidence > 1.0
    assert len(found.pairs) >= len(found.cameras) - 1


@pytest.mark.parametrize(
    ("count", "overlap", "k1"),
    [(3, 0.14, -0.3), *(pytest.param(5, *case, marks=pytest.mark.long) for case in ((0.28, -0.2), (0.2, -0.05)))],
)
def test_lens_distortion_is_solved_for(count: int, overlap: float, k1: float) -> None:
    rig = row(street(), count, overlap=overlap, k1=k1, tilt_deg=3, gains=GAINS, size=SIZE, noise=1.5, vignetting=0.2)
    found = calibrate(rig.take())
    check(found, rig)
    assert found.cameras[0].k1 == pytest.approx(k1, abs=0.01)
    assert [pose.name for pose in found.cameras] == [f"cam{i}" for i in range(count)]


def test_k2_is_solved_for_if_it_is_visible() -> None:
    rig = row(shapes(), 3, k1=-0.3, k2=0.1, size=SIZE)
    found = calibrate(rig.take())
    check(found, rig)
    assert found.cameras[0].k2 == pytest.approx(0.1, abs=0.02)


def test_cameras_of_very_different_resolutions_are_placed() -> None:
    rig = with_shot(row(street(), 4, size=SIZE), "cam1", pose=camera("cam1", -21.6, size=(1920, 1080)))
    rig = with_shot(rig, "cam3", pose=camera("cam3", 64.8, size=(400, 224)))
    check(calibrate(rig.take()), rig)


def test_a_wide_lens_between_narrow_ones_is_placed() -> None:
    poses = (camera("a", -60, size=SIZE), camera("b", 0, hfov_deg=105, size=SIZE), camera("c", 60, size=SIZE))
    rig = Rig(street(), tuple(Shot(pose) for pose in poses))
    check(calibrate(rig.take()), rig)


@pytest.mark.parametrize("roll_deg", [90, pytest.param(180, marks=pytest.mark.long)])
def test_a_turned_camera_keeps_the_horizon(roll_deg: float) -> None:
    rig = with_shot(row(shapes(), 3, size=SIZE), "cam1", pose=camera("cam1", 0, 0, roll_deg, size=SIZE))
    found = calibrate(rig.take())
    check(found, rig)
    for pose in found.cameras:
        np.testing.assert_allclose(pose.r, rig.truth[pose.name].r, atol=0.02)


@pytest.mark.long
def test_eight_cameras_close_the_circle() -> None:
    rig = row(street(), 8, hfov_deg=62, overlap=1 - 45 / 62, size=SIZE)
    found = calibrate(rig.take())
    check(found, rig)
    yaws_deg = np.degrees([pose.yaw_rad for pose in found.cameras])
    np.testing.assert_allclose(np.diff(yaws_deg), 45, atol=0.1)


def test_cameras_without_square_pixels_are_placed() -> None:
    poses = [camera(f"cam{i}", 43 * i - 43, size=(480, 540), pixel_aspect=2.0) for i in range(3)]
    rig = Rig(street(), tuple(Shot(pose) for pose in poses))
    found = calibrate(rig.take(), priors={pose.name: CameraPrior(pixel_aspect=2.0) for pose in poses})
    check(found, rig)
    assert found.cameras[0].pixel_aspect == pytest.approx(2.0, rel=0.01)


def test_cameras_are_placed_at_night() -> None:
    rig = row(street(), 3, night=True, noise=2.0, size=SIZE)
    check(calibrate(rig.take()), rig)


def test_a_clock_and_a_name_in_each_picture_do_not_disturb() -> None:
    rig = row(street(), 3, overlap=0.14, overlay=True, size=SIZE)
    check(calibrate(rig.take()), rig)


def test_black_foggy_and_foreign_cameras_are_named() -> None:
    rig = row(street(), 3, size=SIZE)
    for other, words in ((worlds.plain(4), "next to nothing"), (worlds.street(9, SCALE_PX), "no other camera's")):
        broken = Rig(rig.world, rig.shots, {"cam0": other})
        found = calibrate(broken.take())
        check(found, broken, ["cam0"])
        assert words in found.reasons["cam0"]


def test_pictures_too_small_to_match_disturb_no_other_camera() -> None:
    rig = row(street(), 2, size=SIZE)
    shapes = {"point": (1, 1), "row": (1, 960), "column": (540, 1), "strip": (2, 9000), "stamp": (16, 16)}
    tiny = {name: np.resize(np.arange(256, dtype=np.uint8), (*shape, 3)) for name, shape in shapes.items()}
    found = calibrate({**rig.take(), **tiny})
    check(found, rig, list(tiny))
    assert all(found.reasons[name].startswith("its picture shows next to nothing") for name in tiny)


def test_repetitive_or_separate_views_are_rejected() -> None:
    near = worlds.before(street(), 3, 5.0, 0.4)
    for rig in (row(worlds.facade(1, SCALE_PX), 3, size=SIZE), row(near, 3, spacing_m=0.5, size=SIZE)):
        with pytest.raises(CalibrationError, match=r"cam.*overlap.*calibration\.file") as caught:
            calibrate(rig.take())
        assert "->" not in str(caught.value), "no text of OpenCV's"


@pytest.mark.parametrize(
    ("size_px", "low_px"), [((30, 60), 60), *(pytest.param((40, 40), low, marks=pytest.mark.long) for low in (-90, 60))]
)
def test_a_near_thing_in_a_small_part_of_an_overlap_is_refused_unless_masked(
    size_px: tuple[int, int], low_px: int
) -> None:
    world = worlds.with_thing(street(), worlds.shapes(3, SCALE_PX), 0.0, low_px, size_px, distance_m=8.0)
    rig_before = partial(row, count=2, overlap=0.28, spacing_m=0.3, size=SIZE)
    rig = rig_before(world, noise=1.5)
    with pytest.raises(CalibrationError, match="overlap"):
        calibrate(rig.take())
    thing = replace(world, picture=np.zeros_like(world.picture), near=np.full_like(world.picture, 255))
    masks = {
        name: CameraPrior(mask=np.asarray(255 - cv2.dilate(seen[..., 0], np.ones((9, 9), np.uint8)), np.uint8))
        for name, seen in rig_before(thing).take().items()
    }
    found = calibrate(rig.take(), priors=masks)
    check(found, Rig(street(), rig.shots))


@pytest.mark.long
def test_a_focal_length_that_the_pictures_leave_open_is_asked_for() -> None:
    # Two cameras with different lenses share a corner only.
    rig = random_rig(198)
    with pytest.raises(CalibrationError, match=r"a focal length only to \d+%.*hfov_deg"):
        calibrate(rig.take(198))
    found = calibrate(rig.take(198), priors=known_lenses(rig))
    assert len(found.cameras) == 2
    assert compare(found, rig).focal < 0.05


def test_a_wrong_configured_field_of_view_is_reported() -> None:
    rig = row(street(), 3, size=SIZE)
    found = calibrate(rig.take(), priors={"cam2": CameraPrior(hfov_deg=100.0)})
    assert found.unplaced == ("cam2",)
    assert "60 degrees" in found.reasons["cam2"]
    assert "configured are 100" in found.reasons["cam2"]


def test_points_set_by_a_person_join_cameras_that_do_not_match() -> None:
    rig = row(street(), 3, overlap=0.2, size=SIZE)
    rig = Rig(rig.world, rig.shots, {"cam2": worlds.plain(90)})
    here, there = rig.truth["cam1"], rig.truth["cam2"]
    pixels = np.random.default_rng(1).uniform((520, 20), (635, 340), (12, 2))
    marked = there.project(here.directions(pixels))
    points = [
        PointPair(("cam1", "cam2"), (tuple(p), tuple(q))) for p, q in zip(pixels.tolist(), marked.tolist(), strict=True)
    ]
    found = calibrate(rig.take(), points=points)
    assert found.unplaced == ()
    np.testing.assert_allclose(np.diff(np.degrees([pose.yaw_rad for pose in found.cameras])), 48, atol=0.3)


def test_a_configured_pose_places_a_camera_and_sets_the_axes() -> None:
    rig = row(street(), 3, overlap=0.28, size=SIZE)
    rig = Rig(rig.world, rig.shots, {"cam2": worlds.plain(90)})
    priors = {"cam0": CameraPrior(yaw_deg=-10.0), "cam2": CameraPrior(yaw_deg=80.0, pitch_deg=5.0, hfov_deg=60.0)}
    found = calibrate(rig.take(), priors=priors)
    placed = {pose.name: pose for pose in found.cameras}
    assert np.degrees(placed["cam0"].yaw_rad) == pytest.approx(-10.0, abs=0.1)
    assert np.degrees(placed["cam1"].yaw_rad) == pytest.approx(33.2, abs=0.1)
    assert np.degrees(placed["cam2"].yaw_rad) == pytest.approx(80.0, abs=0.1)
    assert placed["cam2"].rotation[1][2] < 0, "the camera looks up"
    assert placed["cam2"].confidence == 0


def test_parts_that_move_between_several_pictures_are_left_out() -> None:
    rig = row(street(), 3, size=SIZE)
    still = rig.take()
    random = np.random.default_rng(4)
    several: dict[str, list[Image]] = {}
    for name, picture in still.items():
        frames = []
        for _ in range(4):
            frame = picture.copy()
            for _ in range(3):
                x, y = int(random.integers(600)), int(random.integers(320))
                cv2.rectangle(frame, (x, y), (x + 50, y + 70), random.integers(255, size=3).tolist(), -1)
            frames.append(frame)
        several[name] = frames
    check(calibrate(several), rig)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(5000, 5040))
def test_a_random_rig_is_calibrated_correctly_or_rejected(seed: int) -> None:
    outcome = attempt(random_rig(seed), seed)
    assert outcome.error is None or outcome.error.seam_px <= SURE_SEAM_PX
    assert outcome.placed == outcome.of or outcome.reason


@pytest.mark.long
@pytest.mark.parametrize("seed", [385, 461, 505])
def test_lenses_that_differ_beside_parallax_are_asked_for(seed: int) -> None:
    # Wrong lenses explain the parallax of the last overlap to half a pixel.
    rig = random_rig(seed)
    with pytest.raises(CalibrationError, match=r"not stand at one point.*give each camera its hfov_deg"):
        calibrate(rig.take(seed))


@pytest.mark.long
def test_lenses_that_do_differ_are_accepted_if_they_are_known() -> None:
    rig = random_rig(97)
    with pytest.raises(CalibrationError, match="give each camera its hfov_deg"):
        calibrate(rig.take(97))
    check(calibrate(rig.take(97), priors=known_lenses(rig)), rig)
