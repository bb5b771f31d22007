"""Runs the commands that a page tells its reader to type, each in a terminal of its own."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.support import ROOT, files_of

PATIENCE_S = 60.0
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TERMINAL = re.compile(r"^Terminal (\d)[^\n]*:\n\n```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def terminal_commands(page: Path) -> list[str]:
    """Return the one command of each block "Terminal N", in their order."""
    found = [(int(number), command.strip()) for number, command in TERMINAL.findall(page.read_text())]
    assert [number for number, _ in found] == list(range(1, len(found) + 1)), page
    assert all("\n" not in command for _, command in found), page
    return [command for _, command in found]


def blocks(page: Path, language: str) -> list[str]:
    """Return the page's code blocks of that language."""
    return [content for found, content in BLOCK.findall(page.read_text()) if found == language]


class Terminal:
    """A process that was started by a command, and whose output a test reads line by line."""

    def __init__(self, command: Sequence[str], folder: Path, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env={**environment, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        """Return the next line that the process prints."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"it ended early: {self.process.communicate(timeout=PATIENCE_S)[1]}"
        return line.rstrip("\n")

    def lines(self, count: int) -> list[str]:
        """Return the next ``count`` lines."""
        return [self.line() for _ in range(count)]

    def interrupt(self) -> str:
        """Send what Ctrl-C sends, check that the process ends with status 0, and return the rest of its output."""
        self.process.send_signal(signal.SIGINT)
        return self.ended()[0]

    def ended(self, status: int = 0) -> tuple[str, str]:
        """Wait for the end, check the status, and return the rest of the output and of the errors."""
        output, errors = self.process.communicate(timeout=PATIENCE_S)
        assert self.process.returncode == status, output + errors
        if status == 0:
            assert errors == ""
        return output, errors

    def close(self) -> None:
        """Kill the process if it still runs."""
        self.process.kill()
        self.process.communicate()


class Desk:
    """Opens terminals for the commands of a page, with stream names of the test's own.

    Args:
        prefix: Beginning of the names.
        python: The interpreter that ``python`` stands for.
        environment: The environment of the commands.
        folder: Where the commands run; the root of this checkout unless given.
    """

    def __init__(
        self,
        prefix: str,
        python: Sequence[str] = (sys.executable,),
        environment: dict[str, str] | None = None,
        folder: Path = ROOT,
    ) -> None:
        self._prefix = prefix
        self.python = list(python)
        """The interpreter."""
        self.folder = folder
        """Where the commands run."""
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT)} if environment is None else environment
        """The environment of the commands."""
        self._terminals: list[Terminal] = []
        self._names: set[str] = set()

    def name(self, word: str) -> str:
        """Return this test's name of the stream that the page calls by this word."""
        self._names.add(f"{self._prefix}-{word}")
        return f"{self._prefix}-{word}"

    def rename(self, program: str, *streams: str) -> str:
        """Return the program with this test's names instead of the page's."""
        for word in streams:
            if f'"{word}"' in program:
                program = program.replace(f'"{word}"', f'"{self.name(word)}"')
        return program

    def command(self, line: str, *streams: str) -> list[str]:
        """Return the words of a page's command, with the interpreter and the names of this test."""
        program, *arguments = shlex.split(line)
        start = {"python": self.python, "framebus": [*self.python, "-m", "framebus"]}.get(program, [program])
        return [*start, *(self.name(word) if word in streams else word for word in arguments)]

    def open(self, line: str, *streams: str) -> Terminal:
        """Start a page's command in a terminal of its own."""
        terminal = Terminal(self.command(line, *streams), self.folder, self.environment)
        self._terminals.append(terminal)
        return terminal

    def run(self, line: str, *streams: str) -> str:
        """Run a page's command to its end, and return what it printed."""
        return self.open(line, *streams).ended()[0]

    def close(self) -> None:
        """Kill the processes that still run, and check that no file is left in /dev/shm."""
        for terminal in self._terminals:
            terminal.close()
        left = [file for name in self._names for file in files_of(name)]
        for file in left:
            (Path("/dev/shm") / file).unlink()
        assert left == []


NewDesk = Callable[..., Desk]
"""What the fixture ``new_desk`` returns: takes the arguments of :class:`Desk` but the prefix."""


def has_compiler() -> bool:
    """Return whether a C compiler and make are installed."""
    return shutil.which("cc") is not None and shutil.which("make") is not None
