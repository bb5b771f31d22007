"""The two sides of a hand-over in two containers of the project: the stitcher's image sends, the detector's receives.

A worker connects to a socket in a folder that is mounted into its container; frames take the way that they always
take, the holder's /dev/shm. Nothing else differs from two processes.
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
from bench.peers import Peer, Setting
from bench.worker import serve

ROOT: Final = Path(__file__).resolve().parent.parent
START_TIMEOUT_S: Final = 60.0
BUILD_TIMEOUT_S: Final = 900
KEY_VARIABLE: Final = "FRAMEBUS_BENCH_KEY"


class Containers:
    """A compose project with nothing but the holder of /dev/shm, and workers that come and go."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._name = f"framebus-bench-{secrets.token_hex(4)}"
        self._key = secrets.token_hex(16)
        self._environment = {**os.environ, "FRAMEBUS_HOLDER": f"{self._name}-holder", "COMPOSE_PROFILES": ""}

    def compose(self, *arguments: str, timeout_s: float = 120) -> None:
        """Run a command of compose.

        Raises:
            PeerFailed: It failed; the text is what it printed.
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

    def start(self, stack: ExitStack, peer: Peer, setting: Setting, index: int | None) -> Worker:
        """Start one side in a container of its own, as :data:`bench.harness.Start` wants it."""
        side = f"{setting.channel}-{'sender' if index is None else index}"
        address = self._folder / f"{side}.sock"
        listener = stack.enter_context(Listener(str(address), "AF_UNIX", authkey=self._key.encode()))
        address.chmod(0o666)  # the workers' users are others
        service = "stitcher" if index is None else "detector"
        run = self._command(
            "run", "--rm", "--no-deps", "-T", "--name", f"{self._name}-{side}", "-e", KEY_VARIABLE,
            "-v", f"{ROOT / 'bench'}:/app/bench:ro", "-v", f"{self._folder}:/bench",
            service, "python", "-m", "bench.containers", f"/bench/{address.name}",
        )  # fmt: skip
        environment = {**self._environment, KEY_VARIABLE: self._key}
        process = subprocess.Popen(
            run, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        stack.callback(_end, process)
        listener._listener._socket.settimeout(START_TIMEOUT_S)  # type: ignore[attr-defined]
        try:
            connection = stack.enter_context(listener.accept())
        except OSError:
            raise PeerFailed(f"no container for {peer.name} in {START_TIMEOUT_S:g} s") from None
        connection.send((peer, setting, index))

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
    """The holder runs while this lasts. Yields what starts a side in a container.

    Raises:
        PeerFailed: No Docker engine answers, or an image cannot be built; the text says which.
    """
    with tempfile.TemporaryDirectory(prefix="framebus-bench-") as folder:
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
    """The worker in the container: connect, learn what to be, serve."""
    with Client(sys.argv[1], "AF_UNIX", authkey=os.environ[KEY_VARIABLE].encode()) as connection:
        peer: Any
        peer, setting, index = connection.recv()
        serve(connection, peer, setting, index)


if __name__ == "__main__":
    main()
