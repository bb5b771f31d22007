"""The command ``framebus``: look at streams, and put right what the dead left.

Exit status: 0 when all is well, 1 when it is not or cannot be done, 2 for a fault in the arguments.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from framebus.cli import show, snapshot, upkeep
from framebus.errors import FramebusError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with ``arguments``, or those of the process; return its exit status."""
    options = _parser().parse_args(arguments)
    try:
        status = int(options.run(options))
        sys.stdout.flush()
    except FramebusError as error:
        sys.stderr.write(f"framebus: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of a pipe went away, which is no fault; nothing more may be written at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="framebus", description="Zero-copy frame streams in /dev/shm.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    json = argparse.ArgumentParser(add_help=False)
    json.add_argument("--json", action="store_true", help="print JSON, for programs")

    command = commands.add_parser("list", parents=[json], help="all streams, a line each")
    command.set_defaults(run=show.run_list)

    command = commands.add_parser("inspect", parents=[json], help="all about one stream")
    command.add_argument("name", metavar="NAME")
    command.set_defaults(run=show.run_inspect)

    command = commands.add_parser("top", parents=[json], help="live table of streams and subscribers")
    command.add_argument("--interval", type=_positive, default=1.0, metavar="S", help="seconds between two looks")
    command.add_argument("--once", action="store_true", help="print one table and end")
    command.set_defaults(run=show.run_top)

    command = commands.add_parser("snapshot", help="write the newest frame to a picture file")
    command.add_argument("name", metavar="NAME")
    command.add_argument("file", type=Path, metavar="FILE", help="its ending tells the format: .png, .jpg")
    command.add_argument("--timeout", type=_positive, default=5.0, metavar="S", help="seconds to wait for a frame")
    command.set_defaults(run=snapshot.run_snapshot)

    command = commands.add_parser("size", parents=[json], help="the shm_size that a ring needs")
    command.add_argument("--height", type=int, required=True)
    command.add_argument("--width", type=int, required=True)
    command.add_argument("--channels", type=int, default=3)
    command.add_argument("--dtype", default="uint8")
    command.add_argument("--slots", type=int, default=8)
    command.set_defaults(run=upkeep.run_size)

    command = commands.add_parser("doctor", parents=[json], help="what is wrong in /dev/shm, and what to do")
    command.set_defaults(run=upkeep.run_doctor)

    command = commands.add_parser("gc", parents=[json], help="remove what no live process holds")
    command.add_argument("--stream", metavar="NAME", help="of this stream only")
    command.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    command.set_defaults(run=upkeep.run_gc)
    return parser


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"a number of seconds above 0 is needed, not {text}")
    return number
