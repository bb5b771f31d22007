from __future__ import annotations

import json
import time
from contextlib import ExitStack
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from services.stitcher.calibration.poses import Calibration, CameraPose, save
from services.stitcher.entry import SERVICE
from services.stitcher.inspection.delays import Lag, Record, delays_of, lag_between
from tests.services.stitcher.faulty import FaultyCamera, Image, encode_units, serve
from tests.services.stitcher.scene import SCALE_PX, pose, rotation

POINTS, SECONDS = 200, 15.0


def record(delay_s: float, fps: float, *, every_s: float | None = None, noise: float = 2.0, seed: int = 0) -> Record:
    """Return what a camera sees of a dozen passers-by, some brighter than the ground, or of one each ``every_s``."""
    random, tremble = np.random.default_rng(7), np.random.default_rng(seed)
    times_s = np.arange(0, SECONDS, 1 / fps) + tremble.uniform(0, 1 / fps)
    levels = np.full((len(times_s), POINTS), 110.0)
    places = np.arange(POINTS)
    for number in range(12):
        begin_s, speed, start = random.uniform(0, SECONDS), random.uniform(20, 60), random.uniform(0, POINTS)
        width, contrast = random.uniform(4, 10), random.choice([-60.0, 60.0])
        if every_s is not None:
            begin_s, speed, start, width, contrast = number * every_s, 50.0, 0.0, 6.0, 60.0
        since_s = times_s - delay_s - begin_s
        here = start + speed * since_s[:, None]
        levels += contrast * (np.abs(places - here) < width) * ((since_s >= 0) & (since_s < 4))[:, None]
    return Record(100 + times_s, (levels + tremble.normal(0, noise, levels.shape)).clip(0, 255))


@pytest.mark.parametrize("delay_s", [0.0, 0.12, -0.35, 1.2, -1.9])
@pytest.mark.parametrize("fps", [25.0, 10.0])
def test_the_lag_is_found_at_any_rate(delay_s: float, fps: float) -> None:
    lag = lag_between(record(0, 25.0, seed=1), record(delay_s, fps, seed=2))
    assert lag is not None
    assert lag.seconds == pytest.approx(delay_s, abs=0.01)
    assert 0.5 < lag.likeness <= 1


def test_without_evidence_no_lag_is_reported() -> None:
    moving, still = record(0, 25.0), Record(record(0, 25.0).times_s, np.full((375, POINTS), 90.0))
    assert lag_between(moving, still) is None
    assert lag_between(still, still) is None
    elsewhere = Record(moving.times_s, record(0, 25.0, seed=3).levels[:, ::-1])
    assert lag_between(moving, elsewhere) is None
    short = Record(moving.times_s[:90], moving.levels[:90])
    assert lag_between(moving, short) is None
    # With one passer-by a second, every lag of whole seconds fits.
    assert lag_between(record(0, 25.0, every_s=1.0), record(0.3, 25.0, every_s=1.0, seed=1)) is None


def test_delays_are_reported_for_the_largest_group_relative_to_its_earliest() -> None:
    lags = {
        ("cam0", "cam1"): Lag(0.2, 0.9),
        ("cam1", "cam2"): Lag(-0.3, 0.9),
        ("cam0", "cam2"): Lag(-0.1, 0.9),
        ("cam3", "cam4"): Lag(1.0, 0.9),
    }
    names = [f"cam{i}" for i in range(6)]
    assert delays_of(names, lags) == pytest.approx({"cam0": 0.1, "cam1": 0.3, "cam2": 0.0})
    assert delays_of(names, {}) == {}


def passers(camera: CameraPose, fps: float) -> list[Image]:
    """Return pictures of twenty discs that cross the world in twelve seconds, at different heights and speeds."""
    random = np.random.default_rng(3)
    starts, speeds = random.uniform(-0.6, 0.6, 20), random.choice([-1, 1], 20) * random.uniform(0.08, 0.3, 20)
    heights = random.uniform(-0.2, 0.2, 20)
    pictures = []
    for index in range(round(12 * fps)):
        picture = np.full((camera.height_px, camera.width_px), 100, np.uint8)
        yaws = (starts + speeds * index / fps + 0.7) % 1.4 - 0.7
        rays = np.stack([np.sin(yaws), heights, np.cos(yaws)], axis=-1)
        for place, level in zip(camera.project(rays), np.linspace(20, 230, 20), strict=True):
            if np.isfinite(place).all():
                cv2.circle(picture, (round(place[0]), round(place[1])), round(0.02 * SCALE_PX), level, -1)
        pictures.append(picture)
    return pictures


@pytest.mark.long
def test_the_delays_of_cameras_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    late_s = {"cam0": 0.0, "cam1": 0.25}
    poses = [pose(name, rotation(yaw), 320, 180) for name, yaw in (("cam0", -15), ("cam1", 15))]
    file, config = tmp_path / "calibration.json", tmp_path / "framebus.yaml"
    save(Calibration(tuple(poses)), file)
    epoch_s = time.monotonic()
    with ExitStack() as stack:
        cameras = []
        for camera in poses:
            pictures = passers(camera, 12.5)
            units = encode_units(
                tmp_path / f"{camera.name}.avi", "mjpeg", count=len(pictures), picture=pictures.__getitem__
            )
            served = FaultyCamera(units, fps=12.5, mode="mjpeg", epoch_s=epoch_s + late_s[camera.name])
            cameras.append({"name": camera.name, "url": stack.enter_context(serve(served)), "clock": "arrival"})
        cameras.append({"name": "new", "url": "http://127.0.0.1:9/"})
        config.write_text(yaml.safe_dump({"stitcher": {"cameras": cameras, "calibration": {"file": str(file)}}}))
        command = ["delays", "--config", str(config), "--seconds", "8"]
        assert SERVICE.main([*command, "--json"]) == 1, "one camera is not placed"
        found = json.loads(capsys.readouterr().out)
        assert SERVICE.main([*command, "--calibration", str(tmp_path / "none.json")]) == 1
        assert "there is no calibration" in capsys.readouterr().err
    first, second, new = found["cameras"]
    assert second["delay_s"] - first["delay_s"] == pytest.approx(0.25, abs=0.04)
    assert min(first["delay_s"], second["delay_s"]) == 0
    assert new == {"name": "new", "delay_s": None, "reason": "not placed"}
    assert [pair["cameras"] for pair in found["pairs"]] == [["cam0", "cam1"]]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(["--seconds", "2"], "--seconds must be more than 4"), ([], "it is not known where the cameras look")],
)
def test_wrong_arguments_are_reported_in_one_sentence(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = SERVICE.main(["delays", *arguments])
    except SystemExit as end:
        status = int(str(end.code))
    assert status in (1, 2)
    assert told in capsys.readouterr().err
