"""A subscriber's side of the notifications: a connection to the publisher's socket, which its own thread reads.

Source: unix(7).
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from typing import Final

from framebus.notify.local_socket import LocalSocket, socket_path
from framebus.notify.notification import topic
from framebus.notify.zmtp import COMMAND, MORE, SUBSCRIBE_TO_ALL, Decoder, ProtocolError, hello, pong, read_command
from framebus.shm import forks
from framebus.shm.limits import exhausted

MAX_MESSAGE_BYTES: Final = 4096
READ_BYTES: Final = 16 << 10
MAX_READS: Final = 16
"""Reads of ``READ_BYTES`` in one :meth:`Listener.drain`, to limit how long a flood of messages can occupy it."""
CONNECT_EVERY_S: Final = 0.02
"""How often a subscriber without a connection tries to connect."""


class Listener:
    """A subscriber's connection to the notifications. Without a publisher, it retries to connect.

    One thread uses it. It uses one descriptor, and a second one after the first call of :meth:`fileno`.
    """

    def __init__(self, stream: str) -> None:
        """Connect to the stream's publisher, if there is one.

        Raises:
            ResourceExhausted: The process has no descriptor left.
        """
        self.rejected: int = 0
        """Messages that were not notifications of this stream."""
        self._path = str(socket_path(stream))
        self._topic = topic(stream)
        self._socket: LocalSocket | None = None
        self._decoder = Decoder(MAX_MESSAGE_BYTES)
        self._poll = select.poll().poll
        self._epoll: select.epoll | None = None
        self._connect_at_s = 0.0
        forks.register(self)
        try:
            self._connect()
        except OSError as error:
            raise exhausted(error) or error from None

    def fileno(self) -> int:
        """Return a descriptor that is readable while there are messages to :meth:`drain`.

        It is the same for all connections, to allow event loops to register it once.
        """
        if self._epoll is None:
            try:
                self._epoll = select.epoll(1)
            except OSError as error:
                raise exhausted(error) or error from None
            if self._socket is not None:
                self._epoll.register(self._socket, select.EPOLLIN)
        return self._epoll.fileno()

    def drain(self) -> None:
        """Read the messages that have arrived, or connect if there is no connection."""
        if self._socket is None:
            self._connect_again()
            return
        for _ in range(MAX_READS):  # leave the rest of a flood in the socket's buffer
            try:
                received = self._socket.recv(READ_BYTES)
                self._take(received)
            except BlockingIOError:
                return
            except ProtocolError:
                self.rejected += 1
                self._disconnect()
                return
            except (OSError, EOFError):
                self._disconnect()
                return
            if len(received) < READ_BYTES:  # the buffer is empty, so avoid a further system call
                return

    def wait(self, timeout_s: float) -> None:
        """Sleep until a message arrives, for at most ``timeout_s``. Call :meth:`drain` first."""
        if self._socket is None:
            # Without a connection, wake up earlier to connect to a new publisher.
            timeout_s = min(timeout_s, CONNECT_EVERY_S)
        self._poll(int(timeout_s * 1000) or 1)  # at least 1 ms: poll(0) would make the caller spin

    def close(self) -> None:
        """Close the connection."""
        self._disconnect()
        if self._epoll is not None:
            self._epoll.close()

    def after_fork_in_child(self) -> None:
        """Leave the connection to the parent."""
        self.close()

    def _take(self, received: bytes) -> None:
        if not received:
            raise EOFError
        for flags, body in self._decoder.feed(received):
            if flags & COMMAND:
                self._handle_command(body)
            # The content is not needed: a notification only ends the wait, and the ring has the frame.
            elif flags & MORE or not body.startswith(self._topic):
                self.rejected += 1

    def _handle_command(self, body: bytes) -> None:
        if self._socket is None:
            return
        name, rest = read_command(body)
        if name == b"READY":  # libzmq disconnects a peer that subscribes before the end of the handshake
            self._socket.send(SUBSCRIBE_TO_ALL, socket.MSG_NOSIGNAL)
        elif name == b"PING":
            self._socket.send(pong(rest), socket.MSG_NOSIGNAL)

    def _connect_again(self) -> None:
        now_s = time.monotonic()
        if now_s < self._connect_at_s:
            return
        # Limit the rate of attempts, because each one costs a socket.
        self._connect_at_s = now_s + CONNECT_EVERY_S
        with contextlib.suppress(OSError):  # out of descriptors: until then the subscriber finds frames by polling
            self._connect()

    def _connect(self) -> None:
        """Connect if a publisher is listening.

        Raises:
            OSError: The socket could not be created.
        """
        # Send the greeting and READY without waiting for the peer's: the socket's buffer has room for both.
        connected = LocalSocket()
        try:
            connected.connect(self._path)
            connected.send(hello(b"SUB"), socket.MSG_NOSIGNAL)
        except OSError:  # no publisher is listening, or its backlog is full
            connected.close()
            return
        poller = select.poll()
        poller.register(connected, select.POLLIN)
        if self._epoll is not None:
            self._epoll.register(connected, select.EPOLLIN)
        self._decoder, self._poll, self._socket = Decoder(MAX_MESSAGE_BYTES), poller.poll, connected

    def _disconnect(self) -> None:
        connected, self._socket = self._socket, None
        self._poll = select.poll().poll
        if connected is not None:
            connected.close()
