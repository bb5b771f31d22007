"""Helpers of the cases: descriptors, children that must end well, and programs that must not hang."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from framebus import FrameFormat
from framebus.bus.options import Wake
from framebus.ring.backend import BACKEND
from tests.support import BACKENDS, PATIENCE_S, ROOT

SMALL = FrameFormat(4, 6)
ALL_WAKES: tuple[Wake, ...] = ("zmq", "futex", "predict", "busy")
WAKES = pytest.mark.parametrize("wake", ALL_WAKES)
EACH_BACKEND = pytest.mark.parametrize("backend", BACKENDS)
HEAD = """
import faulthandler, gc, os, signal, sys, threading, time
faulthandler.register(signal.SIGUSR1, all_threads=True)
from framebus import *
"""


def open_descriptors() -> frozenset[tuple[str, str]]:
    """Return the open descriptors of this process: their numbers and targets."""
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the descriptor of the listing itself
            found.add((link.name, os.readlink(link)))
    return frozenset(found)


def descriptors() -> frozenset[tuple[str, str]]:
    """Return the descriptors that are open after a garbage collection."""
    gc.collect()
    return open_descriptors()


def left_open(before: frozenset[tuple[str, str]]) -> frozenset[tuple[str, str]]:
    """Return the descriptors that were opened since and stay open. Threads of other tests open some for a moment."""
    deadline_s = time.monotonic() + 1
    while (more := open_descriptors() - before) and time.monotonic() < deadline_s:
        gc.collect()
        time.sleep(0.01)
    return more


def in_child(function: Callable[[], object]) -> int:
    """Run the function in a forked child; return its exit status, or minus the number of the signal that ended it."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            function()
            status = 0
        except SystemExit as end:
            status = int(str(end.code))
        except BaseException:  # noqa: BLE001  the parent asserts on the status
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run(code: str, backend: str, *arguments: str) -> str:
    """Run a program and return its output. If it hangs, it prints the stacks of its threads, and the test fails."""
    program = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", HEAD + code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), BACKEND: backend},
    )
    try:
        said, complained = program.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        program.send_signal(signal.SIGUSR1)
        time.sleep(0.5)
        program.kill()
        said, complained = program.communicate()
    assert (program.returncode, complained) == (0, ""), complained + said
    return said


def by_type(value: object) -> str:
    """Return the ID of a test's value, which may be too large to print."""
    return type(value).__name__
