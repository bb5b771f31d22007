from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from services.stitcher.calibration.calibrate import Image, calibrate
from services.stitcher.calibration.poses import Calibration, CalibrationError, CameraPrior, PairResidual, load, save
from tests.services.stitcher.scene import HFOV_DEG, YAWS_DEG, paint_world, photograph, pose, rig, rotation

pytestmark = pytest.mark.slow

FOCAL_PX = rig().cameras[0].focal_px


@pytest.fixture(scope="module")
def world() -> Image:
    return paint_world()


@pytest.fixture(scope="module")
def pictures(world: Image) -> dict[str, Image]:
    return {camera.name: photograph(world, camera) for camera in rig().cameras}


def check(found: Calibration, names: list[str]) -> None:
    assert [camera.name for camera in found.cameras] == names
    yaws = np.degrees([camera.yaw_rad for camera in found.cameras])
    true_yaws = np.array([YAWS_DEG[int(name[-1])] for name in names])
    np.testing.assert_allclose(yaws - yaws.mean(), true_yaws - true_yaws.mean(), atol=1.0)
    for camera in found.cameras:
        assert camera.focal_px == pytest.approx(FOCAL_PX, rel=0.02)
        assert camera.rotation[1][1] > 0.999, "upright"
        assert camera.confidence > 1


@pytest.fixture(scope="module")
def found(pictures: dict[str, Image]) -> Calibration:
    """The calibration of five cameras, whose order reveals nothing."""
    return calibrate({name: pictures[name] for name in ("cam3", "cam0", "cam4", "cam2", "cam1")})


def test_cameras_in_any_order_are_placed_from_left_to_right(found: Calibration) -> None:
    check(found, ["cam0", "cam1", "cam2", "cam3", "cam4"])
    assert found.unplaced == ()


def test_an_approximate_field_of_view_is_a_hint(pictures: dict[str, Image]) -> None:
    shuffled = {name: pictures[name] for name in ("cam3", "cam1", "cam2")}
    found = calibrate(shuffled, priors={name: CameraPrior(hfov_deg=1.1 * HFOV_DEG) for name in shuffled})
    check(found, ["cam1", "cam2", "cam3"])
    assert found.unplaced == ()


def test_some_of_the_matched_points_are_kept(found: Calibration) -> None:
    poses = {camera.name: camera for camera in found.cameras}
    assert sorted(sorted(pair.cameras) for pair in found.pairs) == [[f"cam{i}", f"cam{i + 1}"] for i in range(4)]
    for pair in found.pairs:
        points = np.reshape(pair.points_px, (-1, 2, 2))
        assert 5 < len(points) <= 24
        one, other = (poses[name].directions(points[:, end]) for end, name in enumerate(pair.cameras))
        apart_px = np.linalg.norm(one - other, axis=1) * FOCAL_PX
        assert apart_px.max() < 2
        assert np.ptp(points[:, 0, 1]) > 100, "from all of the overlap"


def test_a_tilted_rig_gets_a_level_horizon(world: Image) -> None:
    cameras = [pose(f"cam{i}", rotation(yaw, 4.0)) for i, yaw in enumerate(YAWS_DEG[1:4], 1)]
    found = calibrate({camera.name: photograph(world, camera) for camera in cameras})
    for camera, true in zip(found.cameras, cameras, strict=True):
        np.testing.assert_allclose(camera.r[1], true.r[1], atol=0.02)


def test_a_camera_that_does_not_match_is_named_and_left_out(pictures: dict[str, Image]) -> None:
    names = ["cam1", "cam2", "cam3"]
    found = calibrate({"cam0": np.full_like(pictures["cam0"], 90), **{name: pictures[name] for name in names}})
    check(found, names)
    assert found.unplaced == ("cam0",)


def test_the_larger_group_of_matching_cameras_is_placed(pictures: dict[str, Image]) -> None:
    found = calibrate({name: pictures[name] for name in ("cam4", "cam2", "cam1", "cam0")})
    check(found, ["cam0", "cam1", "cam2"])
    assert found.unplaced == ("cam4",)


def test_without_matches_the_error_names_the_cameras_and_a_remedy(pictures: dict[str, Image]) -> None:
    with pytest.raises(CalibrationError, match=r"cameras cam0, cam4 match.*overlap.*calibration\.file"):
        calibrate({"cam0": pictures["cam0"], "cam4": pictures["cam4"]})
    blank = np.zeros((360, 640, 3), np.uint8)
    with pytest.raises(CalibrationError, match="cam0, cam1"):
        calibrate({"cam0": blank, "cam1": blank})
    with pytest.raises(CalibrationError, match="at least two"):
        calibrate({"cam0": pictures["cam0"]})


def test_a_saved_calibration_survives_a_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    calibration = rig()
    save(calibration, path)
    assert load(path, [camera.name for camera in calibration.cameras]) == calibration
    assert load(path, ["cam3", "cam1", "new"]).unplaced == ("new",)
    assert [camera.name for camera in load(path, ["cam3", "cam1", "new"]).cameras] == ["cam1", "cam3"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["calibration.json"]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"version": 1, "cameras": []}', '{"cameras": [1, 2]}'])
def test_a_broken_file_is_reported_in_one_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(text)
    with pytest.raises(CalibrationError, match=r"calibration\.json is not a saved calibration: .*delete it"):
        load(path, ["cam0", "cam1"])


@pytest.mark.parametrize("fault", [{"focal_px": -1}, {"focal_px": float("nan")}, {"rotation": [[1, 0, 0]] * 3}])
def test_impossible_values_are_reported_in_one_sentence(tmp_path: Path, fault: dict[str, object]) -> None:
    path = tmp_path / "calibration.json"
    save(rig(), path)
    document = json.loads(path.read_text())
    document["cameras"][1].update(fault)
    path.write_text(json.dumps(document))
    with pytest.raises(CalibrationError, match=r"is not a saved calibration: cameras\.1"):
        load(path, ["cam0", "cam1"])


def test_a_file_of_other_cameras_is_reported_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    save(rig(), path)
    with pytest.raises(CalibrationError, match="places 1 of the cameras cam0, left"):
        load(path, ["cam0", "left"])
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.json", ["cam0"])


def test_a_file_of_version_1_is_converted_and_a_future_one_rejected(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    pairs = (PairResidual(cameras=("cam0", "cam1"), matches=99, rms_px=0.2),)
    save(replace(rig(), pairs=pairs), path)
    document = json.loads(path.read_text())
    assert document["version"] == 2
    assert document["date"].endswith("Z")
    assert load(path, ["cam0", "cam1"]).pairs == pairs
    cameras: list[dict[str, object]] = []
    for camera in document["cameras"]:
        kept = ("name", "width_px", "height_px", "focal_px", "center_x_px", "center_y_px", "rotation", "confidence")
        cameras.append({key: camera[key] for key in kept})
    path.write_text(json.dumps({"version": 1, "cameras": cameras}))
    old = load(path, ["cam0", "cam1", "cam2", "cam3", "cam4"])
    assert old.cameras == rig().cameras
    assert old.pairs == ()
    path.write_text(json.dumps({**document, "version": 3, "lens": "new"}))
    with pytest.raises(CalibrationError, match=r"version 3, this program reads up to version 2: update it"):
        load(path, ["cam0", "cam1"])
