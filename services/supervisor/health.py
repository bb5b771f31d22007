"""Poll the services' status, in a thread for each.

A stopped process accepts a connection but does not answer, so a poll may block for a second until it times out. The
supervisor's loop never waits for one.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

from services.supervisor.events import Events
from services.supervisor.process import RUNNING, ManagedProcess

ASK_EVERY_S = 1.0
MAX_ANSWER_BYTES = 1 << 16
MOST_SILENT_S = 3.0
"""Largest time that one missing answer counts, so that a supervisor that was itself stopped blames no service."""
UNHEALTHY_ANSWERS = 2
"""Consecutive answers that are required to report a service as unhealthy, or as healthy again."""


class Pulse:
    """Polls one function from a thread of its own."""

    def __init__(self, name: str, ask: Callable[[], Any]) -> None:
        self._ask = ask
        self._lock = threading.Lock()
        self._answer: Any = None
        self._answers = 0
        self._silent_s = 0.0
        self._round = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start polling."""
        self._thread.start()

    def close(self) -> None:
        """Stop polling, without waiting for the current poll."""
        self._stop.set()

    def reset(self) -> None:
        """Discard the answers so far, because the process was replaced."""
        with self._lock:
            self._round += 1
            self._answer, self._answers, self._silent_s = None, 0, 0.0

    def look(self) -> tuple[Any, int, float]:
        """Return the newest answer or ``None``, the number of answers, and the seconds without an answer."""
        with self._lock:
            return self._answer, self._answers, self._silent_s

    def _run(self) -> None:
        last_s = time.monotonic()
        while not self._stop.is_set():
            asked_in = self._round
            answer = self._ask()
            now_s = time.monotonic()
            with self._lock:
                if asked_in == self._round:
                    if answer is None:
                        self._silent_s += min(now_s - last_s, MOST_SILENT_S)
                    else:
                        self._answer, self._silent_s = answer, 0.0
                        self._answers += 1
            last_s = now_s
            self._stop.wait(ASK_EVERY_S)


class Judge:
    """Judges one service by its answers: kills it if it hangs, and reports it if it is unhealthy."""

    def __init__(
        self, process: ManagedProcess, ask: Callable[[], dict[str, Any] | None], hung_after_s: float, events: Events
    ) -> None:
        self.process = process
        self.document: dict[str, Any] | None = None
        """Its newest status; ``None`` until the current process has served one."""
        self.silent_s = 0.0
        """Seconds since its last answer, once it has answered."""
        self._pulse = Pulse(f"ask-{process.service}", ask)
        self._hung_after_s = hung_after_s
        self._events = events
        self._pid = 0
        self._answers = 0
        self._contrary = 0
        self.has_worked = False
        """Whether its current process has been healthy; before that, it is starting."""
        self._named = False

    def start(self) -> None:
        """Start to poll."""
        self._pulse.start()

    def close(self) -> None:
        """Stop to poll."""
        self._pulse.close()

    @property
    def reason(self) -> str:
        """Why the service is unhealthy, in one sentence; empty if it is healthy or starting."""
        if self.process.reason:
            return self.process.reason
        if self.document is None:
            return ""
        if self.silent_s > ASK_EVERY_S * 2:
            return f"no answer for {self.silent_s:.0f} s"
        return "" if self.document.get("healthy") else str(self.document.get("reason") or "it is not healthy")

    def judge(self) -> None:
        """Evaluate the newest answer. Call it after each :meth:`ManagedProcess.supervise`."""
        if self.process.pid != self._pid:
            self._pid = self.process.pid
            self._pulse.reset()
            self.document, self.silent_s, self._answers = None, 0.0, 0
            self.has_worked = False
            return
        document, answers, silent_s = self._pulse.look()
        if self._pid == 0 or document is None:
            return
        self.document, self.silent_s = document, silent_s
        self.process.note_answer()
        if silent_s >= self._hung_after_s and self.process.state == RUNNING:
            self.process.kill(f"did not answer for {silent_s:.0f} s and was killed")
        elif answers != self._answers:
            self._answers = answers
            self._name_health(document)

    def _name_health(self, document: dict[str, Any]) -> None:
        healthy = bool(document.get("healthy"))
        if not self.has_worked:
            self.has_worked = healthy
            return
        self._contrary = self._contrary + 1 if healthy == self._named else 0
        if self._contrary >= UNHEALTHY_ANSWERS:
            self._named, self._contrary = not healthy, 0
            service, reason = self.process.service, document.get("reason") or "it does not say why"
            if healthy:
                self._events.say(f"{service} is healthy again")
            else:
                self._events.say(f"{service} is unhealthy: {reason}", "warning")


def page_state(url: str) -> tuple[bool, str] | None:
    """Ask the page whether it shows a picture.

    Returns:
        Whether it does, and its state: ``live``, ``delayed``, or why not; ``None`` if it does not answer.
    """
    try:
        with urllib.request.urlopen(f"{url}/healthz", timeout=1.0) as answer:  # noqa: S310  always http
            content, shows = answer.read(MAX_ANSWER_BYTES), True
    except urllib.error.HTTPError as error:
        with error:
            content, shows = error.read(MAX_ANSWER_BYTES), False
    except (OSError, ValueError, http.client.HTTPException):
        return None
    try:
        document = json.loads(content)
        word = document["state"] if shows else f"no picture: {document['reason']}"
    except (ValueError, KeyError, TypeError):
        word = "live" if shows else "no picture"
    return shows, str(word)
