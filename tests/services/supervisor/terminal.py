"""A terminal for the tests: a program on a pseudo-terminal, whose screen is drawn by pyte."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping
from typing import Any

import pyte

from tests.support import ROOT, kill_family, wait_until


class WatchedScreen(pyte.HistoryScreen):  # pyte has no types
    """Counts the lines that wrap by themselves."""

    def __init__(self, columns: int, lines: int) -> None:
        self.wrapped: list[str] = []
        self._drawing = False
        super().__init__(columns, lines, history=5000, ratio=0.5)

    def draw(self, data: str) -> None:
        self._drawing = True
        super().draw(data)
        self._drawing = False

    def linefeed(self) -> None:
        if self._drawing:
            self.wrapped.append(self.display[self.cursor.y])
        super().linefeed()


class Terminal:
    """A program that runs on a pseudo-terminal."""

    def __init__(self, command: list[str], environment: Mapping[str, str], columns: int = 80, lines: int = 24) -> None:
        self.screen = WatchedScreen(columns, lines)
        self._stream = pyte.ByteStream(self.screen)
        self._master, self._slave = os.openpty()
        self._set_size()
        self.modes = termios.tcgetattr(self._slave)
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={"TERM": "xterm-256color", **environment},
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509  no threads yet
        )

    def resize(self, columns: int, lines: int) -> None:
        """Resize the terminal, as when its window is dragged."""
        self.read()
        self.screen.resize(lines, columns)
        self._set_size()

    def _set_size(self) -> None:
        size = struct.pack("HHHH", self.screen.lines, self.screen.columns, 0, 0)
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, size)

    def read(self) -> None:
        """Draw what the program has written."""
        while select.select([self._master], [], [], 0)[0]:
            self._stream.feed(os.read(self._master, 65536))

    def text(self) -> str:
        """Return the text on the screen."""
        self.read()
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip()

    def scrolled(self) -> list[str]:
        """Return the lines that have scrolled off the top."""
        self.read()
        return ["".join(line[x].data for x in sorted(line)).rstrip() for line in self.screen.history.top]

    def wait_for(self, condition: Callable[[str], Any], what: str, timeout_s: float = 40.0) -> str:
        """Read until the screen's text fulfils the condition; return the text."""

        def holds() -> bool:
            return bool(condition(self.text()))

        wait_until(holds, what, interval_s=0.05, timeout_s=timeout_s, detail=self.text)
        return self.text()

    def type(self, keys: str) -> None:
        """Press keys: ``\\x03`` is Ctrl-C."""
        os.write(self._master, keys.encode())

    def end(self, timeout_s: float = 20.0) -> int:
        """Read until the program has ended; return its exit status."""
        deadline_s = time.monotonic() + timeout_s
        while self.process.poll() is None:
            assert time.monotonic() < deadline_s, f"it has not ended: {self.text()}"
            self.read()
            time.sleep(0.02)
        self.read()
        return int(self.process.returncode)

    def modes_now(self) -> list[Any]:
        """Return the terminal's modes, as termios defines them."""
        return list(termios.tcgetattr(self._slave))

    def close(self) -> None:
        """End the program and its descendants, if need be, and the terminal."""
        # The end of the terminal does not end them if the tests run under nohup(1).
        kill_family(self.process)
        for descriptor in (self._master, self._slave):
            with contextlib.suppress(OSError):
                os.close(descriptor)
