from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.stitcher.capture.probe import main
from services.stitcher.capture.probe_report import Report
from services.stitcher.config import CameraSection
from tests.services.stitcher.faulty import FaultyCamera, encode_units, serve

pytestmark = pytest.mark.slow


def probed(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> list[dict[str, Any]]:
    assert main([*arguments, "--json"]) == status
    output = capsys.readouterr()
    assert output.err == ""
    cameras: list[dict[str, Any]] = json.loads(output.out)["cameras"]
    assert all(set(camera) == {field.name for field in fields(Report)} for camera in cameras)
    return cameras


def test_the_probe_prints_what_cameras_send(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    h264 = encode_units(tmp_path / "clip.ts", gop=10)
    b_frames = encode_units(tmp_path / "b.ts", b_frames=2, gop=25)
    mjpeg = encode_units(tmp_path / "clip.mkv", "mjpeg")
    (tmp_path / "clip.h264").write_bytes(b"".join(h264.packets))
    with (
        serve(FaultyCamera(h264, damaged=0.2)) as plain,
        serve(FaultyCamera(mjpeg, fps=10, mode="mjpeg")) as parts,
        serve(FaultyCamera(h264, mode="raw")) as raw,
    ):
        ts, jpeg, bare, file, coded = probed(
            capsys, plain, parts, raw, str(b_frames.template), str(tmp_path / "clip.h264"), "--seconds", "5"
        )
    assert (ts["codec"], ts["format"], ts["width_px"], ts["height_px"]) == ("h264", "mpegts", 160, 96)
    assert (ts["pixel_format"], ts["clock"], ts["gop_frames"], ts["b_frames"]) == ("yuv420p", "pts", 10, False)
    assert ts["fps"] == pytest.approx(25, abs=0.5)
    assert ts["damaged_frames"] > 0
    assert any("damaged" in hint for hint in ts["hints"])
    assert (jpeg["codec"], jpeg["range"], jpeg["clock"], jpeg["gop_frames"]) == ("mjpeg", "full", "arrival", 1)
    assert jpeg["fps"] == pytest.approx(10, abs=1)
    assert (bare["format"], bare["clock"]) == ("h264", "arrival")
    assert (file["b_frames"], file["fps"]) == (True, 25)
    assert coded["fps"] == 25
    for index, camera in enumerate((ts, jpeg, bare, file, coded)):
        assert camera["error"] == ""
        [section] = yaml.safe_load("\n".join(camera["settings"]))
        assert CameraSection.model_validate(section).name == f"cam{index}"


def test_an_unreadable_camera_is_reported_with_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = encode_units(tmp_path / "clip.ts", count=10).template
    closed, unknown, missing, good = probed(
        capsys,
        "rtsp://user:hunter2@127.0.0.1:1/x",
        "nosuch://user:hunter2@127.0.0.1/x",
        str(tmp_path / "none.ts"),
        str(clip),
        status=1,
    )
    assert (closed["cause"], closed["error"]) == ("unreachable", "Connection refused")
    assert unknown["cause"] == "unsupported"
    assert (missing["cause"], good["error"]) == ("setting", "")
    assert "hunter2" not in json.dumps([closed, unknown])


def test_the_text_output_lists_the_video_and_its_key_frames(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = encode_units(tmp_path / "clip.ts", count=60).template
    assert main([str(clip)]) == 0
    shown = capsys.readouterr().out
    assert "  video      h264 " in shown
    assert "  key frames 25 frames, 1 s\n" in shown
    assert f'      url: "{clip}"\n' in shown


def test_a_password_with_unencoded_characters_is_rejected(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rtsp://user:hun#ter2@host/x"]) == 2
    error = capsys.readouterr().err
    assert "must be percent-encoded: '#' as %23" in error
    assert "ter2" not in error
