"""Fixtures of all tests: a stream name for each test, which must leave nothing in /dev/shm."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

from framebus.ring import _ring_py, backend
from tests.support import ASKED, BACKENDS, IN_CI, PROGRAMS, Program, lacks, own_stream

# Warnings are errors in every process that a test starts. A warning that cannot be caught, such as that of an unclosed
# file, is printed to the standard error, where the helpers look for it.
os.environ["PYTHONWARNINGS"] = "error"
# With this, each process that a test starts would compile all modules again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# The tests must not fail because the machine does other work at the same time.
hypothesis.settings.register_profile("framebus", deadline=None)
hypothesis.settings.register_profile("quick", deadline=None, max_examples=20)  # what 'make check' takes
hypothesis.settings.load_profile("framebus")


TESTS = Path(__file__).parent


def module_marks(item: pytest.Item) -> list[pytest.Mark]:
    """Return the marks of all tests of the item's module."""
    module = item.getparent(pytest.Module)
    return [] if module is None else list(module.iter_markers())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what needs root, and run the slow modules first, so that no core is idle at the end."""
    can_rerun = IN_CI and config.pluginmanager.hasplugin("rerunfailures")
    for item in items:
        # Whole services, browsers and engines share two cores with other work there. The summary names what was run
        # again. The library's own tests never are: a race that shows once in a hundred runs is what they look for.
        if can_rerun and item.path.parts[len(TESTS.parts)] in ("services", "e2e"):
            item.add_marker(pytest.mark.flaky(reruns=1))
        if item.get_closest_marker("root") and os.geteuid() != 0 and not IN_CI:
            item.add_marker(pytest.mark.skip(reason="needs root to act as other users: run the tests with sudo"))
    items.sort(key=lambda item: not any(mark.name == "slow" for mark in module_marks(item)))


def pytest_collection_finish() -> None:
    """Exclude the modules of all tests from garbage collection, of this process and of those that tests fork from it.

    A collection that visits them takes half a second, and in a forked process it also copies their memory.
    """
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show why tests were run again, or a failure that does not repeat leaves only its name."""
    for report in terminalreporter.getreports("rerun"):
        terminalreporter.section(f"first run of {report.nodeid}")
        terminalreporter.write_line(report.longreprtext)


@pytest.fixture
def stream() -> Iterator[str]:
    """Yield a stream name that no other test has; the test must leave no file of this stream."""
    with own_stream() as name:
        yield name


@pytest.fixture
def compiled_steps() -> None:
    """Skip the test if the compiled steps of a hand-over were not built."""
    if ASKED == "python":
        pytest.skip("this run asks for the steps in Python, and the test needs the compiled ones")
    if backend.steps is _ring_py:
        lacks("the compiled steps were not built: install a C compiler and Python's headers, then 'make clean test'")


@pytest.fixture(params=BACKENDS)
def each_steps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test runs twice: with the compiled steps of a hand-over, and with those in Python.

    Once, if FRAMEBUS_BACKEND asks for one of the two.
    """
    if request.param == "python":
        monkeypatch.setattr(backend, "steps", _ring_py)
    else:
        request.getfixturevalue("compiled_steps")


@pytest.fixture
def start_program() -> Iterator[Callable[..., Program]]:
    """Starts ``tests/programs/NAME.py`` with arguments; what still runs at the end of the test is killed."""
    started: list[Program] = []

    def start(name: str, *arguments: str, **options: object) -> Program:
        program = Program([sys.executable, str(PROGRAMS / f"{name}.py"), *arguments], **options)
        started.append(program)
        return program

    yield start
    said = [program.kill() for program in started]
    assert "".join(said) == ""
