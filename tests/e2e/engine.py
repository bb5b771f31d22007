"""A real Docker engine, and compose projects on it with their own names and port."""

from __future__ import annotations

import functools
import json
import os
import secrets
import signal
import subprocess
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tests.support import IN_CI, ROOT, free_ports, lacks, wait_until

STARTERS = [ROOT.parent / "shared/docker" / name for name in ("engine-up", "base-image")]
"""Where no registry is reached, programs beside the checkout may start an engine and make the base image."""
SERVICES = ("stitcher", "detector", "streamer", "simulator")
TAG = "test"


def _run(
    command: list[str], timeout_s: float, directory: Path | None = None, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; its output includes its errors."""
    return subprocess.run(
        command,
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def docker(*arguments: str, check: bool = True, timeout_s: float = 120) -> str:
    """Run the client; return its output, including errors.

    Raises:
        AssertionError: The command failed, and ``check`` is set.
    """
    done = _run(["docker", *arguments], timeout_s)
    assert not check or done.returncode == 0, f"docker {' '.join(arguments)}: {done.stdout}"
    return done.stdout


@functools.cache
def _why_no_engine() -> str:
    try:
        if IN_CI and all(starter.exists() for starter in STARTERS):
            for starter in STARTERS:
                subprocess.run(["bash", starter], check=True, capture_output=True, text=True)
        docker("info")
        docker("compose", "version")
    except (OSError, subprocess.CalledProcessError, subprocess.TimeoutExpired, AssertionError) as error:
        return f"no Docker engine with compose answers: {getattr(error, 'stderr', '') or error}"
    return ""


def need_engine() -> None:
    """Skip the test, or in CI fail it, if no engine answers."""
    if reason := _why_no_engine():
        lacks(reason)


class Project:
    """A compose project of a test.

    Args:
        files: Compose files; none takes ``compose.yaml``.
        directory: Their folder, to which relative paths in them refer.
        environment: Variables that override those of ``.env``.
    """

    def __init__(
        self, *files: str, directory: Path = ROOT, environment: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        self.name = f"test-{secrets.token_hex(4)}"
        self.holder = f"{self.name}-holder"
        self.port = free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"
        self._directory = directory
        self._files = [argument for file in files for argument in ("-f", file)]
        self._environment = {
            **os.environ,
            "FRAMEBUS_PORT": str(self.port),
            "FRAMEBUS_HOLDER": self.holder,
            "FRAMEBUS_SINGLE": f"{self.name}-single",
            "FRAMEBUS_TAG": TAG,
            **environment,
        }

    def compose(self, *arguments: str, timeout_s: float = 300) -> str:
        """Run a command of compose; return its output, including errors.

        Raises:
            AssertionError: It failed.
        """
        command = ["docker", "compose", "-p", self.name, *self._files, *arguments]
        done = _run(command, timeout_s, directory=self._directory, environment=self._environment)
        assert done.returncode == 0, f"compose {' '.join(arguments)}: {done.stdout}\n{self.logs()}"
        return done.stdout

    def container(self, service: str) -> dict[str, Any]:
        """Return the engine's description of a service's container."""
        identity = self.compose("ps", "-aq", service).strip()
        (found,) = json.loads(docker("inspect", identity))
        return dict(found)

    def containers(self) -> dict[str, dict[str, Any]]:
        """Return the engine's descriptions of all containers, by service."""
        found = json.loads(docker("inspect", *self.compose("ps", "-aq").split()))
        return {one["Config"]["Labels"]["com.docker.compose.service"]: one for one in found}

    def starts(self) -> dict[str, tuple[str, str]]:
        """Return each service's container and its start time, which a restart changes."""
        return {service: (one["Id"], one["State"]["StartedAt"]) for service, one in self.containers().items()}

    def kill(self, service: str) -> None:
        """SIGKILL a service's process from the host, as a crash would end it: the restart policy stays in force."""
        os.kill(self.container(service)["State"]["Pid"], signal.SIGKILL)

    def run_in(self, service: str, program: str) -> str:
        """Run a Python program in a service's container; return what it printed."""
        return docker("exec", self.container(service)["Id"], "python", "-c", program)

    def ring(self) -> str:
        """Return device and inode of the ring's file, as the holder sees it."""
        program = "import os; s = os.stat('/dev/shm/framebus.panorama.ring'); print(s.st_dev, s.st_ino)"
        return self.run_in("holder", program).strip()

    def logs(self) -> str:
        """Return the end of the containers' logs."""
        found = docker("ps", "-aq", "--filter", f"label=com.docker.compose.project={self.name}").split()
        return "\n".join(docker("logs", "--tail", "15", identity, check=False) for identity in found)

    def ask(self, path: str) -> Any:
        """Return the JSON answer of the page's server."""
        with urllib.request.urlopen(f"{self.url}{path}", timeout=10) as answer:
            return json.load(answer)

    def healthy(self) -> set[str]:
        """Return the services that report themselves as healthy."""
        try:
            services = self.ask("/api/status")["services"]
        except (OSError, ValueError):
            return set()
        return {name for name, status in services.items() if status["healthy"]}

    def wait_for(self, condition: Callable[[], bool], what: str, patience_s: float = 60) -> None:
        """Wait until the condition holds; the message of a time-out ends with the containers' logs.

        Raises:
            AssertionError: It does not hold in time.
        """
        wait_until(condition, what, timeout_s=patience_s, interval_s=0.1, detail=self.logs)

    def down(self) -> None:
        """Remove everything that belongs to the project."""
        self.compose("--profile", "*", "down", "-v", "-t", "2", "--remove-orphans")
