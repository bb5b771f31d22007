"""Run pip and show its progress: ``python -m services.supervisor.install WHAT ARGUMENT...``.

Shows a bar on a terminal, and a line for each step elsewhere. Imports only rich and the standard library, because
nothing else is installed when the Makefile runs it.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from services.supervisor.terminal import Bar, Screen, can_draw

TICK_S = 0.2
KEPT_LINES = 30
"""Number of pip's last lines that are shown if it fails."""
COLLECTING = re.compile(r"(?:Collecting|Requirement already satisfied:|Processing|Obtaining) ([A-Za-z0-9._/:-]+)")
DOWNLOADING = re.compile(r"\s*(?:Downloading|Using cached) (\S+?)-\d\S* \(([^)]*)\)")
INSTALLING = re.compile(r"Installing collected packages: (.*)")


class Installation:
    """Progress of pip, parsed from its output."""

    def __init__(self, packages: Path) -> None:
        self.collected: set[str] = set()
        """Packages that pip has collected."""
        self.now = ""
        """The current download."""
        self.to_install: list[str] = []
        """Packages to install, once they are known."""
        self._packages = packages

    def take(self, line: str) -> None:
        """Parse a line of pip's output."""
        if found := COLLECTING.match(line):
            self.collected.add(found[1].lower())
            self.now = ""
        elif found := DOWNLOADING.match(line):
            self.now = f"{found[1]}, {found[2]}"
        elif found := INSTALLING.match(line):
            self.to_install = [name.strip() for name in found[1].split(",")]

    def installed(self) -> int:
        """Number of installed packages of :attr:`to_install`, by the folders that pip creates last."""
        there = {normalized(path.name.partition("-")[0]) for path in self._packages.glob("*.dist-info")}
        return sum(normalized(name) in there for name in self.to_install)

    def picture(self, what: str, columns: int) -> RenderableType:
        """Draw the progress."""
        total = len(self.to_install)
        if total:
            done = self.installed()
            told, detail = f"{done} of {total} packages", ""
        else:
            done, told, detail = 0, f"{len(self.collected)} packages found", self.now
        title = f"installing {what}"
        parts: list[RenderableType] = []
        width = min(40, columns - len(title) - len(told) - 4)
        if width >= 8:
            line = Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
            for column in (len(title), width, len(told)):
                line.add_column(width=column, no_wrap=True)
            line.add_row(title, Bar(done, total or None, width), told)
            parts.append(line)
        else:
            parts += [_cut(title, columns), _cut(told, columns)]
        parts.append(_cut(f"  {detail}", columns))
        return Group(*parts)


def normalized(name: str) -> str:
    """Return a distribution's name, normalised by PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _cut(words: str, columns: int) -> Text:
    text = Text(words, no_wrap=True, overflow="crop")
    text.truncate(columns, overflow="crop")
    return text


def install(what: str, arguments: list[str]) -> int:
    """Run ``pip install`` with the arguments and show its progress. Return its exit status.

    Args:
        what: Name of the installation, for display.
        arguments: Arguments of ``pip install``.
    """
    lines: queue.Queue[str] = queue.Queue()
    installation = Installation(Path(sysconfig.get_path("purelib")))
    command = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "install",
        "--progress-bar",
        "off",
        *arguments,
    ]
    environment = {name: text for name, text in os.environ.items() if name not in ("PIP_QUIET", "PIP_VERBOSE")}
    # Use a separate process group, so that Ctrl-C reaches only this program, which then ends pip.
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        process_group=0,
    )
    assert process.stdout is not None
    threading.Thread(target=_read, args=(process, lines), daemon=True).start()
    screen = Screen(1) if can_draw(1) else None
    if screen is None:
        _say(f"installing {what}")
    started_s = time.monotonic()
    last: list[str] = []
    try:
        status = None
        while status is None:
            status = process.poll()
            with contextlib.suppress(queue.Empty):
                line = lines.get(timeout=TICK_S)
                while True:
                    last = [*last, line][-KEPT_LINES:]
                    was = len(installation.to_install)
                    installation.take(line)
                    if screen is None and len(installation.to_install) > was:
                        _say(f"installing {len(installation.to_install)} packages")
                    line = lines.get_nowait()
            if screen is not None:
                screen.draw(lambda columns, _lines: installation.picture(what, columns))
    except KeyboardInterrupt:
        _end(process)
        status = 128 + signal.SIGINT
    finally:
        if screen is not None:
            screen.close()
    if status == 0:
        _say(f"installed {what} in {time.monotonic() - started_s:.0f} s")
    elif status == 128 + signal.SIGINT:
        _say("installing was interrupted; the next run goes on from there")
    else:
        sys.stderr.write("\n".join([*last, f"pip ended with status {status}"]) + "\n")
    return status


def _read(process: subprocess.Popen[str], lines: queue.Queue[str]) -> None:
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            lines.put(line.rstrip("\n"))


def _end(process: subprocess.Popen[str]) -> None:
    """Kill pip and the builds that it has started."""
    for number in (signal.SIGINT, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
            return


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _interrupt(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt


def main(arguments: list[str]) -> int:
    """Install what the command line names. Return the exit status."""
    if len(arguments) < 2:
        sys.stderr.write("usage: python -m services.supervisor.install WHAT ARGUMENT...\n")
        return 2
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    return install(arguments[0], arguments[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
