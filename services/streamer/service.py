"""The streamer's life: the frame and detection threads, the web server and the status, until told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import structlog
from aiohttp import web

from services.common.config import StreamSection
from services.common.service import ServiceError
from services.common.status import StatusServer, status_document
from services.streamer.boxes import DetectionThread
from services.streamer.config import StreamerConfiguration, StreamerSection
from services.streamer.frames import FrameThread
from services.streamer.hub import Hub
from services.streamer.web import Site

TICK_S = 0.1
TICKS_A_MEASUREMENT = 10
SHUTDOWN_S = 0.3

T = TypeVar("T")


def main(configuration: StreamerConfiguration, stop: threading.Event) -> None:
    """Serve until ``stop`` is set.

    Raises:
        ServiceError: The address cannot be listened on, or a part has failed.
    """
    asyncio.run(_serve(configuration, stop))


async def _serve(configuration: StreamerConfiguration, stop: threading.Event) -> None:
    streamer = _Streamer(configuration.stream, configuration.streamer)
    runner = web.AppRunner(
        streamer.site.application, access_log=None, handle_signals=False, shutdown_timeout=SHUTDOWN_S
    )
    await runner.setup()
    try:
        await _listen(runner, configuration.streamer)
        with StatusServer(streamer.stream, "streamer", streamer.status):
            streamer.start()
            try:
                await streamer.tend(stop)
            finally:
                await streamer.end()
    finally:
        await runner.cleanup()


async def _listen(runner: web.AppRunner, section: StreamerSection) -> None:
    try:
        await web.TCPSite(runner, section.host, section.port).start()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            reason = "another program listens there: stop it, or set another streamer.port"
        else:
            reason = error.strerror or str(error)
        raise ServiceError(f"cannot listen on {section.host} port {section.port}: {reason}") from None
    address = runner.addresses[0]
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    structlog.get_logger().info("listening", url=f"http://{host}:{address[1]}/")


class _Streamer:
    """The parts and what they tell each other."""

    def __init__(self, stream_section: StreamSection, section: StreamerSection) -> None:
        self.stream = stream = stream_section.name
        self._section = section
        self._ending = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._hub = Hub(section.max_clients, self._absence)
        self._frames = FrameThread(
            stream,
            section.jpeg_quality,
            publisher_uid=stream_section.publisher_uid,
            demand=lambda: self._hub.demand,
            deliver=self._on_loop(self._hub.show),
            stop=self._ending,
        )
        self._boxes = DetectionThread(
            stream, section.boxes_max_age_s, deliver=self._on_loop(self._hub.mark), stop=self._ending
        )
        self.site = Site(stream, section, self._hub, self._health)

    def start(self) -> None:
        """Start the threads."""
        self._frames.start()
        self._boxes.start()

    async def tend(self, stop: threading.Event) -> None:
        """Keep the state and the rates true until ``stop`` is set.

        Raises:
            ServiceError: A thread has ended by itself; its traceback is on standard error.
        """
        ticks = 0
        while not stop.is_set():
            await asyncio.sleep(TICK_S)
            for name, thread in (("frame", self._frames), ("detection", self._boxes)):
                if not thread.alive:
                    raise ServiceError(f"the {name} thread has failed")
            self._hub.look_who_watches()
            self._hub.look_at_stream()
            ticks += 1
            if ticks % TICKS_A_MEASUREMENT == 0:
                self._hub.measure(float(self._frames.received.summary()["fps"] or 0.0))

    async def end(self) -> None:
        """Stop the threads and wait for them."""
        self._ending.set()
        await asyncio.to_thread(self._frames.join)
        await asyncio.to_thread(self._boxes.join)

    def status(self) -> dict[str, Any]:
        """The status document; called by the status server's thread."""
        document = status_document(
            "streamer",
            {
                "receive": self._frames.received,
                "encode": self._frames.encoded,
                "send": self._hub.sent,
                "detections": self._boxes.received,
            },
            stale_after_s=self._section.stale_after_s,
            optional=("encode", "send", "detections"),
            details={
                "clients": self._hub.clients,
                "websocket_clients": self._hub.count("websocket"),
                "mjpeg_clients": self._hub.count("mjpeg"),
                "bytes_per_second": round(self._hub.bytes_per_second),
                "jpeg_quality": self._section.jpeg_quality,
                "detections_rejected": self._boxes.rejected,
            },
        )
        if reason := self._health()[0]:
            document.update(healthy=False, reason=reason)
        return document

    def _on_loop(self, take: Callable[[T], None]) -> Callable[[T], None]:
        def deliver(item: T) -> None:
            # The loop is closed only after the threads have ended, but never let a late frame become a traceback.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(take, item)

        return deliver

    def _absence(self) -> str:
        """Why there is no live picture, without numbers that change all the time."""
        if self._frames.absent:
            return self._frames.absent
        if self._frames.unsupported:
            return self._frames.unsupported
        received_s = self._frames.received_s
        if received_s is None:
            return f"stream {self.stream} has no frame yet"
        if time.monotonic() - received_s > self._section.stale_after_s:
            return f"stream {self.stream} has no new frame"
        return ""

    def _health(self) -> tuple[str, float | None]:
        received_s = self._frames.received_s
        return self._absence(), None if received_s is None else time.monotonic() - received_s
