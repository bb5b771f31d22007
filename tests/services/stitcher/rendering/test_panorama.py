"""The view and the seams of all kinds of rigs. Every shown pixel must be seen by the camera that shows it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from services.stitcher.calibration.poses import Calibration, CalibrationError, CameraPose
from services.stitcher.rendering.panorama import Panorama, View, inside, is_inside, plan, source_maps
from services.stitcher.rendering.view import look
from tests.services.stitcher.scene import pose, rotation

pytestmark = pytest.mark.slow

WIDTH, HEIGHT = 2448, 344
HFOV_DEG = 60.0
STEP_DEG = 41.75
"""Between neighbours: an overlap of 28 % of a picture's width."""


def camera(
    name: str,
    yaw: float,
    pitch: float = 0.0,
    roll: float = 0.0,
    *,
    size: tuple[int, int] = (640, 360),
    hfov: float = HFOV_DEG,
    **lens: float,
) -> CameraPose:
    return pose(name, rotation(yaw, pitch, roll), *size, hfov).model_copy(update=lens)


def rig(*changes: Mapping[str, Any], count: int = 5, step_deg: float = STEP_DEG) -> Calibration:
    """Return level cameras from left to right, with changes to the first ones."""
    settings: list[dict[str, Any]] = [{"yaw": (index - (count - 1) / 2) * step_deg} for index in range(count)]
    for index, change in enumerate(changes):
        settings[index].update(change)
    return Calibration(tuple(camera(f"cam{index}", **setting) for index, setting in enumerate(settings)))


def check_parts(calibration: Calibration, panorama: Panorama) -> None:
    """Check that the parts are the whole width, and that each pixel is seen by its owner."""
    edges_px = panorama.edges_px
    assert (edges_px[0], edges_px[-1]) == (0, panorama.width_px)
    assert all(start < end for start, end in pairwise(edges_px))
    assert len(panorama.owners) == len(edges_px) - 1
    for start, end, owner in zip(edges_px, edges_px[1:], panorama.owners, strict=False):
        assert owner is not None
        one = calibration.cameras[owner]
        assert is_inside(one, *source_maps(panorama, one, start, end))


CROOKED = tuple({"pitch": pitch, "roll": roll} for pitch, roll in ((3, 2), (-2, -3), (1, 4), (-3, 0), (2, -2)))
RIGS = {
    "level": rig(),
    "k1 -0.05": rig(*[{"k1": -0.05}] * 5),
    "k1 -0.2": rig(*[{"k1": -0.2}] * 5),
    "k1 -0.3, k2 0.05": rig(*[{"k1": -0.3, "k2": 0.05}] * 5),
    "k1 0.1": rig(*[{"k1": 0.1}] * 5),
    "crooked": rig(*CROOKED),
    "crooked lenses": rig(*({**turn, "k1": -0.2} for turn in CROOKED)),
    "one on its side": rig({}, {}, {}, {"roll": 90}),
    "the middle on its side": rig({}, {}, {"roll": -90}),
    "one upside down": rig({}, {"roll": 180}),
    "portrait": rig(*[{"size": (360, 640), "hfov": 36.0}] * 5, step_deg=26),
    "4K among 720p": rig({}, {"size": (3840, 2160)}, *[{"size": (1280, 720)}] * 3),
    "105 among 60": rig({"yaw": -58}, {"yaw": 0, "hfov": 105.0}, {"yaw": 58}, count=3),
    "wide pixels": rig(*[{"size": (320, 360), "pixel_aspect": 2.0}] * 5),
    "two": rig(count=2),
    "three that see nearly the same": rig(count=3, step_deg=5),
}


@pytest.mark.parametrize("name", RIGS)
def test_each_pixel_of_a_crop_is_seen_by_its_camera(name: str) -> None:
    panorama = plan(RIGS[name], WIDTH, HEIGHT)
    check_parts(RIGS[name], panorama)
    assert panorama.coverage.outside == ()
    assert set(panorama.owners) == set(range(len(RIGS[name].cameras))), "no camera is lost"
    if name in ("level", "k1 -0.05", "k1 -0.2", "one on its side", "wide pixels"):
        coverage = panorama.coverage
        assert coverage.shown_deg > 0.97 * coverage.all_deg, "these could show all but a part of the corners"


@pytest.mark.parametrize("name", RIGS)
def test_a_fit_shows_everything_that_a_camera_sees(name: str) -> None:
    calibration = RIGS[name]
    panorama = plan(calibration, WIDTH, HEIGHT, "fit")
    coverage = panorama.coverage
    assert coverage.shown_deg == pytest.approx(coverage.all_deg, abs=0.5)
    for index, one in enumerate(calibration.cameras):
        part = panorama.owners.index(index)
        maps = source_maps(panorama, one, panorama.edges_px[part], panorama.edges_px[part + 1])
        assert inside(one, *maps).any(axis=0).all(), "no column of a part is empty"
    sight = look(calibration.cameras)
    assert panorama.v_min <= sight.low.min() + 1e-9
    assert panorama.v_min + HEIGHT / panorama.scale_px >= sight.high.max() - 1e-9


def test_equal_neighbours_share_their_overlap_evenly() -> None:
    panorama = plan(rig(), WIDTH, HEIGHT)
    seams_deg = [math.degrees(panorama.yaw_min_rad + edge / panorama.scale_px) for edge in panorama.edges_px[1:-1]]
    np.testing.assert_allclose(seams_deg, (np.arange(4) - 1.5) * STEP_DEG, atol=0.3)


@pytest.mark.parametrize(
    ("view", "height_px", "first_deg"),
    [*(("crop", 376, first_deg) for first_deg in (-180.0, -157.5, -171.0)), ("fit", 440, -171.0)],
)
def test_a_circle_is_shown_whole(first_deg: float, view: View, height_px: int) -> None:
    calibration = rig(*({"yaw": first_deg + 45 * index} for index in range(8)), count=8)
    panorama = plan(calibration, 4096, height_px, view)
    if view == "crop":
        check_parts(calibration, panorama)
    coverage = panorama.coverage
    assert coverage.sentence() == "360 of 360 degrees"
    assert panorama.width_px / panorama.scale_px == pytest.approx(2 * math.pi)
    assert panorama.owners[0] == panorama.owners[-1], "there is no seam at the cut"
    assert len(panorama.owners) == 9
    for degrees in coverage.cameras_deg.values():
        assert degrees == pytest.approx(45, abs=1)


def test_the_parts_that_a_crop_leaves_out_are_reported() -> None:
    calibration = rig(*({"yaw": -180 + 45 * index} for index in range(8)), count=8)
    panorama = plan(calibration, 8192, 1024)
    coverage = panorama.coverage
    assert coverage.shown_deg == pytest.approx(274, abs=2)
    assert coverage.all_deg == pytest.approx(360)
    width_px, height_px = coverage.size_for_all_px
    assert coverage.sentence() == (
        f"{coverage.shown_deg:.0f} of 360 degrees, cam0 outside; {width_px}x{height_px} would show all"
    )
    shown = plan(calibration, *coverage.size_for_all_px, "fit")
    assert shown.coverage.shown_deg == pytest.approx(360)
    assert shown.scale_px == pytest.approx(panorama.scale_px, rel=0.01)


def test_cameras_that_look_up_and_down_leave_a_part_outside() -> None:
    calibration = rig({"pitch": 14}, {"pitch": 14}, {"pitch": -12}, {"pitch": -12}, {"pitch": -12})
    panorama = plan(calibration, WIDTH, HEIGHT)
    check_parts(calibration, panorama)
    coverage = panorama.coverage
    shown = {calibration.cameras[owner].name for owner in panorama.owners if owner is not None}
    assert coverage.outside
    assert set(coverage.outside) == {one.name for one in calibration.cameras} - shown
    width_px, height_px = coverage.size_for_all_px
    assert coverage.sentence().endswith(f"outside; {width_px}x{height_px} would show all")
    assert (width_px % 4, height_px % 4) == (0, 0)
    assert plan(calibration, WIDTH, HEIGHT, "fit").coverage.outside == ()


def test_a_camera_of_which_a_sliver_is_shown_is_outside() -> None:
    calibration = rig(count=16, step_deg=20)
    coverage = plan(calibration, 4896, 688).coverage
    for name, degrees in coverage.cameras_deg.items():
        assert (degrees < 0.5) == (name in coverage.outside)
    assert len(coverage.outside) >= 2


def test_a_camera_behind_others_is_named() -> None:
    """It sees a part of what the others see, and less of each column."""
    calibration = Calibration((*rig().cameras, camera("zoom", 20.0, hfov=12.0)))
    for view in ("crop", "fit"):
        assert plan(calibration, WIDTH, HEIGHT, view).coverage.outside == ("zoom",)
    assert "zoom outside" in plan(calibration, WIDTH, HEIGHT).coverage.sentence()


def test_a_gap_is_a_fault_of_a_crop_and_a_bar_of_a_fit() -> None:
    calibration = rig({"yaw": -80}, {"yaw": 0}, {"yaw": 42}, count=3)
    with pytest.raises(CalibrationError, match="cam0 and cam1 do not touch"):
        plan(calibration, WIDTH, HEIGHT)
    panorama = plan(calibration, WIDTH, HEIGHT, "fit")
    assert panorama.owners == (None, 0, None, 1, 2, None)
    assert panorama.coverage.all_deg == pytest.approx(60 + 60 + 42, abs=1)


def test_cameras_that_look_to_the_ground_make_no_panorama() -> None:
    with pytest.raises(CalibrationError, match="no camera looks less than 76 degrees"):
        plan(rig(*[{"pitch": 89, "hfov": 10.0}] * 2, count=2), WIDTH, HEIGHT)
