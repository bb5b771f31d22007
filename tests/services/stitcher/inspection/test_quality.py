"""Whether cameras still fit their calibration, measured on a scene whose truth is known."""

from __future__ import annotations

import gc
import math
import os
import threading
import weakref
from collections.abc import Mapping

import cv2
import numpy as np
import pytest

from services.stitcher.calibration.poses import Calibration, CameraPose
from services.stitcher.inspection.quality import PairQuality, QualityMonitor
from services.stitcher.inspection.quality_thread import NICE, QualityThread
from services.stitcher.rendering.convert import Image
from services.stitcher.rendering.panorama import plan
from tests.services.stitcher.scene import SCALE_PX, V_LIMIT, YAW_LIMIT_RAD, paint_world, photograph, pose, rig, rotation
from tests.support import wait_until

pytestmark = pytest.mark.slow

RIG = rig()
PANORAMA = plan(RIG, 1632, 228)
LIMIT_PX = 3.0
PX_A_DEGREE = math.radians(1) * PANORAMA.scale_px
PAIRS = [("cam0", "cam1"), ("cam1", "cam2"), ("cam2", "cam3"), ("cam3", "cam4")]


@pytest.fixture(scope="module")
def world() -> Image:
    return paint_world()


@pytest.fixture(scope="module")
def lumas(world: Image) -> dict[str, Image]:
    return {camera.name: look(world, camera) for camera in RIG.cameras}


def look(world: Image, camera: CameraPose) -> Image:
    return np.asarray(cv2.cvtColor(photograph(world, camera), cv2.COLOR_BGR2GRAY), np.uint8)


def monitor() -> QualityMonitor:
    return QualityMonitor(RIG, PANORAMA, LIMIT_PX)


def of(measured: tuple[PairQuality, ...], left: str, right: str) -> PairQuality:
    return next(quality for quality in measured if quality.cameras == (left, right))


def warning(watch: QualityMonitor, planes: Mapping[str, Image], times: int = 2) -> str:
    for _ in range(times):
        watch.measure(planes)
    return str(watch.describe()["warning"])


def test_cameras_that_stand_still_fit(lumas: dict[str, Image]) -> None:
    watch = monitor()
    measured = watch.measure(lumas)
    assert [quality.cameras for quality in measured] == PAIRS
    for quality in measured:
        assert quality.state == "measured"
        assert quality.patches >= 50
        assert quality.residual_px is not None
        assert quality.residual_px < 0.1
    assert warning(watch, lumas) == ""


def test_exposure_and_noise_are_not_drift(lumas: dict[str, Image]) -> None:
    random = np.random.default_rng(3)
    gains = dict(zip(lumas, (1.0, 0.8, 1.2, 0.9, 1.15), strict=True))
    noisy = {
        name: np.clip(gains[name] * luma + random.normal(0, 4, luma.shape), 0, 255).astype(np.uint8)
        for name, luma in lumas.items()
    }
    for quality in monitor().measure(noisy):
        assert quality.residual_px is not None
        assert quality.residual_px < 0.3


@pytest.mark.parametrize(("yaw_deg", "pitch_deg"), [(0.3, 0.0), (-1.0, 0.0), (4.0, 0.0), (0.0, 0.5), (1.0, -1.0)])
def test_a_camera_that_was_turned_has_drifted(
    world: Image, lumas: dict[str, Image], yaw_deg: float, pitch_deg: float
) -> None:
    turned = lumas | {"cam2": look(world, pose("cam2", rotation(yaw_deg, pitch_deg)))}
    measured = monitor().measure(turned)
    true_px = math.hypot(yaw_deg, pitch_deg) * PX_A_DEGREE
    for left, right, sign in (("cam1", "cam2", -1), ("cam2", "cam3", 1)):
        quality = of(measured, left, right)
        assert quality.drift_px == pytest.approx(true_px, rel=0.2)
        assert quality.drift_xy_px is not None
        # Yaw is to the right and pitch upwards, so what the camera shows goes to the left, and down.
        assert quality.drift_xy_px[0] == pytest.approx(sign * yaw_deg * PX_A_DEGREE, abs=0.2 * true_px)
        assert quality.drift_xy_px[1] == pytest.approx(-sign * pitch_deg * PX_A_DEGREE, abs=0.2 * true_px)
        assert quality.parallax_px is not None
        assert quality.parallax_px < 0.5
    for left, right in (("cam0", "cam1"), ("cam3", "cam4")):
        assert (of(measured, left, right).drift_px or 0) < 0.1


def test_roll_is_drift_and_not_parallax(world: Image, lumas: dict[str, Image]) -> None:
    rolled = lumas | {"cam2": look(world, pose("cam2", rotation(0.0, 0.0, 1.5)))}
    quality = of(monitor().measure(rolled), "cam1", "cam2")
    assert quality.drift_px is not None
    assert quality.drift_px > 3
    assert quality.parallax_px is not None
    assert quality.parallax_px < 0.3


def test_without_texture_there_is_no_measurement(lumas: dict[str, Image]) -> None:
    random = np.random.default_rng(3)
    slope = np.tile(np.linspace(40, 200, 640), (360, 1))
    for surface in (np.full((360, 640), 120.0), slope):
        for noise in (0.0, 2.0, 8.0, 20.0):
            blank = {name: (surface + random.normal(0, noise, surface.shape)).clip(0, 255) for name in lumas}
            for quality in monitor().measure({name: luma.astype(np.uint8) for name, luma in blank.items()}):
                assert quality == PairQuality(quality.cameras, "no texture")


def test_a_camera_without_a_picture_leaves_the_others_measured(lumas: dict[str, Image]) -> None:
    measured = monitor().measure({name: luma for name, luma in lumas.items() if name != "cam1"})
    assert [quality.state for quality in measured] == ["no picture", "no picture", "measured", "measured"]


def with_object(world: Image, cameras: tuple[CameraPose, CameraPose], yaw_rad: float, apart_rad: float) -> list[Image]:
    """Return two views of an object that covers a third of the overlap, at different places in the two cameras."""
    thing = cv2.GaussianBlur(np.random.default_rng(8).integers(0, 256, (200, 80, 3)).astype(np.uint8), (0, 0), 1.5)
    pictures = []
    for index, camera in enumerate(cameras):
        painted = world.copy()
        x = round((yaw_rad + index * apart_rad + YAW_LIMIT_RAD) * SCALE_PX)
        y = round((-0.12 + V_LIMIT) * SCALE_PX)
        painted[y : y + 200, x : x + 80] = thing
        pictures.append(look(painted, camera))
    return pictures


def test_moving_objects_do_not_count_and_near_ones_do(world: Image, lumas: dict[str, Image]) -> None:
    cameras = RIG.cameras[1], RIG.cameras[2]
    apart_rad, place_rad = 0.015, math.radians(-18) - 0.06
    apart_px = apart_rad * PANORAMA.scale_px
    moving, standing = monitor(), monitor()
    for step in range(3):
        seen = with_object(world, cameras, place_rad + 0.03 * step, apart_rad)
        quality = of(moving.measure(lumas | dict(zip(("cam1", "cam2"), seen, strict=True))), "cam1", "cam2")
        assert quality.residual_px is not None
        assert quality.residual_px < 0.3
        seen = with_object(world, cameras, place_rad, apart_rad)
        quality = of(standing.measure(lumas | dict(zip(("cam1", "cam2"), seen, strict=True))), "cam1", "cam2")
        assert quality.drift_px is not None
        assert quality.drift_px < 0.3
        assert quality.parallax_px is not None
        if step:
            assert 0.3 * apart_px < quality.parallax_px < apart_px
        else:
            assert quality.parallax_px < 0.3, "it may be a moving object at first"
    assert moving.describe()["warning"] == ""
    assert str(standing.describe()["warning"]).startswith("cam1 and cam2 are ")


def test_a_warning_needs_two_measurements_and_ends_with_the_reason(world: Image, lumas: dict[str, Image]) -> None:
    watch = monitor()
    turned = lumas | {"cam2": look(world, pose("cam2", rotation(1.0)))}
    assert warning(watch, lumas, 1) == ""
    assert warning(watch, turned, 1) == ""
    expected = {
        f"{pair} no longer fit by 8.4 px: cam2 was moved? calibrate again"
        for pair in ("cam1 and cam2", "cam2 and cam3")
    }
    assert warning(watch, turned, 1) in expected
    dark = {name: np.zeros_like(luma) for name, luma in lumas.items()}
    assert warning(watch, dark) in expected, "at night nothing has changed"
    assert warning(watch, {}) in expected
    assert warning(watch, lumas, 1) == ""


def test_drift_of_the_last_camera_is_distinguished_from_its_neighbours(world: Image, lumas: dict[str, Image]) -> None:
    turned = lumas | {"cam0": look(world, pose("cam0", rotation(-73.0)))}
    assert warning(monitor(), turned) == "cam0 and cam1 no longer fit by 8.4 px: cam0 was moved? calibrate again"


def test_of_two_cameras_either_may_have_moved(world: Image, lumas: dict[str, Image]) -> None:
    two = Calibration(RIG.cameras[1:3])
    turned = lumas | {"cam2": look(world, pose("cam2", rotation(1.0)))}
    found = warning(QualityMonitor(two, PANORAMA, LIMIT_PX), turned)
    assert found == "cam1 and cam2 no longer fit by 8.4 px: cam1 or cam2 was moved? calibrate again"


def test_a_camera_that_looks_elsewhere_is_named_once_it_did_fit(world: Image, lumas: dict[str, Image]) -> None:
    elsewhere = lumas | {"cam4": look(world, pose("cam4", rotation(0.0)))}
    watch = monitor()
    assert warning(watch, elsewhere) == "", "it may have been so at the calibration"
    assert of(watch.measure(elsewhere), "cam3", "cam4") == PairQuality(("cam3", "cam4"), "nothing in common")
    watch = monitor()
    watch.measure(lumas)
    assert warning(watch, elsewhere) == "cam3 and cam4 have nothing in common any more: cam4 was moved? calibrate again"


def test_pictures_of_another_size_are_scaled(lumas: dict[str, Image]) -> None:
    halves = {name: np.asarray(cv2.resize(luma, None, fx=0.5, fy=0.5), np.uint8) for name, luma in lumas.items()}
    for quality in monitor().measure(lumas | {"cam1": halves["cam1"]}):
        assert quality.residual_px is not None
        assert quality.residual_px < 0.5


def test_the_last_camera_of_a_circle_is_the_first_ones_neighbour() -> None:
    random = np.random.default_rng(2)
    around = rig([-180 + 45 * i for i in range(8)])
    watch = QualityMonitor(around, PANORAMA, LIMIT_PX)
    noise = {camera.name: random.integers(0, 256, (360, 640)).astype(np.uint8) for camera in around.cameras}
    assert ("cam7", "cam0") in [quality.cameras for quality in watch.measure(noise)]
    # A row that does not close has no such pair.
    assert [quality.cameras for quality in monitor().measure({})] == PAIRS


class TestThread:
    def test_the_measurement_uses_the_requested_pictures_and_releases_them(self, lumas: dict[str, Image]) -> None:
        thread = QualityThread(LIMIT_PX, interval_s=3600)
        try:
            assert thread.describe() == {"limit_px": LIMIT_PX, "pairs": [], "warning": "", "age_s": None}
            assert thread.wants_pictures
            planes = {name: luma.copy() for name, luma in lumas.items()}
            held = weakref.ref(planes["cam0"])
            thread.offer(RIG, PANORAMA, planes)
            assert not thread.wants_pictures
            del planes
            found = wait_until(lambda: thread.describe()["pairs"], "a measurement")
            assert [pair["cameras"] for pair in found] == [list(pair) for pair in PAIRS]
            assert all(pair["state"] == "measured" and 0 < pair["residual_px"] < 0.1 for pair in found)
            assert thread.describe()["age_s"] >= 0
            wait_until(lambda: gc.collect() is not None and held() is None, "the pictures are released")
            assert not thread.wants_pictures, "an hour has not passed"
        finally:
            thread.close()

    def test_only_the_measuring_thread_is_nice(self) -> None:
        before = os.getpriority(os.PRIO_PROCESS, 0)
        thread = QualityThread(LIMIT_PX, interval_s=60)
        try:
            numbers = {one.name: one.native_id for one in threading.enumerate()}
            number = numbers["quality"]
            assert number is not None
            wait_until(lambda: os.getpriority(os.PRIO_PROCESS, number) == max(NICE, before), "its priority")
            assert os.getpriority(os.PRIO_PROCESS, 0) == before
        finally:
            thread.close()

    def test_a_new_calibration_is_measured_again_and_an_error_does_not_end_the_thread(
        self, lumas: dict[str, Image]
    ) -> None:
        thread = QualityThread(LIMIT_PX, interval_s=0)
        try:
            thread.offer(RIG, PANORAMA, {"cam0": np.zeros((0, 0), np.uint8), "cam1": lumas["cam1"]})
            wait_until(lambda: thread.wants_pictures, "the end of the first")
            assert thread.describe()["pairs"] == []
            for cameras in (RIG.cameras, RIG.cameras[:3]):
                thread.offer(Calibration(cameras), PANORAMA, lumas)
                wait_until(lambda: thread.wants_pictures, "a measurement")
                assert len(thread.describe()["pairs"]) == len(cameras) - 1
        finally:
            thread.close()
