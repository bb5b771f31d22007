"""Run the streamer: the frame and detection threads, the web server and the status, until told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import structlog
from aiohttp import web

from services.common.service import ServiceError
from services.common.status import Stage, StatusServer, status_document
from services.streamer.boxes import DetectionThread
from services.streamer.config import StreamerConfiguration, StreamerSection
from services.streamer.connections import SERVER_OPTIONS, Connections
from services.streamer.frames import FrameThread
from services.streamer.freshness import Freshness, State
from services.streamer.hub import Hub
from services.streamer.limits import limits_of
from services.streamer.messages import Echo, state_message
from services.streamer.order import DetectionOrder
from services.streamer.pagefiles import PageFiles
from services.streamer.presence import Absent, Presence
from services.streamer.thread import StreamerThread
from services.streamer.web import Site

if TYPE_CHECKING:
    from services.streamer.remote import ResultThread

TICK_S = 0.1
"""Interval of the supervision."""
TICKS_A_MEASUREMENT = 10
"""The rates are measured, and the state is sent, every so many ticks."""
SHUTDOWN_S = 0.3
"""Longest wait for open requests at the end. Containers are killed after two seconds."""

T = TypeVar("T")


def main(configuration: StreamerConfiguration, stop: threading.Event) -> None:
    """Serve until ``stop`` is set.

    Raises:
        UnusableSetting: Results of a broker are configured, but no broker or storage.
        ServiceError: The address cannot be bound, or a part has failed.
    """
    asyncio.run(_serve(configuration, stop))


async def _serve(configuration: StreamerConfiguration, stop: threading.Event) -> None:
    streamer = _Streamer(configuration)
    # The signals are those of Service.main(), which sets the event.
    runner = web.AppRunner(
        streamer.site.application,
        access_log=None,
        handle_signals=False,
        shutdown_timeout=SHUTDOWN_S,
        **SERVER_OPTIONS,
    )
    await runner.setup()
    try:
        assert runner.server is not None
        # Bind before the threads start, so that nothing has to be stopped if the address is taken.
        listening = await _listen(streamer.connections, runner.server, configuration.streamer)
        try:
            with StatusServer(streamer.stream, "streamer", streamer.status):
                streamer.start()
                watching = asyncio.create_task(streamer.presence.watch())
                try:
                    await streamer.supervise(stop)
                finally:
                    watching.cancel()
                    await streamer.end()  # before the loop closes, to which the threads deliver
        finally:
            listening.close()
    finally:
        await runner.cleanup()


async def _listen(connections: Connections, server: web.Server, section: StreamerSection) -> asyncio.Server:
    try:
        listening = await connections.listen(server, section.host, section.port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            reason = "another program listens there: stop it, or set another streamer.port"
        else:
            reason = error.strerror or str(error)
        raise ServiceError(f"cannot listen on {section.host} port {section.port}: {reason}") from None
    address = listening.sockets[0].getsockname()
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    structlog.get_logger().info("listening", url=f"http://{host}:{address[1]}/")
    return listening


class _Streamer:
    """Connects the parts of the streamer."""

    def __init__(self, configuration: StreamerConfiguration) -> None:
        self.stream = stream = configuration.stream.name
        self._section = section = configuration.streamer
        self._ending = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._hub = Hub(section.max_clients, self._judge, section.boxes_max_age_s)
        self.presence = Presence(
            stream, section.silent_after_s, own=("streamer", self.status), others=self._absent_workers
        )
        self._frames = FrameThread(
            stream,
            section.jpeg_quality,
            publisher_uid=configuration.stream.publisher_uid,
            demand=lambda: self._hub.demand,
            deliver=self._on_loop(self._hub.set_frame),
            stop=self._ending,
        )
        order, deliver = DetectionOrder(), self._on_loop(self._hub.add_detections)
        self._boxes: DetectionThread | None = None
        if section.from_ring:
            self._boxes = DetectionThread(stream, order, deliver=deliver, stop=self._ending)
        self._results: ResultThread | None = None
        if section.from_broker:
            from services.streamer import remote  # noqa: PLC0415  a ring requires no broker client

            remote.check_named(configuration)
            self._results = remote.ResultThread(configuration, order, deliver=deliver, stop=self._ending)
        self.connections = Connections(limits_of(section))
        self.page = PageFiles()
        self.site = Site(
            stream,
            section,
            self._hub,
            self.presence,
            self._state_text,
            connections=self.connections,
            page=self.page,
        )

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads.values():
            thread.start()

    @property
    def _threads(self) -> dict[str, StreamerThread]:
        threads: dict[str, StreamerThread | None] = {
            "frame": self._frames,
            "detection": self._boxes,
            "result": self._results,
        }
        return {name: thread for name, thread in threads.items() if thread is not None}

    def _absent_workers(self) -> list[Absent]:
        return [] if self._results is None else self._results.workers.absent()

    def _notices(self) -> list[str]:
        return [*self.presence.notices(), *([] if self._results is None else self._results.notices())]

    async def supervise(self, stop: threading.Event) -> None:
        """Update the state and the rates until ``stop`` is set, and check that the threads run.

        Raises:
            ServiceError: A thread has failed; its traceback is on standard error.
        """
        ticks = 0
        said: tuple[list[tuple[str, str, str]], list[str]] = [], []
        while not stop.is_set():
            await asyncio.sleep(TICK_S)
            for name, thread in self._threads.items():
                if not thread.alive:
                    raise ServiceError(f"the {name} thread has failed")
            self.connections.sweep()
            # Both change by the passing of time alone: a viewer stops to acknowledge, a picture becomes stale.
            self._hub.update_demand()
            self._hub.update_state()
            absent = [(one.kind, one.name, one.reason) for one in self.presence.absent()]
            # Without the seconds of silence, which differ each time and which the page counts by itself.
            if (now_said := (absent, self._notices())) != said:
                said = now_said
                self._hub.tell_state()
            ticks += 1
            if ticks % TICKS_A_MEASUREMENT == 0:
                self.page.refresh()
                self._hub.measure(float(self._frames.received.summary()["fps"] or 0.0))

    async def end(self) -> None:
        """Stop the threads and wait for them."""
        self._ending.set()
        for thread in self._threads.values():
            await asyncio.to_thread(thread.join)

    def status(self) -> dict[str, Any]:
        """Return the status document. Called by the status server's thread."""
        stages: dict[str, Stage] = {
            "receive": self._frames.received,
            "encode": self._frames.encoded,
            "send": self._hub.sent,
        }
        told: dict[str, Any] = {}
        if self._boxes is not None:
            stages["detections"] = self._boxes.received
            told |= {
                "detections_rejected": self._boxes.rejected,
                "boxes_dropped": self._boxes.dropped,
                "detections_failures": self._boxes.failures,
            }
        if self._results is not None:
            stages["results"] = self._results.received
            told["results"] = self._results.details()
        document = status_document(
            "streamer",
            stages,
            stale_after_s=self._section.stale_after_s,
            optional=("encode", "send", "detections", "results"),
            details={
                "clients": self._hub.clients,
                "websocket_clients": self._hub.count("websocket"),
                "mjpeg_clients": self._hub.count("mjpeg"),
                "bytes_per_second": round(self._hub.bytes_per_second),
                "jpeg_quality": self._section.jpeg_quality,
                **told,
            },
        )
        freshness = self._judge()
        # The stages judge by arrivals, but a frame that is received again does not make the stream healthy.
        if not freshness.served:
            document.update(healthy=False, reason=freshness.reason)
        return document

    def _on_loop(self, take: Callable[[T], None]) -> Callable[[T], None]:
        def deliver(item: T) -> None:
            # The loop is closed only after the threads have ended, but ensure that a late frame raises no exception.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(take, item)

        return deliver

    def _judge(self) -> Freshness:
        captured_ns = self._frames.captured_ns
        age_s = None if captured_ns is None else (time.monotonic_ns() - captured_ns) / 1e9
        if reason := self._frames.absent or self._frames.unsupported:
            return Freshness(State.ABSENT, reason, age_s)
        if age_s is None:
            return Freshness(State.ABSENT, f"stream {self.stream} has no frame yet", None)
        state = self._section.limits.judge(age_s)
        # Omit numbers, which change constantly; the page counts the seconds by itself.
        return Freshness(state, f"stream {self.stream} has no new frame" if state is State.STALE else "", age_s)

    def _state_text(self, received_ms: float, echo: Echo | None) -> str:
        return state_message(
            self._hub.freshness,
            captured_ns=self._frames.captured_ns,
            fps=self._hub.stream_fps,
            clients=self._hub.clients,
            limits=self._section.limits,
            silent_after_s=self._section.silent_after_s,
            boxes_max_age_s=self._section.boxes_max_age_s,
            detectors=self._hub.detectors,
            absent=self.presence.absent(),
            notices=self._notices(),
            page_version=self.page.version,
            received_ms=received_ms,
            echo=echo,
        )
