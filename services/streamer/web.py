"""The HTTP side: the page, the pictures, and the health and metrics of all services."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler
from prometheus_client import CONTENT_TYPE_LATEST

from framebus import StreamInfo, streams
from services.common.status import read_statuses
from services.streamer import metrics, security, stills
from services.streamer.config import StreamerSection
from services.streamer.hub import Hub, TooManyViewers
from services.streamer.websocket import WebSocketViewer

PAGE = Path(__file__).with_name("page")
STATUS_TIMEOUT_S = 0.5
STATUS_FRESH_S = 0.5


def describe(found: StreamInfo) -> dict[str, Any]:
    """What there is to know of a stream's ring, ready for JSON."""
    return {
        "name": found.name,
        "live": found.live,
        "sequence": found.sequence,
        "age_s": None if found.age_s is None else round(found.age_s, 3),
        "slots": found.slots,
        "slots_held": found.slots_held,
        "seats": found.seats,
        "seats_taken": found.seats_taken,
        "ring_bytes": found.ring_bytes,
        "subscribers": sum(subscriber.alive for subscriber in found.subscribers),
    }


class Site:
    """The web application.

    Args:
        stream: Name of the stream.
        section: The streamer's configuration.
        hub: What the viewers see.
        health: The frame path's state: an empty text, or why it is not healthy, and the newest frame's age in seconds.
    """

    def __init__(
        self, stream: str, section: StreamerSection, hub: Hub, health: Callable[[], tuple[str, float | None]]
    ) -> None:
        self._stream = stream
        self._section = section
        self._hub = hub
        self._health = health
        self._sockets: set[WebSocketViewer] = set()
        self._statuses: dict[str, dict[str, Any]] = {}
        self._statuses_s = -STATUS_FRESH_S
        self._reading = asyncio.Lock()
        self.application = web.Application(
            middlewares=[security.refuse_strangers((section.host, *section.allowed_hosts)), _answer_full]
        )
        self.application.on_response_prepare.append(security.add_headers)
        self.application.on_shutdown.append(self._close_sockets)
        self.application.add_routes(
            [
                web.get("/", self._index),
                web.get("/ws", self._websocket, allow_head=False),
                web.get("/stream.mjpg", self._mjpeg, allow_head=False),
                web.get("/snapshot.jpg", self._snapshot),
                web.get("/healthz", self._healthz),
                web.get("/metrics", self._metrics),
                web.get("/api/status", self._status),
                web.static("/page", PAGE),
            ]
        )

    async def _index(self, _request: web.Request) -> web.StreamResponse:
        return web.FileResponse(PAGE / "index.html", headers={"Cache-Control": "no-cache"})

    async def _websocket(self, request: web.Request) -> web.StreamResponse:
        if not web.WebSocketResponse().can_prepare(request):
            raise web.HTTPUpgradeRequired(text="this is a WebSocket\n", headers={"Upgrade": "websocket"})
        viewer = WebSocketViewer(self._hub, self._section.boxes_max_age_s)
        self._sockets.add(viewer)
        try:
            return await viewer.serve(request)
        finally:
            self._sockets.discard(viewer)

    async def _mjpeg(self, request: web.Request) -> web.StreamResponse:
        return await stills.stream_mjpeg(self._hub, request)

    async def _snapshot(self, _request: web.Request) -> web.StreamResponse:
        return await stills.snapshot(self._hub)

    async def _healthz(self, _request: web.Request) -> web.StreamResponse:
        reason, age_s = self._health()
        return web.json_response(
            {
                "healthy": not reason,
                "reason": reason,
                "stream": self._stream,
                "age_s": None if age_s is None else round(age_s, 3),
            },
            status=503 if reason else 200,
            headers=stills.UNCACHED,
        )

    async def _metrics(self, _request: web.Request) -> web.StreamResponse:
        statuses = await self._read_statuses()
        body = metrics.render(statuses, [describe(found) for found in await asyncio.to_thread(streams)])
        return web.Response(body=body, headers=stills.UNCACHED | {"Content-Type": CONTENT_TYPE_LATEST})

    async def _status(self, _request: web.Request) -> web.StreamResponse:
        return web.json_response(
            {
                "stream": self._stream,
                "time_s": time.time(),
                "viewers": {
                    "websocket": self._hub.count("websocket"),
                    "mjpeg": self._hub.count("mjpeg"),
                    "max": self._section.max_clients,
                },
                "services": await self._read_statuses(),
                "streams": [describe(found) for found in await asyncio.to_thread(streams)],
            },
            headers=stills.UNCACHED,
        )

    async def _read_statuses(self) -> dict[str, dict[str, Any]]:
        """Ask the services, off the event loop; many who ask at a time share one answer."""
        async with self._reading:
            if time.monotonic() - self._statuses_s >= STATUS_FRESH_S:
                self._statuses = await asyncio.to_thread(read_statuses, self._stream, STATUS_TIMEOUT_S)
                self._statuses_s = time.monotonic()
            return self._statuses

    async def _close_sockets(self, _application: web.Application) -> None:
        await asyncio.gather(*(viewer.close() for viewer in tuple(self._sockets)))


@web.middleware
async def _answer_full(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except TooManyViewers as error:
        raise web.HTTPServiceUnavailable(text=f"{error}\n", headers={"Retry-After": "5"}) from None
