"""The supervisor's loop: start the services, monitor and show them, stop them."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from functools import partial
from typing import Any

from framebus import remove_leftovers
from services.common.service import ServiceError, find_service
from services.common.status import StatusServer, status_document
from services.supervisor.board import make_board
from services.supervisor.config import SupervisorConfiguration
from services.supervisor.events import Events
from services.supervisor.health import Judge, Pulse, page_state
from services.supervisor.process import GIVEN_UP, ManagedProcess
from services.supervisor.view import View, choose_view, duration

STOP_WITHIN_S = 3.0
STOP_SOURCES_WITHIN_S = 1.5
TICK_S = 0.1
NO_ANSWER_S = 2.0


def supervise(configuration: SupervisorConfiguration, stop: threading.Event) -> None:
    """Run the services until ``stop`` is set.

    Raises:
        ServiceError: The services are already running, or a required one failed permanently.
    """
    stream, section = configuration.stream.name, configuration.supervisor
    events = Events()
    judges = [
        Judge(
            ManagedProcess(service, configuration.source, section, events),
            partial(find_service(service).status, configuration),
            section.hung_after_s,
            events,
        )
        for service in section.services
    ]
    try:
        status_server = StatusServer(stream, "supervisor", lambda: describe(judges))
    except FileExistsError:
        raise ServiceError(
            f"the services of the stream {stream!r} run already: stop them first, or set another stream.name"
        ) from None
    view = choose_view(configuration.log, section.status_interval_s)
    try:
        with status_server:
            # Remove the leftovers of a killed predecessor: they are harmless but occupy memory in /dev/shm.
            remove_leftovers(stream)
            started_s = time.monotonic()
            try:
                _Supervisor(configuration, judges, events, view).run(stop)
            finally:
                _end(judges, view, events)
        events.say(f"all is ended after {duration(time.monotonic() - started_s)}")
    finally:
        for event in events.take():
            view.say(event)
        view.close()
        remove_leftovers(stream)


class _Supervisor:
    """The loop. Owned by the main thread, whose end would also end the services (prctl(2), PR_SET_PDEATHSIG)."""

    def __init__(self, configuration: SupervisorConfiguration, judges: list[Judge], events: Events, view: View) -> None:
        self._configuration = configuration
        self._waiting = list(judges)
        self._judges = judges
        self._started: list[Judge] = []
        self._events = events
        self._view = view
        self._url = page_url(configuration)
        self._page: Pulse | None = None
        if "streamer" in configuration.supervisor.services:
            self._page = Pulse("ask-page", partial(page_state, self._url))
        self._was_live = False
        self._started_s = time.monotonic()

    def run(self, stop: threading.Event) -> None:
        """Start the services one after the other, and monitor them until ``stop`` is set.

        Raises:
            ServiceError: A required service failed permanently.
        """
        with contextlib.ExitStack() as at_end:
            if self._page is not None:
                self._page.start()
                at_end.callback(self._page.close)
            while not stop.wait(TICK_S):
                self._tick()

    def _tick(self) -> None:
        if self._waiting and self._may_go_on():
            judge = self._waiting.pop(0)
            self._started.append(judge)
            judge.process.start()
            judge.start()
        for judge in self._started:
            if (reason := judge.process.supervise()) is not None:
                raise ServiceError(reason)
            judge.judge()
        page = self._look_at_page()
        for event in self._events.take():
            self._view.say(event)
        running_s = time.monotonic() - self._started_s
        self._view.show(make_board(self._url, page, running_s, self._judges))

    def _may_go_on(self) -> bool:
        """Return whether the next service may start. One that reads cameras must wait until they have been rendered."""
        if not self._started:
            return True
        last = self._started[-1]
        if not find_service(last.process.service).awaited or last.process.state == GIVEN_UP:
            return True
        return last.document is not None and "progress" not in last.document

    def _look_at_page(self) -> str:
        """Return the page's own state, or ``starting`` before its first picture."""
        if self._page is None:
            return "running"
        answer, _, silent_s = self._page.look()
        if silent_s > NO_ANSWER_S and self._was_live:
            return "the page does not answer"
        if answer is None:
            return "starting"
        shows, word = answer
        if shows and not self._was_live:
            self._was_live = True
            self._events.say(f"after {time.monotonic() - self._started_s:.1f} s the panorama is live at {self._url}")
        return word if self._was_live else "starting"


def describe(judges: list[Judge]) -> dict[str, Any]:
    """Return the supervisor's own status: the state of each service. It is unhealthy while one is given up."""
    services = {
        judge.process.service: {
            "state": judge.process.state,
            "reason": judge.reason,
            "restarts": judge.process.restarts,
            "optional": judge.process.optional,
        }
        for judge in judges
    }
    document = status_document("supervisor", {}, stale_after_s=math.inf, details={"services": services})
    missing = [
        f"{name} is missing: {found['reason']}" for name, found in services.items() if found["state"] == GIVEN_UP
    ]
    if missing:
        document.update(healthy=False, reason="; ".join(missing))
    return document


def _end(judges: list[Judge], view: View, events: Events) -> None:
    """Stop the services, consumers before producers, to avoid errors about missing input during the shutdown."""
    for event in events.take():
        view.say(event)
    view.close()
    for judge in judges:
        judge.close()
    sources = [judge for judge in judges if find_service(judge.process.service).awaited]
    others = [judge for judge in judges if judge not in sources]
    for group, within_s in ((others, STOP_WITHIN_S), (sources, STOP_SOURCES_WITHIN_S)):
        for judge in reversed(group):
            judge.process.request_stop()
        deadline_s = time.monotonic() + within_s
        for judge in reversed(group):
            judge.process.stop(deadline_s)
    for event in events.take():
        # Hide events about stopping services, which are expected during the shutdown.
        if view.raw or not event.raw or not event.is_log or event.level in ("error", "critical"):
            view.say(event)


def page_url(configuration: SupervisorConfiguration) -> str:
    """Return the page's URL for a browser on this machine."""
    host = configuration.streamer.host
    everywhere = ("0.0.0.0", "::")  # noqa: S104  compared, not bound
    return f"http://{'127.0.0.1' if host in everywhere else host}:{configuration.streamer.port}"
