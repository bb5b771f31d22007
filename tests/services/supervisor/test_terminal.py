"""The supervisor on a terminal: a table in place, events above it, no wrapped line, and a clean end."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services.common.status import read_statuses
from services.supervisor.board import Board, Row, Step
from tests.services.site import Site
from tests.support import IN_CI, complaints, files_of

if importlib.util.find_spec("pyte") is None and not IN_CI:
    pytest.skip("pyte is not installed: run 'make check' or pip install -e '.[dev]'", allow_module_level=True)
from services.supervisor.events import parse
from services.supervisor.terminal import can_draw
from services.supervisor.view import LineView, picture
from tests.services.supervisor.terminal import Terminal

pytestmark = pytest.mark.slow

KILN = """
import pathlib, threading, time
import structlog
from services.common.config import CommonConfiguration, Section
from services.common.service import Service
from services.common.status import StatusServer, status_document

class KilnSection(Section):
    folder: pathlib.Path = pathlib.Path("/nowhere")

class KilnConfiguration(CommonConfiguration):
    kiln: KilnSection = KilnSection()

def run(configuration, stop):
    folder = configuration.kiln.folder
    log = structlog.get_logger()
    def status():
        document = status_document("kiln", {}, stale_after_s=9)
        if not (folder / "hot").exists():
            document["progress"] = {"what": "heating the kiln", "done": 30, "total": 120, "unit": "bricks"}
        elif not (folder / "sick").exists():
            stage = {"fps": 24.96, "frames": 9, "skipped": 0, "latency_p50_ms": 38.4, "latency_p99_ms": 50, "age_s": 0}
            names = [f"cam{i}" for i in range(5)]
            document["stages"] = {name: stage for name in (*names, "publish", "glaze", "fire")}
            document["details"] = {"cameras": {name: {"state": "connected"} for name in names}}
            document["details"]["cameras"]["cam3"] = {"state": "lost: " + "no data in time " * 20}
        return document
    with StatusServer(configuration.stream.name, "kiln", status):
        while not stop.wait(0.05):
            if (folder / "talk").exists():
                (folder / "talk").unlink()
                for number in range(60):
                    log.warning(f"event {number}", reason="the reason is \\u00e9 long " * 12, camera="cam0")
                print("a raw line " * 30, flush=True)
        log.warning("camera lost", camera="cam1", reason="the end")

SERVICE = Service("kiln", KilnConfiguration, run, awaited=True)
"""
EVENT = re.compile(r"^(\d\d:\d\d:\d\d |kiln: a raw line )")
Start = Callable[..., Terminal]


@pytest.fixture
def kiln(tmp_path: Path) -> Path:
    """Return the folder that controls the service."""
    return tmp_path


@pytest.fixture
def start(stream: str, kiln: Path) -> Iterator[Start]:
    site = Site(kiln / "site")
    site.folder.mkdir()
    site.install("pottery", "kiln = kiln:SERVICE", kiln=KILN)
    terminals: list[Terminal] = []

    def begin(columns: int = 80, lines: int = 24, **environment: str) -> Terminal:
        wanted = {
            "LC_ALL": "C.UTF-8",
            "FRAMEBUS_STREAM__NAME": stream,
            "FRAMEBUS_SUPERVISOR__SERVICES": "[kiln]",
            "FRAMEBUS_SUPERVISOR__OPTIONAL": "[]",
            "FRAMEBUS_KILN__FOLDER": str(kiln),
        }
        command = [sys.executable, "-m", "services.supervisor"]
        terminals.append(Terminal(command, {**site.environment, **wanted, **environment}, columns, lines))
        return terminals[-1]

    yield begin
    for terminal in terminals:
        terminal.close()


def ended(terminal: Terminal, stream: str) -> None:
    """Press Ctrl-C, and check that the terminal is as before and that nothing is left."""
    terminal.type("\x03")
    assert terminal.end() == 0
    shown = terminal.text()
    assert "all is ended after" in shown.splitlines()[-1]
    assert "camera lost" not in shown
    assert complaints(shown) == []
    assert not terminal.screen.cursor.hidden
    assert terminal.modes_now() == terminal.modes
    assert terminal.screen.wrapped == []
    assert [line for line in terminal.scrolled() if not EVENT.match(line)] == []
    assert read_statuses(stream) == {}
    assert files_of(stream) == []


@pytest.mark.parametrize(
    ("columns", "lines"),
    [(80, 24), *(pytest.param(*size, marks=pytest.mark.long) for size in ((200, 50), (40, 24), (60, 10)))],
)
def test_a_long_step_is_shown_as_a_bar_and_then_as_one_table(
    start: Start, stream: str, kiln: Path, columns: int, lines: int
) -> None:
    terminal = start(columns, lines)
    shown = terminal.wait_for(lambda text: "heating the kiln" in text, "the bar")
    assert "http://127.0.0.1:8080" in shown
    if columns >= 60:
        assert re.search(r"heating the kiln +━+─+ +30 of 120 bricks", shown), shown
    else:
        assert "heating the kiln 25%" in shown
    (kiln / "hot").touch()
    shown = terminal.wait_for(lambda text: "kiln publish" in text, "the table")
    for name in ("cam0", "cam3", "kiln fire") if lines > 20 else ("cameras", "kiln fire"):
        assert shown.count(name) >= 1, shown
    assert re.search(r"kiln publish +25\.0", shown), shown
    assert "lost: no data" in shown or columns < 60
    (kiln / "talk").touch()
    shown = terminal.wait_for(lambda text: "a raw line" in text, "the events")
    terminal.wait_for(lambda text: text.count("kiln publish") == 1, "the table is below them")
    assert len(terminal.scrolled()) > 61 - lines
    ended(terminal, stream)


@pytest.mark.long
def test_a_resized_terminal_is_drawn_again(start: Start, stream: str, kiln: Path) -> None:
    (kiln / "hot").touch()
    terminal = start(100, 30)
    terminal.wait_for(lambda text: "kiln fire" in text, "the table")
    for columns, lines in ((50, 14), (120, 40), (80, 24)):
        terminal.resize(columns, lines)
        terminal.wait_for(
            lambda text: text.count("kiln publish") == 1 and text.rstrip().endswith("Ctrl-C ends it"),
            "it is drawn anew",
        )
    terminal.screen.wrapped.clear()  # how resizing changes the earlier lines is up to the terminal
    terminal.screen.history.top.clear()
    ended(terminal, stream)


@pytest.mark.long
def test_a_terminal_without_unicode_or_colour_gets_neither(start: Start, stream: str, kiln: Path) -> None:
    terminal = start(LC_ALL="C", NO_COLOR="1")
    shown = terminal.wait_for(lambda text: "30 of 120 bricks" in text, "the bar")
    assert re.search(r"heating the kiln +#+-+ +30 of 120 bricks", shown), shown
    (kiln / "hot").touch()
    (kiln / "talk").touch()
    shown = terminal.wait_for(lambda text: "event 59" in text and "kiln fire" in text, "the table and the events")
    assert shown.isascii()
    assert {cell.fg for line in terminal.screen.buffer.values() for cell in line.values()} == {"default"}
    ended(terminal, stream)


@pytest.mark.long
def test_a_terminal_that_cannot_draw_gets_short_lines(start: Start, stream: str, kiln: Path) -> None:
    terminal = start(TERM="dumb", FRAMEBUS_SUPERVISOR__STATUS_INTERVAL_S="0.5")
    terminal.wait_for(lambda text: "heating the kiln: 120 bricks" in text, "the step")
    (kiln / "hot").touch()
    (kiln / "talk").touch()
    terminal.wait_for(lambda text: "kiln publish 25.0 fps 38 ms" in text, "the summary")
    assert terminal.modes_now() == terminal.modes
    terminal.type("\x03")
    assert terminal.end() == 0
    assert "\x1b" not in terminal.text()
    assert terminal.screen.wrapped == []
    assert terminal.text().splitlines()[-1].endswith(" s")


def test_lines_are_cut_to_the_width_of_a_terminal_that_cannot_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = os.openpty()
    monkeypatch.setenv("TERM", "xterm")
    assert can_draw(slave)
    monkeypatch.setenv("TERM", "dumb")
    assert not can_draw(slave)
    step = Step("kiln", "heating the kiln", 30, 120, "bricks")
    board = Board("http://a", "live", 1.0, (step,), (Row("kiln publish", "25.0 fps", "38 ms", mood="good"),))
    with os.fdopen(slave, "w") as shown:
        monkeypatch.setattr(sys, "stdout", shown)
        monkeypatch.setattr(sys, "stderr", shown)
        view = LineView(raw=False, status_interval_s=0)
        view.show(board)
        view.show(board)
        view.say(
            parse("kiln", json.dumps({"event": "hot", "reason": "why " * 30, "timestamp": "2026-03-04T12:00:00Z"}))
        )
        view.say(parse("kiln", "a raw line " * 30))
        text = ""
        while text.count("\n") < 5:
            text += os.read(master, 65536).decode()
    os.close(master)
    lines = [line.partition(" ")[2] for line in text.splitlines()]
    assert lines[:3] == ["heating the kiln: 120 bricks", *2 * ["kiln publish 25.0 fps 38 ms"]]
    assert lines[3].startswith("kiln: hot: why why")
    assert lines[4].startswith("raw line a raw line")
    assert [len(line) for line in text.splitlines()[3:]] == [79, 79]
    assert "\x1b" not in text


@pytest.mark.long
def test_what_is_typed_is_not_echoed_and_a_suspended_terminal_is_given_back(
    start: Start, stream: str, kiln: Path
) -> None:
    (kiln / "hot").touch()
    terminal = start()
    terminal.wait_for(lambda text: "kiln fire" in text, "the table")
    terminal.type("nonsense\n\n\n")
    os.kill(terminal.process.pid, 20)  # SIGTSTP; as the leader of its session it would not take Ctrl-Z
    stopped = os.waitpid(terminal.process.pid, os.WUNTRACED)[1]
    assert os.WIFSTOPPED(stopped)
    terminal.read()
    assert not terminal.screen.cursor.hidden
    assert terminal.modes_now() == terminal.modes
    os.kill(terminal.process.pid, 18)  # SIGCONT
    terminal.wait_for(lambda text: terminal.screen.cursor.hidden and text.count("kiln fire") == 1, "it is drawn anew")
    assert "nonsense" not in terminal.text()
    ended(terminal, stream)


@pytest.mark.long
def test_a_service_that_has_gone_or_hangs_is_named(start: Start, stream: str, kiln: Path) -> None:
    (kiln / "hot").touch()
    terminal = start(FRAMEBUS_SUPERVISOR__HUNG_AFTER_S="2")
    terminal.wait_for(lambda text: "kiln fire" in text, "the table")
    (child,) = Path(f"/proc/{terminal.process.pid}/task/{terminal.process.pid}/children").read_text().split()
    os.kill(int(child), 19)  # SIGSTOP
    terminal.wait_for(lambda text: "kiln did not answer for" in text, "it is killed")
    terminal.wait_for(lambda text: "kiln fire" in text.partition("did not answer")[2], "it is back")
    ended(terminal, stream)


@pytest.mark.parametrize("columns", [1, 5, 20, 39, 79, 199])
@pytest.mark.parametrize("lines", [1, 2, 4, 9, 22])
def test_the_table_fits_a_terminal_of_any_size(columns: int, lines: int) -> None:
    from rich.console import Console  # noqa: PLC0415

    rows = [Row(f"camera-{i}-with-a-long-name", "25.0 fps", "40 ms", "lost: why " * 30, "bad", True) for i in range(16)]
    rows += [Row(f"service stage {i}", "25.0 fps", "40 ms", "fine " * 30) for i in range(9)]
    steps = (Step("a", "rendering the clips", 3, 350, "frames"), Step("b", "waiting", 0, None, ""))
    console = Console(width=columns, height=lines, force_terminal=True)
    for page in ("starting", "live", "no picture: " + "x" * 300):
        board = Board("http://127.0.0.1:8080", page, 5000.0, steps, tuple(rows))
        drawn = console.render_lines(picture(board, columns, lines), pad=False)
        assert len(drawn) <= lines
        assert max(sum(segment.cell_length for segment in line) for line in drawn) <= columns
