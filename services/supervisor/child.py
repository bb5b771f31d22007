"""One service as a process: start, watch, restart after a growing pause, stop."""

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
from services.common.service import EXIT_USAGE, SUPERVISED

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 8.0


class Child:
    """A supervised service, in a process group of its own: a terminal's Ctrl-C reaches the supervisor alone.

    Not in a session of its own: nice values do not count between sessions (sched(7), "The autogroup feature").
    """

    def __init__(self, service: str, config_path: Path | None, restarts: int, restarts_within_s: float) -> None:
        self.service = service
        self._command = [sys.executable, "-m", "services", service]
        if config_path is not None:
            self._command += ["--config", str(config_path)]
        self._restarts = restarts
        self._restarts_within_s = restarts_within_s
        self._deaths_s: deque[float] = deque()
        self._start_at_s = 0.0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process."""
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            process_group=0,
            env={**environment_for(self.service, os.environ), SUPERVISED: "1"},
        )

    def tend(self) -> str | None:
        """Restart the process if it died and its pause is over.

        Returns:
            Why the service is dead for good, in one sentence; ``None`` while it is not.
        """
        now_s = time.monotonic()
        if self._process is None:
            if now_s >= self._start_at_s:
                self.start()
            return None
        status = self._process.poll()
        if status is None:
            return None
        self._end_group()
        self._process = None
        how = f"by signal {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
        self._deaths_s.append(now_s)
        while self._deaths_s[0] < now_s - self._restarts_within_s:
            self._deaths_s.popleft()
        if status == EXIT_USAGE:
            return f"{self.service} ended {how}: a restart would not help"
        if len(self._deaths_s) > self._restarts:
            return f"{self.service} ended {how}, {len(self._deaths_s)} times in {self._restarts_within_s:g} s"
        pause_s = min(FIRST_PAUSE_S * 2 ** (len(self._deaths_s) - 1), LONGEST_PAUSE_S)
        self._start_at_s = now_s + pause_s
        sys.stderr.write(f"{self.service} ended {how}; starting it again in {pause_s:g} s\n")
        return None

    def request_stop(self) -> None:
        """Send SIGTERM."""
        if self._process is not None:
            self._process.terminate()

    def stop(self, deadline_s: float) -> None:
        """Wait for the end until ``deadline_s`` (time.monotonic), then kill it and all that it started."""
        if self._process is None:
            return
        try:
            self._process.wait(max(deadline_s - time.monotonic(), 0.0))
        except subprocess.TimeoutExpired:
            sys.stderr.write(f"{self.service} did not end in time and is killed\n")
        self._end_group()
        self._process.wait()
        self._process = None

    def _end_group(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)


def environment_for(service: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without the settings of other services: the cameras' passwords are the stitcher's alone."""
    others = declared_services().keys() - {service}
    return {
        variable: text
        for variable, text in environment.items()
        if not variable.startswith(ENVIRONMENT_PREFIX)
        or variable.removeprefix(ENVIRONMENT_PREFIX).lower().partition("__")[0] not in others
    }
