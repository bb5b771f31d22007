"""The command ``framebus``: inspects streams, and removes what dead processes left behind.

The exit status is 0 on success, 1 if there is a problem or a failure, 2 if the arguments are invalid, and 128 plus the
number of the signal that ended the command. docs/cli.md documents the commands, and docs/cli.schema.json their output
with ``--json``.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

from framebus import __version__
from framebus.cli import output, show, snapshot, upkeep
from framebus.errors import FramebusError

MAX_SECONDS: Final = 86400.0
DONE: Final = 0
FAILED: Final = 1
SIGNALLED: Final = 128
_ENDING_SIGNALS: Final = (signal.SIGTERM, signal.SIGHUP)


class _Ended(BaseException):
    """A signal asked the process to end. An exception allows it to close files and remove records first."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with ``arguments``, by default those of the process, and return its exit status."""
    output.open_standard_descriptors()
    try:
        with _ended_by_signals():
            status = _run(arguments)
            output.flush()
    except output.OutputError as error:
        output.give_up(sys.stdout)
        output.complain(f"standard output cannot be written: {error}")
        status = FAILED
    except BrokenPipeError:
        output.give_up(sys.stdout)  # the reader of a pipe has closed it, which is not an error
        status = DONE
    except FramebusError as error:
        output.complain(str(error))
        status = _finish(FAILED)
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        output.complain(f"{name}{error.strerror or error}")
        status = _finish(FAILED)
    except MemoryError:
        output.complain("there is not enough memory")
        status = _finish(FAILED)
    except KeyboardInterrupt:
        # As a shell reports a process that the signal has ended.
        status = _finish(SIGNALLED + signal.SIGINT)
    except _Ended as end:
        status = _finish(SIGNALLED + end.number)
    return status


def _finish(status: int) -> int:
    """Flush the output, if that is possible, and return ``status``."""
    try:
        output.flush()
    except (output.OutputError, BrokenPipeError):
        output.give_up(sys.stdout)
    return status


def _run(arguments: Sequence[str] | None) -> int:
    parser = _parser()
    # Capture what argparse prints, because its handling of a closed output differs between versions of Python.
    printed, complaints = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(complaints):
            options = parser.parse_args(arguments)
            if options.run is None:
                parser.print_help()
                parser.exit()
    except SystemExit as end:
        if complaints.getvalue():
            output.write_error("".join(f"{line}\n" for line in _fitted(complaints.getvalue())))
        if printed.getvalue():
            output.write(printed.getvalue())
        return end.code if isinstance(end.code, int) else FAILED
    return int(options.run(options))


def _fitted(text: str) -> list[str]:
    width = output.columns()
    return [part for line in text.splitlines() for part in (output.wrap_line(line, width) if width else [line])]


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Convert SIGTERM and SIGHUP to an exception, to ensure that ``snapshot`` removes its record."""

    def end(number: int, _frame: object) -> NoReturn:
        raise _Ended(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # Do not handle a signal that is ignored, for example under nohup(1).
    before = {number: signal.getsignal(number) for number in _ENDING_SIGNALS}
    handled = [number for number, handler in before.items() if handler is signal.SIG_DFL]
    for number in handled:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, signal.SIG_DFL)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="framebus", description="Zero-copy frame streams in /dev/shm.")
    parser.add_argument("--version", action="version", version=f"framebus {__version__}")
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(metavar="COMMAND")
    json = argparse.ArgumentParser(add_help=False)
    json.add_argument("--json", action="store_true", help="print JSON, for programs")

    def add(name: str, run: Callable[[argparse.Namespace], int], **settings: Any) -> argparse.ArgumentParser:
        command = commands.add_parser(name, description=settings["help"].capitalize() + ".", **settings)
        command.set_defaults(run=run)
        return command

    add("list", show.run_list, parents=[json], help="all streams, a line each")

    command = add("inspect", show.run_inspect, parents=[json], help="all about one stream")
    command.add_argument("name", metavar="NAME", help="name of the stream")

    command = add("top", show.run_top, parents=[json], help="live table of streams and subscribers")
    command.add_argument("--interval", type=_seconds, default=1.0, metavar="S", help="seconds between two measurements")
    command.add_argument("--once", action="store_true", help="print one table and end")

    command = add("snapshot", snapshot.run_snapshot, help="write the newest frame to a picture file")
    command.add_argument("name", metavar="NAME", help="name of the stream")
    command.add_argument("file", type=Path, metavar="FILE", help="its suffix selects the format: .png, .jpg")
    command.add_argument("--timeout", type=_seconds, default=5.0, metavar="S", help="seconds to wait for a frame")

    command = add("size", upkeep.run_size, parents=[json], help="the shm_size that a ring needs")
    command.add_argument("--height", type=int, required=True, metavar="N", help="rows of a frame")
    command.add_argument("--width", type=int, required=True, metavar="N", help="columns of a frame")
    command.add_argument("--channels", type=int, default=3, metavar="N", help="values of a pixel (default: 3)")
    command.add_argument("--dtype", default="uint8", metavar="NAME", help="numpy's name of a value's type (uint8)")
    command.add_argument("--pixel-format", default="", metavar="NAME", help="nv12 and i420 take half the room of bgr")
    command.add_argument("--slots", type=int, default=8, metavar="N", help="slots of the ring, 3 to 255 (default: 8)")
    command.add_argument("--max-loans", type=int, default=1, metavar="N", help="loans at a time (default: 1)")

    add("doctor", upkeep.run_doctor, parents=[json], help="report problems in /dev/shm, and what to do")

    command = add("gc", upkeep.run_gc, parents=[json], help="remove files that no live process holds")
    command.add_argument("--stream", metavar="NAME", help="of this stream only")
    command.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    return parser


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number <= MAX_SECONDS:
        raise argparse.ArgumentTypeError(f"seconds are more than 0 and at most {MAX_SECONDS:.0f}, not {text[:40]!r}")
    return number
