"""The panorama's geometry: from pixels to angles and back, and as metadata of a frame."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from framebus import FrameFormat, Publisher, Subscriber
from services.common.geometry import KEY, GeometryError, PanoramaGeometry, read

DEMO = PanoramaGeometry(1459.7, -1.674, -0.231, 4896, 688)
CIRCLE = PanoramaGeometry(1024 / (2 * math.pi), -math.pi, -0.4, 1024, 128)
BARS = PanoramaGeometry(1024 / 7.0, -3.5, -0.4, 1024, 128)
"""Wider than a turn."""


@pytest.mark.parametrize("geometry", [DEMO, CIRCLE, BARS])
def test_pixels_come_back_where_they_were(geometry: PanoramaGeometry) -> None:
    x, y = np.meshgrid(np.linspace(-0.5, geometry.width_px - 0.5, 97)[:-1], np.linspace(-0.5, geometry.height_px, 31))
    pixels = np.stack([x, y], axis=-1)
    np.testing.assert_allclose(geometry.pixels(geometry.angles(pixels)), pixels, atol=1e-9)


@given(
    st.floats(50, 5000),
    st.floats(-3.2, 3.2),
    st.floats(-1, 0.5),
    st.floats(0, 1, exclude_max=True),
    st.floats(0, 1, exclude_max=True),
)
def test_pixels_of_any_panorama_survive_a_round_trip_through_angles(
    scale: float, yaw: float, v: float, across: float, down: float
) -> None:
    geometry = PanoramaGeometry(scale, yaw, v, 4896, 688)
    pixel = np.array([across * 4895, down * 687])
    np.testing.assert_allclose(geometry.pixels(geometry.angles(pixel)), pixel, atol=1e-6)


def test_angles_are_what_the_panorama_says() -> None:
    yaw_rad, pitch_rad = DEMO.angles([0, 0])
    assert yaw_rad == pytest.approx(DEMO.yaw_min_rad + 0.5 / DEMO.scale_px)
    assert pitch_rad == pytest.approx(math.atan(0.231 - 0.5 / DEMO.scale_px))
    assert pitch_rad > 0, "the upper edge is above the horizon"
    horizon = DEMO.pixels([0.0, 0.0])
    assert horizon[1] == pytest.approx(0.231 * DEMO.scale_px - 0.5)
    assert DEMO.angles(np.zeros((3, 4, 2))).shape == (3, 4, 2)


def test_a_full_circle_continues_across_its_cut() -> None:
    middle = CIRCLE.pixels([0.1, 0.0])
    for turns in (-2, -1, 1, 5):
        np.testing.assert_allclose(CIRCLE.pixels([0.1 + 2 * math.pi * turns, 0.0]), middle, atol=1e-9)
    # Left of the left edge is the right end.
    angles = CIRCLE.angles([-10.5, 5.0])
    np.testing.assert_allclose(CIRCLE.pixels(angles), [1024 - 10.5, 5.0], atol=1e-9)


def test_a_direction_that_is_not_shown_is_outside_on_its_nearer_side() -> None:
    right = DEMO.pixels([2.5, 0.0])[0]
    assert right > DEMO.width_px
    np.testing.assert_allclose(DEMO.pixels([2.5 - 2 * math.pi, 0.0])[0], right)
    assert DEMO.pixels([-2.5, 0.0])[0] < 0


def test_straight_up_is_outside_the_panorama() -> None:
    x, y = DEMO.pixels([0.0, math.pi / 2])
    assert np.isfinite(x)
    assert np.isnan(y)


def test_points_have_two_coordinates() -> None:
    with pytest.raises(ValueError, match=r"\(\.\.\., 2\)"):
        DEMO.angles([1.0, 2.0, 3.0])


@pytest.mark.parametrize("geometry", [DEMO, CIRCLE, BARS, replace(DEMO, scale_px=1000, v_min=0, yaw_min_rad=-2)])
def test_a_geometry_takes_few_bytes_of_metadata(geometry: PanoramaGeometry) -> None:
    packed = msgpack.packb({KEY: geometry.to_metadata()})
    # One byte for the map around it, which other keys share.
    assert len(packed) - 1 == 112 - (geometry.height_px < 256)
    assert read(msgpack.unpackb(packed)) == geometry


def test_a_geometry_arrives_with_its_frame(stream: str) -> None:
    with Publisher(stream, FrameFormat(4, 8), slots=8) as publisher:
        with publisher.loan() as loan:
            loan.pixels[:] = 0
            loan.metadata = {"cameras": [f"camera-{i}" for i in range(16)], KEY: DEMO.to_metadata()}
        with publisher.loan() as loan:
            loan.pixels[:] = 0
        with Subscriber(stream, history=2) as subscriber:
            found = []
            for _ in range(2):
                frame = subscriber.receive(timeout_s=5)
                assert frame is not None
                with frame:
                    found.append(read(frame.metadata))
    assert found == [DEMO, None]


def test_a_key_of_a_later_version_is_ignored() -> None:
    assert PanoramaGeometry.from_metadata(DEMO.to_metadata() | {"roll_rad": 0.1}) == DEMO


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"projection": "fisheye"}, "projection"),
        ({"scale_px": 0.0}, "scale_px"),
        ({"scale_px": float("inf")}, "scale_px"),
        ({"scale_px": "1000"}, "scale_px"),
        ({"yaw_min_rad": float("nan")}, "yaw_min_rad"),
        ({"v_min": None}, "v_min"),
        ({"v_min": True}, "v_min"),
        ({"width_px": 0}, "width_px"),
        ({"width_px": 10.5}, "width_px"),
        ({"height_px": -1}, "height_px"),
        ({"height_px": 1 << 40}, "height_px"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, Any], name: str) -> None:
    with pytest.raises(GeometryError, match=name):
        read({KEY: DEMO.to_metadata() | change})


@pytest.mark.parametrize("content", [None, 3, [1, 2], "cylindrical", {}])
def test_metadata_that_is_not_a_geometry_is_rejected(content: object) -> None:
    with pytest.raises(GeometryError, match=r"a map|lacks scale_px"):
        read({KEY: content})


@pytest.mark.parametrize("metadata", [None, {}, {"cameras": ["cam0"]}])
def test_a_frame_without_a_geometry_is_not_an_error(metadata: dict[str, Any] | None) -> None:
    assert read(metadata) is None
