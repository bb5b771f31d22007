"""``framebus-stitcher check``: from still pictures to the placement and the parts that are shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from services.stitcher.entry import SERVICE
from tests.services.stitcher.scene import YAWS_DEG, paint_world, photograph, rig

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return picture files of five cameras."""
    folder = tmp_path_factory.mktemp("pictures")
    world = paint_world()
    paths = [folder / f"{camera.name}.png" for camera in rig().cameras]
    for path, camera in zip(paths, rig().cameras, strict=True):
        cv2.imwrite(str(path), photograph(world, camera))
    return [str(path) for path in paths]


def check(*arguments: str) -> int:
    return SERVICE.main(["check", *arguments])


def check_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert check("--json", *arguments) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_the_check_prints_where_each_camera_looks_and_what_is_shown(
    pictures: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    found = check_json(capsys, *reversed(pictures))
    assert [camera["name"] for camera in found["cameras"]] == [f"cam{i}" for i in range(5)]
    assert all(camera["placed"] and camera["rms_px"] < 1 for camera in found["cameras"])
    np.testing.assert_allclose([camera["yaw_deg"] for camera in found["cameras"]], YAWS_DEG, atol=0.2)
    np.testing.assert_allclose([camera["roll_deg"] for camera in found["cameras"]], 0, atol=0.2)
    np.testing.assert_allclose(
        [camera["focal_px"] for camera in found["cameras"]], 320 / np.tan(np.radians(25)), rtol=0.005
    )
    assert all(abs(camera["k1"]) < 0.01 for camera in found["cameras"])
    assert 150 < found["shown_deg"] <= found["all_deg"] < 196
    assert found["outside"] == []
    assert {tuple(pair["cameras"]) for pair in found["pairs"]} >= {(f"cam{i}", f"cam{i + 1}") for i in range(4)}


def test_the_check_prints_text_and_draws_a_picture(
    pictures: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    drawn = tmp_path / "seams.png"
    assert check(*pictures[:3], "--picture", str(drawn), "--view", "fit", "--size", "1600x400") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == [f"cam{i}" for i in range(3)]
    assert "cam0 and cam1" in lines[4]
    assert "degrees" in lines[-1]
    image = cv2.imdecode(np.frombuffer(drawn.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    assert image.std() > 10


def test_a_narrow_panorama_names_the_cameras_outside_it(
    pictures: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    found = check_json(capsys, *pictures[:3], "--size", "512x512")
    assert found["shown_deg"] < found["all_deg"] / 2
    assert found["outside"]
    assert all(name in found["shown"] for name in found["outside"])
    assert "would show all" in found["shown"]


def test_cameras_that_cannot_be_placed_are_rejected_in_one_sentence(
    pictures: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    blank = tmp_path / "blank.png"
    cv2.imwrite(str(blank), np.full((360, 640, 3), 90, np.uint8))
    assert check("--json", pictures[0], str(blank)) == 1
    output = capsys.readouterr()
    document = json.loads(output.out)
    assert document["cameras"] == [{"name": "cam0", "placed": False}, {"name": "blank", "placed": False}]
    assert document["error"] in output.err
    assert output.err.count("\n") == 1
    assert "blank" in output.err


def test_a_camera_that_does_not_fit_is_named(
    pictures: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    stray = tmp_path / "stray.png"
    cv2.imwrite(str(stray), photograph(paint_world(77), rig().cameras[2]))
    found = check_json(capsys, *pictures[:3], str(stray))
    assert {camera["name"]: camera["placed"] for camera in found["cameras"]} == {
        **{f"cam{i}": True for i in range(3)},
        "stray": False,
    }
    assert found["cameras"][-1]["reason"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nothing.png"], "nothing.png cannot be read: No such file or directory"),
        (["text.png"], "text.png is not a picture that can be read"),
        (["empty.jpg"], "empty.jpg is not a picture that can be read"),
        (["{cam0}", "{cam0}"], "two pictures are named cam0"),
        (["{cam0}", "--picture", "x.jpg"], "--picture writes PNG: name the file x.png"),
        (["{cam0}", "--hfov-deg", "200"], "--hfov-deg must lie between 1 and 170"),
    ],
)
def test_a_fault_is_reported_in_one_sentence(
    arguments: list[str],
    sentence: str,
    pictures: list[str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.png").write_text("no picture")
    Path("empty.jpg").touch()
    assert check(*(argument.format(cam0=pictures[0]) for argument in arguments)) == 1
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
