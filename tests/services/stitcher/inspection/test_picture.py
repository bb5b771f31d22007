"""A calibration as a picture, and its outlines for the page."""

from __future__ import annotations

import json
import math

import cv2
import numpy as np
import pytest

from services.common.geometry import PanoramaGeometry
from services.stitcher.calibration.poses import Calibration, PairResidual
from services.stitcher.inspection.outline import between, describe, outline
from services.stitcher.inspection.picture import WIDTH_PX, draw
from services.stitcher.rendering.convert import Image
from services.stitcher.rendering.panorama import plan
from tests.services.stitcher.scene import paint_world, photograph, pose, rig, rotation, true_panorama

pytestmark = pytest.mark.slow

RIG = rig()
PANORAMA = plan(RIG, 1632, 228)
GEOMETRY = PanoramaGeometry(PANORAMA.scale_px, PANORAMA.yaw_min_rad, PANORAMA.v_min, 1632, 228)


@pytest.fixture(scope="module")
def world() -> Image:
    return paint_world()


@pytest.fixture(scope="module")
def pictures(world: Image) -> dict[str, Image]:
    return {camera.name: photograph(world, camera) for camera in RIG.cameras}


def decode(png: bytes) -> Image:
    assert png.startswith(b"\x89PNG")
    picture = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    assert picture.shape[1] == WIDTH_PX
    return np.asarray(picture, np.uint8)


@pytest.fixture(scope="module")
def drawn(pictures: dict[str, Image]) -> Image:
    """The rig as a picture."""
    return decode(draw(RIG, PANORAMA, pictures))


def frame(picture: Image) -> tuple[int, int, int, int]:
    """Return the white frame around what is shown: left, top, right, bottom."""
    white = (picture == 255).all(axis=2)
    columns = np.flatnonzero(white.sum(axis=0) > 0.7 * white.sum(axis=0).max())
    rows = np.flatnonzero(white.sum(axis=1) > 0.9 * white.sum(axis=1).max())
    return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


def test_the_picture_shows_the_panorama_in_a_frame_and_dims_the_rest(
    world: Image, pictures: dict[str, Image], drawn: Image
) -> None:
    left, top, right, bottom = frame(drawn)
    assert right - left > 0.8 * WIDTH_PX
    inner = drawn[top:bottom, left:right]
    truth = true_panorama(world, 1632, 228, PANORAMA.yaw_min_rad, PANORAMA.scale_px, PANORAMA.v_min)
    scaled = cv2.resize(truth, (inner.shape[1], inner.shape[0]), interpolation=cv2.INTER_AREA)
    # Use the median, because names and seams are drawn over the picture.
    assert np.median(np.abs(inner.astype(int) - scaled)) < 6
    narrow = decode(draw(RIG, plan(RIG, 816, 228), pictures))
    left, top, right, bottom = frame(narrow)
    assert right - left < 0.7 * WIDTH_PX
    assert narrow[top:bottom, left - 80 : left - 10].mean() < 0.6 * narrow[top:bottom, left + 10 : right - 10].mean()


def test_objects_of_neighbours_that_do_not_fit_appear_twice(
    world: Image, pictures: dict[str, Image], drawn: Image
) -> None:
    torn = decode(draw(RIG, PANORAMA, pictures | {"cam2": photograph(world, pose("cam2", rotation(2.0)))}))
    left, top, right, bottom = frame(drawn)
    scale = (right - left) / 1632
    sharpness = []
    for picture in (drawn, torn):
        # Around the seam of cam1 and cam2, where both are shown.
        x = left + round(PANORAMA.edges_px[2] * scale)
        both = cv2.cvtColor(picture[top + 4 : bottom - 4, x + 3 : x + 30], cv2.COLOR_BGR2GRAY)
        sharpness.append(float(np.abs(cv2.Laplacian(both, cv2.CV_32F)).mean()))
    assert sharpness[1] < 0.8 * sharpness[0]


def test_cameras_without_a_place_are_listed_with_the_reason(pictures: dict[str, Image], drawn: Image) -> None:
    red = np.full((360, 640, 3), (0, 0, 200), np.uint8)
    with_two = Calibration(RIG.cameras, ("cam5", "cam6"), {"cam5": "it matches none of the others " * 9})
    picture = decode(draw(with_two, PANORAMA, pictures | {"cam5": red}))
    added = picture[len(drawn) :]
    assert len(added) > 300
    assert (added[:170, 30:330] == (0, 0, 200)).all()
    assert (added[:170, 360:] > 200).any(axis=2).sum() > 500, "the reason"
    assert (added[220:, 360:] > 200).any(axis=2).sum() > 100, "the other one's name"


def colours(picture: Image) -> set[int]:
    """Return the colours of which the picture has many pixels."""
    found, counts = np.unique(picture.reshape(-1, 3).astype(int) @ [65536, 256, 1], return_counts=True)
    return set(found[counts > 40].tolist())


def test_residuals_are_shown_by_colour() -> None:
    bare = colours(decode(draw(RIG, PANORAMA, {})))
    seen = {}
    for rms_px in (0.4, 2.0, 7.0):
        pair = PairResidual(cameras=("cam1", "cam2"), matches=40, rms_px=rms_px)
        seen[rms_px] = colours(decode(draw(Calibration(RIG.cameras, pairs=(pair,)), PANORAMA, {}))) - bare
    assert all(seen.values())
    assert not seen[0.4] & seen[2.0]
    assert not seen[2.0] & seen[7.0]


BARE = PairResidual(cameras=("cam1", "cam2"), matches=40, rms_px=0.5)
POINTS = np.stack(np.meshgrid(np.linspace(560, 630, 6), np.linspace(100, 260, 6)), axis=-1).reshape(-1, 2)
THERE = RIG.cameras[2].project(RIG.cameras[1].directions(POINTS))
MATCHED = BARE.model_copy(update={"points_px": tuple(map(tuple, np.concatenate([POINTS, THERE], axis=1).tolist()))})


def test_matches_are_dots_where_both_cameras_see_them() -> None:
    bare, dotted = (
        decode(draw(Calibration(RIG.cameras, pairs=(pair,)), PANORAMA, {})).astype(int) for pair in (BARE, MATCHED)
    )
    where = np.argwhere((bare != dotted).any(axis=2))
    assert 36 * 10 < len(where) < 36 * 90


def test_names_that_the_font_lacks_and_other_sizes_are_drawn(pictures: dict[str, Image]) -> None:
    named = Calibration((RIG.cameras[0].model_copy(update={"name": "Tür"}), *RIG.cameras[1:]))
    small = {name: np.ascontiguousarray(picture[::2, ::2]) for name, picture in pictures.items()}
    decode(draw(named, PANORAMA, small, title="a sentence " * 30))


class TestOutline:
    def test_the_outline_is_the_edge_of_the_picture(self) -> None:
        for camera in RIG.cameras:
            yaw, pitch = GEOMETRY.angles(outline(camera, PANORAMA)).T
            rays = np.stack([np.sin(yaw), -np.tan(pitch), np.cos(yaw)], axis=-1)
            x, y = camera.project(rays).T
            off = np.minimum.reduce([np.abs(x), np.abs(x - 639), np.abs(y), np.abs(y - 359)])
            assert off.max() < 1e-6

    def test_a_camera_across_the_circle_s_end_has_one_outline(self) -> None:
        behind = pose("behind", rotation(178.0))
        points = outline(behind, PANORAMA)
        assert np.abs(np.diff(points, axis=0)).max() < 200
        assert np.ptp(points[:, 0]) < 1.1 * math.radians(50) * PANORAMA.scale_px

    def test_the_outline_of_a_camera_that_looks_up_is_cut_off(self) -> None:
        points = outline(pose("up", rotation(0.0, 60.0)), PANORAMA)
        assert np.isfinite(points).all()
        assert np.abs(points[:, 1]).max() < 4 * PANORAMA.scale_px

    def test_the_outlines_of_neighbours_meet_in_their_overlap(self) -> None:
        turn_px = 2 * math.pi * PANORAMA.scale_px
        outlines = [outline(camera, PANORAMA) for camera in RIG.cameras]
        for index in range(4):
            x, middle, bottom = between(outlines[index], outlines[index + 1], turn_px)
            assert x == pytest.approx(PANORAMA.edges_px[index + 1], abs=2)
            assert 0 < middle < 228 <= bottom + 20
        # Across the circle's end, beside one of the two.
        left, right = (outline(pose("behind", rotation(yaw)), PANORAMA) for yaw in (160.0, -160.0))
        x, _, _ = between(left, right, turn_px)
        assert x == pytest.approx(816 + math.pi * PANORAMA.scale_px, abs=2)

    def test_the_outlines_take_few_bytes_of_the_status(self) -> None:
        found = describe(RIG, PANORAMA)
        assert len(json.dumps(found)) < 3000
        assert found["matches_px"] == []
        assert found["seams_px"] == list(PANORAMA.edges_px[1:-1])
        assert found["turn_px"] == round(2 * math.pi * PANORAMA.scale_px)
        assert list(found["outlines_px"]) == [camera.name for camera in RIG.cameras]
        matched = describe(Calibration(RIG.cameras, pairs=(MATCHED,)), PANORAMA)["matches_px"]
        assert len(matched) == len(POINTS)
        # The same place by either camera, in the overlap of both, between the first outline's edges.
        np.testing.assert_allclose([one for one, _ in matched], [other for _, other in matched], atol=0.11)
        inner = np.array(found["outlines_px"]["cam1"])
        assert (
            inner[:, 0].min()
            < min(one[0] for one, _ in matched)
            < max(one[0] for one, _ in matched)
            < inner[:, 0].max()
        )
        first = np.array(found["outlines_px"]["cam0"])
        np.testing.assert_allclose(first, outline(RIG.cameras[0], PANORAMA), atol=0.51)
