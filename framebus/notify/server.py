"""The publisher's side of the notifications: a Unix socket that speaks ZMTP.

libzmq passes each message to an I/O thread. Waking that thread would take more of the publisher's time than all other
work for a frame, and delay the subscribers by a further context switch. A notification fits in one send(2), may be
lost, and is the same for all subscribers, so the publisher's thread sends it directly. Peers may use libzmq or any
other implementation of ZMTP 3.

No method blocks. Peers are accepted, and their messages are read, when the publisher polls. A notification is dropped
for a subscriber whose buffer is full.

Sources: unix(7); epoll(7).
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from pathlib import Path
from typing import Final

from framebus.notify.local_socket import LocalSocket
from framebus.notify.zmtp import (
    CANCEL,
    COMMAND,
    MAX_FRAME_BYTES,
    MORE,
    SUBSCRIBE,
    SUBSCRIBERS,
    Decoder,
    ProtocolError,
    hello,
    pong,
    read_command,
)
from framebus.ring.message import send_all
from framebus.shm import forks
from framebus.shm.identity import denied
from framebus.shm.limits import exhausted
from framebus.shm.space import no_room

SOCKET_MODE: Final = 0o660
BACKLOG: Final = 128
MAX_CONNECTIONS: Final = 256
SEND_BUFFER_BYTES: Final = 16 << 10
"""A few dozen notifications: limits the memory that a subscriber that never reads can take."""
MAX_READS: Final = 16
READ_BYTES: Final = 256
"""A poll reads this from at most ``MAX_READS`` connections, and accepts as many, to limit how long it takes."""
CONNECTING_NS: Final = 1_000_000_000
"""How long a new connection that has not subscribed is polled with every frame."""
MAX_UNKNOWN_SUBSCRIPTIONS: Final = 100
"""Disconnect a peer after this many subscriptions to unknown topics."""
POLL_EVERY_NS: Final = 500_000_000
"""How often to poll while no peer is connecting. A new subscriber may miss the notifications until the next poll."""
POLL_CLOSELY_NS: Final = 1_000_000_000
"""How long to poll with every frame at first, because the subscribers of an earlier publisher reconnect."""


class Connection:
    """The connection of a peer."""

    def __init__(self, connected: LocalSocket, topic: bytes) -> None:
        """Send the greeting.

        Args:
            connected: The socket.
            topic: The bytes with which all messages begin. Subscriptions to anything else do not count.
        """
        self.socket = connected
        """The socket."""
        self.subscriptions: int = 0
        """How many subscriptions match the messages."""
        self.accepted_ns: int = time.monotonic_ns()
        """When the connection was accepted, CLOCK_MONOTONIC."""
        self._topic = topic
        self._decoder = Decoder(MAX_FRAME_BYTES)
        self._is_subscriber = False
        self._unknown_subscriptions = 0
        # Before the greeting, so that the limit holds from the first byte on.
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        send_all((connected,), hello(b"XPUB"))

    def read(self) -> None:
        """Handle the messages that have arrived.

        Raises:
            ProtocolError: The peer violates the protocol, or is not a subscriber.
            OSError: The connection is broken.
            EOFError: The peer closed the connection.
        """
        try:
            received = self.socket.recv(READ_BYTES)
        except BlockingIOError:
            return
        if not received:
            raise EOFError
        for flags, body in self._decoder.feed(received):
            self._handle(flags, body)

    def _handle(self, flags: int, body: bytes) -> None:
        if flags & COMMAND:
            name, rest = read_command(body)
            if name == b"READY":
                self._is_subscriber = any(kind in rest for kind in SUBSCRIBERS)
                if not self._is_subscriber:
                    raise ProtocolError("not a SUB socket")
            elif name == b"PING":
                send_all((self.socket,), pong(rest))
            elif name == b"SUBSCRIBE":
                self._subscribe(SUBSCRIBE, rest)
            elif name == b"CANCEL":
                self._subscribe(CANCEL, rest)
            elif name == b"ERROR":
                raise ProtocolError("the peer sent ERROR")
        elif not flags & MORE:  # ZMTP 3.0 sends subscriptions as messages, whose first byte tells the kind
            self._subscribe(body[:1], body[1:])

    def _subscribe(self, what: bytes, prefix: bytes) -> None:
        if not self._is_subscriber:
            raise ProtocolError("a message before READY")
        if what == SUBSCRIBE and self._topic.startswith(prefix):
            self.subscriptions += 1
        elif what == CANCEL and self._topic.startswith(prefix) and self.subscriptions:
            self.subscriptions -= 1
        else:
            self._unknown_subscriptions += 1
            if self._unknown_subscriptions > MAX_UNKNOWN_SUBSCRIPTIONS:
                raise ProtocolError("too many subscriptions to unknown topics")


class NotificationServer:
    """The publisher's Unix socket, bound until it is closed. The caller must hold the publisher's lock of the stream.

    One thread uses it; another thread may close it meanwhile.
    """

    def __init__(self, path: Path, topic: bytes) -> None:
        """Bind the socket.

        Args:
            path: The socket's file, which replaces any file of this name.
            topic: The bytes with which all messages begin.

        Raises:
            PermissionDenied: ``path`` belongs to another user.
            NotEnoughSharedMemory: /dev/shm has no room for one more file.
            ResourceExhausted: The process has no descriptor left.
            OSError: The path cannot be bound.
        """
        self._path = path
        self._topic = topic
        self._connections: dict[int, Connection] = {}
        self.listening: list[LocalSocket] = []
        """The sockets of the peers that have subscribed."""
        self.poll_at_ns: int = 0
        """When :meth:`poll` is due, CLOCK_MONOTONIC."""
        self._poll_closely_until_ns = time.monotonic_ns() + POLL_CLOSELY_NS
        self._is_used = self._is_closed = False
        self._is_bound = True
        try:
            self._socket = LocalSocket()
            self._epoll = select.epoll()
        except OSError as error:
            raise exhausted(error) or error from None
        try:
            self._bind()
        except BaseException:
            self._socket.close()
            self._epoll.close()
            raise
        forks.register(self)

    def _bind(self) -> None:
        try:
            self._path.unlink(missing_ok=True)
        except PermissionError as error:
            raise denied(self._path, error) from None
        try:
            self._socket.bind(str(self._path))
            self._path.chmod(SOCKET_MODE)  # before listen(), so that no peer can connect with other permissions
            self._socket.listen(BACKLOG)
        except OSError as error:
            fault = OSError(error.errno, f"{self._path} cannot be bound: {error.strerror}")
            raise no_room(fault, 0, "the notification socket") or fault from None
        self._epoll.register(self._socket, select.EPOLLIN)

    def poll(self, now_ns: int) -> None:
        """Accept new peers and read their messages, without blocking.

        Args:
            now_ns: The current time, CLOCK_MONOTONIC.
        """
        self._is_used = True
        try:
            if not self._is_closed:
                self._poll()
        finally:
            self._is_used = False
            if self._is_closed:  # by another thread, which left this to the end of the poll
                self._close_descriptors()
        # While a peer is connecting, poll with each frame, so that it soon gets notifications.
        is_settled = now_ns >= self._poll_closely_until_ns and self._is_settled(now_ns)
        self.poll_at_ns = now_ns + POLL_EVERY_NS if is_settled else now_ns

    def _is_settled(self, now_ns: int) -> bool:
        """Return whether no peer is connecting. A connection without a subscription counts for one second."""
        since_ns = now_ns - CONNECTING_NS
        # Copy the connections, because another thread may close the server meanwhile.
        return all(one.subscriptions or one.accepted_ns < since_ns for one in list(self._connections.values()))

    def close(self) -> None:
        """Remove the path, and close the socket immediately, or when the call of another thread has ended."""
        if self._is_bound:
            with contextlib.suppress(PermissionError):
                self._path.unlink(missing_ok=True)
            self._is_bound = False
        self._is_closed = True
        if not self._is_used:
            self._close_descriptors()

    def after_fork_in_child(self) -> None:
        """Leave the sockets to the parent: close the child's duplicates, without shutting connections down."""
        self._is_closed, self._is_bound = True, False
        for connection in self._connections.values():
            connection.socket.close()
        # No shutdown: it would end the parent's connections too.
        self._connections, self.listening = {}, []
        self._socket.close()
        self._epoll.close()

    def _poll(self) -> None:
        events = self._epoll.poll(0, MAX_READS)
        for descriptor, _ in events:
            # An unknown descriptor is the listening socket's.
            connection = self._connections.get(descriptor)
            if connection is None:
                self._accept()
                continue
            try:
                connection.read()
            except (ProtocolError, EOFError, OSError):
                self._end(descriptor)
        if events:  # rebuild the list only when a peer may have subscribed or gone, because it is read with every frame
            self.listening = [one.socket for one in self._connections.values() if one.subscriptions]

    def _accept(self) -> None:
        for _ in range(MAX_READS):
            try:
                connected, _address = self._socket.accept()
            except OSError:  # no further peer is waiting, or the process has no descriptor left
                return
            if len(self._connections) >= MAX_CONNECTIONS:
                # Disconnect the oldest peer without a subscription, to prevent idle connections from excluding
                # subscribers.
                idle = next((number for number, one in self._connections.items() if not one.subscriptions), None)
                if idle is None:
                    connected.close()
                    continue
                self._end(idle)
            self._epoll.register(connected, select.EPOLLIN)
            self._connections[connected.fileno()] = Connection(connected, self._topic)

    def _end(self, descriptor: int) -> None:
        ended = self._connections.pop(descriptor).socket
        # A forked child may hold duplicates of the epoll and of the socket, which would keep the connection open. So
        # unregister and shut it down explicitly.
        self._epoll.unregister(descriptor)
        with contextlib.suppress(OSError):
            ended.shutdown(socket.SHUT_RDWR)
        ended.close()

    def _close_descriptors(self) -> None:
        self.listening = []
        while self._connections:
            _, connection = self._connections.popitem()
            with contextlib.suppress(OSError):
                connection.socket.shutdown(socket.SHUT_RDWR)
            connection.socket.close()
        self._socket.close()
        self._epoll.close()
