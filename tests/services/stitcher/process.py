"""The stitcher as a process, and the simulator's cameras, for tests."""

from __future__ import annotations

import functools
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml

from framebus import Frame, Subscriber, companion_path
from services.common.status import read_status
from services.simulator.config import SimulatorSection
from services.simulator.render import render
from services.simulator.serve import Loop
from services.stitcher.calibration.poses import Calibration, CameraPose
from services.stitcher.rendering.mark import GREY
from services.stitcher.rendering.panorama import plan
from tests.services.simulator.clips import SMALL, rendered
from tests.services.stitcher.faulty import FaultyCamera, Units, serve
from tests.support import ROOT, wait_until

WIDTH, HEIGHT = 1632, 228
NAMES = [f"cam{i}" for i in range(5)]
PATIENCE_S = 60.0


class StitcherProcess:
    """A running stitcher; ended with SIGTERM, which it must obey."""

    def __init__(self, stream: str, folder: Path, urls: Sequence[str], **section: Any) -> None:
        self._stream = stream
        self.log = folder / "log"
        config = folder / "framebus.yaml"
        cameras = [{"name": name, "url": url} for name, url in zip(NAMES[: len(urls)], urls, strict=True)]
        stitcher = {
            "cameras": cameras,
            "width_px": WIDTH,
            "height_px": HEIGHT,
            "gone_after_s": 1.0,
            "reconnect": {"first_s": 0.1, "max_s": 0.5},
            **section,
        }
        config.write_text(yaml.safe_dump({"stream": {"name": stream, "slots": 6}, "stitcher": stitcher}))
        self.command = [sys.executable, "-m", "services.stitcher", "--config", str(config)]

    def __enter__(self) -> StitcherProcess:
        with self.log.open("w") as log:
            self.process = subprocess.Popen(self.command, cwd=ROOT, stderr=log)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            assert self.process.wait(PATIENCE_S) == 0, self.log.read_text()
        finally:
            self.process.kill()
            self.process.wait()

    def status(self) -> dict[str, Any]:
        return read_status(companion_path(self._stream, "status.stitcher.sock"), timeout_s=10)

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == name]

    def wait_for_event(self, name: str, condition: Callable[[dict[str, Any]], bool]) -> None:
        wait_until(
            lambda: any(map(condition, self.events(name))),
            f"a wanted {name!r} is logged",
            timeout_s=PATIENCE_S,
            interval_s=0.05,
            detail=self.log.read_text,
        )

    def wait_for(self, subscriber: Subscriber, condition: Callable[[Frame], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            with subscriber.receive(timeout_s=PATIENCE_S) as frame:
                if condition(frame):
                    return
                assert time.monotonic() < deadline, (frame.metadata, self.log.read_text())

    def check_rate(self, well: str = "cam0", frames: int = 75) -> None:
        """Check that the frames of a healthy camera give about as many panoramas."""
        first = self.status()["stages"]
        wait_until(
            lambda: self.status()["stages"][well]["frames"] >= first[well]["frames"] + frames,
            f"{frames} frames of {well} more",
            timeout_s=PATIENCE_S,
            interval_s=0.1,
        )
        last = self.status()["stages"]
        came = last[well]["frames"] - first[well]["frames"]
        published = sum(last["publish"][key] - first["publish"][key] for key in ("frames", "skipped"))
        assert published >= 0.9 * came, "the pace is that of the fastest"


def is_marked(frame: Frame, calibration: Calibration, name: str) -> bool:
    edges = _edges_px(calibration.cameras)
    index = [camera.name for camera in calibration.cameras].index(name)
    region = frame.pixels[:, edges[index] + 10 : edges[index + 1] - 10]
    return bool((region[..., 0] == region[..., 2]).all() and region.min() >= GREY)


@functools.cache
def _edges_px(cameras: tuple[CameraPose, ...]) -> tuple[int, ...]:
    return plan(Calibration(cameras), WIDTH, HEIGHT).edges_px


@contextmanager
def http_camera(number: int, port: int, section: SimulatorSection = SMALL) -> Iterator[subprocess.Popen[bytes]]:
    """One of the simulator's cameras, as a process, which dies at the end of the block."""
    clip = render(section) / f"cam{number}.ts"
    command = [sys.executable, "-m", "services.simulator.serve", str(clip), "--host", "127.0.0.1"]
    with subprocess.Popen([*command, "--port", str(port), "--t0", "0"], cwd=ROOT, stderr=subprocess.DEVNULL) as server:
        try:
            yield server
        finally:
            server.kill()


@contextmanager
def http_cameras(first_port: int, numbers: Sequence[int] = range(5)) -> Iterator[None]:
    """Some of the simulator's cameras, for the whole of a test.

    Threads of this process serve them, because a process for each would take longer to start than most tests take. They
    show what the processes of ``http_camera`` show at the same time.
    """
    with ExitStack() as stack:
        for number in numbers:
            clip = rendered() / f"cam{number}.ts"
            loop = Loop.read(clip)
            is_key = tuple(index in loop.key_frames for index in range(len(loop.packets)))
            camera = FaultyCamera(Units("h264", loop.packets, is_key, clip), epoch_s=0.0)
            stack.enter_context(serve(camera, first_port + number))
        yield


def http_urls(first_port: int) -> list[str]:
    return [f"http://127.0.0.1:{first_port + i}/cam{i}.ts" for i in range(5)]
