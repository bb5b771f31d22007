"""Read the services' output line by line, and queue it as events.

Each service's standard output and error share one pipe. A thread reads it and never blocks on the display, so that a
slow or stopped display does not block a service.
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
"""Largest number of queued events; further ones are counted and dropped."""
PIPE_BYTES = 1 << 20
"""Size of the pipes, to buffer the services' output while the supervisor is stopped."""
F_SETPIPE_SZ = 1031  # fcntl(2)
MAX_LINE_BYTES = 1 << 16
GRAVE = ("warning", "error", "critical")


@dataclass(frozen=True, slots=True)
class Event:
    """An event to show."""

    service: str
    text: str
    """One short line, with the time of day and the service's name."""
    level: str = "info"
    raw: str = ""
    """The line as the service wrote it; empty for the supervisor's own events."""
    is_log: bool = True
    """Whether it is a log event, as opposed to another line, such as of a traceback."""
    reason: str = ""
    """Why the service gave up, if the event says so."""
    details: str = ""
    """Lines of a traceback."""


@dataclass(slots=True)
class Events:
    """Queue of events. Any thread may add events, one thread takes them."""

    dropped: int = 0
    _waiting: queue.Queue[Event] = field(default_factory=lambda: queue.Queue(MAX_WAITING))

    def add(self, event: Event) -> None:
        """Add an event, or count it as dropped if the queue is full."""
        try:
            self._waiting.put_nowait(event)
        except queue.Full:
            self.dropped += 1

    def say(self, text: str, level: str = "info") -> None:
        """Add an event of the supervisor's own."""
        self.add(own_event(text, level))

    def take(self) -> list[Event]:
        """Remove and return all queued events."""
        taken = []
        with contextlib.suppress(queue.Empty):
            while True:
                taken.append(self._waiting.get_nowait())
        if self.dropped:
            taken.append(own_event(f"{self.dropped} events were not shown: there were too many", "warning"))
            self.dropped = 0
        return taken


def own_event(text: str, level: str = "info") -> Event:
    """Return an event of the supervisor itself. Its name is omitted, because its events are about the services."""
    text = in_one_line(mask_text(text))
    return Event("supervisor", text, level)


def as_json(event: Event) -> str:
    """Return an event of the supervisor itself in the services' log format."""
    content = {"event": event.text, "service": event.service, "level": event.level}
    return json.dumps({**content, "timestamp": datetime.now(UTC).isoformat().replace("+00:00", "Z")})


def parse(service: str, line: str) -> Event:
    """Parse a line of a service's output."""
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
    """Reads a service's output until all processes that hold the pipe have ended."""

    def __init__(self, service: str, pipe: IO[bytes], events: Events) -> None:
        super().__init__(name=f"output-{service}", daemon=True)
        self.last_reason = ""
        """Why the service gave up, in its own words, if it said so."""
        self._service = service
        self._pipe = pipe
        self._events = events
        with contextlib.suppress(OSError):
            fcntl.fcntl(pipe, F_SETPIPE_SZ, PIPE_BYTES)

    def run(self) -> None:
        """Read until the end of the output."""
        with self._pipe:
            while line := self._pipe.readline(MAX_LINE_BYTES):
                text = line.decode(errors="replace").rstrip("\n")
                if text.strip():
                    event = parse(self._service, text)
                    self.last_reason = event.reason or self.last_reason
                    self._events.add(event)
