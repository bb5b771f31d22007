"""Where two sides meet, and how long one waits for the other: shared by the peers."""

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
"""As much of a server's log is told."""
SEND_TIMEOUT_S: Final = 2.0
"""How long a sender waits for a receiver that takes nothing."""


class NobodyTakes(TimeoutError):
    """A receiver, or the server between, took nothing for :data:`SEND_TIMEOUT_S`."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} took nothing for {SEND_TIMEOUT_S:g} s: look whether every receiver lives")


def wait_until(met: Callable[[], object], what: str, timeout_s: float = OPEN_TIMEOUT_S) -> None:
    """Ask every 10 ms until the answer is true.

    Raises:
        TimeoutError: It was not within ``timeout_s``; the text says ``what`` did not come.
    """
    deadline_s = time.monotonic() + timeout_s
    while not met():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"{what} did not come within {timeout_s:g} s")
        time.sleep(0.01)


def free_ports(count: int) -> int:
    """The first of some consecutive TCP ports of the loopback that are free now; none that the system gives out."""
    while True:
        first = random.randrange(20_000, 30_000)
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first


def free_port() -> int:
    """A TCP port of the loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def temporary_folder(parent: str | None = None) -> Iterator[Path]:
    """A folder that is removed at the end, whatever is in it by then."""
    with tempfile.TemporaryDirectory(prefix="bench-", dir=parent, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@contextmanager
def server(arguments: list[str], log: Path, environment: dict[str, str] | None = None) -> Iterator[int]:
    """A server with its output in ``log``. At the end it is terminated; what remains of its group after 15 s is killed.

    ``environment`` is added to that of this process. Yields the server's PID. A TimeoutError of the caller is
    given the end of the log.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "LC_ALL": "C", **(environment or {})},
            cwd=log.parent,
            start_new_session=True,
        )
        try:
            yield process.pid
        except TimeoutError as error:
            said = " ".join(log.read_text(errors="replace").split())[-LOG_CHARACTERS:]
            raise TimeoutError(f"{error}; {arguments[0]} said: {said or 'nothing'}") from None
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


class HoldingReceiver(Receiver):
    """Holds the frame that it received until it is released, so that to free it counts as the peer's work."""

    _held: Pixels | None = None

    def hold(self, pixels: Pixels) -> Pixels:
        """Hold a frame, and return it."""
        self._held = pixels
        return pixels

    def release(self) -> None:
        self._held = None


def touched(shape: tuple[int, int, int]) -> Pixels:
    """A private array with all its pages mapped already, as a frame that is used again and again has them."""
    return np.full(shape, 1, np.uint8)


def pixels_of(buffer: Any, shape: tuple[int, int, int]) -> Pixels:
    """Array on a buffer's bytes, without copying them."""
    return np.frombuffer(buffer, np.uint8, shape[0] * shape[1] * shape[2]).reshape(shape)


@contextmanager
def shared_files_removed(pattern: str) -> Iterator[None]:
    """Remove the files in /dev/shm that match, when all is over: those that a killed process could not."""
    try:
        yield
    finally:
        for path in Path("/dev/shm").glob(pattern):
            path.unlink(missing_ok=True)


def zenoh_files(pid: int | str = "self") -> set[Path]:
    """The files in /dev/shm that a process has from zenoh, which leaves them there until it is next opened."""
    maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {Path(line.split()[-1]) for line in maps if line.endswith(".zenoh")}


def remove(paths: set[Path]) -> None:
    """Remove files that may be gone already."""
    for path in paths:
        path.unlink(missing_ok=True)
