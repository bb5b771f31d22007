"""Show the pipeline: a table that is redrawn in place on a terminal, short lines elsewhere."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
from typing import Protocol, TextIO

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from services.common.config import LogSection
from services.common.logs import time_of_day
from services.supervisor.board import BAD, BUSY, GOOD, RESTING, Board, Row, Step, fold_cameras, summary
from services.supervisor.events import GRAVE, Event, as_json
from services.supervisor.terminal import Bar, Screen, can_draw

STYLES = {GOOD: "", BUSY: "yellow", BAD: "bold red", RESTING: "dim"}
LEVEL_STYLES = {"warning": "yellow", "error": "red", "critical": "red"}
REDRAW_S = 0.5
NARROW = 60


class View(Protocol):
    """Shows events and the board."""

    @property
    def raw(self) -> bool:
        """Whether the services' lines are forwarded unchanged."""

    def say(self, event: Event) -> None:
        """Show one event."""

    def show(self, board: Board) -> None:
        """Show the current board. Called several times a second."""

    def close(self) -> None:
        """Stop showing the board; events are still shown."""


def choose_view(log_section: LogSection, status_interval_s: float) -> View:
    """Return a table view if standard output is a terminal that can draw it, otherwise a line view."""
    if can_draw(1):
        return TableView(Screen(1))
    return LineView(log_section.format == "json", status_interval_s)


class LineView:
    """One line for each event, and a periodic summary.

    Args:
        raw: Whether the services' lines are forwarded unchanged, and the supervisor's own lines are JSON as well.
        status_interval_s: Seconds between two summaries.
    """

    def __init__(self, raw: bool, status_interval_s: float) -> None:
        self.raw = raw and not os.isatty(2)
        """As of :class:`View`."""
        self._interval_s = status_interval_s
        self._next_s = time.monotonic() + status_interval_s
        self._steps: dict[tuple[str, str], Step] = {}

    def say(self, event: Event) -> None:
        """Write one event: the services' events and errors to standard error, the rest to standard output."""
        to = sys.stderr if event.raw or event.level in GRAVE else sys.stdout
        if self.raw:
            line = event.raw or as_json(event)
        elif not event.raw:
            line = f"{time_of_day()} {event.text}"
        else:
            line = "\n".join(filter(None, (event.text if event.is_log else event.raw, event.details)))
        if os.isatty(to.fileno()):  # a terminal that cannot draw, or standard error only
            with contextlib.suppress(OSError):
                columns = os.get_terminal_size(to.fileno()).columns or 80
                line = "\n".join(part[: columns - 1] for part in line.splitlines())
        _write(to, line)

    def show(self, board: Board) -> None:
        """Write a line at the start and the end of each long step, and the summary when it is due."""
        now = {(step.service, step.what): step for step in board.steps}
        for key, step in now.items():
            if key not in self._steps:
                self.say(Event("supervisor", f"{step.what}{f': {step.total} {step.unit}' if step.total else ''}"))
        self._steps = now
        if time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + self._interval_s
            self.say(Event("supervisor", summary(board)))

    def close(self) -> None:
        """Do nothing."""


def _write(to: TextIO, line: str) -> None:
    """Write a line. If the reader has closed the pipe, drop it."""
    try:
        to.write(line + "\n")
        to.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError, io.UnsupportedOperation):
            # Discard the buffer, which otherwise fails again at the end of the process.
            silent = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silent, to.fileno())
            os.close(silent)


class TableView:
    """A table below the events, redrawn in place."""

    raw = False
    """As of :class:`View`."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._next_s = 0.0
        self._done_steps: set[tuple[str, str]] = set()
        self._begun_s: dict[tuple[str, str], float] = {}
        self._steps: dict[tuple[str, str], Step] = {}
        self._to_terminal = os.isatty(2)

    def say(self, event: Event) -> None:
        """Print one event above the table. The services' events go to standard error if that is not a terminal."""
        if event.raw and not self._to_terminal:
            _write(sys.stderr, event.raw)
            return
        text = event.text if event.raw else f"{time_of_day()} {event.text}"
        self._screen.event(text, LEVEL_STYLES.get(event.level, ""), whole=not event.raw)

    def show(self, board: Board) -> None:
        """Redraw the table: at a limited rate, to keep it readable, but immediately if the terminal's size changed."""
        now_s = time.monotonic()
        if now_s < self._next_s and not self._screen.size_changed:
            return
        self._next_s = now_s + REDRAW_S
        self._tell_steps(board, now_s)
        self._screen.draw(lambda columns, lines: picture(board, columns, lines))

    def close(self) -> None:
        """Remove the table; the events stay."""
        self._screen.close()

    def _tell_steps(self, board: Board, now_s: float) -> None:
        """Print a line for each completed step."""
        now = {(step.service, step.what): step for step in board.steps}
        for key, step in self._steps.items():
            if key not in now and key not in self._done_steps and step.total:
                self._done_steps.add(key)
                took_s = now_s - self._begun_s[key]
                self._screen.event(f"{time_of_day()} {step.what}: done in {took_s:.0f} s", "green")
        for key in now.keys() - self._steps.keys():
            self._begun_s.setdefault(key, now_s)
        self._steps = now


def picture(board: Board, columns: int, lines: int) -> RenderableType:
    """Draw the board into at most ``columns`` and ``lines``."""
    head = _head(board, columns)
    steps = [_step_line(step, columns) for step in board.steps][: max(0, lines - len(head))]
    rows: list[Row] = list(board.rows)
    room = lines - len(head) - len(steps) - 2
    if len(rows) > room:
        rows = fold_cameras(rows)
    if len(rows) > room:
        rows = [row for row in rows if row.mood != RESTING]
    if len(rows) > room:
        rows = sorted(rows, key=lambda row: row.mood != BAD)
    rows = rows[: max(0, room)]
    parts: list[RenderableType] = [*head, *steps]
    if rows and not (board.is_starting and columns < NARROW):
        parts.append(_table(rows, columns))
    if lines > 3:
        parts.append(_cut(Text("Ctrl-C ends it", style="dim"), columns))
    return Group(*parts[:lines])


def _head(board: Board, columns: int) -> list[Text]:
    """Return the URL, the page's state and the running time; on narrow terminals, one below the other."""
    live = board.page in ("live", "running")
    url = Text(board.url, "bold underline" if live or board.page == "delayed" else "dim")
    state = Text(
        board.page, "bold green" if live else "yellow" if board.page in ("starting", "delayed") else "bold red"
    )
    name, since = Text("framebus  ", "bold"), Text(f"  {duration(board.running_s)}", "dim")
    line = name + url + "  " + state + since
    if line.cell_len <= columns:
        return [_cut(line, columns)]
    if (line := url + "  " + state).cell_len <= columns:
        return [_cut(line, columns)]
    return [_cut(url, columns), _cut(state, columns)]


def duration(seconds: float) -> str:
    """Return a time in words: ``42 s``, ``12 min``, ``3 h 05 min``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def _step_line(step: Step, columns: int) -> RenderableType:
    """Return a step's name, bar and progress; on narrow terminals, without the bar."""
    what, amount = step.what, step.amount
    bar_columns = columns - len(what) - len(amount) - 4
    if bar_columns < 8:
        percent = f" {100 * step.done // step.total}%" if step.total else ""
        return _cut(Text(f"{what}{percent}", STYLES[BUSY]), columns)
    line = Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
    line.add_column(width=len(what), no_wrap=True)
    bar_columns = min(bar_columns, 40)
    line.add_column(width=bar_columns)
    line.add_column(no_wrap=True)
    bar = Bar(step.done, step.total, bar_columns)
    line.add_row(Text(what, STYLES[BUSY]), bar, Text(amount))
    return line


def _table(rows: list[Row], columns: int) -> RenderableType:
    """Return the rows as a table with columns of fixed width; remarks take the remaining width."""
    name_columns = min(max(len("stage"), *(len(row.name) for row in rows)), max(8, columns // 2))
    wide = columns >= NARROW
    rate_columns, age_columns = (8, 8) if wide else (5, 0)
    remark_columns = columns - name_columns - rate_columns - age_columns - (6 if wide else 4)
    if remark_columns < 9:
        rate_columns, remark_columns = 0, max(1, columns - name_columns - 2)
    table = Table.grid(padding=(0, 2, 0, 0), pad_edge=False)

    def cells(name: Text, rate: Text, age: Text, remark: Text) -> list[Text]:
        widths = ((name, name_columns), (rate, rate_columns), (age, age_columns), (remark, remark_columns))
        return [_cut(text, width) for text, width in widths if width]

    table.add_column(width=name_columns, no_wrap=True)
    for width in filter(None, (rate_columns, age_columns)):
        table.add_column(width=width, no_wrap=True, justify="right")
    table.add_column(width=remark_columns, no_wrap=True)
    table.add_row(*cells(*(Text(word, "dim") for word in ("stage", "rate" if wide else "fps", "age", ""))))
    for row in rows:
        style = STYLES[row.mood]
        name_style = style if row.mood in (BAD, RESTING) else "cyan"
        table.add_row(
            *cells(
                Text(row.name, name_style),
                Text(row.rate if wide else row.rate.removesuffix(" fps")),
                Text(row.age),
                Text(row.remark, style),
            )
        )
    return table


def _cut(text: Text, columns: int) -> Text:
    text.no_wrap, text.overflow = True, "crop"
    text.truncate(max(1, columns), overflow="crop")
    return text
