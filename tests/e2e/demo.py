"""``make demo`` as a process of a test, with its own ports and stream."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import psutil

from tests.support import ROOT, family, free_ports, kill_family

LIVE = "the panorama is live at "
CAMERAS = 5


def demo_environment(stream: str, first_port: int) -> dict[str, str]:
    """Return an environment with a stream and ports for the demo: those of the cameras, and then that of the page."""
    cameras = [{"name": f"cam{i}", "url": f"http://127.0.0.1:{first_port + i}/cam{i}.ts"} for i in range(CAMERAS)]
    return {
        "PORT": str(first_port + CAMERAS),
        "FRAMEBUS_STREAM__NAME": stream,
        "FRAMEBUS_SIMULATOR__FIRST_PORT": str(first_port),
        "FRAMEBUS_STITCHER__CAMERAS": json.dumps(cameras),
    }


class Demo:
    """The command, its output and its processes."""

    def __init__(self, stream: str, log: Path, **environment: str) -> None:
        first = free_ports(CAMERAS + 1)
        self.stream = stream
        self.url = f"http://127.0.0.1:{first + CAMERAS}"
        self.environment = {**os.environ, **demo_environment(stream, first), **environment}
        self.log = log
        with log.open("w") as output:
            self.process = subprocess.Popen(
                ["make", "--no-print-directory", "demo"],
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def output(self) -> str:
        """Everything that the demo has printed."""
        return self.log.read_text()

    def processes(self) -> list[psutil.Process]:
        """The demo's process and all its descendants."""
        return family(self.process.pid)

    def service(self, name: str) -> psutil.Process | None:
        """Return the process of one service, if it runs."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                if process.cmdline()[1:4] == ["-m", "services", name]:
                    return process
        return None

    def service_pid(self, name: str) -> int:
        """Return its PID; 0 if it does not run."""
        process = self.service(name)
        return 0 if process is None else process.pid

    def status(self) -> dict[str, Any]:
        """Return the answer of ``/api/status``."""
        with urllib.request.urlopen(f"{self.url}/api/status", timeout=10) as answer:
            content: dict[str, Any] = json.load(answer)
        return content

    def interrupt(self) -> int:
        """Send SIGINT to the whole group, as Ctrl-C in a terminal does; return the exit status."""
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(20)

    def kill(self) -> None:
        """Kill the demo, after a test that failed."""
        kill_family(self.process)
