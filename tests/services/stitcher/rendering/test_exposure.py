"""Gains and vignetting are found from the overlaps, so that seams are invisible."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from services.stitcher.calibration.poses import Calibration
from services.stitcher.rendering.convert import Image, Planes
from services.stitcher.rendering.exposure import RATE_PER_S, ExposureControl, ExposureMeter, radius_squared
from services.stitcher.rendering.stitch import Stitcher
from tests.services.stitcher.scene import paint_world, photograph, planes, pose, rig, rotation

pytestmark = pytest.mark.slow

Array = npt.NDArray[np.float64]

WIDTH, HEIGHT = 1632, 228
GAINS = np.array([1.0, 0.8, 1.2, 0.9, 1.15])
TINTS = np.array([(1.0, 1.0, 1.0), (1.08, 1.0, 0.93), (0.95, 1.0, 1.04), (1.0, 0.97, 1.0), (0.94, 1.02, 1.06)])
CROOKED = Calibration(
    tuple(
        pose(f"cam{i}", rotation(yaw, pitch, roll))
        for i, (yaw, pitch, roll) in enumerate(((-70, 3, 2), (-36, -2, -3), (1, 1, 3), (35, -3, 0), (70, 2, -2)))
    )
)


LEVEL = rig()


@functools.cache
def views(when: str, is_crooked: bool) -> list[Image]:
    """Return what cameras without errors see: by day without whites that a gain would clip, at night a mean of 26."""
    world = np.asarray(paint_world() * 0.75 + 5, np.uint8)
    if when == "night":
        world = np.asarray(cv2.GaussianBlur(world, (0, 0), 1) * 0.18 + 10, np.uint8)
    return [photograph(world, camera) for camera in (CROOKED if is_crooked else LEVEL).cameras]


def shoot(
    gains: Array, vignetting: float = 0.0, when: str = "day", is_crooked: bool = False, noise: float = 1.0
) -> list[Planes]:
    """Return what cameras with these gains, of shape ``(cameras, 3)``, send."""
    random = np.random.default_rng(0)
    pictures = []
    for camera, view, gain in zip(LEVEL.cameras, views(when, is_crooked), gains, strict=True):
        x, y = np.meshgrid(np.arange(float(camera.width_px)), np.arange(float(camera.height_px)))
        picture = view * gain * (1 - vignetting * radius_squared(camera, x, y))[..., None]
        picture += noise * random.standard_normal(picture.shape)
        pictures.append(planes(np.rint(picture).clip(0, 255).astype(np.uint8)))
    return pictures


def worst_step(stitcher: Stitcher, out: Array, ideal: Array) -> float:
    """Largest step of a seam, in levels of grey.

    What the cameras' errors leave, as a factor of the ideal panorama, is smooth but for the seams. A step is the change
    of that factor from 12 to 28 columns on either side, in quarters of the height.
    """
    edges, worst = stitcher.panorama.edges_px, 0.0
    for edge in edges[1:-1]:
        for rows in np.array_split(np.arange(HEIGHT), 4):
            sides = [np.ix_(rows, np.arange(edge + start, edge + start + 16)) for start in (-28, 12)]
            factors = [float(out[side].mean() / ideal[side].mean()) for side in sides]
            worst = max(worst, abs(factors[0] - factors[1]) * float(ideal[sides[0]].mean()))
    return worst


def render(stitcher: Stitcher, pictures: Sequence[Planes]) -> Array:
    out = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    stitcher.render(list(pictures), out)
    return np.asarray(cv2.cvtColor(out, cv2.COLOR_BGR2GRAY), np.float64)


@pytest.mark.usefixtures("renderer")
@pytest.mark.parametrize(
    ("when", "is_crooked", "vignetting", "tints"),
    [
        ("day", False, 0.0, np.ones((5, 3))),
        ("day", False, 0.3, TINTS),
        pytest.param("day", True, 0.3, np.ones((5, 3)), marks=pytest.mark.long),
        pytest.param("night", False, 0.0, np.ones((5, 3)), marks=pytest.mark.long),
        pytest.param("night", False, 0.3, np.ones((5, 3)), marks=pytest.mark.long),
        ("night", True, 0.3, TINTS),
    ],
)
def test_no_seam_shows(when: str, is_crooked: bool, vignetting: float, tints: Array) -> None:
    gains = GAINS[:, None] * tints
    pictures = shoot(gains, vignetting, when, is_crooked)
    stitcher = Stitcher(CROOKED if is_crooked else LEVEL, WIDTH, HEIGHT)
    ideal = render(stitcher, shoot(np.ones((5, 3)), 0.0, when, is_crooked))
    assert worst_step(stitcher, render(stitcher, pictures), ideal) > 8, "without gains the seam is visible"
    stitcher.adapt(list(pictures), 0.0)
    assert worst_step(stitcher, render(stitcher, pictures), ideal) < 1.5
    found = stitcher.exposure.gains * gains
    np.testing.assert_allclose(found / found.mean(axis=0), 1, atol=0.005 if when == "day" else 0.02)
    np.testing.assert_allclose(np.log(stitcher.exposure.gains).mean(axis=0), 0, atol=1e-6, err_msg="the mean is kept")


def test_with_exposure_off_colours_are_unchanged() -> None:
    pictures = shoot(GAINS[:, None] * TINTS, 0.3)
    stitcher = Stitcher(LEVEL, WIDTH, HEIGHT, evens_exposure=False)
    before = render(stitcher, pictures)
    stitcher.adapt(list(pictures), 0.0)
    assert np.array_equal(render(stitcher, pictures), before)
    assert (stitcher.exposure.gains == 1).all()


def test_vignetting_is_found_if_it_is_visible() -> None:
    exposure = ExposureMeter(CROOKED).measure(shoot(np.ones((5, 3)), 0.3, is_crooked=True))
    assert exposure is not None
    for radius in (0.4, 0.6):
        factor = np.exp(exposure.lens[:, 0] * radius**2 + exposure.lens[:, 1] * radius**4)
        np.testing.assert_allclose(factor * (1 - 0.3 * radius**2), 1, atol=0.01)
    without = ExposureMeter(CROOKED).measure(shoot(np.ones((5, 3)), is_crooked=True))
    assert without is not None
    assert np.abs(without.lens).max() < 0.02


def behind_a_lorry(picture: Planes) -> Planes:
    """Add a lorry that hides half of what this camera sees to the right, and that its neighbour does not see yet."""
    luma = picture.y.copy()
    luma[150:330, 430:] = 40
    return Planes(luma, picture.u, picture.v)


def test_an_object_that_moves_in_an_overlap_does_not_change_the_gains() -> None:
    gains = GAINS[:, None] * np.ones(3)
    pictures = shoot(gains)
    pictures[1] = behind_a_lorry(pictures[1])
    found = ExposureMeter(LEVEL).measure(pictures)
    assert found is not None
    np.testing.assert_allclose(found.gains * gains / (found.gains * gains).mean(axis=0), 1, atol=0.03)


def test_the_first_measurement_is_applied_at_once_and_a_lorry_is_ignored() -> None:
    pictures = shoot(GAINS[:, None] * np.ones(3))
    hidden = list(pictures)
    for camera in range(5):
        hidden[camera] = behind_a_lorry(pictures[camera])
    control = ExposureControl(LEVEL, period_s=2.0)
    first = control.update(pictures, 100.0)
    assert first.gains[2, 1] / first.gains[1, 1] == pytest.approx(0.8 / 1.2, rel=0.01)
    assert control.update(hidden, 101.9) is first, "it is not time yet"
    for now_s in (102.0, 104.0):
        control.update(hidden, now_s)
    for now_s in (106.0, 108.0, 110.0):
        control.update(pictures, now_s)
        assert np.abs(np.log(control.exposure.gains / first.gains)).max() < 0.004


def test_a_camera_that_changes_is_followed_slowly() -> None:
    pictures = shoot(np.ones((5, 3)))
    brighter = list(pictures)
    brighter[2] = shoot(np.full((5, 3), 1.25))[2]
    control = ExposureControl(LEVEL, period_s=2.0)
    before = control.update(pictures, 0.0).gains
    for now_s in range(2, 62, 2):
        after = control.update(brighter, now_s).gains
        assert np.abs(np.log(after / before)).max() <= 2.0 * RATE_PER_S + 1e-9, "no pumping"
        before = after
    assert before[2, 1] / before[1, 1] == pytest.approx(1 / 1.25, rel=0.02)


def test_the_gain_of_a_camera_that_appears_later_is_applied_at_once() -> None:
    pictures = shoot(GAINS[:, None] * np.ones(3))
    control = ExposureControl(LEVEL, period_s=2.0)
    control.update([*pictures[:4], None], 0.0)
    np.testing.assert_array_equal(control.exposure.gains[4], 1)
    control.update(pictures, 2.0)
    assert control.exposure.gains[4, 1] / control.exposure.gains[0, 1] == pytest.approx(1 / 1.15, rel=0.01)
    before = control.exposure
    assert control.update([*pictures[:4], None], 4.0) is before, "kept while it is gone"


def test_missing_or_dark_cameras_do_not_change_the_gains() -> None:
    pictures: list[Planes | None] = list(shoot(GAINS[:, None] * np.ones(3)))
    meter = ExposureMeter(LEVEL)
    assert meter.measure([None] * 5) is None
    assert meter.measure([pictures[0], None, pictures[2], None, pictures[4]]) is None, "no two of them are neighbours"
    black = planes(np.zeros((360, 640, 3), np.uint8))
    assert meter.measure([black] * 5) is None
    white = planes(np.full((360, 640, 3), 255, np.uint8))
    assert meter.measure([white] * 5) is None
    some = meter.measure([pictures[0], pictures[1], None, black, black])
    assert some is not None
    np.testing.assert_array_equal(some.gains[2:], 1)
    assert some.gains[1, 1] / some.gains[0, 1] == pytest.approx(1 / 0.8, rel=0.01)
