"""Start and stop of a service in a process."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT, complaints

pytestmark = pytest.mark.slow

PROGRAM = """
from framebus import StreamNotFound
from services.common.config import CommonConfiguration
from services.common.service import Service, ServiceError
import structlog

def main(configuration, stop):
    log = structlog.get_logger()
    {body}

raise SystemExit(Service("sample", CommonConfiguration, main).main())
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    def begin(body: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM.format(body=body), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error", **environment},
        )

    return begin


def finish(process: subprocess.Popen[str]) -> tuple[int, str, list[dict[str, Any]]]:
    """Return the exit status, the standard error, and the events in it."""
    output, errors = process.communicate(timeout=20)
    assert output.replace("ready\n", "") == ""
    return process.returncode, errors, [json.loads(line) for line in errors.splitlines() if line.startswith("{")]


def test_a_service_that_returns_has_started_and_stopped(start: Start) -> None:
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_the_service(start: Start, number: signal.Signals) -> None:
    process = start("print('ready', flush=True); stop.wait()")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    status, _, events = finish(process)
    assert status == 0
    assert events[-1]["event"] == "stopped"


def test_a_signal_stops_the_service_at_any_moment(start: Start) -> None:
    # The loop is nearly always in the event's own code, where a handler that acquired its lock would wait forever.
    body = "print('ready', flush=True)\n    while not stop.wait(0): stop.is_set()"
    for _ in range(10):
        process = start(body)
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert finish(process)[0] == 0


@pytest.mark.parametrize("error", ["ServiceError('no camera')", "StreamNotFound('no camera')"])
def test_a_service_error_is_reported_in_one_sentence(start: Start, error: str) -> None:
    status, errors, events = finish(start(f"raise {error}"))
    assert status == 1
    assert (events[-1]["event"], events[-1]["reason"], events[-1]["level"]) == ("failed", "no camera", "error")
    assert complaints(errors) == []


def test_an_error_of_the_program_keeps_its_traceback(start: Start) -> None:
    status, errors, _ = finish(start("raise KeyError('a fault of ours')"))
    assert status == 1
    assert "Traceback" in errors
    assert "a fault of ours" in errors


def test_a_faulty_configuration_is_reported_before_the_start(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "framebus.yaml"
    file.write_text("stream: {slots: 1}\n")
    status, errors, events = finish(start("pass", "--config", str(file)))
    assert (status, events) == (2, [])
    assert errors == f"{file}:1: stream.slots: Input should be greater than or equal to 3\n"


def test_check_reads_the_configuration_and_does_nothing(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "framebus.yaml"
    file.write_text("stream: {slots: 8}\n")
    assert finish(start("raise KeyError", "--check", "--config", str(file))) == (0, "", [])


CHECKED = PROGRAM.replace(
    'raise SystemExit(Service("sample", CommonConfiguration, main).main())',
    "from services.common.service import UnusableSetting\n"
    "def check(configuration):\n    {check}\n"
    "raise SystemExit(Service('sample', CommonConfiguration, main, check=check).main())",
)


def run_checked(check: str, body: str = "pass", *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", CHECKED.format(body=body, check=check), *arguments],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.stdout == ""
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("check", "told"),
    [
        ("pass", ""),
        ("raise ServiceError('no model at http://u:p@host/x\\nno room')", "no model at http://***@host/x\nno room"),
        ("raise StreamNotFound('no stream')", "no stream"),
        (
            "import nowhere",
            "what it needs is not installed: No module named 'nowhere'; pip install 'framebus-services[sample]'",
        ),
    ],
)
def test_check_loads_what_a_start_would_and_names_each_fault_in_a_line(check: str, told: str) -> None:
    status, errors = run_checked(check, "raise KeyError", "--check")
    assert status == (2 if told else 0)
    assert errors == "".join(f"sample: {line}\n" for line in told.splitlines())


def test_an_unusable_setting_ends_with_a_status_of_its_own() -> None:
    status, errors = run_checked(
        "pass", "from services.common.service import UnusableSetting as U; raise U('no model')"
    )
    assert status == 2
    assert json.loads(errors.splitlines()[-1])["reason"] == "no model"


COMMANDS = """
import sys
from services.common.config import CommonConfiguration
from services.common.service import Service, ServiceError

def look(arguments):
    "Look at cameras."
    if arguments == ["fail"]:
        raise ServiceError("nothing at rtsp://user:hunter2@host/x")
    if arguments == ["lack"]:
        raise ModuleNotFoundError("No module named 'eyes'")
    print(arguments)
    return 7

raise SystemExit(Service("sample", CommonConfiguration, lambda *_: None, commands={"look": look}).main())
"""


@pytest.mark.parametrize(
    ("arguments", "status", "output", "errors"),
    [
        (["look", "a", "--b"], 7, "['a', '--b']\n", ""),
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
def test_a_command_runs_instead_of_the_service(arguments: list[str], status: int, output: str, errors: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, *arguments], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert (done.returncode, done.stdout, done.stderr) == (status, output, errors)


def test_help_names_the_commands() -> None:
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, "--help"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0
    assert "  look  Look at cameras.\n" in done.stdout
