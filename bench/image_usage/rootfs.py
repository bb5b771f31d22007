"""A plain folder as a root file system, such as an unpacked ``docker export``: run by chroot, watched by its mount."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bench.image_usage.errors import CannotMeasure
from bench.image_usage.fanotify import parent

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
GRACE_S: Final = 10.0


class Rootfs:
    """A program that runs in a folder. Its mount, with ``/proc`` and ``/dev``, is there while :meth:`mounted` lasts."""

    check: tuple[str, ...] = ()
    whole = False
    """The mount is watched, and not the whole file system, which is the host's."""

    def __init__(self, folder: Path, command: Sequence[str]) -> None:
        self.folder = folder
        self.mount = ""
        self._command = list(command)
        self._process: subprocess.Popen[bytes] | None = None
        self._first = 0

    @contextmanager
    def mounted(self) -> Iterator[Rootfs]:
        """Mount the folder at a place of its own.

        Raises:
            CannotMeasure: This process may not.
        """
        self.mount = tempfile.mkdtemp(prefix="image-usage-")
        try:
            for arguments in (
                ("--bind", str(self.folder), self.mount),
                ("-t", "proc", "proc", f"{self.mount}/proc"),
                ("--rbind", "/dev", f"{self.mount}/dev"),
                ("--make-rslave", f"{self.mount}/dev"),
            ):
                _mount(arguments)
            yield self
        finally:
            subprocess.run(["umount", "--recursive", "--lazy", self.mount], capture_output=True, check=False)
            with contextlib.suppress(OSError):
                os.rmdir(self.mount)

    def start(self) -> None:
        """Start the program, as process 1 of a namespace, so that none of its children outlives it."""
        command = ["unshare", "--pid", "--fork", "--kill-child=SIGKILL", "chroot", self.mount, *self._command]
        environment = {"PATH": PATH, "HOME": "/root"}
        self._process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)
        self._first = 0

    def wait_until_ready(self, timeout_s: float) -> None:
        """Wait until it runs."""
        ends_s = time.monotonic() + timeout_s
        while not self.firsts() and self.running():
            if time.monotonic() > ends_s:
                raise CannotMeasure(f"{self._command[0]} does not run after {timeout_s:g} s")
            time.sleep(0.01)

    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process is not None and self._process.poll() is None

    def firsts(self) -> set[int]:
        """Number of the process that runs the program; ``unshare``, which stays outside, is its parent."""
        if not self._first and self._process is not None:
            self._first = next((child for child in _children(self._process.pid)), 0)
        return {self._first} if self._first else set()

    def stop(self) -> None:
        """Ask the program to end, and end it if it does not."""
        process = self._process
        if process is None:
            return
        for number in self.firsts():
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGTERM)
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def environment(self) -> dict[str, str]:
        """Environment of a command that works on it."""
        return {**os.environ, "ROOTFS": self.mount}

    def sharers(self) -> list[str]:
        """No container stacks this folder."""
        return []

    def failure(self) -> str:
        """What became of it, if it has ended by itself with an error."""
        code = None if self._process is None else self._process.poll()
        return f"its program ended by itself with exit status {code}" if code else ""

    def restarts(self) -> int:
        """It is started once."""
        return 0


def _mount(arguments: Sequence[str]) -> None:
    if shutil.which("mount") is None:
        raise CannotMeasure("there is no mount command")
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotMeasure(f"the folder cannot be mounted: {done.stderr.strip()}")


def _children(number: int) -> list[int]:
    names = (path.name for path in Path("/proc").iterdir() if path.name.isdigit())
    return [int(name) for name in names if parent(int(name)) == number]
