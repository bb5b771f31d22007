"""The simulator reports its progress from its start on, and leaves no incomplete clips."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.common.status import read_statuses
from services.simulator.config import SimulatorSection
from services.simulator.render import clips_folder
from tests.support import ROOT, complaints, files_of, free_ports, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def section(tmp_path: Path) -> SimulatorSection:
    return SimulatorSection(
        cache_dir=tmp_path / "cache", first_port=free_ports(5), duration_s=6, walkers=1, width_px=320, height_px=180
    )


@pytest.fixture
def simulator(stream: str, section: SimulatorSection) -> Iterator[subprocess.Popen[str]]:
    values = section.model_dump(mode="json", exclude_defaults=True)
    environment = {f"FRAMEBUS_SIMULATOR__{name.upper()}": str(value) for name, value in values.items()}
    with subprocess.Popen(
        [sys.executable, "-m", "services", "simulator"],
        cwd=ROOT,
        env={**os.environ, **environment, "PYTHONPATH": str(ROOT), "FRAMEBUS_STREAM__NAME": stream},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        if process.poll() is None:
            process.kill()


def status(stream: str) -> dict[str, Any]:
    return read_statuses(stream).get("simulator", {})


@pytest.mark.long
def test_the_status_shows_the_progress_of_the_render(
    stream: str, simulator: subprocess.Popen[str], section: SimulatorSection
) -> None:
    seen: list[dict[str, Any]] = []

    def served() -> bool:
        found = status(stream)
        if "progress" in found:
            assert (found["healthy"], found["details"]) == (False, {})
            seen.append(found["progress"])
        return bool(found) and "progress" not in found

    wait_until(served, "the cameras are served", timeout_s=90, interval_s=0.02)
    rendering = [step for step in seen if step["unit"] == "frames" and step["total"]]
    assert {step["total"] for step in rendering} == {section.frames}
    done = [step["done"] for step in rendering]
    assert done == sorted(done)
    assert len(set(done)) > 1
    found = status(stream)
    assert found["healthy"]
    assert found["details"]["frames"] == section.frames
    simulator.terminate()
    _, log = simulator.communicate(timeout=20)
    assert simulator.returncode == 0
    assert complaints(log) == []


def test_an_interrupted_render_leaves_no_file(
    stream: str, simulator: subprocess.Popen[str], section: SimulatorSection
) -> None:
    folder = clips_folder(section)
    wait_until(lambda: list(section.cache_dir.glob("*.part-*")), "a render is begun")
    simulator.send_signal(signal.SIGINT)
    _, log = simulator.communicate(timeout=20)
    assert simulator.returncode == 0
    assert complaints(log) == []
    assert [path.name for path in section.cache_dir.iterdir()] == [f"{folder.name}.lock"]
    assert files_of(stream) == []
