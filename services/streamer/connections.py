"""Deadlines and limits for every TCP connection, to prevent a client from locking out others.

Each connection is monitored at its transport, regardless of what is served on it:

1. The head of a request must be complete ``head_timeout_s`` after the connection was opened, or after the first byte of
   a later request. Slowly trickling bytes do not extend the deadline. Between requests, a connection may be idle for
   ``idle_timeout_s``.
2. While the client's kernel has not acknowledged all sent data, it must acknowledge ``MIN_TAKEN_BYTES`` every
   ``write_timeout_s``. A client that does not read stops acknowledging once its receive buffer is full.
3. At the limit of connections, or of an address, a new connection evicts an inactive one. It is chosen from the address
   with most connections: the one with an incomplete head for longest, then the one idle for longest, then the one
   stalled for longest. The new connection is rejected only if all are active.
4. If the process still runs out of file descriptors, inactive connections are closed, and accepting resumes a second
   later.
"""

from __future__ import annotations

import asyncio
import errno
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from typing import Any, Final

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from framebus import ResourceExhausted
from services.streamer.addresses import client_address, group_of, is_trusted
from services.streamer.connection import Connection, Phase
from services.streamer.limits import ConnectionLimits

SWEEP_S: Final = 0.25
"""Shortest interval between two searches for passed deadlines."""
BACKLOG: Final = 128
"""Connections that the kernel queues before they are accepted."""
WARN_AGAIN_S: Final = 60.0
"""Shortest interval between two warnings of missing descriptors."""
SERVER_OPTIONS: Final[dict[str, Any]] = {"handler_cancellation": True, "lingering_time": 1.0}
"""For ``web.AppRunner``: cancel a handler when its connection ends, and drain an unread body for a second only."""

_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Connections:
    """All open connections. Owned by the event loop."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits = limits
        self.opened = 0
        """Connections accepted since the start."""
        self.refused: Counter[str] = Counter({"address": 0, "full": 0, "descriptors": 0})
        """Rejected connections, by the limit that was reached."""
        self.dropped: Counter[str] = Counter({"head": 0, "idle": 0, "write": 0, "evicted": 0})
        """Closed connections, by the deadline that passed; ``evicted`` made room for another."""
        self._groups: dict[str, dict[Connection, None]] = {}
        self._swept_s = 0.0
        self._warned_s = -WARN_AGAIN_S
        self._exhausted_s = 0.0
        self._log = structlog.get_logger()

    @property
    def open(self) -> int:
        """Number of open connections."""
        return sum(map(len, self._groups.values()))

    def summary(self) -> dict[str, Any]:
        """Return the counts and limits, ready for JSON."""
        return {
            "open": self.open,
            "max": self.limits.max_connections,
            "max_per_address": self.limits.max_per_address,
            "opened": self.opened,
            "refused": dict(self.refused),
            "dropped": dict(self.dropped),
        }

    async def listen(self, http: Callable[[], asyncio.Protocol], host: str, port: int) -> asyncio.Server:
        """Listen, and serve each connection with a separate protocol instance.

        Raises:
            OSError: The address cannot be bound.
        """
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._handle_error)
        return await loop.create_server(
            lambda: Connection(http(), self.admit, self.forget),
            host,
            port,
            backlog=min(BACKLOG, self.limits.max_connections),
        )

    def admit(self, connection: Connection) -> str:
        """Admit a connection, or return the reason for its rejection."""
        # Rule 3, first for the address, then for all: a busy address makes room at its own expense.
        limits = self.limits
        own = self._groups.get(connection.group, {})
        if self._has_share(connection.peer) and len(own) >= limits.max_per_address and not self._evict_one([own]):
            self.refused["address"] += 1
            return f"{len(own)} connections of this address are open (streamer.max_connections_per_address)"
        if self.open >= limits.max_connections and not self._evict_one(
            sorted(self._groups.values(), key=len, reverse=True)
        ):
            self.refused["full"] += 1
            return f"all {limits.max_connections} connections are in use (streamer.max_connections)"
        self.opened += 1
        self._groups.setdefault(connection.group, {})[connection] = None
        return ""

    def forget(self, connection: Connection) -> None:
        """Release a connection's place."""
        if (group := self._groups.get(connection.group)) is not None:
            group.pop(connection, None)
            if not group:
                del self._groups[connection.group]

    def sweep(self) -> None:
        """Close the connections whose deadline has passed. Call it several times a second."""
        now_s = time.monotonic()
        if now_s - self._swept_s < SWEEP_S:
            return
        self._swept_s = now_s
        # Rules 1 and 2. Copy the connections, because dropping one changes the groups.
        for connection in [connection for group in self._groups.values() for connection in group]:
            if deadline := connection.overdue(self.limits, now_s):
                self._drop(connection, deadline)

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Mark the connection as busy while its request is served. This must be the outermost middleware."""
        connection = None if request.transport is None else request.transport.get_protocol()
        try:
            # Connection.end_request() relies on requests without a body.
            if request.body_exists:
                raise _refusal(web.HTTPRequestEntityTooLarge(0, 1, text="no request here has a body\n"))
            if not isinstance(connection, Connection):
                return await handler(request)
            own_group = connection.group
            connection.enter(Phase.BUSY)
            try:
                self._count_to_client(connection, request)
                return await handler(request)
            finally:
                self._move(connection, own_group)
                connection.end_request()
        except OSError as error:
            if not isinstance(error, ResourceExhausted) and error.errno not in _EXHAUSTED:
                raise
            self._note_exhaustion(error)
            raise _refusal(web.HTTPServiceUnavailable(text="the streamer is out of descriptors\n")) from None

    def _count_to_client(self, connection: Connection, request: web.Request) -> None:
        """Count a trusted proxy's connection to the proxy's client, while it serves the client's request."""
        if not is_trusted(connection.peer, self.limits.trusted_proxies):
            return
        client = client_address(connection.peer, request.headers, self.limits.trusted_proxies)
        if not self._has_share(client):
            return  # the request is the proxy's own, such as a health check
        if len(self._groups.get(group_of(client), ())) >= self.limits.max_per_address:
            self.refused["address"] += 1
            raise _refusal(
                web.HTTPServiceUnavailable(
                    text="too many connections of this address are open (streamer.max_connections_per_address)\n"
                )
            )
        self._move(connection, group_of(client))

    def _move(self, connection: Connection, group: str) -> None:
        if connection.group == group or connection not in self._groups.get(connection.group, ()):
            return
        self.forget(connection)
        connection.group = group
        self._groups.setdefault(group, {})[connection] = None

    def _has_share(self, address: str | None) -> bool:
        return not is_trusted(address, self.limits.trusted_proxies)

    def _evict_one(self, groups: Iterable[Collection[Connection]]) -> bool:
        """Close the connection that has been inactive for longest, in the first group that has an inactive one."""
        now_s = time.monotonic()
        for group in groups:
            # Of one group only: the smallest rank of all might belong to an address with few connections.
            ranked = [(rank, connection) for connection in group if (rank := connection.rank(now_s)) is not None]
            if ranked:
                self._drop(min(ranked, key=lambda entry: entry[0])[1], "evicted")
                return True
        return False

    def _drop(self, connection: Connection, reason: str) -> None:
        self.dropped[reason] += 1
        self.forget(connection)  # now, because connection_lost() is called only later
        connection.abort()

    def _handle_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Handle asyncio's report that accept(2) failed. asyncio itself retries after a second."""
        # Only a failed accept(2) has the listening socket in its context.
        error = context.get("exception")
        if isinstance(error, OSError) and error.errno in _EXHAUSTED and "socket" in context:
            self._note_exhaustion(error)
        else:
            loop.default_exception_handler(context)

    def _note_exhaustion(self, error: OSError) -> None:
        """Count the failure once, although asyncio reports it many times, and close inactive connections (rule 4)."""
        now_s = time.monotonic()
        if now_s - self._exhausted_s < SWEEP_S:
            return
        self._exhausted_s = now_s
        self.refused["descriptors"] += 1
        if now_s - self._warned_s >= WARN_AGAIN_S:
            self._warned_s = now_s
            self._log.warning("out of descriptors", reason=error.strerror or str(error), open_connections=self.open)
        for connection in [connection for group in self._groups.values() for connection in group]:
            if connection.phase is not Phase.BUSY:
                self._drop(connection, "evicted")


def _refusal(error: web.HTTPException) -> web.HTTPException:
    """Make the connection close after the response: it has unread data, or its place is needed."""
    error.force_close()
    return error
