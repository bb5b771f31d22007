"""Markdown: tables, and figures as their cells."""

from __future__ import annotations

from collections.abc import Iterable

from bench.results import Figure


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterable[str]:
    """Yield the lines of a table, and an empty line."""
    heads = list(heads)
    yield f"| {' | '.join(heads)} |"
    yield f"|{' --- |' * len(heads)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def spread(value: Figure | None) -> str:
    """Return the median and, in parentheses, the range of the rounds."""
    if value is None:
        return ""
    return f"{number(value.median)} ({number(value.least)} to {number(value.most)})"


def median(value: Figure | None) -> str:
    """Return the median alone."""
    return "" if value is None else number(value.median)


def number(value: float) -> str:
    """Return a number with three digits, or all digits of its whole part."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def percent(value: Figure | None) -> str:
    """Return the median of a share, in percent."""
    return f"{value.median:.1%}" if value else ""
