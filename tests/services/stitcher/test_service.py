"""The stitcher as a process, with real cameras over HTTP and RTSP, read from the ring."""

from __future__ import annotations

import math
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from framebus import FrameFormat, Publisher, Subscriber
from services.common.geometry import read as geometry_of
from services.common.status import read_statuses
from services.simulator.config import HFOV_DEG, YAWS_DEG
from services.stitcher.calibration.poses import Calibration, load, save
from services.stitcher.entry import SERVICE
from services.stitcher.rendering.choice import choose
from tests.services.simulator.clips import SMALL, rtsp_server
from tests.services.stitcher.faulty import FaultyCamera, Units, encode_units, serve
from tests.services.stitcher.process import (
    HEIGHT,
    NAMES,
    PATIENCE_S,
    WIDTH,
    StitcherProcess,
    http_camera,
    http_cameras,
    http_urls,
    is_marked,
)
from tests.services.stitcher.scene import pose, rig, rotation
from tests.support import ROOT, complaints, free_ports, wait_until

pytestmark = pytest.mark.slow


def test_cameras_become_one_stream_and_a_saved_calibration(stream: str, tmp_path: Path) -> None:
    port, file, names = free_ports(3), tmp_path / "calibration.json", NAMES[:3]
    with (
        http_cameras(port, range(3)),
        StitcherProcess(stream, tmp_path, http_urls(port)[:3], calibration={"file": str(file)}) as stitcher,
        Subscriber(stream, name="test", attach_timeout_s=PATIENCE_S) as subscriber,
    ):
        told: list[str] = []

        def has_panorama() -> bool:
            progress = read_statuses(stream).get("stitcher", {}).get("progress", {})
            told.extend([progress["what"]] if progress else [])
            return bool(told) and not progress

        wait_until(has_panorama, "it is placed", timeout_s=PATIENCE_S)
        assert "calibrating the cameras" in told
        stitcher.wait_for(subscriber, lambda frame: frame.metadata["cameras"] == names)
        with subscriber.receive(PATIENCE_S) as frame:
            geometry = geometry_of(frame.metadata)
            assert geometry is not None
            assert (geometry.height_px, geometry.width_px) == frame.shape[:2]
            assert all(abs(skew_ms) <= 40 for skew_ms in frame.metadata["skew_ms"])
            assert len(frame.metadata["skew_ms"]) == len(frame.metadata["cameras"])
        sequences = []
        for _ in range(10):
            with subscriber.receive(timeout_s=PATIENCE_S) as frame:
                assert frame.pixels.shape == (HEIGHT, WIDTH, 3)
                assert frame.captured_ns < frame.published_ns
                assert abs(frame.captured_wall_ns - (time.time_ns() - time.monotonic_ns() + frame.captured_ns)) < 1e9
                assert frame.pixels.max(axis=2).reshape(HEIGHT, 51, 32).max(axis=(0, 2)).min() > 60, "no black part"
                sequences.append(frame.sequence)
        assert sequences == sorted(set(sequences))
        status = stitcher.status()
        assert status["healthy"], status["reason"]
        assert set(status["stages"]) == {*names, "publish"}
        assert status["stages"]["publish"]["frames"] >= 10
        assert status["details"]["calibration"]["state"] == "calibrated"
        assert status["details"]["renderer"] == choose("auto").kind
        exposure = status["details"]["calibration"]["exposure"]
        assert list(exposure) == names
        assert [len(one["gains"]) for one in exposure.values()] == [3] * 3
        assert {camera["state"] for camera in status["details"]["cameras"].values()} == {"connected"}
    assert [camera.name for camera in load(file, names).cameras] == names
    assert [event["source"] for event in stitcher.events("calibrated")] == ["pictures"], stitcher.log.read_text()


@pytest.mark.long
def test_a_camera_that_was_turned_is_named(stream: str, tmp_path: Path) -> None:
    port, file = free_ports(5), tmp_path / "calibration.json"
    # As if the third camera had stood 0.6 degrees further to the right when it was calibrated.
    yaws_deg = [yaw + 0.6 * (name == "cam2") for name, yaw in zip(NAMES, YAWS_DEG, strict=True)]
    poses = [pose(name, rotation(yaw), 640, 360, HFOV_DEG) for name, yaw in zip(NAMES, yaws_deg, strict=True)]
    save(Calibration(tuple(poses)), file)
    with (
        http_cameras(port),
        StitcherProcess(
            stream, tmp_path, http_urls(port), calibration={"file": str(file)}, quality={"interval_s": 0.5}
        ) as stitcher,
        Subscriber(stream, name="test", attach_timeout_s=PATIENCE_S) as subscriber,
    ):
        stitcher.wait_for(subscriber, lambda frame: frame.metadata["cameras"] == NAMES)

        def told() -> dict[str, Any]:
            calibration: dict[str, Any] = stitcher.status()["details"]["calibration"]
            return calibration

        wait_until(lambda: told()["quality"]["warning"], "a warning", timeout_s=PATIENCE_S)
        calibration = told()
        assert "cam2 was moved?" in calibration["quality"]["warning"]
        drifts_px = [pair["drift_px"] for pair in calibration["quality"]["pairs"]]
        turned_px = math.radians(0.6) * calibration["panorama"]["scale_px"]
        assert drifts_px == pytest.approx([0, turned_px, turned_px, 0], abs=0.3)
        assert set(calibration["drawing"]["outlines_px"]) == set(NAMES)
    assert stitcher.events("cameras do not fit")


@pytest.mark.long
def test_a_camera_that_dies_is_marked_and_returns(stream: str, tmp_path: Path) -> None:
    port, file = free_ports(5), tmp_path / "calibration.json"
    calibration = rig(width_px=SMALL.width_px, height_px=SMALL.height_px)
    save(calibration, file)
    with (
        http_cameras(port, (0, 1, 3, 4)),
        StitcherProcess(stream, tmp_path, http_urls(port), calibration={"file": str(file)}) as stitcher,
        Subscriber(stream, name="test", attach_timeout_s=PATIENCE_S) as subscriber,
    ):
        others = [name for name in NAMES if name != "cam2"]
        # This camera never exists: the saved calibration is enough to start without it.
        stitcher.wait_for(subscriber, lambda frame: frame.metadata["cameras"] == others)
        for _ in range(8):  # more than there are slots
            with subscriber.receive(timeout_s=PATIENCE_S) as frame:
                assert is_marked(frame, calibration, "cam2")
                assert not any(is_marked(frame, calibration, name) for name in frame.metadata["cameras"])
        assert stitcher.status()["details"]["cameras"]["cam2"]["state"].startswith("lost: Connection refused")
        for _ in range(2):  # the camera starts and dies twice
            with http_camera(2, port + 2):
                stitcher.wait_for(subscriber, lambda frame: "cam2" in frame.metadata["cameras"])
                with subscriber.receive(timeout_s=PATIENCE_S) as frame:
                    assert not is_marked(frame, calibration, "cam2")
            stitcher.wait_for(subscriber, lambda frame: is_marked(frame, calibration, "cam2"))
            with subscriber.receive(timeout_s=PATIENCE_S) as frame:
                assert frame.metadata["cameras"] == others
        status = stitcher.status()
        assert status["healthy"], "a stitcher that has lost a camera is healthy"
        assert status["details"]["cameras"]["cam2"]["connections"] == 2


@pytest.mark.long
def test_without_a_calibration_a_missing_camera_is_left_out_and_added_later(stream: str, tmp_path: Path) -> None:
    port = free_ports(5)
    settings = {"wait_s": 0.5, "retry_s": 0.5}
    with (
        http_cameras(port, range(4)),
        StitcherProcess(stream, tmp_path, http_urls(port), calibration=settings) as stitcher,
        Subscriber(stream, name="test", attach_timeout_s=PATIENCE_S) as subscriber,
    ):
        stitcher.wait_for(subscriber, lambda frame: frame.metadata["cameras"] == NAMES[:4])
        assert stitcher.status()["details"]["calibration"]["unplaced"] == ["cam4"]
        stitcher.wait_for_event(
            "cameras not placed, they are left out", lambda e: e["cameras"] == ["cam4"] and "overlap" in e["remedy"]
        )
        with http_camera(4, port + 4):
            stitcher.wait_for(subscriber, lambda frame: frame.metadata["cameras"] == NAMES)
            assert stitcher.status()["details"]["calibration"]["unplaced"] == []


@pytest.mark.long
def test_cameras_that_do_not_overlap_give_an_error_with_a_remedy(stream: str, tmp_path: Path) -> None:
    def still(seed: int) -> Units:
        blocks = np.random.default_rng(seed).integers(40, 200, (12, 20)).astype(np.uint8)
        view = blocks.repeat(16, 0).repeat(16, 1)
        return encode_units(tmp_path / f"{seed}.ts", picture=lambda _: view)

    settings = {"wait_s": 0.2, "retry_s": 0.2}
    with (
        serve(FaultyCamera(still(0))) as first,
        serve(FaultyCamera(still(1))) as second,
        StitcherProcess(stream, tmp_path, [first, second, *["/nonexistent"] * 3], calibration=settings) as stitcher,
    ):
        stitcher.wait_for_event("calibration failed", lambda _: True)
        reason = stitcher.events("calibration failed")[0]["reason"]
        assert "cam0, cam1" in reason
        assert "calibration.file" in reason
        status = stitcher.status()
        assert not status["healthy"]
        assert status["details"]["calibration"]["state"] in (f"failed: {reason}", "calibrating")


def test_a_stream_that_is_already_published_is_reported_in_one_sentence(stream: str, tmp_path: Path) -> None:
    with Publisher(stream, FrameFormat(16, 16), slots=3):
        command = StitcherProcess(stream, tmp_path, ["/nonexistent"] * 5).command
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert done.returncode == 1
    assert stream in done.stderr
    assert complaints(done.stderr) == []


@pytest.fixture
def rtsp_base() -> Iterator[str]:
    """Return the address of a real RTSP server with the five cameras."""
    with rtsp_server() as address:
        yield address


@pytest.mark.long
def test_five_rtsp_cameras_become_one_panorama(stream: str, tmp_path: Path, rtsp_base: str) -> None:
    urls = [f"{rtsp_base}/cam{i}" for i in range(5)]
    with (
        StitcherProcess(stream, tmp_path, urls) as stitcher,
        Subscriber(stream, name="test", attach_timeout_s=PATIENCE_S) as subscriber,
    ):
        stitcher.wait_for(subscriber, lambda frame: frame.metadata["cameras"] == NAMES)
        with subscriber.receive(timeout_s=PATIENCE_S) as first, subscriber.receive(timeout_s=PATIENCE_S) as second:
            assert second.captured_ns > first.captured_ns
            assert (first.pixels != second.pixels).any()
            assert first.pixels.max(axis=2).reshape(HEIGHT, 51, 32).max(axis=(0, 2)).min() > 60, "no black part"
        yaws = [camera["yaw_deg"] for camera in stitcher.status()["details"]["calibration"]["cameras"].values()]
        np.testing.assert_allclose(yaws, (-72, -36, 0, 36, 72), atol=2)


def test_a_wrong_configuration_ends_with_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "framebus.yaml"
    config.write_text("stitcher: {width_px: 10}\n")
    assert SERVICE.main(["--config", str(config)]) == 2
    assert capsys.readouterr().err.startswith(f"{config}:1: stitcher.width_px")
