"""Runs the two sides of a hand-over in two containers: the stitcher's image sends, the detector's receives.

A worker connects to a socket in a folder that is mounted into its container. Frames pass through the holder's /dev/shm,
as they do in a deployment. Nothing else differs from two processes.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Client, Listener
from pathlib import Path
from typing import Any, Final

from bench.harness import PeerFailed, Start, Worker
from bench.peers import Config, Peer
from bench.worker import serve

ROOT: Final = Path(__file__).resolve().parent.parent
START_TIMEOUT_S: Final = 60.0
BUILD_TIMEOUT_S: Final = 900
KEY_VARIABLE: Final = "FRAMEBUS_BENCH_KEY"


class Containers:
    """A compose project that contains only the holder of /dev/shm, and workers that start and end."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._name = f"framebus-bench-{secrets.token_hex(4)}"
        self._key = secrets.token_hex(16)
        self._environment = {**os.environ, "FRAMEBUS_HOLDER": f"{self._name}-holder", "COMPOSE_PROFILES": ""}

    def compose(self, *arguments: str, timeout_s: float = 120) -> None:
        """Run a command of compose.

        Raises:
            PeerFailed: The command failed; the text is what it printed.
        """
        try:
            done = subprocess.run(
                self._command(*arguments), cwd=ROOT, env=self._environment, capture_output=True, text=True,
                stdin=subprocess.DEVNULL, timeout=timeout_s, check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise PeerFailed(f"docker compose {arguments[0]}: {error}") from None
        if done.returncode:
            raise PeerFailed(f"docker compose {arguments[0]}: {done.stderr.strip()[-400:]}")

    def start(self, stack: ExitStack, peer: Peer, config: Config, index: int | None) -> Worker:
        """Start one side in a container of its own, with the signature of :data:`bench.harness.Start`."""
        side = f"{config.channel}-{'sender' if index is None else index}"
        address = self._folder / f"{side}.sock"
        listener = stack.enter_context(Listener(str(address), "AF_UNIX", authkey=self._key.encode()))
        address.chmod(0o666)  # the workers run as other users
        # The sender runs as the stitcher's user, which owns the ring; the receivers as one that may only read it.
        service = "stitcher" if index is None else "detector"
        run = self._command(
            "run", "--rm", "--no-deps", "-T", "--name", f"{self._name}-{side}", "-e", KEY_VARIABLE,
            "-v", f"{ROOT / 'bench'}:/app/bench:ro", "-v", f"{self._folder}:/bench",
            service, "python", "-m", "bench.containers", f"/bench/{address.name}",
        )  # fmt: skip
        # Pass the key by the environment, because a command line is visible to every user of the host.
        environment = {**self._environment, KEY_VARIABLE: self._key}
        process = subprocess.Popen(
            run, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        stack.callback(_end, process)
        # Listener has no public time-out, and a container that does not start would block accept() forever.
        listener._listener._socket.settimeout(START_TIMEOUT_S)  # type: ignore[attr-defined]
        try:
            connection = stack.enter_context(listener.accept())
        except OSError:
            raise PeerFailed(f"no container for {peer.name} connected within {START_TIMEOUT_S:g} s") from None
        connection.send((peer, config, index))

        def close() -> None:
            with contextlib.suppress(OSError):
                connection.send("close")

        stack.callback(close)
        return Worker(connection, f"{peer.name} in {service}'s container")

    def _command(self, *arguments: str) -> list[str]:
        return ["docker", "compose", "-p", self._name, *arguments]


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.communicate(timeout=15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


@contextmanager
def containers() -> Iterator[Start]:
    """Run the holder. Yields a function that starts a side in a container.

    Raises:
        PeerFailed: No Docker engine answers, or an image cannot be built; the text says which.
    """
    with tempfile.TemporaryDirectory(prefix="framebus-bench-") as folder:
        # Containers of other users must be able to enter the folder, but not to list it.
        Path(folder).chmod(0o711)
        project = Containers(Path(folder))
        project.compose("build", "--quiet", "stitcher", "detector", timeout_s=BUILD_TIMEOUT_S)
        try:
            project.compose("up", "-d", "--no-deps", "holder")
            yield project.start
        finally:
            with contextlib.suppress(PeerFailed):
                project.compose("down", "-v", "-t", "1")


def main() -> None:
    """Run the worker in the container: connect, receive the side to take, and serve it."""
    with Client(sys.argv[1], "AF_UNIX", authkey=os.environ[KEY_VARIABLE].encode()) as connection:
        peer: Any
        peer, config, index = connection.recv()
        serve(connection, peer, config, index)


if __name__ == "__main__":
    main()
