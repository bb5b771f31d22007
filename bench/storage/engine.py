"""A second Docker engine with its own data root. It does not touch the machine's engine."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psutil

from bench.storage.figures import NOT_HERE, NotHere
from bench.storage.mounts import command, held_back, need_root, unmount_below

START_S: Final = 40.0
STOP_S: Final = 20.0


class Engine:
    """A running engine."""

    def __init__(self, sockets: Path, data_root: Path) -> None:
        self.sockets = sockets
        self.data_root = data_root
        self.host = f"unix://{sockets / 'docker.sock'}"

    def docker(self, *arguments: str, timeout_s: float = 600) -> str:
        """Run the client on this engine; return what it printed.

        Raises:
            NotHere: The command failed; the text is the end of what it printed.
        """
        return command("docker", "-H", self.host, *arguments, timeout_s=timeout_s)

    def inspect(self, *arguments: str) -> Any:
        """Return what ``docker inspect`` reports about one object."""
        (found,) = json.loads(self.docker("inspect", *arguments))
        return found

    def load(self, archive: Path) -> None:
        """Load images from a file made by ``docker save``."""
        self.docker("load", "--quiet", "--input", str(archive))

    def build(self, folder: Path, tag: str) -> None:
        """Build an image without a network and without the builder's cache."""
        self.docker("build", "--quiet", "--network", "none", "--no-cache", "--tag", tag, str(folder))

    def run(self, *arguments: str) -> str:
        """Run a container without a network to its end; return what it printed."""
        return self.docker("run", "--rm", "--network", "none", *arguments).strip()


def client_missing() -> str:
    """Return why no second engine can be started here; empty if one can."""
    for program in ("dockerd", "docker"):
        if shutil.which(program) is None:
            return f"{NOT_HERE}: {program} is missing: install Docker Engine"
    return ""


@contextmanager
def engine(folder: Path, driver: str, data_root: Path | None = None) -> Iterator[Engine]:
    """Start an engine. At the end, stop it, and remove all that it started and mounted.

    Args:
        folder: A new folder, for its log and its images.
        driver: Its storage driver.
        data_root: Folder of images, containers and volumes, if it is not in ``folder``.

    Raises:
        NotHere: There is no dockerd, or it ended or did not answer; the text is its last error.
    """
    need_root()
    if reason := client_missing():
        raise NotHere(reason)
    folder.mkdir(parents=True)
    root = data_root or folder / "data"
    # A short path of its own, because a socket's path has at most 107 characters.
    sockets = Path(tempfile.mkdtemp(prefix="bench-engine-"))
    ours = Engine(sockets, root)
    # Use a network namespace: a dockerd without a bridge removes docker0, which the machine's engine needs.
    arguments = [
        "unshare", "--net",
        "dockerd", "--data-root", str(root), "--exec-root", str(sockets / "exec"), "--pidfile", str(sockets / "pid"),
        "--host", ours.host, "--storage-driver", driver, "--bridge=none", "--iptables=false", "--ip-forward=false",
        "--config-file", str(_configuration(folder)),
    ]  # fmt: skip
    log = folder / "log"
    try:
        with log.open("wb") as output:
            process = subprocess.Popen(
                arguments, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            _wait(ours, process, log)
            yield ours
        finally:
            # An interrupt here would leave mounts and containers behind.
            with held_back():
                _end(ours, process)
    finally:
        shutil.rmtree(sockets, ignore_errors=True)


def _configuration(folder: Path) -> Path:
    """Write an empty configuration, so that the engine does not read the machine's."""
    path = folder / "daemon.json"
    path.write_text("{}")
    return path


def _wait(ours: Engine, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline_s = time.monotonic() + START_S
    while True:
        with contextlib.suppress(NotHere):
            ours.docker("version", timeout_s=10)
            return
        # The engine has ended, so waiting longer is pointless: its last error says why.
        if process.poll() is not None:
            raise NotHere(last_error(log.read_text(errors="replace")))
        if time.monotonic() > deadline_s:
            raise NotHere(f"the second engine did not answer within {START_S:g} s: see its log")
        time.sleep(0.2)


def last_error(log: str) -> str:
    """Return the last error of an engine, without the prefix that is the same in all of them."""
    said = [line for line in log.splitlines() if line.strip()]
    last = said[-1] if said else "the engine ended without a message"
    return last.rpartition("failed to start daemon: ")[2].rpartition("graphdriver: ")[2].strip()


def _end(ours: Engine, process: subprocess.Popen[bytes]) -> None:
    """Remove the engine's containers, stop it, and kill what is left of its session."""
    if process.poll() is None:
        with contextlib.suppress(NotHere):
            left = ours.docker("ps", "--all", "--quiet", timeout_s=30).split()
            if left:
                ours.docker("rm", "--force", *left, timeout_s=60)
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for one in _of_folder(ours.sockets):
        with contextlib.suppress(psutil.NoSuchProcess):
            family = [one, *one.children(recursive=True)]  # the children of a shim are the processes of its container
            for member in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.kill()
            psutil.wait_procs(family, timeout=5)
    unmount_below(ours.sockets)
    unmount_below(ours.data_root)


def _of_folder(folder: Path) -> list[psutil.Process]:
    """Return containerd and shims whose command line names the folder: a killed engine leaves them running."""
    found = []
    for one in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = one.cmdline()
            if words and Path(words[0]).name.startswith("containerd") and any(f"{folder}/" in word for word in words):
                found.append(one)
    return found


@contextmanager
def saved(image: str, folder: Path) -> Iterator[Path]:
    """Save an image of the machine's engine with ``docker save``, and yield the file.

    Raises:
        NotHere: No engine answers, or it has no such image.
    """
    try:
        command("docker", "image", "inspect", image)
    except NotHere as error:
        raise NotHere(f"{NOT_HERE}: {error}: build it, or name another with --image") from None
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / "image.tar"
    try:
        command("docker", "save", "--output", str(archive), image, timeout_s=300)
        yield archive
    finally:
        archive.unlink(missing_ok=True)
