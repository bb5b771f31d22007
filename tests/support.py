"""Helpers of the tests."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from mmap import PAGESIZE
from pathlib import Path
from resource import RUSAGE_THREAD, getrusage
from typing import Any, NoReturn, TypeVar

import numpy as np
import numpy.typing as npt
import psutil
import pytest

from framebus import Publisher, companion_paths
from framebus.ring.backend import BACKEND

ROOT = Path(__file__).parent.parent
PROGRAMS = Path(__file__).parent / "programs"
SHM = Path("/dev/shm")
IN_CI = os.environ.get("CI") == "true"
"""Whether nothing may be lacking."""
PATIENCE_S = 40.0
"""How long a test waits for something that is about to happen; a loaded machine is slow."""
FIRST_PORT, PORTS_PER_WORKER = 20_000, 1_000
"""Ports below the range that Linux assigns by itself, a part of them for each process of pytest-xdist."""
ASKED = os.environ.get(BACKEND) or "auto"
"""The backend that the run of the tests asks for."""
BACKENDS = ("c", pytest.param("python", marks=pytest.mark.slow)) if ASKED == "auto" else (ASKED,)
"""Parameters of the tests that take one backend after the other: both, unless the run asks for one."""
Value = TypeVar("Value")


def lacks(reason: str) -> NoReturn:
    """Skip the test because a part is missing on this machine; in CI, where none may be missing, fail it.

    Args:
        reason: What is missing, and the command that installs or allows it.
    """
    if IN_CI:
        pytest.fail(reason)
    pytest.skip(reason)


CHROMIUM = Path("/usr/bin/chromium")
CHROMIUM_ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
needs_browser = pytest.mark.skipif(
    not CHROMIUM.exists() and not IN_CI, reason="no Chromium here: run 'make system-packages'"
)


def family(pid: int) -> list[psutil.Process]:
    """Return a process and all its descendants."""
    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]


def kill_family(process: subprocess.Popen[Any]) -> None:
    """Kill a process and all its descendants, if it still runs, and wait for their end."""
    if process.poll() is not None:
        return
    members = family(process.pid)
    for member in members:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()
    psutil.wait_procs(members, timeout=10)  # afterwards, their files in /dev/shm can be removed


def wait_until(
    condition: Callable[[], Value],
    what: str,
    *,
    timeout_s: float = PATIENCE_S,
    interval_s: float = 0.005,
    detail: Callable[[], object] | None = None,
) -> Value:
    """Call the condition again and again until it returns something true.

    Args:
        condition: What to call; an exception of its own passes through.
        what: What is waited for, for the message.
        timeout_s: After how long to give up. The condition is called at least once.
        interval_s: The pause between two calls.
        detail: What else a reader of the message wants to see, such as a log.

    Returns:
        The first true value.

    Raises:
        AssertionError: The condition was still false after ``timeout_s``.
    """
    deadline_s = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() >= deadline_s:
            seen = "" if detail is None else f"\n{detail()}"
            raise AssertionError(f"waited {timeout_s:g} s in vain: {what}; last seen: {value!r}{seen}")
        time.sleep(interval_s)
    return value


def free_ports(count: int) -> int:
    """Return the first of ``count`` consecutive TCP ports of the loopback that are free now.

    Parallel processes of pytest-xdist get ports of different ranges.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    lowest = FIRST_PORT + worker * PORTS_PER_WORKER
    while True:
        first = random.randrange(lowest, lowest + PORTS_PER_WORKER - count)
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first


def faults_of_reading(content: npt.NDArray[np.uint8]) -> int:
    """Count the minor page faults of reading one byte of each page of the array."""
    before = getrusage(RUSAGE_THREAD).ru_minflt
    np.add.reduce(content[::PAGESIZE])
    return getrusage(RUSAGE_THREAD).ru_minflt - before


def files_of(stream: str) -> list[str]:
    """Return the names of the stream's files in /dev/shm."""
    return sorted(path.name for path in SHM.glob(f"framebus.{stream}.*"))


@contextmanager
def own_stream() -> Iterator[str]:
    """Yield a stream name that no other test has; no file of this stream may be left."""
    name = f"test-{secrets.token_hex(6)}"
    yield name
    for state in companion_paths(name, "state.*"):
        state.unlink()  # kept on purpose, for a service's successor
    left = files_of(name)
    for file in left:
        (SHM / file).unlink()
    assert left == []


def publish(publisher: Publisher, value: int = 1) -> int:
    """Publish a frame of one value; return its sequence."""
    with publisher.loan() as loan:
        loan.pixels[:] = value
    assert loan.sequence is not None
    return loan.sequence


def report_of(module: str, *arguments: str) -> dict[str, Any]:
    """Return what a program of the tests printed as JSON. It must have printed no error and ended with status 0."""
    answer = subprocess.run(
        [sys.executable, "-m", module, *arguments], capture_output=True, text=True, timeout=100, check=False, cwd=ROOT
    )
    assert answer.stderr == ""
    report: dict[str, Any] = json.loads(answer.stdout)
    assert report["broken promises"] == [], report
    assert answer.returncode == 0
    return report


def complaints(log: str) -> list[str]:
    """Return the lines of a process's standard error that report an uncaught exception or a warning."""
    return [
        line for line in log.splitlines() if re.search(r"Traceback \(|^Exception ignored|^\S*:\d+: \w+Warning", line)
    ]


class Program:
    """A process of a test that exchanges lines with it.

    It must not write to its standard error.
    """

    def __init__(self, arguments: list[str], **options: object) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed by kill()
        self.process = subprocess.Popen(
            arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            **options,  # type: ignore[call-overload]
        )

    def read(self) -> str:
        """Return the next line that the process prints."""
        assert self.process.stdout is not None
        return str(self.process.stdout.readline()).rstrip("\n")

    def send(self, line: str = "") -> None:
        """Send the process a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def end(self) -> int:
        """Close the process's input and wait for its exit status."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        status = self.process.wait(20)
        self.process.stdout.close()
        return int(status)

    def kill(self) -> str:
        """Kill the process if it still runs; return what it wrote to its standard error."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None and not pipe.closed:
                pipe.close()
        with self._errors as errors:
            errors.seek(0)
            return errors.read()
