"""Output of the commands: text that fits the terminal, JSON, and errors of the output itself."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import IO, Final

MIN_COLUMNS: Final = 40
"""Text is never wrapped to fewer columns."""
_ERROR_PREFIX: Final = "framebus: "


class OutputError(Exception):
    """Standard output cannot be written."""


def columns() -> int | None:
    """Return the width of standard output, from ``COLUMNS`` or the terminal; ``None`` if there is neither."""
    try:
        width = int(os.environ.get("COLUMNS", ""))
    except ValueError:
        width = 0
    return max(width, MIN_COLUMNS) if width > 0 else _terminal_columns(sys.stdout)


def _terminal_columns(stream: IO[str] | None) -> int | None:
    try:
        if stream is None or not stream.isatty():
            return None
        width = os.get_terminal_size(stream.fileno()).columns
    except (ValueError, OSError):
        return None
    return max(width, MIN_COLUMNS) if width > 0 else None


@contextlib.contextmanager
def _faults_named() -> Iterator[None]:
    """Convert errors of standard output, to distinguish them from those of other files."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(error.strerror or str(error)) from None


def write(text: str) -> None:
    """Write to standard output. Characters that it cannot encode or show are escaped with backslashes.

    Raises:
        OutputError: Standard output is closed or cannot be written.
        BrokenPipeError: Its reader is gone.
    """
    if sys.stdout is None:  # the process was started with a closed standard output
        raise OutputError("it is closed")
    with _faults_named():
        sys.stdout.write(_showable(text, sys.stdout))


def control(sequence: str) -> None:
    """Write an escape sequence for the terminal.

    Raises:
        OutputError: As for :func:`write`.
    """
    with _faults_named():
        sys.stdout.write(sequence)


def flush() -> None:
    """Flush standard output.

    Raises:
        OutputError: As for :func:`write`.
        BrokenPipeError: The reader of standard output is gone.
    """
    if sys.stdout is not None:
        with _faults_named():
            sys.stdout.flush()


def write_json(content: object) -> None:
    """Write a value as one line of JSON."""
    write(json.dumps(content) + "\n")


def complain(sentence: str) -> None:
    """Write an error message to standard error."""
    # Wrap only for a terminal, so that each message is one line in a log, regardless of COLUMNS.
    lines = wrap(_ERROR_PREFIX + " ".join(sentence.split()), _terminal_columns(sys.stderr))
    text = "".join(f"{line}\n" for line in lines)
    write_error(text)


def write_error(text: str) -> None:
    """Write to standard error. Errors are ignored, because they could not be reported anywhere."""
    if sys.stderr is None:
        return
    try:
        sys.stderr.write(_showable(text, sys.stderr))
        sys.stderr.flush()
    except (OSError, ValueError):
        give_up(sys.stderr)


def give_up(stream: IO[str] | None) -> None:
    """Redirect a stream to /dev/null, to prevent the interpreter from flushing it again at exit."""
    try:
        assert stream is not None
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
    except (AssertionError, ValueError, OSError):
        pass


def open_standard_descriptors() -> None:
    """Open /dev/null for closed standard descriptors.

    Otherwise, a file that is opened later would get such a number, and messages of libraries would be written to it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def wrap(text: str, width: int | None, indent: str = "") -> list[str]:
    """Wrap text to lines of at most ``width``, and indent all lines but the first."""
    if width is None:
        return [text]
    return textwrap.wrap(text, width, subsequent_indent=indent, break_on_hyphens=False) or [""]


def table(header: Sequence[str], rows: Sequence[Sequence[str]], width: int | None, *, title: int = 2) -> str:
    """Format a table. If it is too wide, format each row as a paragraph with named cells instead.

    Args:
        header: Names of the columns.
        rows: Cells of each row.
        width: Maximum width in columns; ``None`` for no limit.
        title: How many of a row's cells begin its paragraph without their names.
    """
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    # Programs and logs get one line for each row, whatever its length.
    if width is None or sum(widths) + 2 * (len(widths) - 1) <= width:
        return "".join(
            "  ".join(cell.ljust(room) for cell, room in zip(row, widths, strict=True)).rstrip() + "\n"
            for row in (header, *rows)
        )
    return "".join(_paragraph(header, row, width, title) for row in rows)


def _paragraph(header: Sequence[str], row: Sequence[str], width: int, title: int) -> str:
    outer = "" if row[0] else "  "
    lines = [outer + "  ".join(cell for cell in row[:title] if cell not in ("", "-"))]
    named = list(zip(header, row, strict=True))[title:]
    cells = [f"{name.lower()} {cell}" for name, cell in named if cell not in ("", "-")]
    inner = outer + "  "
    line = ""
    for cell in cells:
        if line and len(inner) + len(line) + 2 + len(cell) > width:
            lines.append(inner + line + ",")
            line = ""
        line = f"{line}, {cell}" if line else cell
    if line:
        lines.append(inner + line)
    return "".join(f"{part}\n" for long in lines for part in wrap_line(long, width))


def wrap_line(line: str, width: int) -> list[str]:
    """Wrap a line that is too long, with two more columns of indent."""
    if len(line) <= width:
        return [line]
    indent = line[: len(line) - len(line.lstrip())]
    return textwrap.wrap(
        line.strip(), width, initial_indent=indent, subsequent_indent=indent + "  ", break_on_hyphens=False
    )


def _showable(text: str, stream: IO[str]) -> str:
    """Escape control characters, which a file name may contain, and characters that cannot be encoded."""
    shown = "".join(
        letter if letter == "\n" or letter.isprintable() else letter.encode("unicode_escape", "surrogatepass").decode()
        for letter in text
    )
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return shown.encode(encoding, "backslashreplace").decode(encoding)
