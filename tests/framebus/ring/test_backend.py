"""Which steps of a hand-over a process takes, and what it is told where those that it asks for are not there."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support import ROOT

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
def test_the_environment_chooses(asked: str, used: str) -> None:
    assert run(asked, LOOK) == used


def test_without_the_compiled_steps_python_takes_their_place() -> None:
    assert run("auto", HIDE + LOOK) == "python"


@pytest.mark.parametrize(
    "call", ["Publisher('no-backend', framebus.FrameFormat(2, 2))", "Subscriber('no-backend', attach_timeout_s=0)"]
)
def test_what_cannot_be_had_is_said_where_a_stream_is_opened(call: str) -> None:
    told = run("c", HIDE + OPEN.format(call))
    assert told.startswith("FRAMEBUS_BACKEND=c asks for the compiled part of framebus, which was not built")
    assert run("rust", OPEN.format(call)) == "FRAMEBUS_BACKEND is one of auto, c, python, not 'rust'"
