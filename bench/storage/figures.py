"""Tables of figures: a row for each candidate, whose cells hold the figures of all rounds. They are saved as JSON."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from bench.markdown import number, spread, table
from bench.results import Figure

NOT_HERE: Final = "not on this machine"
NOT_IN_KERNEL: Final = "not in this kernel"

Measurement = Callable[[], Mapping[str, float]]
"""One round of one row: figures by column."""


class NotHere(RuntimeError):
    """A row cannot be measured on this machine; the text says what is missing, and is shown in the row."""


@dataclass
class Row:
    """One of the candidates that are compared."""

    name: str
    cells: dict[str, list[float]] = field(default_factory=dict)
    """Figures of the rounds, by column."""
    note: str = ""
    """What happened, or why there are no figures."""

    def add(self, figures: Mapping[str, float]) -> None:
        """Add a round's figures."""
        for column, value in figures.items():
            self.cells.setdefault(column, []).append(value)


@dataclass
class FigureTable:
    """A table of a section."""

    title: str
    baseline: str
    """What the rows are compared with, in the same run: a row's name, or a sentence."""
    rows: list[Row] = field(default_factory=list)
    text: str = ""
    """A sentence below the title."""

    def row(self, name: str) -> Row:
        """Return the row with this name; add one if there is none."""
        for one in self.rows:
            if one.name == name:
                return one
        self.rows.append(Row(name))
        return self.rows[-1]


def take_turns(into: FigureTable, candidates: Mapping[str, Measurement], rounds: int, seed: str = "") -> None:
    """Measure the candidates in turns, in an order that changes from round to round.

    A candidate that raises :class:`NotHere` keeps its earlier rounds, and its row says why there are no more.
    """
    # Seeded by the title, so that a run can be repeated in the same order.
    order = random.Random(seed or into.title)
    runnable = dict(candidates)
    for name in candidates:
        into.row(name)
    for _ in range(rounds):
        # Take turns in a changing order, so that a busy minute of the machine affects all candidates.
        for name in order.sample(sorted(runnable), len(runnable)):
            try:
                into.row(name).add(runnable[name]())
            except NotHere as error:
                into.row(name).note = str(error)
                del runnable[name]


def lines(one: FigureTable) -> Iterator[str]:
    """Yield a table as Markdown: medians, with the minimum and maximum of the rounds."""
    columns = list(dict.fromkeys(column for row in one.rows for column in row.cells))
    heads = ["", *columns, *(["seen"] if any(row.note for row in one.rows) else [])]
    yield f"**{one.title}.** Baseline: {one.baseline}.{' ' + one.text if one.text else ''}"
    yield ""
    yield from table(heads, (_cells(row, columns, len(heads)) for row in one.rows))


def _cells(row: Row, columns: list[str], width: int) -> list[str]:
    figures = [_shown(row.cells.get(column, [])) for column in columns]
    return [row.name, *figures, row.note.replace("|", "/").replace("\n", " ")][:width]


def _shown(values: list[float]) -> str:
    found = Figure.of(values)
    # Rounds that look the same when printed need no range.
    if found is not None and number(found.least) == number(found.most):
        return number(found.median)
    return spread(found)


def to_json(tables: list[FigureTable]) -> list[dict[str, Any]]:
    """Return tables as JSON's own types."""
    return [asdict(one) for one in tables]


def from_json(saved: list[dict[str, Any]]) -> list[FigureTable]:
    """Return the tables of :func:`to_json`."""
    return [FigureTable(**{**one, "rows": [Row(**row) for row in one["rows"]]}) for one in saved]
