"""``make demo`` on a terminal: what a user sees in its first minute and at its end."""

from __future__ import annotations

import importlib.util
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.e2e.demo import CAMERAS, demo_environment
from tests.support import IN_CI, complaints, files_of, free_ports

if importlib.util.find_spec("pyte") is None and not IN_CI:
    pytest.skip("pyte is not installed: run 'make check' or pip install -e '.[dev]'", allow_module_level=True)
from tests.services.supervisor.terminal import Terminal

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.timeout(300)]

EVENT = re.compile(r"^\d\d:\d\d:\d\d \S")
SEEN_S = 8.0
"""How long the table is watched."""


@pytest.fixture
def environment(stream: str, tmp_path: Path) -> dict[str, str]:
    """Return the environment of a demo that renders small clips again, in a locale of UTF-8."""
    kept = {name: text for name, text in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    small = {"DURATION_S": "6", "CACHE_DIR": str(tmp_path)}
    rendered = {f"FRAMEBUS_SIMULATOR__{name}": text for name, text in small.items()}
    return {**kept, "LC_ALL": "C.UTF-8", **demo_environment(stream, free_ports(CAMERAS + 1)), **rendered}


def shows(words: str) -> Callable[[str], bool]:
    """Return whether a screen shows the words."""
    return lambda text: words in text


def interrupted(terminal: Terminal, stream: str) -> None:
    """Press Ctrl-C: all ends with one more line, the terminal is as before, and no process and no file is left."""
    processes = psutil.Process(terminal.process.pid).children(recursive=True)
    before = len(terminal.scrolled()) + sum(bool(EVENT.match(line)) for line in terminal.text().splitlines())
    terminal.type("\x03")
    terminal.end()
    lines = [*terminal.scrolled(), *terminal.text().splitlines()]
    assert "all is ended after" in lines[-1], lines
    assert len(lines) <= before + 1, lines
    assert [line for line in lines if not EVENT.match(line)] == []
    assert complaints("\n".join(lines)) == []
    assert "camera lost" not in "\n".join(lines)
    assert terminal.screen.wrapped == []
    assert not terminal.screen.cursor.hidden
    assert terminal.modes_now() == terminal.modes
    assert [process for process in processes if process.is_running() and process.status() != "zombie"] == []
    assert files_of(stream) == []


@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (200, 50)])
def test_the_first_minute_and_the_end_on_a_terminal_are_clean(
    stream: str, environment: dict[str, str], columns: int, lines: int, tmp_path: Path
) -> None:
    terminal = Terminal(["make", "--no-print-directory", "demo"], environment, columns, lines)
    try:
        for what in ("painting the cameras' scene", "of 150 frames", "calibrating the cameras"):
            shown = terminal.wait_for(shows(what), what, timeout_s=120)
            assert "http://127.0.0.1:" in shown.split("stage")[0]
        terminal.wait_for(lambda text: re.search(r"streamer receive +\d+\.\d fps", text), "the table", timeout_s=60)
        watched_until_s = time.monotonic() + SEEN_S
        while time.monotonic() < watched_until_s:
            shown = terminal.text()
            assert shown.count("streamer receive") == 1, shown
            assert [line for line in terminal.scrolled() if not EVENT.match(line)] == []
            time.sleep(0.2)
        assert all(f"cam{i}" in shown for i in range(CAMERAS)), shown
        (tmp_path / f"screen-{columns}x{lines}.txt").write_text(shown)
        interrupted(terminal, stream)
    finally:
        terminal.close()


PHASES = {
    "preparing": "painting the cameras' scene",
    "rendering": "of 150 frames",
    "connecting or calibrating": "stitcher publish",
}


@pytest.mark.parametrize("phase", PHASES)
def test_ctrl_c_in_each_phase_leaves_nothing(
    stream: str, environment: dict[str, str], tmp_path: Path, phase: str
) -> None:
    terminal = Terminal(["make", "--no-print-directory", "demo"], environment)
    try:
        terminal.wait_for(shows(PHASES[phase]), phase, timeout_s=120)
        interrupted(terminal, stream)
        assert list(tmp_path.glob("*.part-*")) == []
    finally:
        terminal.close()
