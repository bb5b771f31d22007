"""The health of the services is judged by their answers, and never by a slow answer alone."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from framebus import companion_path
from services.common.service import Service
from services.common.status import StatusServer, read_status
from services.supervisor import health
from services.supervisor import process as process_module
from services.supervisor.config import SupervisorConfiguration, SupervisorSection
from services.supervisor.events import Events
from services.supervisor.health import Judge, Pulse
from services.supervisor.process import RESTARTING, RUNNING, ManagedProcess
from services.supervisor.service import describe
from tests.support import ROOT, wait_until

pytestmark = pytest.mark.slow

PROGRAM = """
import pathlib, sys, threading
from services.common.status import StatusServer
stream, sick = sys.argv[1], pathlib.Path(sys.argv[2])
def collect():
    return {"service": "sample", "healthy": not sick.exists(), "reason": "no frame" if sick.exists() else ""}
with StatusServer(stream, "sample", collect):
    threading.Event().wait()
"""


@pytest.fixture(autouse=True)
def _asked_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "ASK_EVERY_S", 0.05)
    monkeypatch.setattr(process_module, "FIRST_PAUSE_S", 0.1)


@pytest.fixture
def events() -> Events:
    return Events()


@pytest.fixture
def sick(tmp_path: Path) -> Path:
    """A file whose presence makes the service unhealthy."""
    return tmp_path / "sick"


@pytest.fixture
def judge(stream: str, events: Events, sick: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Judge]:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    process = ManagedProcess("streamer", None, SupervisorSection(), events)
    process._command = [sys.executable, "-c", PROGRAM, stream, str(sick)]

    def ask() -> dict[str, Any] | None:
        try:
            return read_status(companion_path(stream, "status.sample.sock"), 0.2)
        except (OSError, ValueError):
            return None

    judged = Judge(process, ask, 1.0, events)
    process.start()
    judged.start()
    yield judged
    judged.close()
    process.kill("ended")
    process.stop(0.0)
    companion_path(stream, "status.sample.sock").unlink(missing_ok=True)


def step(judge: Judge) -> None:
    assert judge.process.supervise() is None
    judge.judge()


def until(judge: Judge, condition: Any, what: str) -> None:
    def holds() -> bool:
        step(judge)
        return bool(condition())

    wait_until(holds, what)


def test_a_service_that_stops_answering_is_killed_and_restarted(judge: Judge, events: Events) -> None:
    until(judge, lambda: judge.process.state == RUNNING, "it answers")
    first = judge.process.pid
    os.kill(first, signal.SIGSTOP)
    until(judge, lambda: judge.process.state == RESTARTING, "it is killed")
    assert describe([judge])["details"]["services"]["streamer"]["state"] == RESTARTING
    until(judge, lambda: judge.process.state == RUNNING, "another answers")
    assert judge.process.pid not in (0, first)
    assert [event.text for event in events.take()] == [
        "streamer did not answer for 1 s and was killed; starting it again in 0.1 s"
    ]


def test_a_service_that_has_never_answered_is_not_killed(judge: Judge, events: Events) -> None:
    os.kill(judge.process.pid, signal.SIGSTOP)
    first = judge.process.pid
    asked_until_s = time.monotonic() + 1.5 * judge._hung_after_s
    while time.monotonic() < asked_until_s:
        step(judge)
        time.sleep(0.05)
    assert judge.process.pid == first
    assert events.take() == []


def test_an_unhealthy_service_is_logged_once_and_not_restarted(judge: Judge, events: Events, sick: Path) -> None:
    until(judge, lambda: judge.has_worked, "it works")
    first = judge.process.pid
    sick.touch()
    until(judge, lambda: judge._named, "it is named")
    assert judge.reason == "no frame"
    sick.unlink()
    until(judge, lambda: not judge._named, "it is healthy again")
    assert [event.text for event in events.take()] == ["streamer is unhealthy: no frame", "streamer is healthy again"]
    assert judge.process.pid == first


def test_a_supervisor_that_was_itself_stopped_kills_no_service(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.1, 3600.0])
    asked = threading.Event()
    answers: list[object] = [{"healthy": True}, None]

    def ask() -> object:
        if not answers:
            asked.set()
            pulse.close()
            return None
        return answers.pop(0)

    pulse = Pulse("sample", ask)
    monkeypatch.setattr(time, "monotonic", lambda: next(clock, 3600.1))
    pulse.start()
    assert asked.wait(10)
    pulse._thread.join(10)
    answer, count, silent_s = pulse.look()
    assert (answer, count) == ({"healthy": True}, 1)
    assert 0 < silent_s < health.MOST_SILENT_S + 1


def test_a_stopped_service_does_not_block_the_query_of_its_status(stream: str) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def collect() -> dict[str, Any]:
        asked.set()
        go_on.wait(30)
        return {}

    with StatusServer(stream, "supervisor", collect):
        service = Service("supervisor", SupervisorConfiguration, lambda _read, _stop: None)
        configuration = SupervisorConfiguration.model_validate({"stream": {"name": stream}})
        assert service.status(configuration) is None
        assert asked.is_set()
        go_on.set()
