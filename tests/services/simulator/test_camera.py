import math

import numpy as np
import pytest

from services.simulator.camera import Camera, Cylinder, lookup
from services.simulator.config import SimulatorSection

CAMERAS = SimulatorSection().cameras


def test_five_cameras_overlap_by_28_percent() -> None:
    assert [round(math.degrees(camera.yaw_rad)) for camera in CAMERAS] == [-72, -36, 0, 36, 72]
    assert pytest.approx(0.28) == (50 - 36) / 50
    assert CAMERAS[0].focal_px == pytest.approx(960 / math.tan(math.radians(25)))


@pytest.mark.parametrize("camera", CAMERAS, ids=lambda camera: camera.name)
def test_camera_projection_and_direction_are_inverse(camera: Camera) -> None:
    x, y = np.meshgrid(np.linspace(-0.5, 1919.5, 21), np.linspace(-0.5, 1079.5, 13))
    again_x, again_y = camera.project(*camera.direction(x, y))
    np.testing.assert_allclose(again_x, x, atol=1e-8)
    np.testing.assert_allclose(again_y, y, atol=1e-8)


def test_cylinder_projection_and_direction_are_inverse() -> None:
    cylinder = Cylinder(4896, 688, -1.7, 1.7, -0.24, 0.24)
    x, y = np.meshgrid(np.linspace(0, 4895, 21), np.linspace(0, 687, 13))
    again_x, again_y = cylinder.project(*cylinder.direction(x, y))
    np.testing.assert_allclose(again_x, x, atol=1e-8)
    np.testing.assert_allclose(again_y, y, atol=1e-8)


def test_directions_are_those_of_rays() -> None:
    camera = Camera("side", 0.6, math.radians(50), 1920, 1080)
    yaw, v = camera.direction(np.array([1500.0]), np.array([200.0]))
    ray = np.array([math.sin(yaw[0]), v[0], math.cos(yaw[0])])
    turned = np.array(
        [
            ray[0] * math.cos(0.6) - ray[2] * math.sin(0.6),
            ray[1],
            ray[0] * math.sin(0.6) + ray[2] * math.cos(0.6),
        ]
    )
    assert camera.focal_px * turned[0] / turned[2] + 959.5 == pytest.approx(1500)
    assert camera.focal_px * turned[1] / turned[2] + 539.5 == pytest.approx(200)


def test_edges_of_the_picture_are_the_field_of_view() -> None:
    left, _ = CAMERAS[2].direction(np.array([-0.5]), np.array([539.5]))
    right, _ = CAMERAS[2].direction(np.array([1919.5]), np.array([539.5]))
    assert math.degrees(float(right[0] - left[0])) == pytest.approx(50)


def test_directions_behind_a_camera_have_no_place_in_its_picture() -> None:
    x, y = CAMERAS[0].project(np.array([math.radians(72)]), np.array([0.0]))
    assert np.isnan(x[0])
    assert np.isnan(y[0])


def test_the_lookup_maps_pixels_to_the_source() -> None:
    source = Cylinder(720, 110, -1.75, 1.75, -0.27, 0.27)
    columns, rows = lookup(CAMERAS[3], source)
    assert columns.shape == rows.shape == (1080, 1920)
    yaw, v = source.direction(columns[300:301, 700].astype(np.float64), rows[300:301, 700].astype(np.float64))
    x, y = CAMERAS[3].project(yaw, v)
    assert x[0] == pytest.approx(700, abs=1e-2)
    assert y[0] == pytest.approx(300, abs=1e-2)
