from __future__ import annotations

from pathlib import Path

import pytest

from services.common.config import ConfigurationError, load
from services.stitcher.config import CameraSection, StitcherConfiguration


def faults(tmp_path: Path, text: str) -> str:
    path = tmp_path / "framebus.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        load(StitcherConfiguration, path, {})
    return str(caught.value)


def test_defaults_are_five_local_cameras_and_ten_megabytes() -> None:
    section = load(StitcherConfiguration, None, {}).stitcher
    assert [camera.name for camera in section.cameras] == ["cam0", "cam1", "cam2", "cam3", "cam4"]
    assert section.cameras[4].url == "http://127.0.0.1:18085/cam4.ts"
    assert section.width_px * section.height_px * 3 == 4896 * 688 * 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("stitcher: {width_px: 4897}", "multiple of 4"),
        ("stitcher: {cameras: [{name: a, url: 'http://h/'}]}", "at least 2 items"),
        ("stitcher: {cameras: [{name: a, url: 'http://h/'}, {name: a, url: 'http://h/'}]}", "name of its own: a"),
        ("stitcher: {cameras: [{name: a b, url: 'http://h/'}, {name: b, url: 'http://h/'}]}", "cameras.0.name"),
        ("stitcher: {cameras: [{name: a, url: 'rtsp:///x'}, {name: b, url: 'http://h/'}]}", "names no host"),
        ("stitcher: {reconnect: {first_s: 9, max_s: 1}}", "max_s must be at least first_s"),
        ("stitcher: {calibration: {focal_px: 900, hfov_deg: 50}}", "not both"),
        ("stitcher: {calibration: {hfov_deg: 200}}", "less than 170"),
        ("stitcher: {color: blue}", "Extra inputs"),
        ("stitcher: {pairing: {max_wait_s: -1}}", "greater than 0"),
    ],
)
def test_faults_are_named(tmp_path: Path, text: str, expected: str) -> None:
    message = faults(tmp_path, text)
    assert expected in message
    assert "framebus.yaml:1: stitcher" in message


def test_a_fault_does_not_show_the_password(tmp_path: Path) -> None:
    message = faults(
        tmp_path,
        "stitcher: {cameras: [{name: a, url: 'rtsp://user:hunter2@host:port/x'}, {name: b, url: 'http://h/'}]}",
    )
    assert "host or port" in message
    assert "hunter2" not in message


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("rtsp://user:hunter2@10.0.0.1:554/live", "rtsp://***@10.0.0.1:554/live"),
        ("rtsp://user:hun@ter2@10.0.0.1/live", "rtsp://***@10.0.0.1/live"),
        ("rtsp://hunter2@host", "rtsp://***@host"),
        ("http://host/live?token=hunter2", "http://host/live?***"),
        ("http://host/live", "http://host/live"),
        ("/videos/a@b.ts", "/videos/a@b.ts"),
    ],
)
def test_passwords_are_masked(url: str, masked: str) -> None:
    camera = CameraSection(name="a", url=url)
    assert camera.masked_url == masked
    assert "hunter2" not in repr(camera)
