"""Run the simulator: render once, then serve five cameras until told to stop."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import structlog

from services.common.config import LogSection
from services.common.service import ServiceError
from services.simulator.config import SimulatorConfiguration, SimulatorSection
from services.simulator.render import render
from services.simulator.serve import EXIT_PORT_IN_USE

ROOT = Path(__file__).parents[2]
TERMINATION_S = 1.0
"""How long the camera processes may take to end before they are killed."""

log = structlog.get_logger()


def main(configuration: SimulatorConfiguration, stop: threading.Event) -> None:
    """Serve the five cameras until ``stop`` is set.

    Raises:
        ServiceError: A port is in use, the cache cannot be written, or a camera's process ended.
    """
    section = configuration.simulator
    check_ports(section)
    folder = render(section, stop)
    with Cameras(section, folder, configuration.log) as cameras:
        log.info("serving", urls=cameras.urls)
        while not stop.wait(0.2):
            cameras.check()


def check_ports(section: SimulatorSection) -> None:
    """Find out early whether all ports are free.

    Raises:
        ServiceError: One is not; the message says which and what to set.
    """
    for port in range(section.first_port, section.first_port + len(section.cameras)):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((section.host, port))
                probe.listen(1)
            except OSError as error:
                raise ServiceError(_port_sentence(section.host, port, error.strerror or str(error))) from error


class Cameras:
    """The five serving processes, as a context: they start together and end together."""

    def __init__(self, section: SimulatorSection, folder: Path, log_section: LogSection) -> None:
        self._host = section.host
        self._ports = [section.first_port + i for i in range(len(section.cameras))]
        self._clips = [folder.resolve() / f"{camera.name}.ts" for camera in section.cameras]
        self._log_section = log_section
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def urls(self) -> list[str]:
        """Where a client finds the cameras, from left to right."""
        return [f"http://{self._host}:{port}/{clip.name}" for port, clip in zip(self._ports, self._clips, strict=True)]

    def __enter__(self) -> Cameras:
        t0 = time.monotonic()
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        for clip, port in zip(self._clips, self._ports, strict=True):
            command = [sys.executable, "-m", "services.simulator.serve", str(clip), "--host", self._host]
            command += ["--port", str(port), "--t0", repr(t0), "--log", self._log_section.model_dump_json()]
            self._processes.append(subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}))
        return self

    def check(self) -> None:
        """Find out whether all cameras are still served.

        Raises:
            ServiceError: One is not.
        """
        for process, port in zip(self._processes, self._ports, strict=True):
            status = process.poll()
            if status == EXIT_PORT_IN_USE:
                raise ServiceError(_port_sentence(self._host, port, "Address already in use"))
            if status is not None:
                raise ServiceError(f"The process that serves port {port} ended with status {status}.")

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.terminate()
        deadline = time.monotonic() + TERMINATION_S
        for process in self._processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _port_sentence(host: str, port: int, reason: str) -> str:
    return (
        f"Port {port} of {host} cannot be served: {reason}. Set simulator.first_port to the first of five free ports."
    )
