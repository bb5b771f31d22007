"""The HTTP side: the page, the pictures, and the health and metrics of all services."""

from __future__ import annotations

import asyncio
import hashlib
import time
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler
from prometheus_client import CONTENT_TYPE_LATEST

from framebus import StreamInfo, streams
from services.streamer import metrics, security, stills
from services.streamer.config import StreamerSection
from services.streamer.hub import Hub, TooManyViewers
from services.streamer.presence import Presence
from services.streamer.websocket import StateText, WebSocketViewer

PAGE = Path(__file__).with_name("page")


def page_version() -> str:
    """Return a text that is another one when a file of the page is."""
    digest = hashlib.sha256()
    for path in sorted(PAGE.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


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
        presence: What the services of the stream tell.
        state_text: Makes the state's message for a viewer.
    """

    def __init__(
        self, stream: str, section: StreamerSection, hub: Hub, presence: Presence, state_text: StateText
    ) -> None:
        self._stream = stream
        self._section = section
        self._hub = hub
        self._presence = presence
        self._state_text = state_text
        self._sockets: set[WebSocketViewer] = set()
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
        viewer = WebSocketViewer(self._hub, self._state_text)
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
        self._hub.update_state()
        return self._health()

    def _health(self) -> web.Response:
        freshness = self._hub.freshness
        return web.json_response(
            {
                "healthy": freshness.served,
                "state": freshness.state,
                "reason": freshness.reason,
                "stream": self._stream,
                "age_s": None if freshness.age_s is None else round(freshness.age_s, 3),
            },
            status=200 if freshness.served else 503,
            headers=stills.UNCACHED,
        )

    async def _metrics(self, _request: web.Request) -> web.StreamResponse:
        statuses = await self._presence.statuses()
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
                "services": await self._presence.statuses(),
                "streams": [describe(found) for found in await asyncio.to_thread(streams)],
            },
            headers=stills.UNCACHED,
        )

    async def _close_sockets(self, _application: web.Application) -> None:
        await asyncio.gather(*(viewer.close() for viewer in tuple(self._sockets)))


@web.middleware
async def _answer_full(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except TooManyViewers as error:
        raise web.HTTPServiceUnavailable(text=f"{error}\n", headers={"Retry-After": "5"}) from None
