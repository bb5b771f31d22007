"""The tests run with the backend that FRAMEBUS_BACKEND asks for, and so do the processes that they start."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

import framebus
from framebus.ring import _ring_py, backend
from tests.support import ASKED, ROOT

IS_BUILT = importlib.util.find_spec("framebus.ring._ring_c") is not None
WANTED = {"c": "c", "python": "python", "auto": "c" if IS_BUILT else "python"}[ASKED]


def test_this_process_runs_the_requested_backend() -> None:
    assert framebus.backend == WANTED
    assert (backend.steps is _ring_py) == (WANTED == "python")
    backend.check()


def test_a_process_started_by_a_test_runs_the_same_backend() -> None:
    command = [sys.executable, "-c", "import framebus; print(framebus.backend)"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout == f"{WANTED}\n"


@pytest.mark.usefixtures("each_steps")
def test_a_test_of_each_backend_runs_with_the_one_that_it_is_named_after(request: pytest.FixtureRequest) -> None:
    named = request.node.callspec.params["each_steps"]
    assert backend.name() == named
    assert ASKED in ("auto", named)
