from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest

from framebus import FrameFormat, Publisher, Subscriber
from services.stitcher import stitch
from services.stitcher.calibration import Calibration, CalibrationError
from services.stitcher.convert import Image, Planes
from services.stitcher.panorama import is_inside, plan, source_maps
from services.stitcher.stitch import Stitcher
from services.stitcher.warp import NotInPlace
from tests.services.stitcher.scene import paint_world, photograph, planes, pose, psnr_db, rig, rotation, true_panorama

WIDTH, HEIGHT = 1632, 228


@pytest.fixture(scope="module")
def world() -> Image:
    return paint_world()


@pytest.fixture(scope="module")
def pictures(world: Image) -> list[Planes]:
    return [planes(photograph(world, camera)) for camera in rig().cameras]


def address(array: Image) -> int:
    return int(array.__array_interface__["data"][0])


def render(calibration: Calibration, pictures: list[Planes | None], feather_px: int = 16) -> Image:
    out = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    Stitcher(calibration, WIDTH, HEIGHT, feather_px).render(pictures, out)
    return out


def test_threads_render_the_same(pictures: list[Planes]) -> None:
    with ThreadPoolExecutor(3) as pool:
        stitcher = Stitcher(rig(), WIDTH, HEIGHT, pool=pool, parts=3)
        for gone in ((), (0, 4), (2,)):
            present = [None if i in gone else picture for i, picture in enumerate(pictures)]
            out = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
            stitcher.render(present, out)
            np.testing.assert_array_equal(out, render(rig(), present))


@pytest.mark.parametrize("feather_px", [0, 2, 6, 16, 256])
def test_the_panorama_is_the_world(world: Image, pictures: list[Planes], feather_px: int) -> None:
    panorama = Stitcher(rig(), WIDTH, HEIGHT).panorama
    out = render(rig(), list(pictures), feather_px)
    truth = true_panorama(world, WIDTH, HEIGHT, panorama.yaw_min_rad, panorama.scale_px, panorama.v_min)
    assert psnr_db(out, truth) > 32
    assert (out.max(axis=2) > 0).all(), "no region is black"


def test_the_crop_uses_what_the_cameras_see() -> None:
    panorama = plan(rig(), WIDTH, HEIGHT)
    shown_deg = np.degrees(WIDTH / panorama.scale_px)
    assert 0.95 * (144 + 50) < shown_deg <= 144 + 50
    assert panorama.edges_px == tuple(sorted(panorama.edges_px))


def test_every_pixel_of_a_crooked_rig_is_seen_by_its_camera() -> None:
    cameras = tuple(
        pose(f"cam{i}", rotation(yaw, pitch, roll))
        for i, (yaw, pitch, roll) in enumerate(((-70, 3, 2), (-38, -2, -3), (1, 1, 4), (33, -3, 0), (71, 2, -2)))
    )
    panorama = plan(Calibration(cameras), WIDTH, HEIGHT)
    for i, camera in enumerate(cameras):
        assert is_inside(camera, *source_maps(panorama, camera, panorama.edges_px[i], panorama.edges_px[i + 1]))


def test_cameras_that_do_not_touch_are_a_fault_with_their_names() -> None:
    with pytest.raises(CalibrationError, match="cam0 and cam1 do not touch"):
        Stitcher(rig((-60, 0, 36)), WIDTH, HEIGHT)


def test_it_renders_into_the_slot_and_marks_gone_cameras_in_reused_slots(pictures: list[Planes]) -> None:
    stitcher = Stitcher(rig(), WIDTH, HEIGHT)
    whole = render(rig(), list(pictures))
    without: list[Planes | None] = [*pictures[:2], None, *pictures[3:]]
    marked = render(rig(), without)
    with (
        Publisher(f"test-{uuid.uuid4().hex[:12]}", FrameFormat(HEIGHT, WIDTH, 3), slots=3) as publisher,
        Subscriber(publisher.stream, name="test", max_leases=1) as subscriber,
    ):
        for round_number in range(12):
            expected = marked if round_number % 5 in (1, 2) else whole
            with publisher.loan() as loan:
                slot = address(loan.pixels)
                stitcher.render(without if expected is marked else list(pictures), loan.pixels)
                assert address(loan.pixels) == slot
            with subscriber.receive(timeout_s=5) as frame:
                np.testing.assert_array_equal(frame.pixels, expected)
    edges = stitcher.panorama.edges_px
    np.testing.assert_array_equal(marked[:, : edges[2] - 8], whole[:, : edges[2] - 8])
    np.testing.assert_array_equal(marked[:, edges[3] + 8 :], whole[:, edges[3] + 8 :])
    region = marked[:, edges[2] + 8 : edges[3] - 8]
    assert {stitch.GREY, stitch.STRIPE, stitch.TEXT} <= set(np.unique(region).tolist()), "hatch and text"
    assert (region[..., 0] == region[..., 2]).all(), "grey"


def test_all_cameras_gone_is_all_hatch() -> None:
    out = render(rig(), [None] * 5)
    assert out.min() == stitch.GREY
    assert out.max() == stitch.TEXT


def test_an_out_that_opencv_would_replace_is_refused(pictures: list[Planes], monkeypatch: pytest.MonkeyPatch) -> None:
    stitcher = Stitcher(rig(), WIDTH, HEIGHT)
    genuine = cv2.cvtColorTwoPlane

    def convert_elsewhere(*arguments: object, dst: Image, **options: object) -> Image:
        return np.asarray(genuine(*arguments, **options), np.uint8)  # type: ignore[call-overload]

    monkeypatch.setattr(cv2, "cvtColorTwoPlane", convert_elsewhere)
    with pytest.raises(NotInPlace, match="in the slot"):
        stitcher.render(list(pictures), np.zeros((HEIGHT, WIDTH, 3), np.uint8))


def test_wrong_shapes_are_refused(pictures: list[Planes]) -> None:
    stitcher = Stitcher(rig(), WIDTH, HEIGHT)
    out = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    with pytest.raises(ValueError, match="panorama needs uint8"):
        stitcher.render(list(pictures), out[1:])
    with pytest.raises(ValueError, match="5 pictures"):
        stitcher.render(pictures[:4], out)
    with pytest.raises(ValueError, match="cam1: a picture of 640x360"):
        stitcher.render([pictures[0], planes(np.zeros((358, 640, 3), np.uint8)), *pictures[2:]], out)
