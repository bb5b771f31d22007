from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest

from framebus import FrameFormat, Publisher, Subscriber
from services.stitcher.calibration.poses import Calibration, CalibrationError
from services.stitcher.rendering import mark
from services.stitcher.rendering.convert import Image, Planes
from services.stitcher.rendering.panorama import inside, is_inside, plan, source_maps
from services.stitcher.rendering.stitch import Stitcher
from services.stitcher.rendering.warp import NotInPlace
from tests.services.stitcher.scene import (
    Matrix,
    paint_world,
    photograph,
    planes,
    pose,
    psnr_db,
    rig,
    rotation,
    true_panorama,
)

pytestmark = pytest.mark.slow

WIDTH, HEIGHT = 1632, 228


@pytest.fixture(scope="module")
def world() -> Image:
    return paint_world()


@pytest.fixture(scope="module")
def pictures(world: Image) -> list[Planes]:
    return [planes(photograph(world, camera)) for camera in rig().cameras]


@pytest.fixture(scope="module")
def truth(world: Image) -> Image:
    """The panorama of the rig, as a perfect stitcher renders it."""
    panorama = plan(rig(), WIDTH, HEIGHT)
    return true_panorama(world, WIDTH, HEIGHT, panorama.yaw_min_rad, panorama.scale_px, panorama.v_min)


def address(array: Image) -> int:
    return int(array.__array_interface__["data"][0])


def render(calibration: Calibration, pictures: list[Planes | None], feather_px: int = 16) -> Image:
    out = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    Stitcher(calibration, WIDTH, HEIGHT, feather_px).render(pictures, out)
    return out


@pytest.mark.usefixtures("renderer")
def test_threads_render_the_same(pictures: list[Planes]) -> None:
    alone = Stitcher(rig(), WIDTH, HEIGHT, feather_px=16)
    with ThreadPoolExecutor(3) as pool:
        stitcher = Stitcher(rig(), WIDTH, HEIGHT, feather_px=16, pool=pool, parts=3)
        for gone in ((), (0, 4), (2,)):
            present = [None if i in gone else picture for i, picture in enumerate(pictures)]
            out, expected = (np.zeros((HEIGHT, WIDTH, 3), np.uint8) for _ in range(2))
            stitcher.render(present, out)
            alone.render(present, expected)
            np.testing.assert_array_equal(out, expected)


@pytest.mark.usefixtures("renderer")
@pytest.mark.parametrize("feather_px", [0, 2, 6, 16, 256])
def test_the_panorama_is_the_world(truth: Image, pictures: list[Planes], feather_px: int) -> None:
    out = render(rig(), list(pictures), feather_px)
    assert psnr_db(out, truth) > 32
    assert (out.max(axis=2) > 0).all(), "no region is black"


def test_the_crop_uses_nearly_everything_that_the_cameras_see() -> None:
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


def test_cameras_without_an_overlap_are_named_in_the_error() -> None:
    with pytest.raises(CalibrationError, match="cam0 and cam1 do not touch"):
        Stitcher(rig((-60, 0, 36)), WIDTH, HEIGHT)


@pytest.mark.usefixtures("renderer")
def test_the_stitcher_renders_into_the_slot_and_marks_missing_cameras_in_reused_slots(pictures: list[Planes]) -> None:
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
    assert {mark.GREY, mark.STRIPE, mark.TEXT} <= set(np.unique(region).tolist()), "hatch and text"
    assert (region[..., 0] == region[..., 2]).all(), "grey"


@pytest.mark.usefixtures("renderer")
def test_if_all_cameras_are_gone_the_panorama_is_hatched() -> None:
    out = render(rig(), [None] * 5)
    assert out.min() == mark.GREY
    assert out.max() == mark.TEXT


def test_an_output_that_opencv_would_replace_is_rejected(
    pictures: list[Planes], monkeypatch: pytest.MonkeyPatch
) -> None:
    stitcher = Stitcher(rig(), WIDTH, HEIGHT, renderer="opencv")
    genuine = cv2.cvtColorTwoPlane

    def convert_elsewhere(*arguments: object, dst: Image, **options: object) -> Image:
        return np.asarray(genuine(*arguments, **options), np.uint8)  # type: ignore[call-overload]

    monkeypatch.setattr(cv2, "cvtColorTwoPlane", convert_elsewhere)
    with pytest.raises(NotInPlace, match="in the slot"):
        stitcher.render(list(pictures), np.zeros((HEIGHT, WIDTH, 3), np.uint8))


def test_wrong_shapes_are_rejected(pictures: list[Planes]) -> None:
    stitcher = Stitcher(rig(), WIDTH, HEIGHT)
    out = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    with pytest.raises(ValueError, match="panorama needs uint8"):
        stitcher.render(list(pictures), out[1:])
    with pytest.raises(ValueError, match="5 pictures"):
        stitcher.render(pictures[:4], out)
    with pytest.raises(ValueError, match="cam1: a picture of 640x360"):
        stitcher.render([pictures[0], planes(np.zeros((358, 640, 3), np.uint8)), *pictures[2:]], out)


@pytest.mark.usefixtures("renderer")
def test_a_fit_shows_the_world_with_black_bars(world: Image, pictures: list[Planes]) -> None:
    stitcher = Stitcher(rig(), WIDTH, 400, view="fit", parts=3)
    panorama = stitcher.panorama
    out = np.full((400, WIDTH, 3), 77, np.uint8)
    stitcher.render(list(pictures), out)
    truth = true_panorama(world, WIDTH, 400, panorama.yaw_min_rad, panorama.scale_px, panorama.v_min)
    seen = np.zeros((400, WIDTH), np.uint8)
    for start, end, owner in zip(panorama.edges_px, panorama.edges_px[1:], panorama.owners, strict=False):
        if owner is not None:
            camera = stitcher.calibration.cameras[owner]
            seen[:, start:end] = inside(camera, *source_maps(panorama, camera, start, end))
    within, around = cv2.erode(seen, np.ones((5, 19))) > 0, cv2.dilate(seen, np.ones((5, 19))) > 0
    assert within.mean() > 0.6
    assert psnr_db(out[within], truth[within]) > 32
    assert around.mean() < 0.95
    assert not out[~around].any(), "bars are black, whatever the slot contained before"
    whole = out.copy()
    stitcher.render([None, *pictures[1:]], out)
    part = panorama.owners.index(0)
    end_px = panorama.edges_px[part + 1]
    marked = out[:, panorama.edges_px[part] : end_px - 8]
    assert {mark.GREY, mark.STRIPE} <= set(np.unique(marked).tolist())
    np.testing.assert_array_equal(out[:, end_px + 8 :], whole[:, end_px + 8 :])
    stitcher.render(list(pictures), out)
    np.testing.assert_array_equal(out, whole)


@pytest.mark.usefixtures("renderer")
def test_a_circle_shows_the_world_across_its_cut(world: Image) -> None:
    """The world fills the circle: each camera sees a part of it, and those at the cut see both ends."""
    cameras = tuple(pose(f"cam{i}", rotation(-180 + 45 * i), 640, 360, 60.0) for i in range(8))
    stitcher = Stitcher(Calibration(cameras), 3200, 280)
    panorama = stitcher.panorama
    around = np.concatenate([world, world[:, ::-1]], axis=1)

    def sample(yaw: Matrix, v: Matrix) -> Image:
        columns = (yaw % (2 * np.pi)) / (2 * np.pi) * around.shape[1] - 0.5
        rows = v * around.shape[1] / 2 / np.pi + around.shape[0] / 2
        maps = columns.astype(np.float32), rows.astype(np.float32)
        return np.asarray(cv2.remap(around, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP), np.uint8)

    photographs: list[Planes | None] = []
    for camera in cameras:
        x, y = np.meshgrid(np.arange(640.0), np.arange(360.0))
        rays = camera.directions(np.stack([x, y], axis=-1))
        view = sample(np.arctan2(rays[..., 0], rays[..., 2]), rays[..., 1] / np.hypot(rays[..., 0], rays[..., 2]))
        photographs.append(planes(view))
    out = np.zeros((280, 3200, 3), np.uint8)
    stitcher.render(photographs, out)
    yaw = panorama.yaw_min_rad + (np.arange(3200) + 0.5) / panorama.scale_px
    v = panorama.v_min + (np.arange(280) + 0.5) / panorama.scale_px
    truth = sample(*np.meshgrid(yaw, v))
    assert panorama.coverage.sentence() == "360 of 360 degrees"
    for left in range(0, 3200, 200):
        assert psnr_db(out[:, left : left + 200], truth[:, left : left + 200]) > 27, f"columns from {left}"


@pytest.mark.usefixtures("renderer")
@pytest.mark.parametrize(
    ("changes", "rolls_deg"),
    [
        ({"k1": -0.2}, (0, 0, 0, 0, 0)),
        ({"k1": -0.3, "k2": 0.05}, (4, -3, 90, 0, 180)),
        ({"height_px": 180, "center_y_px": 89.5, "pixel_aspect": 0.5}, (0, 0, 0, 0, 0)),
        ({"width_px": 320, "center_x_px": 159.5, "focal_px": 343.1, "pixel_aspect": 2.0}, (4, -3, 90, 0, 180)),
    ],
)
def test_lens_distortion_and_pixel_aspect_are_corrected(
    world: Image, changes: dict[str, float], rolls_deg: tuple[float, ...]
) -> None:
    cameras = tuple(
        pose(f"cam{i}", rotation(yaw, 2 * (-1) ** i, roll)).model_copy(update=changes)
        for i, (yaw, roll) in enumerate(zip((-66, -33, 0, 33, 66), rolls_deg, strict=True))
    )
    if 90 in rolls_deg:  # it sees less to the sides, so the others come nearer
        cameras = tuple(
            pose(f"cam{i}", rotation(yaw, 2 * (-1) ** i, roll)).model_copy(update=changes)
            for i, (yaw, roll) in enumerate(zip((-62, -30, 0, 30, 62), rolls_deg, strict=True))
        )
    calibration = Calibration(cameras)
    stitcher = Stitcher(calibration, WIDTH, HEIGHT)
    panorama = stitcher.panorama
    out = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    stitcher.render([planes(photograph(world, camera)) for camera in cameras], out)
    truth = true_panorama(world, WIDTH, HEIGHT, panorama.yaw_min_rad, panorama.scale_px, panorama.v_min)
    assert panorama.coverage.outside == ()
    assert psnr_db(out, truth) > 32
    seam_px = panorama.edges_px[2]
    assert psnr_db(out[:, seam_px - 20 : seam_px + 20], truth[:, seam_px - 20 : seam_px + 20]) > 30
