"""The checks of a camera's address, and the options that FFmpeg gets."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import av
import pytest

from services.stitcher.capture.cause import Cause, Unreadable, cause_of
from services.stitcher.capture.connection import Connector, faults_of, knows_protocol
from services.stitcher.capture.damage import DamageFilter, Verdict
from services.stitcher.config import CameraSection
from tests.services.stitcher.faulty import encode_units


def section(**settings: Any) -> CameraSection:
    return CameraSection.model_validate({"name": "cam", "url": "rtsp://host/x", **settings})


@pytest.mark.parametrize("scheme", ["rtsp", "rtsps", "http", "https", "rtmp", "udp", "rtp", "tcp"])
def test_an_address_that_ffmpeg_can_read_passes_without_network_access(scheme: str) -> None:
    assert knows_protocol(f"{scheme}://camera.invalid/x")


@pytest.mark.parametrize("scheme", ["nosuch", "rist"])
def test_an_address_that_ffmpeg_cannot_read_is_rejected_with_what_to_do(scheme: str) -> None:
    [fault] = faults_of(section(url=f"{scheme}://user:hunter2@host:5000"))
    assert f"cannot read {scheme}:// URLs: take another URL of the camera, such as rtsp:// or http://" in fault
    assert "hunter2" not in fault


def test_srt_is_rejected_if_ffmpeg_was_built_without_it() -> None:
    try:
        av.open("srt://127.0.0.1:9", options={"protocol_whitelist": "none"}, timeout=1.0).close()
    except av.error.ProtocolNotFoundError:
        assert "cannot read srt:// URLs" in faults_of(section(url="srt://host:5000"))[0]
    except av.error.FFmpegError:
        assert faults_of(section(url="srt://host:5000")) == []


def test_missing_files_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_PASSWORD", raising=False)
    by_file = faults_of(section(username="u", password_file=tmp_path / "none", mask=tmp_path / "mask.png"))
    assert by_file == [
        f"the mask {tmp_path}/mask.png is not a file",
        f"the password's file {tmp_path}/none cannot be read: No such file or directory",
    ]
    by_variable = faults_of(section(username="u", password_env="NO_PASSWORD"))
    assert by_variable == ["the environment variable NO_PASSWORD with the password is not set"]
    monkeypatch.setenv("NO_PASSWORD", "p")
    assert faults_of(section(username="u", password_env="NO_PASSWORD")) == []


def test_a_file_that_is_not_a_video_is_reported(tmp_path: Path) -> None:
    (tmp_path / "x.ts").write_bytes(b"no video" * 100)
    assert "cannot be read: Invalid data" in faults_of(section(url=str(tmp_path / "x.ts")))[0]


def test_options_of_ffmpeg_override_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def refuse(url: str, **arguments: Any) -> None:
        asked.update(arguments, url=url)
        raise av.error.ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(av, "open", refuse)
    options = {"format": "h264", "probesize": 32768, "rtsp_flags": "prefer_tcp"}
    connector = Connector(
        section(transport="udp", ffmpeg_options=options), open_timeout_s=3, read_timeout_s=5, longest_s=30
    )
    with pytest.raises(Unreadable, match="Connection refused") as caught:
        connector.open()
    assert caught.value.cause is Cause.UNREACHABLE
    assert asked["format"] == "h264"
    assert asked["options"] == {
        "analyzeduration": "500000",
        "fpsprobesize": "0",
        "probesize": "32768",
        "rtsp_transport": "udp",
        "rtsp_flags": "prefer_tcp",
    }


def test_the_wait_for_an_answer_grows_with_each_time_out(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    def silent(_url: str, *, timeout: tuple[float, float], **_arguments: Any) -> None:
        waits.append(timeout[0])
        raise av.error.ExitError(0, "Immediate exit requested")

    monkeypatch.setattr(av, "open", silent)
    connector = Connector(section(transport="tcp"), open_timeout_s=10, read_timeout_s=5, longest_s=40)
    for _ in range(4):
        with pytest.raises(Unreadable, match="no data in time"):
            connector.open()
    assert waits == [10, 20, 40, 40]


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (av.error.HTTPUnauthorizedError(1, "401"), Cause.REFUSED),
        (av.error.HTTPForbiddenError(1, "403"), Cause.REFUSED),
        (av.error.HTTPNotFoundError(1, "404"), Cause.NOT_FOUND),
        (av.error.FileNotFoundError(2, "No such file"), Cause.NOT_FOUND),
        (av.error.ConnectionRefusedError(111, "Connection refused"), Cause.UNREACHABLE),
        (av.error.OSError(113, "No route to host"), Cause.UNREACHABLE),
        (av.error.ExitError(1, "Immediate exit requested"), Cause.TIMEOUT),
        (av.error.TimeoutError(110, "Connection timed out"), Cause.TIMEOUT),
        (av.error.ProtocolNotFoundError(1, "Protocol not found"), Cause.UNSUPPORTED),
        (av.error.OSError(93, "Protocol not supported"), Cause.UNSUPPORTED),
        (av.error.InvalidDataError(1, "Invalid data"), Cause.DECODING),
        (av.error.EOFError(1, "End of file"), Cause.ENDED),
        (RuntimeError("rtsp://user:hunter2@host"), Cause.OTHER),
    ],
)
def test_every_error_has_a_cause(error: Exception, cause: Cause) -> None:
    found, reason = cause_of(error, "rtsp://127.0.0.1/x")
    assert found is cause
    assert reason
    assert "hunter2" not in reason


def test_damage_lasts_until_a_whole_key_frame_or_too_long() -> None:
    filtered = DamageFilter(hold=True, longest_s=30)
    seconds = [(0, True, False), (1, False, False), (29, False, False), (31, False, False), (32, False, True)]
    verdicts = [
        filtered.judge(corrupt=corrupt, key_frame=key, now_ns=second * 10**9) for second, corrupt, key in seconds
    ]
    assert verdicts == [Verdict.HELD] * 3 + [Verdict.DAMAGED, Verdict.WHOLE]
    assert filtered.frames == 4
    filtered.lose(33 * 10**9)
    assert filtered.judge(corrupt=False, key_frame=False, now_ns=34 * 10**9) is Verdict.HELD
    assert filtered.judge(corrupt=True, key_frame=True, now_ns=35 * 10**9) is Verdict.HELD


def test_the_wait_for_a_packet_follows_the_pace_of_the_camera(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = encode_units(tmp_path / "clip.ts", count=10).template
    connector = Connector(section(url=str(clip)), open_timeout_s=10, read_timeout_s=5, longest_s=40)
    with connector.open():
        now_s = time.monotonic()
        assert not connector.follow_pace(0.04e9), "the camera may still show another pace"
        monkeypatch.setattr(time, "monotonic", lambda: now_s + 60)
        assert connector.follow_pace(0.04e9), "5 s instead of 10"
        assert not connector.follow_pace(4e9)
        assert connector.follow_pace(10e9), "four periods of a camera of 0.4 fps"
        assert not connector.follow_pace(11e9)
