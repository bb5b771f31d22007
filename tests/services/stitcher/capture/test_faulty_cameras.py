"""The reader of cameras on real servers with the faults of real cameras."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from framebus import Subscriber
from services.stitcher.calibration.poses import save
from services.stitcher.capture import clock
from services.stitcher.capture.cause import Cause
from services.stitcher.capture.clock import UNPROVEN_LAG_NS
from services.stitcher.capture.sender import SenderClocks
from tests.services.stitcher.capture.reading import reading
from tests.services.stitcher.faulty import FaultyCamera, Units, deny, encode_units, rtsp_cameras, serve
from tests.services.stitcher.process import StitcherProcess
from tests.services.stitcher.scene import rig
from tests.support import PATIENCE_S, wait_until

pytestmark = pytest.mark.slow

MS = 1_000_000


@pytest.fixture(scope="module")
def h264(tmp_path_factory: pytest.TempPathFactory) -> Units:
    return encode_units(tmp_path_factory.mktemp("h264") / "clip.ts")


@pytest.fixture(scope="module")
def mjpeg(tmp_path_factory: pytest.TempPathFactory) -> Units:
    return encode_units(tmp_path_factory.mktemp("mjpeg") / "clip.mkv", "mjpeg")


def test_mjpeg_over_http_is_placed_by_arrival_if_ffmpegs_rate_is_wrong(
    mjpeg: Units, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The verdict takes four bins, which last a second each to be sure of rates that are nearly right.
    monkeypatch.setattr(clock, "BIN_NS", 500 * MS)
    with serve(FaultyCamera(mjpeg, fps=15, mode="mjpeg")) as url, reading(url) as read:
        read.wait("the pts are seen through", lambda read: read.reader.clock == "arrival" and len(read.frames) > 20)
        read.wait_for_frames(len(read.frames) + 5)
    lags_ns = [frame.arrival_ns - frame.captured_ns for frame in read.frames]
    assert max(lags_ns) <= UNPROVEN_LAG_NS + MS, "never more, not even before the rate was known"
    assert min(lags_ns) >= -len(lags_ns)


@pytest.mark.parametrize("source", ["http", "file"])
def test_raw_h264_has_no_times_and_is_read_by_arrival(h264: Units, tmp_path: Path, source: str) -> None:
    with ExitStack() as stack:
        if source == "http":
            url = stack.enter_context(serve(FaultyCamera(h264, mode="raw")))
        else:
            file = tmp_path / "clip.h264"
            file.write_bytes(b"".join(h264.packets))
            url = str(file)
        read = stack.enter_context(reading(url))
        read.wait_for_frames(40)
        assert read.states[-1] == "connected"
        assert read.reader.clock == "arrival"
    captured = [frame.captured_ns for frame in read.frames]
    assert captured == sorted(set(captured))
    assert np.median(np.diff(captured)) / MS == pytest.approx(40, abs=15)


def test_a_stream_joined_far_from_a_key_frame_is_read_in_the_end(tmp_path: Path) -> None:
    """Some cameras send a key frame every 20 s; more than 250 packets come before it, faster here."""
    long = encode_units(tmp_path / "long.ts", count=300, gop=300)
    with serve(FaultyCamera(long, fps=200, start=10)) as url, reading(url) as read:
        read.wait_for_frames(10)
    waited = [state for state in read.states if state.startswith("waiting for a key frame, ")]
    assert waited[0].endswith(" 0 s")
    assert read.states[-1] == "connected"
    assert (read.reader.connections, read.reader.broken_packets) == (1, 0)


@pytest.mark.long
def test_slow_cameras_are_shown_from_their_first_picture(h264: Units, mjpeg: Units) -> None:
    by_ts, by_mjpeg = FaultyCamera(h264, fps=0.9), FaultyCamera(mjpeg, fps=0.8, mode="mjpeg")
    with serve(by_ts) as ts, serve(by_mjpeg) as parts, reading(ts) as first, reading(parts) as second:
        for read in (first, second):
            read.wait_for_frames(1)
        for read in (first, second):
            read.wait_for_frames(4)
            assert read.reader.connections == 1


def test_damaged_pictures_are_withheld_or_marked(h264: Units) -> None:
    camera = FaultyCamera(h264, damaged=0.1, fps=100)
    with serve(camera) as url, reading(url, name="hold") as held, reading(url, name="mark", damaged="mark") as marked:
        marked.wait_for_frames(150)
        held.wait_for_frames(30)
    assert not any(frame.damaged or frame.picture.is_corrupt for frame in held.frames)
    assert held.reader.damaged_frames > 20
    damaged = [frame.damaged for frame in marked.frames]
    assert 20 < sum(damaged) < len(damaged)
    # Once damaged, a picture stays so until the next key frame.
    whole_again = [frame for before, frame in zip(marked.frames, marked.frames[1:], strict=False) if before.damaged]
    assert all(frame.damaged or frame.picture.key_frame for frame in whole_again)


def test_pictures_after_a_lost_one_are_withheld(h264: Units) -> None:
    """The decoder marks nothing, because all packets that it gets are complete."""
    with serve(FaultyCamera(h264, lost=0.1, fps=100)) as url, reading(url) as read:
        read.wait("damage", lambda read: read.reader.damaged_frames > 60 and len(read.frames) > 30)
    with av.open(str(h264.template)) as clip:
        whole = np.stack([frame.to_ndarray(format="gray") for frame in clip.decode(video=0)]).astype(np.int16)
    for frame in read.frames:
        assert np.abs(whole - frame.picture.to_ndarray(format="gray")).mean((1, 2)).min() < 0.5


@pytest.mark.long
def test_a_camera_of_which_no_picture_is_whole_is_named_and_shown_in_the_end(tmp_path: Path) -> None:
    """Each picture after the first is damaged, and the next key frame is far."""
    long = encode_units(tmp_path / "long.ts", count=500, gop=500)
    with serve(FaultyCamera(long, damaged=1.0)) as url, reading(url, key_frame_wait_s=3.0) as read:
        read.wait("the state", lambda read: read.reader.state.startswith("damaged: no whole picture for 2 s"))
        assert read.reader.cause is Cause.DAMAGED
        held = len(read.frames)
        read.wait_for_frames(held + 10)
    assert [frame.damaged for frame in read.frames] == [False] * held + [True] * (len(read.frames) - held)


def test_jumps_of_the_timestamps_do_not_end_the_connection(h264: Units) -> None:
    with serve(FaultyCamera(h264, pts_jump_s=(30, 3600.0), fps=50)) as url, reading(url) as read:
        read.wait_for_frames(60)
        assert read.reader.connections == 1
    assert all(-100 < frame.arrival_ns - frame.captured_ns < 500 * MS for frame in read.frames)


def test_a_wrong_password_is_tried_once() -> None:
    with deny() as (address, seen), reading(f"rtsp://user:hunter2@{address}/cam") as read:
        read.wait("the refusal", lambda read: read.reader.state.startswith("refused: "))
        time.sleep(0.5)  # ten of the waits after other causes
        assert seen.log_ins == 1
        assert read.reader.cause is Cause.REFUSED
        assert "hunter2" not in read.reader.state


def test_a_new_password_is_tried_at_once(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("wrong")
    with (
        deny() as (address, seen),
        reading(f"rtsp://{address}/cam", username="user", password_file=secret) as read,
    ):
        read.wait("the refusal", lambda read: read.reader.state.startswith("refused: "))
        assert seen.log_ins == 1
        secret.write_text("new")
        wait_until(lambda: seen.log_ins == 2, "another log-in")


def test_a_missing_password_is_shown_in_the_state(tmp_path: Path) -> None:
    with reading("rtsp://127.0.0.1:9/cam", username="user", password_file=tmp_path / "none") as read:
        read.wait("the state", lambda read: read.reader.cause is Cause.SETTING)
        assert read.reader.state.endswith("none cannot be read: No such file or directory")


def test_a_host_without_an_address_is_reported() -> None:
    with reading("rtsp://camera.invalid/live") as read:
        read.wait("the state", lambda read: read.reader.cause is Cause.UNREACHABLE)
        assert read.reader.state == "lost: the name camera.invalid has no address"


def test_a_camera_that_sends_rtsp_only_by_udp_is_read(h264: Units) -> None:
    with rtsp_cameras(h264.template, udp_only=True) as address:
        url = f"rtsp://{address}/cam0"
        with (
            reading(url) as auto,
            reading(url, transport="udp") as by_udp,
            reading(url, transport="tcp") as by_tcp,
        ):
            for read in (auto, by_udp):
                read.wait_for_frames(10)
                assert read.reader.transport == "udp"
            by_tcp.wait("the state", lambda read: read.reader.cause is Cause.UNSUPPORTED)
            assert by_tcp.frames == []


def test_a_log_in_with_special_characters_works(h264: Units) -> None:
    with (
        rtsp_cameras(h264.template, user="user", password="p#/?[@w") as address,
        reading(f"rtsp://user:p%23%2F%3F%5B%40w@{address}/cam0") as read,
    ):
        read.wait_for_frames(1)


@pytest.mark.long
def test_the_senders_clocks_show_which_camera_is_late(h264: Units) -> None:
    senders = SenderClocks()
    with rtsp_cameras(h264.template, late_ms=[0, 400]) as address, ExitStack() as stack:
        reads = [stack.enter_context(reading(f"rtsp://{address}/cam{number}", senders)) for number in range(2)]
        for read in reads:
            read.wait("the sender's reports", lambda read: read.reader.clock == "sender")
        for read in reads:
            read.wait_for_frames(len(read.frames) + 25)
        lags_ms = [
            np.median([(frame.arrival_ns - frame.captured_ns) / MS for frame in read.frames[-5:]]) for read in reads
        ]
    assert lags_ms[1] - lags_ms[0] == pytest.approx(400, abs=60)


@pytest.mark.long
def test_the_stitcher_names_each_camera_and_its_cause_and_keeps_the_rate(
    stream: str, h264: Units, mjpeg: Units, tmp_path: Path
) -> None:
    """Two of the five cameras are well. A slow one, one without a clock and one that refuses do not disturb them."""
    file = tmp_path / "calibration.json"
    save(rig(), file)
    cameras = [
        FaultyCamera(h264),
        FaultyCamera(mjpeg, fps=10, mode="mjpeg"),
        FaultyCamera(mjpeg, fps=0.8, mode="mjpeg"),
        FaultyCamera(h264, damaged=0.3),
    ]
    with ExitStack() as stack:
        urls = [stack.enter_context(serve(camera)) for camera in cameras]
        address, _seen = stack.enter_context(deny())
        urls.append(f"rtsp://user:hunter2@{address}/live")
        stitcher = stack.enter_context(StitcherProcess(stream, tmp_path, urls, calibration={"file": str(file)}))
        subscriber = stack.enter_context(Subscriber(stream, name="test", attach_timeout_s=PATIENCE_S))

        def told() -> dict[str, Any]:
            status = stitcher.status()["details"]["cameras"]
            seen = (status["cam1"]["clock"], status["cam4"]["cause"], status["cam3"]["damaged_frames"] > 10)
            return status if seen == ("arrival", "refused", True) and status["cam2"]["state"] == "connected" else {}

        status = wait_until(told, "the states", interval_s=0.1, detail=stitcher.log.read_text)
        assert [status[f"cam{index}"]["state"] for index in range(3)] == ["connected"] * 3
        assert status["cam4"]["state"].startswith("refused: ")
        assert status["cam0"]["clock"] == "pts"
        stitcher.wait_for(subscriber, lambda frame: "cam2" in frame.metadata["cameras"])
        stitcher.wait_for(subscriber, lambda frame: {"cam0", "cam1"} <= set(frame.metadata["cameras"]))
        stitcher.check_rate(frames=100)
    assert "hunter2" not in stitcher.log.read_text()
