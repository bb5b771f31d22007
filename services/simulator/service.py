"""Run the simulator: render once, then serve five cameras until told to stop."""

from __future__ import annotations

import math
import socket
import subprocess
import threading
import time
from pathlib import Path

import structlog

from services.common.config import LogSection
from services.common.service import ServiceError
from services.common.status import StatusServer, status_document
from services.simulator import child
from services.simulator.config import FRAMES_PER_SECOND, SimulatorConfiguration, SimulatorSection
from services.simulator.render import clips_folder
from services.simulator.serve import EXIT_PORT_IN_USE

TERMINATION_S = 1.0
"""How long the camera processes may take to end before they are killed."""
SIGNAL_S = 0.3
"""How long a signal may take to arrive here after it ended a camera's process: a terminal sends it to both."""

log = structlog.get_logger()


def main(configuration: SimulatorConfiguration, stop: threading.Event) -> None:
    """Serve the five cameras until ``stop`` is set.

    Raises:
        ServiceError: A port is in use, the cache cannot be written, or a camera's process ended.
    """
    section = configuration.simulator
    check_ports(section)
    folder = rendered(section, configuration.log, stop)
    if folder is None:
        return
    with Cameras(section, folder, configuration.log) as cameras, serve_status(configuration, cameras):
        log.info("serving", urls=cameras.urls)
        while not stop.wait(0.2):
            try:
                cameras.check()
            except ServiceError:
                if not stop.wait(SIGNAL_S):
                    raise


def serve_status(configuration: SimulatorConfiguration, cameras: Cameras) -> StatusServer:
    """Tell which picture is shown when: frame ``(t - t0_s) * fps`` modulo ``frames`` at the monotonic time t.

    Raises:
        ServiceError: Another simulator of the same stream runs.
    """
    details = {"t0_s": cameras.t0_s, "fps": FRAMES_PER_SECOND, "frames": configuration.simulator.frames}
    try:
        return StatusServer(
            configuration.stream.name,
            "simulator",
            lambda: status_document("simulator", {}, stale_after_s=math.inf, details=details),
        )
    except FileExistsError as error:
        raise ServiceError(str(error)) from None


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


def rendered(section: SimulatorSection, log_section: LogSection, stop: threading.Event) -> Path | None:
    """The folder with the clips, rendered if need be by another process, which ``stop`` ends at any point.

    Returns:
        The folder; None when ``stop`` was set before it was complete.

    Raises:
        ServiceError: They cannot be rendered.
    """
    folder = clips_folder(section)
    if folder.is_dir():
        return folder
    arguments = ["--section", section.model_dump_json()]
    with child.start("services.simulator.render", arguments, log_section, stdout=subprocess.PIPE) as process:
        while process.poll() is None:
            if stop.wait(0.1):
                process.kill()
                return None
        assert process.stdout is not None
        reason = process.stdout.read().strip()
    if process.returncode != 0:
        if stop.wait(SIGNAL_S):
            return None
        raise ServiceError(reason or f"The process that renders the clips ended with status {process.returncode}.")
    return folder


class Cameras:
    """The five serving processes, as a context: they start together and end together."""

    def __init__(self, section: SimulatorSection, folder: Path, log_section: LogSection) -> None:
        self._host = section.host
        self._ports = [section.first_port + i for i in range(len(section.cameras))]
        self._clips = [folder.resolve() / f"{camera.name}.ts" for camera in section.cameras]
        self._log_section = log_section
        self.t0_s = time.monotonic()
        """Where the cameras' common timeline begins, ``time.monotonic()``."""
        self._processes: list[subprocess.Popen[str]] = []

    @property
    def urls(self) -> list[str]:
        """Where a client finds the cameras, from left to right."""
        return [f"http://{self._host}:{port}/{clip.name}" for port, clip in zip(self._ports, self._clips, strict=True)]

    def __enter__(self) -> Cameras:
        self.t0_s = time.monotonic()
        for clip, port in zip(self._clips, self._ports, strict=True):
            arguments = [str(clip), "--host", self._host, "--port", str(port), "--t0", repr(self.t0_s)]
            self._processes.append(child.start("services.simulator.serve", arguments, self._log_section))
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
