"""Start all, say when the page shows frames, print how it goes, end all."""

from __future__ import annotations

import math
import sys
import threading
import time
import urllib.error
import urllib.request
from typing import Any

from framebus import remove_leftovers
from services.common.service import ServiceError, find_service
from services.common.status import StatusServer, read_statuses, status_document
from services.supervisor.child import Child
from services.supervisor.config import SupervisorConfiguration

STOP_WITHIN_S = 3.0
TEND_EVERY_S = 0.1


def supervise(configuration: SupervisorConfiguration, stop: threading.Event) -> None:
    """Run the services until ``stop`` is set.

    Raises:
        ServiceError: They run already, or one of them is dead for good.
    """
    stream, section = configuration.stream.name, configuration.supervisor
    children = [
        Child(service, configuration.source, section.restarts, section.restarts_within_s)
        for service in section.services
    ]
    try:
        status_server = StatusServer(
            stream, "supervisor", lambda: status_document("supervisor", {}, stale_after_s=math.inf)
        )
    except FileExistsError:
        raise ServiceError(
            f"the services of the stream {stream!r} run already: stop them first, or set another stream.name"
        ) from None
    with status_server:
        # What a killed predecessor left would be in the way of nobody, but it takes room in /dev/shm.
        remove_leftovers(stream)
        try:
            _tend(configuration, children, stop)
        finally:
            _end(children)
    remove_leftovers(stream)


def _tend(configuration: SupervisorConfiguration, children: list[Child], stop: threading.Event) -> None:
    url = page_url(configuration)
    shows = "streamer" not in configuration.supervisor.services
    started_s = time.monotonic()
    line_at_s = started_s + configuration.supervisor.status_interval_s
    started: list[Child] = []
    while not stop.wait(TEND_EVERY_S):
        if len(started) < len(children) and _may_go_on(configuration, started):
            started.append(children[len(started)])
            started[-1].start()
        for child in started:
            if (reason := child.tend()) is not None:
                raise ServiceError(reason)
        if not shows and _page_shows_frames(url):
            shows = True
            sys.stdout.write(f"after {time.monotonic() - started_s:.1f} s the panorama is live at {url}\n")
            sys.stdout.flush()
        if time.monotonic() >= line_at_s:
            line_at_s += configuration.supervisor.status_interval_s
            sys.stdout.write(status_line(read_statuses(configuration.stream.name)) + "\n")
            sys.stdout.flush()


def _may_go_on(configuration: SupervisorConfiguration, started: list[Child]) -> bool:
    """Whether the next service may start: one that reads cameras would fail while they are still being rendered."""
    if not started:
        return True
    last = find_service(started[-1].service)
    return not last.awaited or last.status(configuration) is not None


def _end(children: list[Child]) -> None:
    for child in reversed(children):
        child.request_stop()
    deadline_s = time.monotonic() + STOP_WITHIN_S
    for child in reversed(children):
        child.stop(deadline_s)


def page_url(configuration: SupervisorConfiguration) -> str:
    """Where a browser on this machine finds the page."""
    host = configuration.streamer.host
    everywhere = ("0.0.0.0", "::")  # noqa: S104  compared, not bound
    return f"http://{'127.0.0.1' if host in everywhere else host}:{configuration.streamer.port}"


def _page_shows_frames(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/healthz", timeout=1.0) as answer:  # noqa: S310  always http
            return int(answer.status) == 200
    except (urllib.error.URLError, OSError, ValueError):
        return False


def status_line(statuses: dict[str, dict[str, Any]]) -> str:
    """Rate and latency of every stage, in one line for a terminal."""
    parts = []
    for service, status in statuses.items():
        stages = []
        for stage, numbers in status.get("stages", {}).items():
            p50 = numbers["latency_p50_ms"]
            latency = "" if p50 is None else f" {p50:.0f} ms"
            stages.append(f"{stage} {numbers['fps']:.1f} fps{latency}")
        if stages:
            parts.append(f"{service}: {', '.join(stages)}")
    return " | ".join(parts) or "waiting for the cameras"
