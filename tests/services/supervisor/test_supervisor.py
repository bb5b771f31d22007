"""The supervisor restarts services that die, ends all if one stays dead, and kills those that do not end."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from services.common.config import ConfigurationError
from services.common.service import ServiceError
from services.supervisor import process as process_module
from services.supervisor.config import SupervisorSection
from services.supervisor.entry import SERVICE
from services.supervisor.events import Events
from services.supervisor.process import GIVEN_UP, RUNNING, ManagedProcess
from services.supervisor.service import page_url, supervise
from tests.support import ROOT, wait_until

pytestmark = pytest.mark.slow


def make_child(
    program: str, events: Events, *, config: Path | None = None, restarts: int = 5, optional: bool = False
) -> ManagedProcess:
    names = ("streamer",) if optional else ()
    section = SupervisorSection(services=("streamer",), optional=names, restarts=restarts)
    child = ManagedProcess("streamer", config, section, events)
    child._command = [sys.executable, "-c", program]
    return child


def supervise_until_dead_for_good(child: ManagedProcess) -> str:
    return wait_until(child.supervise, "it is dead for good", timeout_s=30) or ""


def said(events: Events) -> str:
    return "\n".join(event.text for event in events.take())


def test_a_service_that_dies_is_restarted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "FIRST_PAUSE_S", 0.1)
    mark, events = tmp_path / "starts", Events()
    child = make_child(f"open({str(mark)!r}, 'a').write('x'); import os; os.kill(os.getpid(), 9)", events, restarts=2)
    child.start()
    reason = supervise_until_dead_for_good(child)
    assert reason == "streamer ended by signal SIGKILL, 3 times in 60 s"
    assert mark.read_text() == "xxx"
    assert "streamer ended by signal SIGKILL; starting it again in 0.1 s" in said(events)


def test_a_fault_that_no_restart_can_fix_is_permanent(tmp_path: Path) -> None:
    config, events = tmp_path / "bad.yaml", Events()
    config.write_text("streamer: {port: nonsense}\n")
    child = ManagedProcess("streamer", config, SupervisorSection(), events)
    child.start()
    assert supervise_until_dead_for_good(child) == "streamer ended with status 2: a restart would not help"
    assert f"{config}:1: streamer.port" in said(events)


def test_an_optional_service_is_given_up_and_retried_when_the_file_changes(tmp_path: Path) -> None:
    config, mark, events = tmp_path / "framebus.yaml", tmp_path / "starts", Events()
    config.write_text("# first")
    program = (
        f"with open({str(mark)!r}, 'a') as mark: mark.write('x')\n"
        "print('the model does not fit', flush=True)\n"
        "import pathlib, sys, time\n"
        f"sys.exit(2) if pathlib.Path({str(config)!r}).read_text() == '# first' else time.sleep(100)"
    )
    child = make_child(program, events, config=config, optional=True)
    child.start()

    def given_up() -> bool:
        assert child.supervise() is None
        return child.state == GIVEN_UP

    wait_until(given_up, "it is given up")
    assert child.reason == "the model does not fit"
    (line,) = [event.text for event in events.take() if not event.raw]
    assert line == (
        "streamer is given up, the others go on; tried again when the configuration's file changes: "
        "the model does not fit"
    )
    for _ in range(20):
        assert child.supervise() is None
    assert mark.read_text() == "x"
    config.write_text("# another")

    def tried_again() -> bool:
        assert child.supervise() is None
        return mark.read_text() == "xx"

    wait_until(tried_again, "it is tried again")
    child.note_answer()
    assert (child.state, child.reason) == (RUNNING, "")
    assert "streamer is back" in said(events)
    child.request_stop()
    child.stop(time.monotonic() + 10)


def test_an_optional_service_that_dies_too_often_is_retried_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(process_module, "RETRY_S", 0.01)
    events = Events()
    child = make_child("raise SystemExit(1)", events, restarts=1, optional=True)
    child.start()

    def was_tried_again() -> bool:
        assert child.supervise() is None
        return child.restarts >= 3

    wait_until(was_tried_again, "it is tried again")
    child.stop(0.0)
    assert child.state == GIVEN_UP
    assert [event.text for event in events.take() if event.level == "error"] == [
        "streamer is given up, the others go on; tried again every 0.01 s: ended with status 1"
    ]


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_service_that_does_not_end_is_killed_with_its_children(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    program = (
        "import os, signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "other = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(100)'])\n"
        f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{other.pid}}')\n"
        "time.sleep(100)"
    )
    events = Events()
    child = make_child(program, events)
    child.start()
    wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 2, "it has started another")
    child.note_answer()
    child.request_stop()
    child.stop(time.monotonic() + 0.2)
    assert "is killed" in said(events)
    # The kernel removes a killed process a little later.
    wait_until(lambda: not any(map(is_running, map(int, pids.read_text().split()))), "both are gone")


def test_the_url_of_the_page_is_printed_as_a_local_browser_needs_it() -> None:
    configuration = SERVICE.load(None, {"FRAMEBUS_STREAMER__HOST": "0.0.0.0"})
    assert page_url(configuration) == "http://127.0.0.1:8080"


def test_the_committed_configuration_is_valid() -> None:
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


def test_a_service_that_stays_dead_ends_the_others(stream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRAMEBUS_STREAM__NAME", stream)
    monkeypatch.setenv("FRAMEBUS_STREAMER__HOST", "192.0.2.1")
    monkeypatch.setenv("FRAMEBUS_SUPERVISOR__SERVICES", "[detector, streamer]")
    monkeypatch.setenv("FRAMEBUS_SUPERVISOR__RESTARTS", "0")
    configuration = SERVICE.load(None)
    before = psutil.Process().children()
    with pytest.raises(ServiceError, match="streamer ended with status 1, 1 times"):
        supervise(configuration, threading.Event())
    assert psutil.Process().children() == before
    wait_until(lambda: not [t for t in threading.enumerate() if t.name.startswith("ask-")], "no thread asks any more")
