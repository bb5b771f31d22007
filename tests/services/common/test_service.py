"""Start and stop of a service.

Most services of these tests run in the test's process, because a process of its own takes most of a second to start.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from framebus import StreamNotFound
from services.common.config import CommonConfiguration, ConfigurationError
from services.common.service import Service, ServiceError, UnusableSetting
from services.detector import entry as detector
from services.relay import entry as relay
from services.stitcher import entry as stitcher
from tests.support import ROOT, complaints

pytestmark = pytest.mark.slow

PROGRAM = """
from services.common.config import CommonConfiguration
from services.common.service import Service, ServiceError
import structlog

def main(configuration, stop):
    log = structlog.get_logger()
    {body}

raise SystemExit(Service("sample", CommonConfiguration, main).main())
"""
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
Captured = pytest.CaptureFixture[str]
Run = Callable[[CommonConfiguration, threading.Event], None]


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """Restore the handlers of signals, which a service sets."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def start(body: str) -> subprocess.Popen[str]:
    """Start a service in a process."""
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(body=body)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"},
    )


def events_in(errors: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in errors.splitlines() if line.startswith("{")]


def finish(process: subprocess.Popen[str]) -> tuple[int, str, list[dict[str, Any]]]:
    """Return the exit status, the standard error, and the events in it."""
    output, errors = process.communicate(timeout=20)
    assert output == ""
    return process.returncode, errors, events_in(errors)


def run(capsys: Captured, body: Run, *arguments: str) -> tuple[int, str, list[dict[str, Any]]]:
    """Run a service in this process; return the same."""
    status = Service("sample", CommonConfiguration, body).main(arguments)
    output, errors = capsys.readouterr()
    assert output == ""
    return status, errors, events_in(errors)


def idle(_configuration: CommonConfiguration, _stop: threading.Event) -> None:
    """Return at once."""


def raising(error: Exception) -> Run:
    def body(_configuration: CommonConfiguration, _stop: threading.Event) -> None:
        raise error

    return body


def test_a_service_that_returns_has_started_and_stopped() -> None:
    status, errors, events = finish(start("log.info('at work', frames=3)"))
    assert status == 0
    assert [(event["event"], event["service"], event["level"]) for event in events] == [
        ("started", "sample", "info"),
        ("at work", "sample", "info"),
        ("stopped", "sample", "info"),
    ]
    assert events[1]["frames"] == 3
    assert events[0]["timestamp"].endswith("Z")
    assert len(errors.splitlines()) == 3


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_stops_the_service(capsys: Captured, number: signal.Signals) -> None:
    def body(_configuration: CommonConfiguration, stop: threading.Event) -> None:
        os.kill(os.getpid(), number)
        assert stop.wait(20)

    status, _, events = run(capsys, body)
    assert status == 0
    assert events[-1]["event"] == "stopped"


def test_a_signal_stops_the_service_at_any_moment(capsys: Captured) -> None:
    def body(_configuration: CommonConfiguration, stop: threading.Event) -> None:
        threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGTERM)).start()
        # The loop is nearly always in the event's own code, where a handler that acquired its lock would wait forever.
        while not stop.wait(0):
            stop.is_set()

    for _ in range(20):
        assert run(capsys, body)[0] == 0


@pytest.mark.parametrize("error", [ServiceError("no camera"), StreamNotFound("no camera")])
def test_a_service_error_is_reported_in_one_sentence(capsys: Captured, error: Exception) -> None:
    status, errors, events = run(capsys, raising(error))
    assert status == 1
    assert (events[-1]["event"], events[-1]["reason"], events[-1]["level"]) == ("failed", "no camera", "error")
    assert complaints(errors) == []


def test_an_error_of_the_program_keeps_its_traceback() -> None:
    status, errors, _ = finish(start("raise KeyError('a fault of ours')"))
    assert status == 1
    assert "Traceback" in errors
    assert "a fault of ours" in errors


def test_a_faulty_configuration_is_reported_before_the_start(capsys: Captured, tmp_path: Path) -> None:
    file = tmp_path / "framebus.yaml"
    file.write_text("stream: {slots: 1}\n")
    status, errors, events = run(capsys, raising(KeyError()), "--config", str(file))
    assert (status, events) == (2, [])
    assert errors == f"{file}:1: stream.slots: Input should be greater than or equal to 3\n"


def test_check_reads_the_configuration_and_does_nothing(capsys: Captured, tmp_path: Path) -> None:
    file = tmp_path / "framebus.yaml"
    file.write_text("stream: {slots: 8}\n")
    assert run(capsys, raising(KeyError()), "--check", "--config", str(file)) == (0, "", [])


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (None, ""),
        (ServiceError("no model at http://u:p@host/x\nno room"), "no model at http://***@host/x\nno room"),
        (StreamNotFound("no stream"), "no stream"),
        (
            ModuleNotFoundError("No module named 'nowhere'"),
            "what it needs is not installed: No module named 'nowhere'; pip install 'framebus-services[sample]'",
        ),
    ],
)
def test_check_loads_what_a_start_would_and_names_each_fault_in_a_line(
    capsys: Captured, fault: Exception | None, told: str
) -> None:
    def check(_configuration: CommonConfiguration) -> None:
        if fault is not None:
            raise fault

    status = Service("sample", CommonConfiguration, raising(KeyError()), check=check).main(["--check"])
    assert status == (2 if told else 0)
    assert capsys.readouterr() == ("", "".join(f"sample: {line}\n" for line in told.splitlines()))


def test_an_unusable_setting_ends_with_a_status_of_its_own(capsys: Captured) -> None:
    status, errors, events = run(capsys, raising(UnusableSetting("no model")))
    assert status == 2
    assert events[-1]["reason"] == "no model"
    assert complaints(errors) == []


def look(arguments: list[str]) -> int:
    """Look at cameras."""
    if arguments == ["fail"]:
        raise ServiceError("nothing at rtsp://user:hunter2@host/x")
    if arguments == ["misconfigured"]:
        raise ConfigurationError("f.yaml:1: no such key\nf.yaml:2: no number")
    if arguments == ["lack"]:
        raise ModuleNotFoundError("No module named 'eyes'")
    print(arguments)
    return 7


SAMPLE = Service("sample", CommonConfiguration, idle, commands={"look": look})


@pytest.mark.parametrize(
    ("arguments", "status", "output", "errors"),
    [
        (["look", "a", "--b"], 7, "['a', '--b']\n", ""),
        (["look", "misconfigured"], 2, "", "f.yaml:1: no such key\nf.yaml:2: no number\n"),
        (["look", "fail"], 1, "", "framebus-sample look: nothing at rtsp://***@host/x\n"),
        (
            ["look", "lack"],
            2,
            "",
            "framebus-sample look: what it needs is not installed: No module named 'eyes'; "
            "pip install 'framebus-services[sample]'\n",
        ),
    ],
)
def test_a_command_runs_instead_of_the_service(
    capsys: Captured, arguments: list[str], status: int, output: str, errors: str
) -> None:
    assert SAMPLE.main(arguments) == status
    assert capsys.readouterr() == (output, errors)


@pytest.mark.parametrize(
    ("service", "command"),
    [
        (stitcher.SERVICE, ["check", "picture.png"]),
        (stitcher.SERVICE, ["delays"]),
        (detector.SERVICE, ["check", "model.onnx"]),
        (detector.SERVICE, ["run", "reference.json"]),
        (relay.SERVICE, ["results"]),
        (relay.SERVICE, ["dead-letters", "list"]),
    ],
    ids=lambda given: given.name if isinstance(given, Service) else given[0],
)
@pytest.mark.parametrize("content", [None, "stream: {slots: many}\nnonsense: 1\n", "a: [", "\xff"])
def test_a_command_names_the_faults_of_its_configuration(
    tmp_path: Path, capsys: Captured, service: Service[Any], command: list[str], content: str | None
) -> None:
    file = tmp_path / "framebus.yaml"
    if content is not None:
        file.write_bytes(content.encode("latin-1"))
    # Before the subcommand, if there is one: argparse gives it the rest.
    assert service.main([command[0], "--config", str(file), *command[1:]]) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.splitlines()
    assert all(line.startswith(f"{file}:") for line in errors.splitlines())


def test_help_names_the_commands(capsys: Captured) -> None:
    with pytest.raises(SystemExit) as ended:
        SAMPLE.main(["--help"])
    assert ended.value.code == 0
    assert "  look  Look at cameras.\n" in capsys.readouterr().out
