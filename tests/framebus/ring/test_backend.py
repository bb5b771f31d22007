"""Which steps of a hand-over a process takes, and what it is told where those that it asks for are not there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from tests.support import ROOT

pytestmark = pytest.mark.slow

LOOK = "import framebus; print(framebus.backend)"
OPEN = "import framebus\ntry: framebus.{}\nexcept framebus.UnsupportedEnvironment as error: print(error)"
HIDE = "import sys; sys.modules['framebus.ring._ring_c'] = None\n"


def run(backend: str, code: str) -> str:
    environment = {**os.environ, "FRAMEBUS_BACKEND": backend, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=True
    ).stdout.strip()


@pytest.mark.usefixtures("compiled_steps")
@pytest.mark.parametrize(("asked", "used"), [("", "c"), ("auto", "c"), ("c", "c"), ("python", "python")])
def test_the_environment_selects_the_backend(asked: str, used: str) -> None:
    assert run(asked, LOOK) == used


def test_without_the_compiled_steps_python_takes_their_place() -> None:
    assert run("auto", HIDE + LOOK) == "python"


@pytest.mark.parametrize(
    "call", ["Publisher('no-backend', framebus.FrameFormat(2, 2))", "Subscriber('no-backend', attach_timeout_s=0)"]
)
def test_an_unavailable_backend_is_reported_when_a_stream_is_opened(call: str) -> None:
    told = run("c", HIDE + OPEN.format(call))
    assert told.startswith("FRAMEBUS_BACKEND=c asks for the compiled part of framebus, which was not built")
    assert run("rust", OPEN.format(call)) == "FRAMEBUS_BACKEND is one of auto, c, python, not 'rust'"


DOCTOR = "from framebus.cli import main; main(['doctor', '--json'])"


def told_by_doctor(backend: str, before: str = "") -> tuple[str, str, str]:
    """Level, sight and remedy of the only thing that the doctor says of the backend."""
    findings = json.loads(run(backend, before + DOCTOR))
    (found,) = (finding for finding in findings if re.match("backend: |FRAMEBUS_BACKEND", finding["what"]))
    return found["level"], found["what"], found["remedy"]


@pytest.mark.usefixtures("compiled_steps")
def test_the_doctor_names_the_backend() -> None:
    assert told_by_doctor("auto") == ("ok", "backend: c", "")
    asked = "backend: python, because FRAMEBUS_BACKEND=python asks for it"
    assert told_by_doctor("python") == ("note", asked, "")


def test_the_doctor_says_how_to_get_the_compiled_backend() -> None:
    level, what, remedy = told_by_doctor("auto", HIDE)
    assert level == "warning"
    assert what.startswith("backend: python, because the compiled part of framebus was not built (")
    assert remedy == "install a C compiler, Python's headers and framebus again"


def test_the_doctor_reports_an_unavailable_backend_as_a_problem() -> None:
    level, what, remedy = told_by_doctor("c", HIDE)
    assert (level, remedy) == (
        "problem", "install a C compiler, Python's headers and framebus again, or unset the variable",
    )  # fmt: skip
    assert what.startswith("FRAMEBUS_BACKEND=c asks for the compiled part of framebus, which was not built (")
    told = "FRAMEBUS_BACKEND is one of auto, c, python, not 'rust'"
    assert told_by_doctor("rust") == ("problem", told, "unset FRAMEBUS_BACKEND")
