"""Pictures without a WebSocket: an endless multipart answer, and single files."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket

from aiohttp import web

from services.streamer.frames import EncodedFrame
from services.streamer.hub import Hub

BOUNDARY = "framebus-frame"
UNCACHED = {"Cache-Control": "no-store"}
SEND_BUFFER_BYTES = 1 << 19
"""What the kernel may hold for one MJPEG viewer: without acknowledgements, all that bounds how old its pictures get."""
SNAPSHOT_WAIT_S = 1.0


class _PictureViewer:
    """Waits for pictures that it has not had."""

    def __init__(self, hub: Hub, kind: str) -> None:
        self.changed = asyncio.Event()
        self.kind = kind
        self.last: EncodedFrame | None = None
        self._hub = hub

    def watching(self) -> bool:
        """Always: it asked for a picture."""
        return True

    async def next(self) -> EncodedFrame:
        """The newest picture, once there is another than the last."""
        while self._hub.newest is None or self._hub.newest is self.last:
            self.changed.clear()
            await self.changed.wait()
        self.last = self._hub.newest
        return self.last


async def stream_mjpeg(hub: Hub, request: web.Request) -> web.StreamResponse:
    """Answer with one picture after the other; a slow connection gets fewer of them.

    Each part ends with the boundary of the next, so that a browser shows it at once.

    Raises:
        TooManyViewers: There is no place left; nothing has been answered yet.
    """
    response = web.StreamResponse(
        headers=UNCACHED | {"Content-Type": f"multipart/x-mixed-replace; boundary={BOUNDARY}", "Connection": "close"}
    )
    response.force_close()
    viewer = _PictureViewer(hub, "mjpeg")
    hub.join(viewer)
    try:
        _bound_send_buffer(request)
        await response.prepare(request)
        await response.write(f"--{BOUNDARY}\r\n".encode())
        while True:
            previous, frame = viewer.last, await viewer.next()
            part = b"".join(
                (
                    f"Content-Type: image/jpeg\r\nContent-Length: {len(frame.jpeg)}\r\n"
                    f"X-Sequence: {frame.sequence}\r\n\r\n".encode(),
                    frame.jpeg,
                    f"\r\n--{BOUNDARY}\r\n".encode(),
                )
            )
            hub.count_bytes(len(part))
            await response.write(part)
            same_life = previous is not None and previous.epoch == frame.epoch
            skipped = frame.sequence - previous.sequence - 1 if previous is not None and same_life else 0
            hub.sent.record(math.nan, max(skipped, 0))
    except ConnectionError:
        return response
    finally:
        hub.leave(viewer)


async def snapshot(hub: Hub) -> web.Response:
    """Answer with the newest picture; 503 with the reason when there is none."""
    viewer = _PictureViewer(hub, "snapshot")
    hub.join(viewer)
    try:
        async with asyncio.timeout(SNAPSHOT_WAIT_S):
            frame = await viewer.next()
    except TimeoutError:
        reason = hub.absence or "no picture within a second"
        raise web.HTTPServiceUnavailable(text=f"{reason}\n", headers=UNCACHED) from None
    finally:
        hub.leave(viewer)
    return web.Response(
        body=frame.jpeg,
        content_type="image/jpeg",
        headers=UNCACHED | {"X-Sequence": str(frame.sequence), "X-Epoch": f"{frame.epoch:x}"},
    )


def _bound_send_buffer(request: web.Request) -> None:
    transport = request.transport
    if transport is None:
        return
    with contextlib.suppress(AttributeError, ValueError):
        transport.set_write_buffer_limits(high=0)
    connection = transport.get_extra_info("socket")
    if connection is not None:
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
