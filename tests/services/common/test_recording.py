"""Recordings as frames: in order, complete, with their metadata, and with clear errors for unreadable files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from services.common import geometry
from services.common.recording import INTERVAL_NS, Recording, RecordingError

GEOMETRY = geometry.PanoramaGeometry(100.0, -1.0, -0.2, 64, 48).to_metadata()


def write_pictures(folder: Path, *names: str) -> None:
    """Write pictures of one colour each. The colour encodes the place among the names."""
    folder.mkdir(exist_ok=True)
    for place, name in enumerate(names):
        assert cv2.imwrite(str(folder / name), np.full((48, 64, 3), 10 * place + 5, np.uint8))


def write_video(path: Path, count: int, *, fps: int = 10, start: int = 0) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.bit_rate = 64, 48, 4_000_000
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 10 * number + 5, np.uint8), format="bgr24")
            frame.pts = start + number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def tell(path: Path, *lines: Mapping[str, Any]) -> None:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def places(recording: Recording) -> list[int]:
    """Return the place that each frame's colour encodes."""
    return [round((float(frame.pixels.mean()) - 5) / 10) for frame in recording.frames()]


def test_pictures_come_in_the_order_of_the_numbers_in_their_names(tmp_path: Path) -> None:
    write_pictures(tmp_path, "p1.png", "p2.jpg", "p10.bmp", "q1.PNG")
    (tmp_path / "README.txt").write_text("no picture")
    (tmp_path / ".p0.png").write_text("half of one, which a program that copies hides")
    assert places(Recording(f"file://{tmp_path}")) == [0, 1, 2, 3]
    frames = list(Recording(f"file://localhost{tmp_path}/").frames())
    assert [(one.sequence, one.epoch, one.captured_ns) for one in frames] == [
        (number + 1, 0, number * INTERVAL_NS) for number in range(4)
    ]
    assert {(one.pixels.shape, str(one.pixels.dtype), one.metadata) for one in frames} == {((48, 64, 3), "uint8", None)}


@pytest.mark.parametrize("name", ["a clip #1 50%.mp4", "clip.mkv", "clip.avi"])
def test_a_video_comes_with_its_times(tmp_path: Path, name: str) -> None:
    write_video(tmp_path / name, 5)
    recording = Recording((tmp_path / name).as_uri())
    assert places(recording) == [0, 1, 2, 3, 4]
    assert [frame.captured_ns for frame in recording.frames()] == [100_000_000 * number for number in range(5)]


@pytest.mark.parametrize(("degrees", "bright"), [(0, (0, 0)), (-90, (0, 47)), (90, (63, 0)), (180, (47, 63))])
def test_a_video_is_rotated_by_its_metadata(tmp_path: Path, degrees: int, bright: tuple[int, int]) -> None:
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:16, :16] = 255
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.bit_rate = 64, 48, 4_000_000
        stream.set_display_rotation(degrees)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
        container.mux(stream.encode(None))
    (frame,) = Recording(f"file://{tmp_path}/clip.mp4").frames()
    assert frame.pixels.shape == ((64, 48, 3) if degrees % 180 else (48, 64, 3))
    assert frame.pixels[bright].min() > 200
    assert (frame.pixels > 128).mean() == pytest.approx(1 / 12, abs=0.02)


@pytest.mark.parametrize("pixel_format", ["gray", "yuv420p10le", "yuv444p"])
def test_every_pixel_format_becomes_bgr(tmp_path: Path, pixel_format: str) -> None:
    with av.open(str(tmp_path / "clip.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 66, 50, pixel_format
        frame = av.VideoFrame.from_ndarray(np.full((50, 66, 3), 128, np.uint8), format="bgr24")
        container.mux(stream.encode(frame.reformat(format=pixel_format)))
        container.mux(stream.encode(None))
    (found,) = Recording(f"file://{tmp_path}/clip.mkv").frames()
    assert (found.pixels.shape, str(found.pixels.dtype)) == ((50, 66, 3), "uint8")
    assert np.abs(found.pixels.astype(int) - 128).max() <= 3


def test_a_folder_with_one_video_is_that_video(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", 3)
    tell(tmp_path / "frames.jsonl", *({"sequence": number} for number in (7, 8, 11)))
    assert [frame.sequence for frame in Recording(f"file://{tmp_path}").frames()] == [7, 8, 11]


def test_a_videos_own_metadata_takes_precedence_over_its_folders(tmp_path: Path) -> None:
    for name in ("one.mp4", "two.mp4"):
        write_video(tmp_path / name, 1)
    tell(tmp_path / "frames.jsonl", {"epoch": 1})
    tell(tmp_path / "two.frames.jsonl", {"epoch": 2})
    assert [next(Recording(f"file://{tmp_path}/{name}.mp4").frames()).epoch for name in ("one", "two")] == [1, 2]


def test_the_metadata_of_a_frame_arrives_with_it(tmp_path: Path) -> None:
    write_pictures(tmp_path, "1.png", "2.png")
    first = {"sequence": 17, "epoch": 5, "captured_ns": 81_234_000_000, "geometry": GEOMETRY, "weather": "rain"}
    tell(tmp_path / "frames.jsonl", first, {})
    one, other = Recording(f"file://{tmp_path}").frames()
    assert (one.sequence, one.epoch, one.captured_ns) == (17, 5, 81_234_000_000)
    assert geometry.read(one.metadata) == geometry.PanoramaGeometry.from_metadata(GEOMETRY)
    assert (other.sequence, other.epoch, other.captured_ns, other.metadata) == (2, 0, INTERVAL_NS, None)


def test_metadata_lines_may_name_the_pictures(tmp_path: Path) -> None:
    write_pictures(tmp_path, "a.png", "b.png", "c.png")
    tell(tmp_path / "frames.jsonl", {"file": "c.png"}, {"file": "a.png"})
    assert places(Recording(f"file://{tmp_path}")) == [2, 0]


def test_grey_deep_and_transparent_pictures_become_bgr(tmp_path: Path) -> None:
    for name, shape, dtype in (
        ("1.png", (4, 6), "uint8"),
        ("2.png", (4, 6, 4), "uint8"),
        ("3.tif", (4, 6, 3), "uint16"),
    ):
        assert cv2.imwrite(str(tmp_path / name), np.ones(shape, dtype))
    frames = Recording(f"file://{tmp_path}").frames()
    assert [(one.pixels.shape, str(one.pixels.dtype)) for one in frames] == [((4, 6, 3), "uint8")] * 3


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{", "is not a JSON object of one line"),
        ("[1]", "is not a JSON object of one line"),
        ("[" * 50_000, "is not a JSON object of one line"),
        ('{"sequence": -1}', "sequence is a whole number from 0, not -1"),
        ('{"sequence": 1.5}', "sequence is a whole number from 0, not 1.5"),
        ('{"epoch": true}', "epoch is a whole number from 0, not True"),
        ('{"captured_ns": "now"}', "captured_ns is a whole number from 0, not 'now'"),
        ('{"captured_ns": 9223372036854775808}', "captured_ns is a whole number from 0"),
        ('{"geometry": {"scale_px": 1}}', "lacks yaw_min_rad"),
        ('{"file": "../secret.png"}', "file is the name of a picture in the same folder"),
        ('{"file": "gone.png"}', "names gone.png, which"),
    ],
)
def test_an_invalid_line_is_reported_with_its_number(tmp_path: Path, line: str, sentence: str) -> None:
    write_pictures(tmp_path, "1.png")
    (tmp_path / "frames.jsonl").write_text(f"{line}\n")
    with pytest.raises(RecordingError, match=sentence) as raised:
        Recording(f"file://{tmp_path}")
    assert str(tmp_path / "frames.jsonl") in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("lines", [1, 3])
def test_more_or_fewer_lines_than_frames_are_reported(tmp_path: Path, lines: int) -> None:
    write_pictures(tmp_path / "pictures", "1.png", "2.png")
    tell(tmp_path / "pictures" / "frames.jsonl", *[{}] * lines)
    with pytest.raises(RecordingError, match=rf"describes {lines} frames, and the folder has 2 pictures: write a line"):
        Recording(f"file://{tmp_path}/pictures")
    write_video(tmp_path / "clip.mp4", 2)
    tell(tmp_path / "clip.frames.jsonl", *[{}] * lines)
    with pytest.raises(RecordingError, match=rf"describes {lines} frames, and .*clip.mp4 (has more|ends after 2)"):
        list(Recording(f"file://{tmp_path}/clip.mp4").frames())


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("recordings/monday", "is not a file URL: write file:///FOLDER"),
        ("http://camera/clip.mp4", "is not a file URL: write file:///FOLDER"),
        ("file://recordings/monday", "write three slashes"),
        ("file:recordings", "write three slashes"),
        ("file:///nowhere/at/all", "/nowhere/at/all does not exist"),
    ],
)
def test_an_address_that_is_not_a_recording_is_rejected(url: str, sentence: str) -> None:
    with pytest.raises(RecordingError, match=sentence):
        Recording(url)


def test_an_empty_or_ambiguous_folder_is_reported(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="holds no picture and no video: name a folder with pictures, or a video"):
        Recording(f"file://{tmp_path}")
    for name in ("one.mp4", "two.mp4"):
        write_video(tmp_path / name, 1)
    with pytest.raises(RecordingError, match="holds 2 videos"):
        Recording(f"file://{tmp_path}")


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>"])
def test_an_unreadable_picture_or_video_is_named_after_the_frames_before_it(tmp_path: Path, content: bytes) -> None:
    write_pictures(tmp_path, "1.png", "2.png", "3.png")
    (tmp_path / "2.png").write_bytes(content)
    frames = Recording(f"file://{tmp_path}").frames()
    next(frames)
    with pytest.raises(RecordingError, match=r"2.png is not a picture"):
        next(frames)
    (tmp_path / "clip.mp4").write_bytes(content)
    with pytest.raises(RecordingError, match=r"clip.mp4 cannot be decoded"):
        next(Recording(f"file://{tmp_path}/clip.mp4").frames())


def test_a_truncated_video_gives_its_readable_frames(tmp_path: Path) -> None:
    write_video(tmp_path / "whole.ts", 20)
    content = (tmp_path / "whole.ts").read_bytes()
    (tmp_path / "cut.ts").write_bytes(content[: len(content) // 2])
    found = []
    try:
        for frame in Recording(f"file://{tmp_path}/cut.ts").frames():
            found.append(frame.sequence)
    except RecordingError as error:
        assert "cannot be decoded after" in str(error)  # noqa: PT017  a decoder may also just end
    assert 3 <= len(found) < 20


def test_a_file_with_only_sound_is_not_a_recording(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=48_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 48_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(RecordingError, match="holds no video"):
        list(Recording(f"file://{tmp_path}/sound.mp4").frames())


@pytest.mark.root
def test_a_file_that_this_user_may_not_read_is_reported(tmp_path: Path) -> None:
    write_pictures(tmp_path, "1.png")
    (tmp_path / "1.png").chmod(0)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.chmod(tmp_path, 0o755)
            for parent in tmp_path.parents[:3]:
                os.chmod(parent, 0o755)
            os.setgroups([])
            os.setuid(54321)
            try:
                list(Recording(f"file://{tmp_path}").frames())
            except RecordingError as error:
                status = 0 if "1.png cannot be read: Permission denied" in str(error) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
