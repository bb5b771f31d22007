"""The HTTP side: the page, the pictures, and the health and metrics of all services."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler
from prometheus_client import CONTENT_TYPE_LATEST

from framebus import StreamInfo, streams
from services.streamer import metrics, security, stills
from services.streamer.config import StreamerSection
from services.streamer.connections import Connections
from services.streamer.hub import Hub, TooManyViewers
from services.streamer.messages import server_ms
from services.streamer.pagefiles import PageFiles
from services.streamer.presence import Presence
from services.streamer.security import Gatekeeper
from services.streamer.websocket import StateText, WebSocketViewer

GONE_KEPT_S = 3600.0
"""Seconds for which a stream that has ended is still listed, as not live."""


def describe(found: StreamInfo) -> dict[str, Any]:
    """Describe a stream's ring, ready for JSON."""
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


def _gone(stream: dict[str, Any], gone_s: float) -> dict[str, Any]:
    """Return the description of a stream that ended ``gone_s`` seconds ago."""
    age_s = None if stream["age_s"] is None else round(stream["age_s"] + gone_s, 3)
    return stream | {"live": False, "age_s": age_s, "slots_held": 0, "seats_taken": 0, "subscribers": 0}


class Site:
    """The web application.

    Args:
        stream: Name of the stream.
        section: The streamer's configuration.
        hub: The state that the viewers share.
        presence: The status of the stream's services.
        state_text: Returns the state's message for a viewer.
        connections: All connections, for their counts and limits.
        page: The page's files.
    """

    def __init__(
        self,
        stream: str,
        section: StreamerSection,
        hub: Hub,
        presence: Presence,
        state_text: StateText,
        *,
        connections: Connections,
        page: PageFiles,
    ) -> None:
        self._stream = stream
        self._section = section
        self._hub = hub
        self._presence = presence
        self._state_text = state_text
        self._connections = connections
        self._page = page
        self._gatekeeper = Gatekeeper((section.host, *section.allowed_hosts), section.trusted_proxies)
        self._streams: dict[str, tuple[dict[str, Any], float]] = {}
        self._sockets: set[WebSocketViewer] = set()
        # In this order, the outermost first: rejected requests count to their connection too.
        self.application = web.Application(
            middlewares=[connections.middleware, self._gatekeeper.middleware, _answer_full]
        )
        self.application.on_response_prepare.append(security.add_headers)
        self.application.on_shutdown.append(self._close_sockets)
        self.application.add_routes(
            [
                web.get("/", self._index),
                web.get("/calibration", self._calibration),
                # No HEAD for what has no end: aiohttp would run the handler, and never finish.
                web.get("/ws", self._websocket, allow_head=False),
                web.get("/stream.mjpg", self._mjpeg, allow_head=False),
                web.get("/snapshot.jpg", self._snapshot),
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
                web.get("/metrics", self._metrics),
                web.get("/api/status", self._status),
                web.get("/page/{name:.+}", self._page_file),
            ]
        )

    async def _index(self, request: web.Request) -> web.StreamResponse:
        return self._page.answer(request, "index.html")

    async def _calibration(self, request: web.Request) -> web.StreamResponse:
        return self._page.answer(request, "calibration.html")

    async def _page_file(self, request: web.Request) -> web.StreamResponse:
        # The name is looked up among the files that were read, so it cannot lead outside of the folder.
        return self._page.answer(request, request.match_info["name"])

    async def _websocket(self, request: web.Request) -> web.StreamResponse:
        # Before the viewer takes a place: a program that asks for the address without an upgrade needs none.
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
        """Answer 200 while the picture is live or delayed, and 503 with the reason while it is stale or absent."""
        served, document = self._health()
        return web.json_response(
            {"healthy": served, **document}, status=200 if served else 503, headers=stills.UNCACHED
        )

    async def _readyz(self, _request: web.Request) -> web.StreamResponse:
        """Answer by the same rule, with the absent services, for a load balancer that routes viewers to this page."""
        served, document = self._health()
        absent = [
            {"kind": one.kind, "name": one.name, "silent_s": round(one.silent_s, 1), "reason": one.reason}
            for one in self._presence.absent()
        ]
        return web.json_response(
            {"ready": served, **document, "absent": absent}, status=200 if served else 503, headers=stills.UNCACHED
        )

    def _health(self) -> tuple[bool, dict[str, Any]]:
        """Return whether the picture may be served, and its description."""
        self._hub.update_state()  # a tick may be a tenth of a second old
        freshness = self._hub.freshness
        return freshness.served, {
            "state": freshness.state,
            "reason": freshness.reason,
            "stream": self._stream,
            "age_s": None if freshness.age_s is None else round(freshness.age_s, 3),
        }

    async def _metrics(self, _request: web.Request) -> web.StreamResponse:
        statuses = await self._presence.statuses()
        body = metrics.render(
            statuses, await self._read_streams(), self._connections.summary() | {"forbidden": self._gatekeeper.counts()}
        )
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
                # The WebSocket's state message, for a page without a WebSocket.
                "page": json.loads(self._state_text(server_ms(), None)),
                "connections": self._connections.summary(),
                "refusals": self._gatekeeper.summary(),
                "services": await self._presence.statuses(),
                "streams": await self._read_streams(),
            },
            headers=stills.UNCACHED,
        )

    async def _read_streams(self) -> list[dict[str, Any]]:
        """Describe the existing streams, and those that ended within the last hour, which are not live."""
        found = [describe(stream) for stream in await asyncio.to_thread(streams)]
        now_s = time.monotonic()
        self._streams |= {stream["name"]: (stream, now_s) for stream in found}
        self._streams = {
            name: entry
            for name, entry in self._streams.items()
            if now_s - entry[1] <= GONE_KEPT_S or name == self._stream  # its own stream is listed for ever
        }
        return [
            stream if seen_s == now_s else _gone(stream, now_s - seen_s) for stream, seen_s in self._streams.values()
        ]

    async def _close_sockets(self, _application: web.Application) -> None:
        await asyncio.gather(*(viewer.close() for viewer in tuple(self._sockets)))


@web.middleware
async def _answer_full(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except TooManyViewers as error:
        raise web.HTTPServiceUnavailable(text=f"{error}\n", headers={"Retry-After": "5"}) from None
