"""Which steps of a hand-over a process takes, and what it is told where those that it asks for are not there."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.support import ROOT

pytestmark = pytest.mark.slow

OPEN = """
import framebus
for attempt in (
    lambda: framebus.Publisher("no-backend", framebus.FrameFormat(2, 2)),
    lambda: framebus.Subscriber("no-backend", attach_timeout_s=0),
):
    try:
        attempt()
    except framebus.UnsupportedEnvironment as error:
        print(error)
"""
HIDE = "import sys; sys.modules['framebus.ring._ring_c'] = None\n"
ASK = """
import contextlib, io, json, re
import framebus
from framebus.cli import main
with contextlib.redirect_stdout(io.StringIO()) as said:
    main(["doctor", "--json"])
findings = [one for one in json.loads(said.getvalue()) if re.match("backend: |FRAMEBUS_BACKEND", one["what"])]
(found,) = findings  # the only thing that the doctor says of the backend
"""
LOOK = f"{ASK}print(json.dumps([framebus.backend, found['level'], found['what'], found['remedy']]))"
DOCTOR = f"{ASK}print(json.dumps([found['level'], found['what'], found['remedy']]))"


def run(backend: str, code: str) -> str:
    environment = {**os.environ, "FRAMEBUS_BACKEND": backend, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=True
    ).stdout.strip()


@pytest.mark.usefixtures("compiled_steps")
@pytest.mark.parametrize(
    ("asked", "used", "told"),
    [
        ("", "c", ["ok", "backend: c", ""]),
        ("auto", "c", ["ok", "backend: c", ""]),
        ("c", "c", ["ok", "backend: c", ""]),
        ("python", "python", ["note", "backend: python, because FRAMEBUS_BACKEND=python asks for it", ""]),
    ],
)
def test_the_environment_selects_the_backend_and_the_doctor_names_it(asked: str, used: str, told: list[str]) -> None:
    assert json.loads(run(asked, LOOK)) == [used, *told]


def test_without_the_compiled_steps_python_takes_their_place_and_the_doctor_says_how_to_get_them() -> None:
    used, level, what, remedy = json.loads(run("auto", HIDE + LOOK))
    assert (used, level) == ("python", "warning")
    assert what.startswith("backend: python, because the compiled part of framebus was not built (")
    assert remedy == "install a C compiler, Python's headers and framebus again"


NOT_BUILT = "FRAMEBUS_BACKEND=c asks for the compiled part of framebus, which was not built"
UNKNOWN = "FRAMEBUS_BACKEND is one of auto, c, python, not 'rust'"


def test_a_backend_that_was_not_built_is_reported_when_a_stream_is_opened_and_by_the_doctor() -> None:
    *told, found = run("c", HIDE + OPEN + DOCTOR).splitlines()
    level, what, remedy = json.loads(found)
    assert len(told) == 2
    assert all(one.startswith(NOT_BUILT) for one in told)
    assert (level, remedy) == (
        "problem", "install a C compiler, Python's headers and framebus again, or unset the variable",
    )  # fmt: skip
    assert what.startswith(f"{NOT_BUILT} (")


def test_an_unknown_backend_is_reported_when_a_stream_is_opened_and_by_the_doctor() -> None:
    *told, found = run("rust", OPEN + DOCTOR).splitlines()
    assert told == [UNKNOWN] * 2
    assert json.loads(found) == ["problem", UNKNOWN, "unset FRAMEBUS_BACKEND"]
