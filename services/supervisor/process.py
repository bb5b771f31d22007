"""Manage one service as a process: start, monitor, restart with backoff, give up, stop."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path

from services.common.config import ENVIRONMENT_PREFIX, declared_services
from services.common.service import EXIT_USAGE, SUPERVISED, ServiceError
from services.supervisor.config import SupervisorConfiguration, SupervisorSection
from services.supervisor.events import Events, OutputReader

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 8.0
RETRY_S = 60.0
"""Pause between two attempts to start an optional service that was given up."""
LAST_WORDS_S = 0.5
CHECK_TIMEOUT_S = 120.0

WAITING, STARTING, RUNNING, RESTARTING, GIVEN_UP = "waiting", "starting", "running", "restarting", "given up"


class ManagedProcess:
    """A supervised service.

    It has its own process group, so that a terminal's Ctrl-C reaches only the supervisor. It shares the supervisor's
    session, because nice values have no effect between sessions (sched(7), "The autogroup feature").
    """

    def __init__(self, service: str, config_path: Path | None, section: SupervisorSection, events: Events) -> None:
        self.service = service
        self.state = WAITING
        """``waiting`` for the services before it, ``starting`` until it answers, ``running``, ``restarting`` after a
        death, or ``given up``."""
        self.reason = ""
        """Why it is restarting or was given up, in one sentence."""
        self.restarts = 0
        """Number of restarts."""
        self.optional = service in section.optional
        self._command = [sys.executable, "-m", "services", service]
        if config_path is not None:
            self._command += ["--config", str(config_path)]
        self._config_path = config_path
        self._section = section
        self._events = events
        self._deaths_s: deque[float] = deque()
        self._start_at_s: float | None = None
        self._tried_configuration: object = None
        self._answered = False
        self._killed_for = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._output: OutputReader | None = None

    @property
    def pid(self) -> int:
        """The process id; 0 while there is no process."""
        return 0 if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the process."""
        if self.state != GIVEN_UP:
            self.state = STARTING
        self._answered = False
        self._tried_configuration = self._configuration()
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            process_group=0,
            # Always JSON, from which the supervisor formats short lines for people.
            env={
                **environment_for(self.service, os.environ),
                SUPERVISED: str(os.getpid()),
                f"{ENVIRONMENT_PREFIX}LOG__FORMAT": "json",
            },
        )
        assert self._process.stdout is not None
        self._output = OutputReader(self.service, self._process.stdout, self._events)
        self._output.start()

    def note_answer(self) -> None:
        """Record that the service serves its status."""
        if self._process is None or self._answered:
            return
        self._answered = True
        if self.state == GIVEN_UP:
            self._deaths_s.clear()
            self._events.say(f"{self.service} is back")
        self.state, self.reason = RUNNING, ""

    def kill(self, why: str) -> None:
        """Kill the process. The next :meth:`supervise` logs the reason and restarts it."""
        self._killed_for = why
        self._end_group()

    def supervise(self) -> str | None:
        """Restart the process if it died and its pause has elapsed.

        Returns:
            Why the service cannot be restarted, in one sentence, or ``None``. An optional service is given up instead.
        """
        now_s = time.monotonic()
        if self._process is None:
            if self.state != WAITING and self._may_start(now_s):
                self.restarts += 1
                self.start()
            return None
        status = self._process.poll()
        return None if status is None else self._take_death(status, now_s)

    def _may_start(self, now_s: float) -> bool:
        if self._start_at_s is None:
            return self._configuration() != self._tried_configuration
        return now_s >= self._start_at_s

    def _take_death(self, status: int, now_s: float) -> str | None:
        last_reason = self._finish()
        by_signal = f"ended by signal {signal.Signals(-status).name}" if status < 0 else ""
        how = self._killed_for or by_signal or f"ended with status {status}"
        no_use = status == EXIT_USAGE and not self._killed_for
        self._killed_for = ""
        if self.state == GIVEN_UP:
            self._start_at_s = None if no_use else now_s + RETRY_S
            return None
        self._deaths_s.append(now_s)
        while self._deaths_s[0] < now_s - self._section.restarts_within_s:
            self._deaths_s.popleft()
        if no_use:
            dead = f"{self.service} {how}: a restart would not help"
        elif len(self._deaths_s) > self._section.restarts:
            dead = f"{self.service} {how}, {len(self._deaths_s)} times in {self._section.restarts_within_s:g} s"
        else:
            pause_s = min(FIRST_PAUSE_S * 2 ** (len(self._deaths_s) - 1), LONGEST_PAUSE_S)
            self._start_at_s = now_s + pause_s
            self.state, self.reason = RESTARTING, last_reason or how
            self._events.say(f"{self.service} {how}; starting it again in {pause_s:g} s", "warning")
            return None
        if not self.optional:
            return dead
        self.state, self.reason = GIVEN_UP, last_reason or how
        self._start_at_s = None if no_use else now_s + RETRY_S
        again = "when the configuration's file changes" if no_use else f"every {RETRY_S:g} s"
        self._events.say(f"{self.service} is given up, the others go on; tried again {again}: {self.reason}", "error")
        return None

    def request_stop(self) -> None:
        """Send SIGTERM."""
        if self._process is not None:
            self._process.terminate()

    def stop(self, deadline_s: float) -> None:
        """Wait for the end until ``deadline_s`` (time.monotonic), then kill the process group."""
        if self._process is None:
            return
        try:
            self._process.wait(max(deadline_s - time.monotonic(), 0.0))
        except subprocess.TimeoutExpired:
            if self._answered:  # a service that was still loading had nothing to shut down
                self._events.say(f"{self.service} did not end in time and is killed", "warning")
        self._end_group()
        self._process.wait()
        self._finish()

    def _finish(self) -> str:
        """Kill the process group and read the rest of the output. Return why the service gave up, if it said so."""
        self._end_group()
        self._process = None
        output, self._output = self._output, None
        if output is None:
            return ""
        output.join(LAST_WORDS_S)
        return output.last_reason

    def _end_group(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def _configuration(self) -> object:
        """Return a fingerprint of the configuration's file, to detect changes."""
        if self._config_path is None:
            return None
        try:
            found = self._config_path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino


def environment_for(service: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without other services' settings, to give the cameras' passwords only to the stitcher."""
    others = declared_services().keys() - {service}
    return {
        variable: text
        for variable, text in environment.items()
        if not variable.startswith(ENVIRONMENT_PREFIX)
        or variable.removeprefix(ENVIRONMENT_PREFIX).lower().partition("__")[0] not in others
    }


def check_all(configuration: SupervisorConfiguration) -> None:
    """Run the checks of all services in turn, each in a separate process, with the environment of a start.

    Raises:
        ServiceError: At least one service has faults; the message has one line for each.
    """
    faults = []
    for service in configuration.supervisor.services:
        command = [sys.executable, "-m", "services", service, "--check"]
        if configuration.source is not None:
            command += ["--config", str(configuration.source)]
        try:
            done = subprocess.run(
                command,
                env=environment_for(service, os.environ),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=CHECK_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            faults.append(f"{service}: its check took more than {CHECK_TIMEOUT_S:g} s")
            continue
        if done.returncode != 0:
            last_line = (done.stderr.strip().splitlines() or [""])[-1]
            told = done.stderr.strip().splitlines() if done.returncode == EXIT_USAGE else [f"{service}: {last_line}"]
            faults += told or [f"{service}: its check ended with status {done.returncode}"]
    if faults:
        raise ServiceError("\n".join(faults))
