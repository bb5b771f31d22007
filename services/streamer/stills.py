"""Pictures without a WebSocket: an endless multipart response, and single files."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import time

from aiohttp import web

from services.streamer.backlog import Backlog
from services.streamer.connection import Connection
from services.streamer.encode import LEVELS, SMALLEST, message_picture
from services.streamer.frames import EncodedFrame
from services.streamer.hub import Hub
from services.streamer.messages import server_ms
from services.streamer.pace import Pace

BOUNDARY = "framebus-frame"
UNCACHED = {"Cache-Control": "no-store"}
SEND_BUFFER_BYTES = 1 << 19
"""Send buffer of one MJPEG viewer in the kernel."""
UNSENT_BYTES = 1 << 14
"""Limit of unsent data in that buffer. It bounds the age of the pictures, because the viewer sends no
acknowledgements."""
NO_SIGNAL_EVERY_S = 1.0
"""Interval of the panels that say why there is no picture."""
NO_SIGNAL_SIZE_PX = (1224, 172)
SNAPSHOT_WAIT_S = 1.0
"""Longest wait for a picture: while no viewer watches, none is encoded until one is requested."""


class _PictureViewer:
    """Waits for pictures that it has not yet received."""

    def __init__(self, hub: Hub, kind: str, level: int = 0) -> None:
        self.changed = asyncio.Event()
        self.kind = kind
        self.level = level
        self.last: EncodedFrame | None = None
        self._hub = hub

    def watching(self) -> bool:
        """Return True, because it requested a picture."""
        return True

    async def next(self) -> EncodedFrame:
        """Return the newest picture, as soon as it differs from the last one."""
        while (newest := self._hub.newest) is None or (self.last is not None and newest.key == self.last.key):
            self.changed.clear()
            await self.changed.wait()
        self.last = newest
        return newest


async def stream_mjpeg(hub: Hub, request: web.Request) -> web.StreamResponse:
    """Answer with one picture after the other. A slow connection gets smaller pictures, then fewer.

    Each part ends with the boundary of the next, so that a browser shows it immediately. While no picture may be
    served, a panel with the reason is sent once a second, because a browser does not retry a response that has ended.

    ``?level=`` requests smaller pictures from the start: an index into ``encode.LEVELS``.

    Raises:
        TooManyViewers: The limit of viewers is reached; the response has not been started.
        HTTPBadRequest: The level is invalid.
    """
    largest = _level(request.query.get("level", "0"))
    response = web.StreamResponse(
        headers=UNCACHED
        | {
            "Content-Type": f"multipart/x-mixed-replace; boundary={BOUNDARY}",
            "Connection": "close",
            # Disable nginx's buffering, which would delay pictures by seconds.
            "X-Accel-Buffering": "no",
            "X-Received-Ms": str(server_ms()),
        }
    )
    response.force_close()  # the response has no end after which another request could follow
    viewer = _PictureViewer(hub, "mjpeg", largest)
    hub.join(viewer)
    pace = Pace(largest, largest)
    protocol = None if request.transport is None else request.transport.get_protocol()
    backlog = Backlog(
        None if request.transport is None else request.transport.get_extra_info("socket"),
        probe=lambda: response.write(b"X-Wait: 1\r\n"),  # a header of the next part
        tell=protocol.set_unread if isinstance(protocol, Connection) else lambda _unread: None,
    )
    try:
        _bound_send_buffer(request)
        await response.prepare(request)
        await response.write(f"--{BOUNDARY}\r\n".encode())
        while True:
            previous = viewer.last
            try:
                async with asyncio.timeout(NO_SIGNAL_EVERY_S):
                    frame = await viewer.next()
            except TimeoutError:
                # Otherwise the stream is merely slower than a frame a second.
                if not hub.freshness.served:
                    reason = hub.freshness.reason
                    panel = message_picture(*NO_SIGNAL_SIZE_PX, ["no signal", _ascii(reason)])
                    await response.write(_part(panel, f"X-No-Signal: {_ascii(reason)}\r\n"))
                continue
            level = frame.level(viewer.level)
            part = _part(
                frame.pictures[level].jpeg,
                f"X-Sequence: {frame.sequence}\r\nX-Epoch: {frame.epoch:x}\r\n"
                f"X-Captured-Ms: {frame.captured_ns / 1e6:.3f}\r\nX-Sent-Ms: {server_ms()}\r\n"
                f"X-Captured-Wall-Ms: {frame.captured_wall_ns / 1e6:.3f}\r\nX-Level: {level}\r\n"
                f"X-Full-Size: {frame.full_width_px}x{frame.full_height_px}\r\n",
            )
            hub.count_bytes(len(part))
            started_s = time.monotonic()
            await response.write(part)
            await request.writer.drain()  # write() returns earlier, while its buffer has room
            # The time until the connection had room is the only information about the line.
            occupied_s = await backlog.clear(len(part), started_s)
            pace.acknowledge(level, started_s, started_s + occupied_s)
            viewer.level = pace.level
            hub.update_demand()
            # Sequences of two epochs cannot be compared.
            same_life = previous is not None and previous.epoch == frame.epoch
            skipped = frame.sequence - previous.sequence - 1 if previous is not None and same_life else 0
            hub.sent.record(math.nan, max(skipped, 0))
    except ConnectionError:
        return response
    finally:
        hub.leave(viewer)


async def snapshot(hub: Hub) -> web.Response:
    """Answer with the newest picture, or 503 with the reason if there is none or it is stale."""
    viewer = _PictureViewer(hub, "snapshot")
    hub.join(viewer)
    try:
        async with asyncio.timeout(SNAPSHOT_WAIT_S):
            frame = await viewer.next()
    except TimeoutError:
        reason = hub.freshness.reason or "no picture within a second"
        raise web.HTTPServiceUnavailable(text=f"{reason}\n", headers=UNCACHED) from None
    finally:
        hub.leave(viewer)
    return web.Response(
        body=frame.pictures[frame.level(0)].jpeg,
        content_type="image/jpeg",
        headers=UNCACHED
        | {
            "X-Sequence": str(frame.sequence),
            "X-Epoch": f"{frame.epoch:x}",
            "X-Age-Ms": f"{(time.monotonic_ns() - frame.captured_ns) / 1e6:.1f}",
            "X-State": hub.freshness.state,
        },
    )


def _part(jpeg: bytes, headers: str) -> bytes:
    head = f"Content-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n{headers}\r\n"
    return b"".join((head.encode(), jpeg, f"\r\n--{BOUNDARY}\r\n".encode()))


def _level(text: str) -> int:
    if text not in map(str, range(len(LEVELS))):
        raise web.HTTPBadRequest(text=f"level is one of 0 to {SMALLEST}\n", headers=UNCACHED)
    return int(text)


def _ascii(text: str) -> str:
    """Replace the characters that a header or OpenCV's fonts cannot hold."""
    return "".join(letter if " " <= letter <= "~" else "?" for letter in text)


def _bound_send_buffer(request: web.Request) -> None:
    transport = request.transport
    if transport is None:
        return
    with contextlib.suppress(AttributeError, ValueError):
        transport.set_write_buffer_limits(high=0)  # drain() then waits until the kernel has taken all
    connection = transport.get_extra_info("socket")
    if connection is not None:
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
            # tcp(7), TCP_NOTSENT_LOWAT: writable only while less than this waits to be sent.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
