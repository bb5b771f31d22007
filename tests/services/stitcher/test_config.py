from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from services.common.config import ConfigurationError, load
from services.common.credentials import MissingPassword, read_password, with_credentials
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
        ("stitcher: {reconnect: {refused_first_s: 901}}", "refused_max_s must be at least refused_first_s"),
        ("stitcher: {calibration: {points: [{cameras: [cam0, cam0], points_px: [[1, 2], [3, 4]]}]}}", "two different"),
        ("stitcher: {calibration: {points: [{cameras: [cam0, cam9], points_px: [[1, 2], [3, 4]]}]}}", "not: cam9"),
        ("stitcher: {calibration: {points: [{cameras: [cam0, cam1], points_px: [[1, -2], [3, 4]]}]}}", "from 0 on"),
        ("stitcher: {view: all}", "'fit' or 'crop'"),
        ("stitcher: {damaged: drop}", "'hold' or 'mark'"),
        ("stitcher: {pairing: {max_wait_s: -1}}", "greater than 0"),
    ],
)
def test_faults_are_named(tmp_path: Path, text: str, expected: str) -> None:
    message = faults(tmp_path, text)
    assert expected in message
    assert "framebus.yaml:1: stitcher" in message


@pytest.mark.parametrize(
    "cameras", ["[{name: a, url: ''}, {name: b, url: 'http://h/'}]", "[{name: a, url: 'rtsp://u:p#@h/'}, {url: 1}]"]
)
def test_an_invalid_camera_is_not_reported_as_missing_too(tmp_path: Path, cameras: str) -> None:
    message = faults(tmp_path, f"stitcher: {{cameras: {cameras}}}")
    assert all(".cameras." in line for line in message.splitlines()), message


def camera(**settings: Any) -> CameraSection:
    return CameraSection.model_validate({"name": "a", "url": "rtsp://host/x", **settings})


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"transport": "sctp"}, "'auto', 'tcp' or 'udp'"),
        ({"delay_s": -1}, "greater than or equal to 0"),
        ({"aspect": "2"}, "match pattern"),
        ({"aspect": "0:1"}, "match pattern"),
        ({"rotation_deg": 45}, "0, 90, 180 or 270"),
        ({"pose": {"pitch_deg": 5}}, "yaw_deg"),
        ({"ffmpeg_options": {"probesize": [1]}}, "valid string"),
        ({"username": "u"}, "needs password_file or password_env"),
        ({"username": "u", "password_env": "P", "password_file": "p"}, "not both"),
        ({"password_env": "P"}, "name the user once"),
        ({"url": "rtsp://u@h/x", "username": "u", "password_env": "P"}, "name the user once"),
        ({"url": "rtsp://u:p@h/x", "password_env": "P"}, "given twice"),
        ({"url": "/clips/x.ts", "username": "u", "password_env": "P"}, "needs a URL with a host"),
        ({"password_env": "A PASSWORD"}, "match pattern"),
    ],
)
def test_faults_of_a_camera_are_named(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(expected)):
        camera(**settings)


def test_every_setting_of_a_camera_is_read() -> None:
    section = camera(
        username="admin",
        password_env="CAMERA_PASSWORD",
        transport="udp",
        delay_s=0.4,
        clock="arrival",
        damaged="mark",
        aspect="16:11",
        rotation_deg=90,
        mask="mask.png",
        hfov_deg=105,
        pose={"yaw_deg": -36, "roll_deg": 2},
        ffmpeg_options={"probesize": 32768, "reorder_queue_size": "100"},
    )
    assert section.pixel_aspect == 16 / 11
    assert section.pose is not None
    assert (section.pose.yaw_deg, section.pose.pitch_deg, section.pose.roll_deg) == (-36, 0, 2)
    assert section.ffmpeg_options == {"probesize": "32768", "reorder_queue_size": "100"}
    assert "admin" not in repr(section)
    assert "32768" not in repr(section), "an option may be a header with a token"


BARE = [
    "rtsp://user:hun#ter2@10.0.0.1:554/live",
    "rtsp://user:hun?ter2@10.0.0.1/live",
    "rtsp://user:hun/ter2@host",
    "rtsp://user:hun[ter2@host/live",
    "rtsp://user:hun]ter2@[::1]:554/live",
    "rtsp://user:hun@ter2@host/live",
    "rtsp://user:hun%ter2@host/live",
    "rtsp://user:12#hunter2@host/live",
    "rtsp://user:12/hunter2@10.0.0.1:554/live",
    "http://us#er:hunter2@host/live",
    "rtsp://user:#hunter2@host/live",
]


@pytest.mark.parametrize("url", BARE)
def test_unencoded_characters_of_a_password_are_rejected_with_their_encoding(url: str) -> None:
    with pytest.raises(ValidationError) as caught:
        camera(url=url)
    fault = caught.value.errors(include_input=False)[0]["msg"]
    assert "must be percent-encoded: '#' as %23" in fault
    assert "ter2" not in fault


@pytest.mark.parametrize(
    "url",
    [
        "rtsp://user:hun%23ter2@10.0.0.1:554/live",
        "rtsp://user:hun%40ter2@[::1]:554/live",
        "rtsp://simulator:8554/cam0",
        "rtsp://[fe80::1]:554/cam@1.b/",
        "http://10.0.0.1:8080/a@b.ts",
        "http://camera/video?mail=a@b.org",
        "http://localhost:18081/cam0.ts?x=[1]",
        "/videos/a@b#1.ts",
        "file:/videos/a@b?.ts",
        "udp://@:5000",
    ],
)
def test_an_unusual_but_valid_url_is_accepted(url: str) -> None:
    assert camera(url=url).url == url


def test_the_password_is_read_from_a_file_or_the_environment(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("p#w/d\n")
    assert read_password(secret, None) == "p#w/d"
    assert read_password(None, "CAMERA", {"CAMERA": "x y"}) == "x y"
    assert read_password(None, None) is None
    assert with_credentials("rtsp://h:554/x?y", "me", "p#w/d") == "rtsp://me:p%23w%2Fd@h:554/x?y"
    assert with_credentials("rtsp://you@[::1]/x", None, "p@") == "rtsp://you:p%40@[::1]/x"
    assert with_credentials("rtsp://you:p@h/x", None, None) == "rtsp://you:p@h/x"


def test_a_missing_password_is_reported(tmp_path: Path) -> None:
    with pytest.raises(MissingPassword, match=r"none cannot be read: No such file"):
        read_password(tmp_path / "none", None)
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(MissingPassword, match=r"empty is empty"):
        read_password(tmp_path / "empty", None)
    with pytest.raises(MissingPassword, match=r"variable CAMERA with the password is not set"):
        read_password(None, "CAMERA", {})


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
        ("rtsp://user:hun%40ter2@10.0.0.1/live", "rtsp://***@10.0.0.1/live"),
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
