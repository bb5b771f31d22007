"""A viewer on a WebSocket: the page's own way to watch."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque

from aiohttp import WSCloseCode, WSMsgType, web

from services.streamer.frames import EncodedFrame
from services.streamer.hub import Hub
from services.streamer.messages import (
    MAX_ACKNOWLEDGEMENT_BYTES,
    MalformedMessage,
    detections_message,
    frame_message,
    read_acknowledgement,
    state_message,
)

MAX_IN_FLIGHT = 2
"""Frames sent and not acknowledged: one on its way while the one before is drawn."""
WATCHED_S = 1.0
"""A viewer without an acknowledgement for so long (its tab is hidden) needs no new pictures encoded."""
HEARTBEAT_S = 10.0
CLOSE_S = 0.3


class WebSocketViewer:
    """Sends one viewer what is newest whenever it has drawn what it got before."""

    kind = "websocket"

    def __init__(self, hub: Hub, boxes_max_age_s: float) -> None:
        self.changed = asyncio.Event()
        self._hub = hub
        self._boxes_max_age_s = boxes_max_age_s
        self._socket = web.WebSocketResponse(
            timeout=CLOSE_S, heartbeat=HEARTBEAT_S, compress=False, max_msg_size=MAX_ACKNOWLEDGEMENT_BYTES
        )
        self._in_flight: deque[tuple[EncodedFrame, int]] = deque()
        self._last: EncodedFrame | None = None
        self._acknowledged_s = time.monotonic()
        self._latency_s: float | None = None

    def watching(self) -> bool:
        """Whether a new picture could be sent, or soon can."""
        return len(self._in_flight) < MAX_IN_FLIGHT or time.monotonic() - self._acknowledged_s < WATCHED_S

    async def serve(self, request: web.Request) -> web.WebSocketResponse:
        """Send and read until either side closes.

        Raises:
            TooManyViewers: There is no place left; nothing has been answered yet.
        """
        self._hub.join(self)
        try:
            await self._socket.prepare(request)
            halves = {asyncio.create_task(self._send()), asyncio.create_task(self._read())}
            try:
                done, _ = await asyncio.wait(halves, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for half in halves:
                    half.cancel()
                await asyncio.wait(halves)
            for half in done:
                with contextlib.suppress(ConnectionError):
                    half.result()
        finally:
            self._hub.leave(self)
        return self._socket

    async def close(self) -> None:
        """Tell the page that the service goes away."""
        with contextlib.suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await self._socket.close(code=WSCloseCode.GOING_AWAY, message=b"the streamer stops")

    async def _read(self) -> None:
        async for message in self._socket:
            try:
                if message.type is not WSMsgType.TEXT:
                    raise MalformedMessage("only text is understood")  # noqa: TRY301  answered just below
                self._acknowledge(read_acknowledgement(message.data))
            except MalformedMessage as error:
                await self._socket.close(code=WSCloseCode.POLICY_VIOLATION, message=str(error).encode())

    def _acknowledge(self, sequence: int) -> None:
        """Make room for as many frames as came before the acknowledged one, and for that one."""
        if all(frame.sequence != sequence for frame, _ in self._in_flight):
            raise MalformedMessage("acknowledged a frame that is not on its way")
        self._acknowledged_s = time.monotonic()
        while self._in_flight:
            frame, skipped = self._in_flight.popleft()
            if frame.sequence == sequence:
                self._latency_s = (time.monotonic_ns() - frame.captured_ns) / 1e9
                self._hub.sent.record(self._latency_s, skipped)
                break
            self._hub.sent.record(math.nan, skipped)
        self._hub.look_who_watches()
        self.changed.set()

    async def _send(self) -> None:
        detections, state = None, None
        while True:
            await self.changed.wait()
            self.changed.clear()
            if (now := (self._hub.absence, self._hub.beat)) != state:
                state = now
                await self._socket.send_str(
                    state_message(
                        absence=self._hub.absence,
                        fps=self._hub.stream_fps,
                        clients=self._hub.clients,
                        boxes_max_age_s=self._boxes_max_age_s,
                    )
                )
            if self._hub.detections is not None and self._hub.detections is not detections:
                detections = self._hub.detections
                await self._socket.send_str(detections_message(detections))
            if (
                self._hub.newest is not None
                and self._hub.newest is not self._last
                and len(self._in_flight) < MAX_IN_FLIGHT
            ):
                await self._send_frame(self._hub.newest)

    async def _send_frame(self, frame: EncodedFrame) -> None:
        skipped = 0
        if self._last is not None and self._last.epoch == frame.epoch:
            skipped = max(frame.sequence - self._last.sequence - 1, 0)
        self._last = frame
        self._in_flight.append((frame, skipped))
        message = frame_message(frame, skipped=skipped, fps=self._hub.stream_fps, latency_s=self._latency_s)
        self._hub.count_bytes(len(message))
        await self._socket.send_bytes(message)
