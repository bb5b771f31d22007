"""The stitched panorama, compared with the truth of the simulated scene."""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace

from services.simulator.clip import Clip
from services.simulator.config import HFOV_DEG, YAWS_DEG, SimulatorSection
from services.simulator.scene import ground_truth, scene
from services.stitcher.calibration.calibrate import calibrate
from services.stitcher.calibration.poses import Calibration
from services.stitcher.rendering import colour
from services.stitcher.rendering.convert import Converter, Image
from services.stitcher.rendering.panorama import Panorama, plan, source_maps
from services.stitcher.rendering.stitch import Stitcher
from tests.services.stitcher.rendering.conftest import needs_compiled
from tests.services.stitcher.scene import pose, psnr_db, rotation

pytestmark = pytest.mark.long

SECTION = SimulatorSection(duration_s=2)
WIDTH, HEIGHT = 4896, 688
KEY, LATER = 25, 30
"""Frames of the scene: the cameras are placed by the first, a key frame, and the other one is stitched."""
LEAST_PSNR_DB = 33.0
EDGE_PX = 16


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, VideoFrame]]:
    """By frame and camera; only what these tests show is rendered."""
    stage, folder = scene(SECTION), tmp_path_factory.mktemp("clips")
    with ExitStack() as stack:
        clips = {
            camera.name: stack.enter_context(closing(Clip(folder / camera.name, camera, stage, SECTION.quality)))
            for camera in stage.cameras
        }
        for index in range(KEY, LATER + 1):
            canvas = stage.still.copy()
            drawn = stage.compose(index, canvas)
            for clip in clips.values():
                clip.write(canvas, drawn)
    decoded = {name: decode(folder / name) for name in clips}
    return {index: {name: decoded[name][index] for name in clips} for index in (KEY, LATER)}


@pytest.fixture(scope="module")
def calibration(frames: dict[int, dict[str, VideoFrame]]) -> Calibration:
    return calibrate({name: to_bgr(frames[KEY][name]) for name in ("cam2", "cam4", "cam0", "cam3", "cam1")})


def decode(path: Path) -> dict[int, VideoFrame]:
    with av.open(str(path)) as container:
        return dict(enumerate(container.decode(video=0), KEY))


def to_bgr(frame: VideoFrame) -> Image:
    return np.asarray(frame.to_ndarray(format="bgr24"), np.uint8)


def stitch(stitcher: Stitcher, frames: dict[str, VideoFrame]) -> Image:
    out = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    cameras = stitcher.calibration.cameras
    stitcher.render([Converter().planes(frames[pose.name], pose.width_px, pose.height_px) for pose in cameras], out)
    return out


def truth_of(shown: Panorama) -> Image:
    """Return the part of the scene as a perfect stitcher would show it."""
    return ground_truth(
        SECTION,
        LATER,
        WIDTH,
        HEIGHT,
        shown.yaw_min_rad,
        shown.yaw_min_rad + WIDTH / shown.scale_px,
        shown.v_min,
        shown.v_min + HEIGHT / shown.scale_px,
    )


def luma(picture: Image) -> Image:
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY), np.uint8)


def align(truth: Image, panorama: Image) -> Image:
    """Move the truth by the best small affine map: where yaw 0 is, and the exact scale, are the stitcher's choice."""
    seen, true = (cv2.GaussianBlur(cv2.cvtColor(one, cv2.COLOR_BGR2GRAY), (0, 0), 2) for one in (panorama, truth))
    start = np.eye(2, 3, dtype=np.float32)
    criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 50, 1e-6)
    correlation, affine = cv2.findTransformECC(seen, true, start, cv2.MOTION_AFFINE, criteria)
    affine = np.asarray(affine, np.float32)
    assert correlation > 0.98
    assert np.abs(affine - np.eye(2, 3))[:, :2].max() < 0.01, "no more than a small correction"
    assert np.abs(affine[:, 2]).max() < 0.01 * WIDTH
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    moved = cv2.warpAffine(truth, affine, (WIDTH, HEIGHT), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(moved, np.uint8)


def test_every_camera_is_placed_at_its_true_angles(calibration: Calibration) -> None:
    assert [camera.name for camera in calibration.cameras] == ["cam0", "cam1", "cam2", "cam3", "cam4"]
    assert calibration.unplaced == ()
    yaws_deg = np.degrees([camera.yaw_rad for camera in calibration.cameras])
    np.testing.assert_allclose(yaws_deg, YAWS_DEG, atol=0.5)
    focal_px = SECTION.cameras[0].focal_px
    assert HFOV_DEG == 50.0
    for camera in calibration.cameras:
        assert camera.focal_px == pytest.approx(focal_px, rel=0.01)


def test_the_panorama_is_the_scene(frames: dict[int, dict[str, VideoFrame]], calibration: Calibration) -> None:
    stitcher = Stitcher(calibration, WIDTH, HEIGHT)
    out = stitch(stitcher, frames[LATER])
    aligned = align(truth_of(stitcher.panorama), out)
    inner = np.s_[EDGE_PX:-EDGE_PX, EDGE_PX:-EDGE_PX]
    assert psnr_db(out[inner], aligned[inner]) >= LEAST_PSNR_DB
    for left in range(0, WIDTH, 306):
        part = np.s_[EDGE_PX:-EDGE_PX, max(left, EDGE_PX) : min(left + 306, WIDTH - EDGE_PX)]
        assert psnr_db(out[part], aligned[part]) >= LEAST_PSNR_DB, f"columns from {left}"
    darkest = cv2.erode(cv2.blur(out.max(axis=2), (32, 32)), np.ones((3, 3)))
    assert darkest.min() > 8, "no region is black"


@pytest.fixture(scope="module")
def true_calibration() -> Calibration:
    return Calibration(
        tuple(pose(f"cam{i}", rotation(yaw), 1920, 1080, HFOV_DEG) for i, yaw in enumerate(YAWS_DEG)),
    )


@pytest.fixture(scope="module")
def true_panorama(true_calibration: Calibration) -> Panorama:
    return plan(true_calibration, WIDTH, HEIGHT)


@pytest.fixture(scope="module")
def truth(true_panorama: Panorama) -> Image:
    return truth_of(true_panorama)


@pytest.fixture(scope="module")
def in_floating_point(
    frames: dict[int, dict[str, VideoFrame]], true_calibration: Calibration, true_panorama: Panorama
) -> Image:
    """The panorama as remapped BGR pictures give it, without a fixed-point step."""
    edges_px = true_panorama.edges_px
    out = np.zeros((HEIGHT, WIDTH, 3), np.float32)
    for camera, start, end in zip(true_calibration.cameras, edges_px, edges_px[1:], strict=False):
        maps = source_maps(true_panorama, camera, start, end)
        picture = to_bgr(frames[LATER][camera.name]).astype(np.float32)
        out[:, start:end] = cv2.remap(picture, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.rint(out).astype(np.uint8)


@pytest.mark.usefixtures("renderer")
def test_with_true_poses_only_the_codec_and_the_interpolation_are_left(
    frames: dict[int, dict[str, VideoFrame]], true_calibration: Calibration, truth: Image, in_floating_point: Image
) -> None:
    out = stitch(Stitcher(true_calibration, WIDTH, HEIGHT), frames[LATER])
    assert psnr_db(luma(out), luma(truth)) >= 40
    assert psnr_db(out, truth) > psnr_db(in_floating_point, truth) - 0.5


def test_the_compiled_renderer_is_nearly_as_good_as_floating_point(
    frames: dict[int, dict[str, VideoFrame]], true_calibration: Calibration, truth: Image
) -> None:
    """The reference uses the same planes, and interpolates the colours for each pixel."""
    needs_compiled()
    stitcher = Stitcher(true_calibration, WIDTH, HEIGHT, renderer="compiled")
    edges_px = stitcher.panorama.edges_px
    ideal = np.zeros((HEIGHT, WIDTH, 3))
    for camera, start, end in zip(true_calibration.cameras, edges_px, edges_px[1:], strict=False):
        x, y = source_maps(stitcher.panorama, camera, start, end)
        picture = Converter().planes(frames[LATER][camera.name], camera.width_px, camera.height_px)
        half_x, half_y = (x / 2).astype(np.float32), (y / 2 - 0.25).astype(np.float32)
        planes = [
            cv2.remap(plane.astype(np.float32), at_x, at_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
            for plane, at_x, at_y in ((picture.y, x, y), (picture.u, half_x, half_y), (picture.v, half_x, half_y))
        ]
        whole = np.stack([*planes, np.ones_like(planes[0])], axis=-1)
        ideal[:, start:end] = whole @ colour.to_bgr(picture.matrix, picture.is_full_range).T
    rounded = np.rint(ideal.clip(0, 255)).astype(np.uint8)
    assert psnr_db(stitch(stitcher, frames[LATER]), truth) > psnr_db(rounded, truth) - 0.5


@pytest.mark.parametrize(
    ("pixel_format", "matrix", "color_range"),
    [
        ("yuv420p", Colorspace.ITU709, ColorRange.MPEG),
        ("yuv420p", Colorspace.ITU709, ColorRange.JPEG),
        ("yuvj420p", Colorspace.ITU601, ColorRange.JPEG),
        ("yuv422p", Colorspace.ITU709, ColorRange.MPEG),
        ("yuv444p", Colorspace.ITU601, ColorRange.MPEG),
        ("yuv420p10le", Colorspace.ITU709, ColorRange.MPEG),
        ("nv12", Colorspace.ITU601, ColorRange.MPEG),
        ("bgr24", None, None),
    ],
)
def test_the_panorama_is_the_same_from_every_format(
    frames: dict[int, dict[str, VideoFrame]],
    true_calibration: Calibration,
    pixel_format: str,
    matrix: Colorspace | None,
    color_range: ColorRange | None,
) -> None:
    stitcher = Stitcher(true_calibration, WIDTH, HEIGHT)
    plain = stitch(stitcher, frames[LATER])
    others = {
        name: frame.reformat(format=pixel_format, dst_colorspace=matrix, dst_color_range=color_range)
        for name, frame in frames[LATER].items()
    }
    for other in others.values():
        if matrix is not None and color_range is not None:
            other.colorspace, other.color_range = matrix, color_range
    assert psnr_db(stitch(stitcher, others), plain) > 38


def test_grey_pictures_give_the_luma(frames: dict[int, dict[str, VideoFrame]], true_calibration: Calibration) -> None:
    stitcher = Stitcher(true_calibration, WIDTH, HEIGHT)
    out = stitch(stitcher, {name: frame.reformat(format="gray") for name, frame in frames[LATER].items()})
    assert psnr_db(luma(out), luma(stitch(stitcher, frames[LATER]))) > 38
    assert np.ptp(out.astype(int), axis=2).max() <= 1, "no colour"


def test_warping_planes_gives_what_warping_bgr_gives(
    frames: dict[int, dict[str, VideoFrame]], calibration: Calibration
) -> None:
    stitcher = Stitcher(calibration, WIDTH, HEIGHT, feather_px=0)
    out = stitch(stitcher, frames[LATER])
    edges_px = stitcher.panorama.edges_px
    for camera, start, end in zip(calibration.cameras, edges_px, edges_px[1:], strict=False):
        maps = source_maps(stitcher.panorama, camera, start, end)
        warped = cv2.remap(to_bgr(frames[LATER][camera.name]), *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        assert psnr_db(out[:, start:end], np.asarray(warped, np.uint8)) > 38
