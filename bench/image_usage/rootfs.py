"""A plain folder as a root file system, such as an unpacked ``docker export``: run by chroot, watched at its mount."""

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
    """A program that runs in a folder, which is mounted, with ``/proc`` and ``/dev``, while :meth:`mounted` lasts."""

    check: tuple[str, ...] = ()
    whole = False
    """Only the mount is watched, because the whole file system is the host's."""

    def __init__(self, folder: Path, command: Sequence[str]) -> None:
        self.folder = folder
        self.mount = ""
        self._command = list(command)
        self._process: subprocess.Popen[bytes] | None = None
        self._first = 0

    @contextmanager
    def mounted(self) -> Iterator[Rootfs]:
        """Mount the folder at a temporary mount point.

        Raises:
            CannotMeasure: This process is not allowed to mount.
        """
        self.mount = tempfile.mkdtemp(prefix="image-usage-")
        try:
            for arguments in (
                ("--bind", str(self.folder), self.mount),
                ("-t", "proc", "proc", f"{self.mount}/proc"),
                ("--rbind", "/dev", f"{self.mount}/dev"),
                # Unmounting the copy of /dev must not unmount the host's.
                ("--make-rslave", f"{self.mount}/dev"),
            ):
                _mount(arguments)
            yield self
        finally:
            # Lazy, because a process of the program may still use the mount.
            subprocess.run(["umount", "--recursive", "--lazy", self.mount], capture_output=True, check=False)
            with contextlib.suppress(OSError):
                os.rmdir(self.mount)

    def start(self) -> None:
        """Start the program as process 1 of a PID namespace, so that none of its children outlives it."""
        # If unshare is killed, the kernel kills the program, and with it all processes of the namespace.
        command = ["unshare", "--pid", "--fork", "--kill-child=SIGKILL", "chroot", self.mount, *self._command]
        environment = {"PATH": PATH, "HOME": "/root"}
        self._process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)
        self._first = 0

    def wait_until_ready(self, timeout_s: float) -> None:
        """Wait until the program runs."""
        ends_s = time.monotonic() + timeout_s
        while not self.firsts() and self.running():
            if time.monotonic() > ends_s:
                raise CannotMeasure(f"{self._command[0]} does not run after {timeout_s:g} s")
            time.sleep(0.01)

    def running(self) -> bool:
        """Return whether the program is running."""
        return self._process is not None and self._process.poll() is None

    def firsts(self) -> set[int]:
        """Return the PID of the program. Its parent is ``unshare``, which stays outside the namespace."""
        if not self._first and self._process is not None:
            # unshare forks the program, which takes a moment.
            self._first = next((child for child in _children(self._process.pid)), 0)
        return {self._first} if self._first else set()

    def stop(self) -> None:
        """Terminate the program, and kill it if it does not end."""
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
        """Return the environment for a command that works on the folder."""
        return {**os.environ, "ROOTFS": self.mount}

    def sharers(self) -> list[str]:
        """Return no names: no container has this folder as a layer."""
        return []

    def failure(self) -> str:
        """Return how the program ended, if it ended by itself with an error; else an empty string."""
        code = None if self._process is None else self._process.poll()
        return f"its program ended by itself with exit status {code}" if code else ""

    def restarts(self) -> int:
        """Return 0: the program is started once."""
        return 0


def _mount(arguments: Sequence[str]) -> None:
    if shutil.which("mount") is None:
        raise CannotMeasure("mount is not installed")
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotMeasure(f"the folder cannot be mounted: {done.stderr.strip()}")


def _children(number: int) -> list[int]:
    names = (path.name for path in Path("/proc").iterdir() if path.name.isdigit())
    return [int(name) for name in names if parent(int(name)) == number]
