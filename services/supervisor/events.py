"""What the services say: their output, read line by line and handed on as events.

Each service's standard output and error are one pipe. A thread reads it and never waits for a reader of its own, so a
display that is slow, or stopped, stops no service.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import queue
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import IO, Any

from services.common.config import in_one_line
from services.common.logs import short_line
from services.common.masking import mask_text

MAX_WAITING = 2000
"""Events that may wait to be shown; the next ones are counted and dropped."""
PIPE_BYTES = 1 << 20
"""Room for what the services say while the supervisor is stopped."""
F_SETPIPE_SZ = 1031  # fcntl(2)
MAX_LINE_BYTES = 1 << 16
GRAVE = ("warning", "error", "critical")


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened."""

    service: str
    text: str
    """In one short line, with the time of day and the service's name."""
    level: str = "info"
    raw: str = ""
    """The line as the service wrote it; empty for the supervisor's own events."""
    is_log: bool = True
    """Whether it is a log event; a line of something else, such as a traceback, is not."""
    reason: str = ""
    """Why the service gave up, for an event that says so."""
    details: str = ""
    """A traceback, in lines."""


@dataclass(slots=True)
class Events:
    """Events that wait to be shown. Any thread may add, one takes."""

    dropped: int = 0
    _waiting: queue.Queue[Event] = field(default_factory=lambda: queue.Queue(MAX_WAITING))

    def add(self, event: Event) -> None:
        """Add an event, or count it as dropped where too many wait."""
        try:
            self._waiting.put_nowait(event)
        except queue.Full:
            self.dropped += 1

    def say(self, text: str, level: str = "info") -> None:
        """Add an event of the supervisor's own."""
        self.add(own_event(text, level))

    def take(self) -> list[Event]:
        """Return all that wait."""
        taken = []
        with contextlib.suppress(queue.Empty):
            while True:
                taken.append(self._waiting.get_nowait())
        if self.dropped:
            taken.append(own_event(f"{self.dropped} events were not shown: there were too many", "warning"))
            self.dropped = 0
        return taken


def own_event(text: str, level: str = "info") -> Event:
    """Return an event of the supervisor's own, whose name is left out: it speaks of the services."""
    text = in_one_line(mask_text(text))
    return Event("supervisor", text, level)


def as_json(event: Event) -> str:
    """Return an event of the supervisor's own as the services log theirs."""
    content = {"event": event.text, "service": event.service, "level": event.level}
    return json.dumps({**content, "timestamp": datetime.now(UTC).isoformat().replace("+00:00", "Z")})


def parse(service: str, line: str) -> Event:
    """Return what a line of a service's output says."""
    content: Any = None
    if line.startswith("{"):
        with contextlib.suppress(ValueError):
            content = json.loads(line)
    if not isinstance(content, dict) or "event" not in content:
        return Event(service, f"{service}: {in_one_line(line)}", "error", raw=line, is_log=False, reason=line.strip())
    reason = str(content.get("reason", "")) if content["event"] == "failed" else ""
    return Event(
        service,
        short_line({"service": service, **content}),
        str(content.get("level", "info")),
        raw=line,
        reason=reason,
        details=str(content.get("exception") or ""),
    )


class OutputReader(threading.Thread):
    """Reads a service's output until all who hold the pipe have ended."""

    def __init__(self, service: str, pipe: IO[bytes], events: Events) -> None:
        super().__init__(name=f"output-{service}", daemon=True)
        self.last_reason = ""
        """Why it gave up, in its own words, as far as it said so."""
        self._service = service
        self._pipe = pipe
        self._events = events
        with contextlib.suppress(OSError):
            fcntl.fcntl(pipe, F_SETPIPE_SZ, PIPE_BYTES)

    def run(self) -> None:
        """Read to the end."""
        with self._pipe:
            while line := self._pipe.readline(MAX_LINE_BYTES):
                text = line.decode(errors="replace").rstrip("\n")
                if text.strip():
                    event = parse(self._service, text)
                    self.last_reason = event.reason or self.last_reason
                    self._events.add(event)
