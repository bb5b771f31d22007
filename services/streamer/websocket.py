"""A viewer on a WebSocket, which the page uses by default."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import WSCloseCode, WSMsgType, web

from services.streamer.frames import EncodedFrame
from services.streamer.hub import Hub
from services.streamer.messages import (
    MAX_PAGE_MESSAGE_BYTES,
    Echo,
    MalformedMessage,
    PageMessage,
    detections_message,
    frame_message,
    read_page_message,
    server_ms,
)
from services.streamer.pace import MAX_IN_FLIGHT, Pace

WATCHED_S = 1.0
"""Time without an acknowledgement (such as of a hidden tab) after which no pictures are encoded for a viewer."""
HEARTBEAT_S = 6.0
"""Ping interval. A viewer that does not answer within half of it is disconnected, so its place is free within ten
seconds."""
CLOSE_S = 0.3
"""Longest wait for the page's answer to a close."""

StateText = Callable[[float, Echo | None], str]
"""Returns the state's message, given the time of receipt of the viewer's request in milliseconds, and its echo."""


@dataclass(frozen=True, slots=True)
class _Sent:
    frame: EncodedFrame
    level: int
    skipped: int
    sent_s: float


class WebSocketViewer:
    """Sends one viewer the newest picture whenever it has drawn the previous one."""

    kind = "websocket"

    def __init__(self, hub: Hub, state_text: StateText) -> None:
        self.changed = asyncio.Event()
        self._hub = hub
        self._state_text = state_text
        self._received_ms = server_ms()
        # Without compression, which would not make JPEG files smaller.
        self._socket = web.WebSocketResponse(
            timeout=CLOSE_S, heartbeat=HEARTBEAT_S, compress=False, max_msg_size=MAX_PAGE_MESSAGE_BYTES
        )
        self._pace = Pace()
        self._in_flight: deque[_Sent] = deque()
        self._last: EncodedFrame | None = None
        self._acknowledged_s = time.monotonic()
        self._latency_s: float | None = None
        self._echo: Echo | None = None
        self._detections_sent = 0

    @property
    def level(self) -> int:
        """Index into ``encode.LEVELS`` of the pictures that suit the line."""
        return self._pace.level

    def watching(self) -> bool:
        """Return whether a new picture can be sent now or soon."""
        # A slow line has no room most of the time, but acknowledges now and then; a hidden tab does not.
        return len(self._in_flight) < self._pace.in_flight or time.monotonic() - self._acknowledged_s < WATCHED_S

    async def serve(self, request: web.Request) -> web.WebSocketResponse:
        """Send and read until either side closes.

        Raises:
            TooManyViewers: The limit of viewers is reached; the response has not been started.
        """
        self._hub.join(self)
        try:
            await self._socket.prepare(request)
            # Each half ends with the connection, or by an error; the other one must then end too.
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
        """Close the WebSocket with the code for a service that is going away."""
        with contextlib.suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await self._socket.close(code=WSCloseCode.GOING_AWAY, message=b"the streamer stops")

    async def _read(self) -> None:
        async for message in self._socket:
            try:
                if message.type is not WSMsgType.TEXT:
                    raise MalformedMessage("only text is understood")  # noqa: TRY301  answered just below
                self._take(read_page_message(message.data))
            except MalformedMessage as error:
                await self._socket.close(code=WSCloseCode.POLICY_VIOLATION, message=str(error).encode())

    def _take(self, said: PageMessage) -> None:
        if said.at_ms is not None:
            self._echo = (said.at_ms, server_ms())
        if said.acknowledged is not None:
            self._acknowledge(said.acknowledged, said.held_s)

    def _acknowledge(self, sequence: int, held_s: float | None) -> None:
        """Release the acknowledged frame and all earlier ones."""
        # Otherwise a faulty page could clear the queue, and with it the limit of frames in flight.
        if all(sent.frame.sequence != sequence for sent in self._in_flight):
            raise MalformedMessage("acknowledged a frame that is not in flight")
        self._acknowledged_s = time.monotonic()
        while self._in_flight:
            sent = self._in_flight.popleft()
            if sent.frame.sequence == sequence:
                self._latency_s = (time.monotonic_ns() - sent.frame.captured_ns) / 1e9
                self._hub.sent.record(self._latency_s, sent.skipped)
                # Only this frame measures the line: earlier ones waited on the page for a newer one.
                self._pace.acknowledge(sent.level, sent.sent_s, self._acknowledged_s, held_s)
                break
            self._hub.sent.record(math.nan, sent.skipped)
        self._hub.update_demand()
        self.changed.set()

    async def _send(self) -> None:
        state_version = -1
        while True:
            await self.changed.wait()
            self.changed.clear()  # before the sends, so that a change during one of them is not missed
            if self._hub.state_version != state_version:
                state_version = self._hub.state_version
                await self._socket.send_str(self._state_text(self._received_ms, self._echo))
            newest = self._hub.newest
            has_room = len(self._in_flight) < self._pace.in_flight
            # On a slow line, send boxes only together with pictures, to prevent them from competing for the line.
            if has_room or self._pace.in_flight == MAX_IN_FLIGHT:
                await self._send_detections()
            if newest is not None and has_room and (self._last is None or newest.key != self._last.key):
                await self._send_frame(newest)

    async def _send_detections(self) -> None:
        waiting = list(self._hub.detections_after(self._detections_sent))
        if self._pace.in_flight < MAX_IN_FLIGHT:
            # Only the newest of each detector.
            waiting = list({detections.instance: (number, detections) for number, detections in waiting}.values())
        for number, detections in sorted(waiting, key=lambda item: item[0]):
            self._detections_sent = number
            await self._socket.send_str(detections_message(detections, self._echo))

    async def _send_frame(self, frame: EncodedFrame) -> None:
        skipped = 0
        if self._last is not None and self._last.epoch == frame.epoch:
            skipped = max(frame.sequence - self._last.sequence - 1, 0)
        self._last = frame
        # A small frame is always encoded at the first level, regardless of the line.
        level = frame.level(self._pace.level)
        message = frame_message(
            frame,
            level,
            skipped=skipped,
            fps=self._hub.stream_fps,
            latency_s=self._latency_s,
            echo=self._echo,
        )
        self._in_flight.append(_Sent(frame, level, skipped, time.monotonic()))
        self._hub.count_bytes(len(message))
        await self._socket.send_bytes(message)
