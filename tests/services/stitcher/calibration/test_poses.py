"""The model of a camera: from a direction to its pixel, and back."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest

from services.stitcher.calibration.poses import CameraPose, max_radius, undistort
from tests.services.stitcher.scene import pose, rotation

LENSES = [(0.0, 0.0), (-0.05, 0.0), (-0.3, 0.1), (0.1, -0.02)]


def lens(k1: float, k2: float, pixel_aspect: float = 1.0) -> CameraPose:
    level = pose("cam0", rotation(20, 5, 3))
    return level.model_copy(update={"k1": k1, "k2": k2, "pixel_aspect": pixel_aspect})


@pytest.mark.parametrize(("k1", "k2"), LENSES)
def test_a_direction_meets_the_pixel_that_opencv_says(k1: float, k2: float) -> None:
    camera = lens(k1, k2, 1.5)
    points = np.random.default_rng(3).uniform((-0.4, -0.3, 1.0), (0.4, 0.3, 1.0), (50, 3))
    rotation_vector = cv2.Rodrigues(camera.r.T)[0]
    expected, _ = cv2.projectPoints(
        points @ camera.r.T, rotation_vector, np.zeros(3), camera.k, np.array([k1, k2, 0, 0])
    )
    np.testing.assert_allclose(camera.project(7 * points @ camera.r.T), expected[:, 0], atol=1e-6)


@pytest.mark.parametrize(("k1", "k2"), LENSES)
def test_a_pixel_and_its_direction_belong_together(k1: float, k2: float) -> None:
    camera = lens(k1, k2, 16 / 11)
    pixels = np.random.default_rng(4).uniform((0, 0), (640, 360), (200, 2))
    directions = camera.directions(pixels)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=-1), 1)
    np.testing.assert_allclose(camera.project(directions), pixels, atol=1e-5)


def test_directions_behind_a_camera_or_beyond_its_lens_are_in_no_picture() -> None:
    camera = lens(-0.3, 0.0)
    assert max_radius(-0.3, 0.0) == pytest.approx(math.sqrt(1 / 0.9))
    shown = camera.project((camera.r @ np.array([[0, 0, 1], [0, 0, -1], [5, 0, 1]], float).T).T)
    assert np.isfinite(shown[0]).all()
    assert np.isnan(shown[1:]).all()
    assert np.isnan(undistort(np.array([5.0, 0.0]), -0.3, 0.0)).all()


@pytest.mark.parametrize("angles_deg", [(0, 0, 0), (-72, 12, -5), (150, -30, 90), (10, 3, 179)])
def test_a_pose_returns_the_angles_that_made_it(angles_deg: tuple[float, float, float]) -> None:
    camera = pose("cam0", rotation(*angles_deg))
    found = np.degrees([camera.yaw_rad, camera.pitch_rad, camera.roll_rad])
    np.testing.assert_allclose(found, angles_deg, atol=1e-6)
