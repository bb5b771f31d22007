"""One TCP connection: its phase, and how much of the sent data the client has acknowledged."""

from __future__ import annotations

import asyncio
import enum
import socket
import struct
import time
from collections.abc import Callable
from typing import Final, cast

from services.streamer.addresses import group_of
from services.streamer.limits import ConnectionLimits

MIN_TAKEN_BYTES: Final = 8192
"""Least amount that a client must acknowledge in ``write_timeout_s``: 8 kbit/s, far below any usable line."""
STALLED_S: Final = 1.0
"""Time without progress of a response after which its connection may be evicted for a new one."""

# struct tcp_info of linux/tcp.h: tcpi_unacked (segments), tcpi_bytes_acked, tcpi_notsent_bytes.
_TCP_INFO_BYTES: Final = 256
_UNACKED: Final = (struct.Struct("I"), 24)
_BYTES_ACKED: Final = (struct.Struct("Q"), 120)
_NOTSENT_BYTES: Final = (struct.Struct("I"), 144)


class Phase(enum.IntEnum):
    """What a connection waits for. Lower phases are evicted first."""

    HEAD = 0
    """The rest of a request's head."""
    IDLE = 1
    """The first byte of the next request."""
    BUSY = 2
    """The response: a request is complete and is being served."""


class Connection(asyncio.Protocol):
    """Forwards a connection's events to aiohttp's protocol, and records their times.

    Args:
        http: The protocol that serves the connection once it is admitted.
        admit: Admits the connection, or returns the reason for its rejection.
        forget: Releases the connection's place.
    """

    def __init__(
        self, http: asyncio.Protocol, admit: Callable[[Connection], str], forget: Callable[[Connection], None]
    ) -> None:
        self.group = ""
        """The client address to which it counts."""
        self.phase = Phase.HEAD
        self.since_s = time.monotonic()
        """When the phase began."""
        self.taken_s = self.since_s
        """When the client had last acknowledged all sent data, or :data:`MIN_TAKEN_BYTES` of it."""
        self.peer: str | None = None
        self._http = http
        self._admit = admit
        self._forget = forget
        self._transport: asyncio.Transport | None = None
        self._socket: socket.socket | None = None
        self._taken_bytes = 0
        self._unread = False
        self._tail = b""  # the last four received bytes

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Request admission. If it is rejected, answer 503 and close."""
        self._transport = cast(asyncio.Transport, transport)
        self._socket = transport.get_extra_info("socket")
        peername = transport.get_extra_info("peername")
        self.peer = peername[0] if peername else None
        self.group = group_of(self.peer)
        if refusal := self._admit(self):
            text = f"{refusal}\n"
            self._transport.write(
                "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\nRetry-After: 5\r\n"
                f"Connection: close\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode()
            )
            self._transport.close()
            self._transport = None  # aiohttp never learns of this connection, so forward no event of it
            return
        self._http.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Forward bytes of the client. The first byte after a pause starts the deadline for the head."""
        if self._transport is None:
            return
        self._tail = (self._tail + data[-4:])[-4:]
        if self.phase is Phase.IDLE:
            self.enter(Phase.HEAD)
        # In phase HEAD the deadline does not move: bytes that trickle in must not extend it.
        self._http.data_received(data)

    def eof_received(self) -> bool | None:
        """Forward the end of the client's bytes."""
        return None if self._transport is None else self._http.eof_received()

    def pause_writing(self) -> None:
        """Forward that the write buffer is full."""
        if self._transport is not None:
            self._http.pause_writing()

    def resume_writing(self) -> None:
        """Forward that the write buffer has room."""
        if self._transport is not None:
            self._http.resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        """Release the place."""
        self._forget(self)
        if self._transport is not None:
            self._transport = None
            self._http.connection_lost(error)

    def enter(self, phase: Phase) -> None:
        """Begin a phase."""
        self.phase, self.since_s = phase, time.monotonic()

    def end_request(self) -> None:
        """Start to wait for the next request, part of which may have arrived with the previous one."""
        # Requests have no body, so the received bytes end with a complete head unless part of the next one follows.
        self.enter(Phase.IDLE if self._tail == b"\r\n\r\n" else Phase.HEAD)

    def set_unread(self, unread: bool) -> None:
        """Set whether the client still has to read data that its kernel has acknowledged."""
        self._unread = unread

    def abort(self) -> None:
        """Close immediately, and discard unsent data."""
        if self._transport is not None:
            self._transport.abort()

    def overdue(self, limits: ConnectionLimits, now_s: float) -> str:
        """Return which deadline has passed: ``head``, ``idle``, ``write``, or an empty string."""
        # While data is pending the client has to act, and only the deadline for that applies.
        if self._is_pending(now_s):
            if now_s - self.taken_s > limits.write_timeout_s:
                return "write"
            if self.phase is Phase.IDLE:
                self.since_s = now_s  # the response is still in flight
            return ""
        if self.phase is Phase.HEAD and now_s - self.since_s > limits.head_timeout_s:
            return "head"
        if self.phase is Phase.IDLE and now_s - self.since_s > limits.idle_timeout_s:
            return "idle"
        return ""

    def rank(self, now_s: float) -> tuple[Phase, float] | None:
        """Return the rank for eviction, lowest first, or None for a connection that makes progress."""
        if self.phase is not Phase.BUSY:
            return self.phase, self.since_s
        # A response that makes progress is never evicted, however slow it is.
        return (Phase.BUSY, self.taken_s) if now_s - self.taken_s > STALLED_S else None

    def _is_pending(self, now_s: float) -> bool:
        """Return whether sent data is unacknowledged. Record the time of sufficient progress."""
        assert self._socket is not None
        try:
            info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        except OSError:  # the socket has just been closed
            return False
        unacked, acked, notsent = (
            field.unpack_from(info, at)[0] for field, at in (_UNACKED, _BYTES_ACKED, _NOTSENT_BYTES)
        )
        # Unacknowledged by the client's kernel, not sent yet by this one, or still in asyncio's buffer.
        pending = bool(
            self._unread
            or unacked
            or notsent
            or (self._transport is not None and self._transport.get_write_buffer_size())
        )
        # Some bytes are not enough: a client could otherwise keep its place by reading one byte at a time.
        if not pending or acked - self._taken_bytes >= MIN_TAKEN_BYTES:
            self.taken_s, self._taken_bytes = now_s, acked
        return pending
