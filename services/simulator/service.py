"""Run the simulator: render the clips once, then serve five cameras until stopped."""

from __future__ import annotations

import math
import os
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import structlog

from services.common.config import LogSection
from services.common.service import ServiceError
from services.common.status import StatusServer, status_document
from services.simulator import child
from services.simulator.config import FRAMES_PER_SECOND, SimulatorConfiguration, SimulatorSection
from services.simulator.entry import SERVICE
from services.simulator.render import PROGRESS, STEPS, clips_folder, remove_interrupted
from services.simulator.serve import EXIT_PORT_IN_USE

TERMINATION_S = 1.0
"""Time that the cameras' processes have to end before they are killed."""
SIGNAL_S = 0.3
"""Longest time between the end of a camera's process by a signal and the arrival of that signal in this process: a
terminal sends it to both."""

log = structlog.get_logger()


class _State:
    """Content of the status: first the progress of the render, then the timeline of the cameras."""

    def __init__(self, stream: str) -> None:
        self.progress: tuple[str, int, int] | None = ("prepare", 0, 0)
        """Step of the render, the completed amount and the total, which is 0 if it is unknown; ``None`` once the clips
        are complete."""
        self.details: dict[str, float] = {}
        try:
            self.server = StatusServer(stream, "simulator", self.document)
        except FileExistsError as error:
            raise ServiceError(str(error)) from None

    def document(self) -> dict[str, Any]:
        """Return the status, ready for JSON. Called by the status server's threads."""
        document = status_document("simulator", {}, stale_after_s=math.inf, details=self.details)
        if (progress := self.progress) is not None:
            step, done, total = progress
            what, unit = STEPS[step]
            content = {"what": what, "done": done, "total": total or None, "unit": unit}
            document.update(healthy=False, reason=f"{what}: {done} of {total or '?'} {unit}", progress=content)
        return document


def main(configuration: SimulatorConfiguration, stop: threading.Event) -> None:
    """Serve the five cameras until ``stop`` is set.

    The status is served from the start. While the clips are rendered, it has ``progress``. Then its details contain the
    cameras' timeline: at the monotonic time t, they show frame ``(t - t0_s) * fps`` modulo ``frames``.

    Raises:
        ServiceError: A port is in use, the cache cannot be written, a camera's process ended, or another simulator of
            the same stream is running.
    """
    section = configuration.simulator
    state = _State(configuration.stream.name)
    with state.server:
        check_ports(section)
        folder = rendered(section, configuration.log, stop, state)
        if folder is None:
            return
        with Cameras(section, folder, configuration.log) as cameras:
            state.details = {"t0_s": cameras.t0_s, "fps": FRAMES_PER_SECOND, "frames": section.frames}
            state.progress = None
            log.info("serving", urls=cameras.urls)
            while not stop.wait(0.2):
                try:
                    cameras.check()
                except ServiceError:
                    # After Ctrl-C this is the normal end, not a fault.
                    if not stop.wait(SIGNAL_S):
                        raise


def check(configuration: SimulatorConfiguration) -> None:
    """Check that the ports are free or used by a simulator of the same stream, and the clips exist or can be rendered.

    Raises:
        ServiceError: Something is unusable; the message has one line for each fault.
    """
    section, faults = configuration.simulator, []
    try:
        check_ports(section)
    except ServiceError as error:
        if SERVICE.status(configuration) is None:
            faults.append(str(error))
    try:
        folder = clips_folder(section)
    except OSError as error:
        faults.append(f"The footage {error.filename} cannot be read: {error.strerror}.")
    else:
        # The nearest folder that exists: mkdir() creates the others in it.
        there = next(path for path in (section.cache_dir, *section.cache_dir.absolute().parents) if path.exists())
        if not folder.is_dir() and not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
            faults.append(
                f"The clips cannot be rendered into {section.cache_dir}: {there} is not a folder to write in."
            )
    if faults:
        raise ServiceError("\n".join(faults))


def check_ports(section: SimulatorSection) -> None:
    """Check that all ports are free, before the clips are rendered.

    Raises:
        ServiceError: A port is in use; the message names it and what to set.
    """
    for port in range(section.first_port, section.first_port + len(section.cameras)):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            # Without it, connections of an earlier run in TIME_WAIT would make the port look used: see socket(7).
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((section.host, port))
                probe.listen(1)
            except OSError as error:
                raise ServiceError(_port_sentence(section.host, port, error.strerror or str(error))) from error


def rendered(section: SimulatorSection, log_section: LogSection, stop: threading.Event, state: _State) -> Path | None:
    """Return the folder with the clips. If it is missing, render them in another process.

    Returns:
        The folder, or None if ``stop`` was set before the clips were complete.

    Raises:
        ServiceError: The clips cannot be rendered.
    """
    folder = clips_folder(section)
    if folder.is_dir():
        return folder
    arguments = ["--section", section.model_dump_json(), "--progress"]
    with child.start("services.simulator.render", arguments, log_section, stdout=subprocess.PIPE) as process:
        reader = _RenderReader(process, state)
        reader.start()
        while process.poll() is None:
            if stop.wait(0.1):
                # The render has nothing to finish: an unfinished folder is never used.
                process.kill()
                process.wait()
                remove_interrupted(section)
                return None
        reader.join()
    if process.returncode != 0:
        if stop.wait(SIGNAL_S):  # a signal has ended both
            return None
        raise ServiceError(
            reader.reason or f"The process that renders the clips ended with status {process.returncode}."
        )
    return folder


class _RenderReader(threading.Thread):
    """Reads the output of the rendering process, which would otherwise block when the pipe is full."""

    def __init__(self, process: subprocess.Popen[str], state: _State) -> None:
        super().__init__(name="render", daemon=True)
        self.reason = ""
        """The last line that does not report progress."""
        self._process = process
        self._state = state

    def run(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            words = line.split()
            if words[:1] == [PROGRESS] and len(words) == 4 and words[1] in STEPS:
                self._state.progress = words[1], int(words[2]), int(words[3])
            else:
                self.reason = line.strip()


class Cameras:
    """The five serving processes. A context manager, which starts and ends them together."""

    def __init__(self, section: SimulatorSection, folder: Path, log_section: LogSection) -> None:
        self._host = section.host
        self._ports = [section.first_port + i for i in range(len(section.cameras))]
        self._clips = [folder.resolve() / f"{camera.name}.ts" for camera in section.cameras]
        self._log_section = log_section
        self.t0_s = time.monotonic()
        """``time.monotonic()`` at the beginning of the cameras' common timeline."""
        self._processes: list[subprocess.Popen[str]] = []

    @property
    def urls(self) -> list[str]:
        """URLs of the cameras, from left to right."""
        return [f"http://{self._host}:{port}/{clip.name}" for port, clip in zip(self._ports, self._clips, strict=True)]

    def __enter__(self) -> Cameras:
        self.t0_s = time.monotonic()
        for clip, port in zip(self._clips, self._ports, strict=True):
            arguments = [str(clip), "--host", self._host, "--port", str(port), "--t0", repr(self.t0_s)]
            self._processes.append(child.start("services.simulator.serve", arguments, self._log_section))
        return self

    def check(self) -> None:
        """Check that all cameras are still served.

        Raises:
            ServiceError: A camera's process has ended.
        """
        for process, port in zip(self._processes, self._ports, strict=True):
            status = process.poll()
            if status == EXIT_PORT_IN_USE:
                raise ServiceError(_port_sentence(self._host, port, "Address already in use"))
            if status is not None:
                raise ServiceError(f"The process that serves port {port} ended with status {status}.")

    def __exit__(self, *_: object) -> None:
        # Signal all of them first, so that they end at the same time.
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
