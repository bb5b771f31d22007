"""The supervisor: what dies is started again, what dies for good ends all, what does not end is killed."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from services.common.config import ConfigurationError
from services.common.service import ServiceError
from services.supervisor import child as child_module
from services.supervisor.child import Child
from services.supervisor.entry import SERVICE
from services.supervisor.service import page_url, status_line, supervise
from tests.support import ROOT, wait_until

pytestmark = pytest.mark.slow


def make_child(program: str, restarts: int = 5) -> Child:
    child = Child("streamer", None, restarts, 60.0)
    child._command = [sys.executable, "-c", program]
    return child


def tend_until_dead_for_good(child: Child) -> str:
    return wait_until(child.tend, "it is dead for good", timeout_s=30) or ""


def test_a_death_is_followed_by_a_start(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    mark = tmp_path / "starts"
    child = make_child(f"open({str(mark)!r}, 'a').write('x'); import os; os.kill(os.getpid(), 9)", restarts=2)
    child.start()
    reason = tend_until_dead_for_good(child)
    assert reason == "streamer ended by signal SIGKILL, 3 times in 60 s"
    assert mark.read_text() == "xxx"
    assert "starting it again in 0.5 s" in capfd.readouterr().err


def test_a_fault_that_no_restart_mends_is_for_good(tmp_path: Path) -> None:
    config = tmp_path / "bad.yaml"
    config.write_text("streamer: {port: nonsense}\n")
    child = Child("streamer", config, 5, 60.0)
    child.start()
    assert tend_until_dead_for_good(child) == "streamer ended with status 2: a restart would not help"


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_what_does_not_end_is_killed_with_all_that_it_started(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    program = (
        "import os, signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "other = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(100)'])\n"
        f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{other.pid}}')\n"
        "time.sleep(100)"
    )
    child = make_child(program)
    child.start()
    wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 2, "it has started another")
    child.request_stop()
    child.stop(time.monotonic() + 0.2)
    assert "is killed" in capfd.readouterr().err
    # A killed process is gone when the kernel has come to it.
    wait_until(lambda: not any(map(is_running, map(int, pids.read_text().split()))), "both are gone")


def test_the_page_and_the_status_line() -> None:
    configuration = SERVICE.load(None, {"FRAMEBUS_STREAMER__HOST": "0.0.0.0"})
    assert page_url(configuration) == "http://127.0.0.1:8080"
    stage = {"fps": 25.0, "latency_p50_ms": 38.4}
    statuses: dict[str, dict[str, Any]] = {
        "detector": {"stages": {"detect": stage}},
        "simulator": {"stages": {}},
        "stitcher": {"stages": {"cam0": {"fps": 24.96, "latency_p50_ms": None}, "publish": stage}},
    }
    assert status_line(statuses) == "detector: detect 25.0 fps 38 ms | stitcher: cam0 25.0 fps, publish 25.0 fps 38 ms"
    assert status_line({}) == "waiting for the cameras"


def test_the_committed_configuration_is_good() -> None:
    configuration = SERVICE.load(ROOT / "config/framebus.yaml", {})
    assert configuration.supervisor.services == ("simulator", "stitcher", "detector", "streamer")
    assert configuration.source == ROOT / "config/framebus.yaml"
    stitcher = configuration.model_dump()["stitcher"]
    assert (stitcher["width_px"] % 4, stitcher["height_px"] % 4) == (0, 0)


def test_the_whole_file_is_checked_at_once(tmp_path: Path) -> None:
    config = tmp_path / "bad.yaml"
    config.write_text("streamer:\n  port: x\nstitcher:\n  width_px: 4897\nsupervisor:\n  services: [stitcher, baker]\n")
    with pytest.raises(ConfigurationError) as caught:
        SERVICE.load(config, {})
    faults = str(caught.value).splitlines()
    assert [fault.partition(": ")[0] for fault in sorted(faults)] == [f"{config}:{line}" for line in (2, 4, 6)]


def test_a_service_that_dies_for_good_ends_the_others(stream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_module, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setenv("FRAMEBUS_STREAM__NAME", stream)
    monkeypatch.setenv("FRAMEBUS_STREAMER__HOST", "192.0.2.1")
    monkeypatch.setenv("FRAMEBUS_SUPERVISOR__SERVICES", "[detector, streamer]")
    monkeypatch.setenv("FRAMEBUS_SUPERVISOR__RESTARTS", "1")
    configuration = SERVICE.load(None)
    before = psutil.Process().children()
    with pytest.raises(ServiceError, match="streamer ended with status 1, 2 times"):
        supervise(configuration, threading.Event())
    assert psutil.Process().children() == before
