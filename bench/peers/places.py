"""Helpers that the peers share: ports, folders, servers, buffers, and waiting with a time-out."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np

from bench.peers import OPEN_TIMEOUT_S, Pixels, Receiver

LOG_CHARACTERS: Final = 300
"""How much of a server's log an error contains."""
SEND_TIMEOUT_S: Final = 2.0
"""How long a sender waits for a receiver that does not take a frame."""


class ReceiverStalled(TimeoutError):
    """A receiver, or the server in between, took no frame for :data:`SEND_TIMEOUT_S`."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} took no frame for {SEND_TIMEOUT_S:g} s: check that every receiver is running")


def wait_until(met: Callable[[], object], what: str, timeout_s: float = OPEN_TIMEOUT_S) -> None:
    """Call ``met`` every 10 ms until its result is true.

    Raises:
        TimeoutError: It was not true within ``timeout_s``; the text names ``what`` was waited for.
    """
    deadline_s = time.monotonic() + timeout_s
    while not met():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"{what} did not come within {timeout_s:g} s")
        time.sleep(0.01)


def free_ports(count: int) -> int:
    """Return the first of ``count`` consecutive loopback TCP ports that are free now, outside the ephemeral range."""
    while True:
        # Random, so that parallel runs do not try the same ports at the same time.
        first = random.randrange(20_000, 30_000)
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first


def free_port() -> int:
    """Return a TCP port of the loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def temporary_folder(parent: str | None = None) -> Iterator[Path]:
    """Make a temporary folder, and remove it at the end with all that it contains."""
    with tempfile.TemporaryDirectory(prefix="bench-", dir=parent, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@contextmanager
def server(arguments: list[str], log: Path, environment: dict[str, str] | None = None) -> Iterator[int]:
    """Run a server, with its output in ``log``. At the end, terminate it, and kill the rest of its group after 15 s.

    ``environment`` is added to that of this process. Yields the server's PID. If the caller raises TimeoutError, the
    end of the log is added to its text.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # The C locale, so that the end of the log is in English.
            env={**os.environ, "LC_ALL": "C", **(environment or {})},
            cwd=log.parent,
            # A process group of its own, so that the children of the server can be killed with it.
            start_new_session=True,
        )
        try:
            yield process.pid
        except TimeoutError as error:
            said = " ".join(log.read_text(errors="replace").split())[-LOG_CHARACTERS:]
            raise TimeoutError(f"{error}; {arguments[0]} printed: {said or 'nothing'}") from None
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


class HoldingReceiver(Receiver):
    """Holds the received frame until it is released, so that freeing it counts as work of the peer."""

    _held: Pixels | None = None

    def hold(self, pixels: Pixels) -> Pixels:
        """Hold a frame, and return it."""
        self._held = pixels
        return pixels

    def release(self) -> None:
        self._held = None


def touched(shape: tuple[int, int, int]) -> Pixels:
    """Return a private array whose pages are all mapped, like those of a buffer that is used again and again."""
    return np.full(shape, 1, np.uint8)


def pixels_of(buffer: Any, shape: tuple[int, int, int]) -> Pixels:
    """Return an array on a buffer's bytes, without copying them."""
    return np.frombuffer(buffer, np.uint8, shape[0] * shape[1] * shape[2]).reshape(shape)


@contextmanager
def shared_files_removed(pattern: str) -> Iterator[None]:
    """At the end, remove the matching files in /dev/shm, which a killed process could not remove."""
    try:
        yield
    finally:
        for path in Path("/dev/shm").glob(pattern):
            path.unlink(missing_ok=True)


def zenoh_files(pid: int | str = "self") -> set[Path]:
    """Return zenoh's files in /dev/shm that a process has mapped. Zenoh leaves them there until it is opened again."""
    maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {Path(line.split()[-1]) for line in maps if line.endswith(".zenoh")}


def remove(paths: set[Path]) -> None:
    """Remove files that may be gone already."""
    for path in paths:
        path.unlink(missing_ok=True)
