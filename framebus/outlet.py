"""A ZeroMQ endpoint on which a publisher's notifications go out besides its Unix socket, and who listens there.

Each has a socket and a context of its own: keys are a socket's, who knows them is a context's, and what is flooded can
be closed to its last thread without the others.

Sources: zmq_socket(3), ZMQ_XPUB; zmq_tcp(7); zmq_setsockopt(3), ZMQ_MAXMSGSIZE, ZMQ_FD.
"""

from __future__ import annotations

import contextlib
import select
import time
from typing import Final

import zmq

from framebus.curve import Doorkeeper, Keys

MAX_HANDSHAKE_BYTES: Final = 256
"""Enough for ZMTP's greeting and a subscription to everything, which is all that a subscriber sends."""
MAX_CURVE_HANDSHAKE_BYTES: Final = 1024
"""The same with keys, whose longest command has 257 bytes and the properties of the connection (RFC 26)."""
MAX_DRAINED: Final = 64
ASK_EVERY: Final = 16
"""Every so many frames the socket itself is asked for subscriptions; a power of two."""
MAX_ODD_SUBSCRIPTIONS: Final = 10_000
OPEN_AGAIN_AFTER_S: Final = 1.0


class Outlet:
    """An endpoint, bound until it is closed."""

    def __init__(self, endpoint: str, *, keys: Keys | None = None) -> None:
        """Bind it.

        Args:
            endpoint: Where, in ZeroMQ's words.
            keys: Who may listen; ``None`` for all who can connect.

        Raises:
            OSError: The endpoint cannot be bound.
        """
        self.bound = endpoint
        """Where it was bound, with the port that was chosen for a ``*``."""
        self.reopened = 0
        """Times it was closed and bound anew because somebody flooded it with subscriptions."""
        self._endpoint = endpoint
        self._keys = keys
        self._refused_before = 0
        self._open_again_at_s = 0.0
        self._asked = 0
        self._poll = select.poll().poll
        self._open()
        self._endpoint = self.bound  # bound anew, a * would take another port

    @property
    def refused(self) -> int:
        """Handshakes with keys that are not allowed."""
        return self._refused_before + (self._doorkeeper.refused if self._doorkeeper is not None else 0)

    def has_listeners(self) -> bool:
        """Whether anybody subscribes here, by the subscriptions that have come so far; never waits."""
        if self._doorkeeper is not None:
            self._doorkeeper.answer()
        # Sending takes the signal of what comes meanwhile, but it is not missed where somebody listens already. The
        # descriptor costs a tenth of the question to the socket.
        self._asked = self._asked + 1 & ASK_EVERY - 1
        if self._asked and not self._poll(0):
            return self._listeners > 0
        if self._socket is None:
            self._open_again()
        else:
            self._take_subscriptions(self._socket)
        return self._listeners > 0

    def send(self, message: bytes) -> None:
        """Send to all who listen here, without waiting."""
        if self._listeners > 0 and self._socket is not None:
            self._socket.send(message, zmq.NOBLOCK)

    def close(self) -> None:
        """Close the socket."""
        self._close_socket()

    def _open(self) -> None:
        self._listeners = 0
        self._odd_subscriptions = 0
        self._asked = 0
        self._doorkeeper: Doorkeeper | None = None
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] | None = self._context.socket(zmq.XPUB)
        poller = select.poll()
        poller.register(int(self._socket.get(zmq.FD)), select.POLLIN)
        self._poll = poller.poll
        try:
            self._bind(self._socket)
        except BaseException:
            self._close_socket()
            raise

    def _bind(self, socket: zmq.Socket[bytes]) -> None:
        socket.set(zmq.LINGER, 0)
        socket.set(zmq.SNDHWM, 64)
        # Whatever waits here is taken in one go, by any call on the socket: so it must be little.
        socket.set(zmq.RCVHWM, 1)
        socket.set(zmq.MAXMSGSIZE, MAX_HANDSHAKE_BYTES if self._keys is None else MAX_CURVE_HANDSHAKE_BYTES)
        if self._keys is not None:
            self._doorkeeper = Doorkeeper(self._context, self._keys)
            self._keys.protect(socket)
        try:
            socket.bind(self._endpoint)
        except zmq.ZMQError as error:
            raise OSError(error.errno, f"{self._endpoint} cannot be bound: {error.strerror}") from None
        self.bound = socket.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")

    def _take_subscriptions(self, socket: zmq.Socket[bytes]) -> None:
        for _ in range(MAX_DRAINED):  # a flood is left where it is
            if not int(socket.get(zmq.EVENTS)) & zmq.POLLIN:
                break
            try:
                message = socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                break
            if message == b"\1":
                self._listeners += 1
            elif message == b"\0":
                self._listeners -= 1
            else:
                self._odd_subscriptions += 1
        if self._odd_subscriptions > MAX_ODD_SUBSCRIPTIONS:
            # ZeroMQ keeps every prefix that anybody asks for; who listens honestly asks for all and connects again.
            self._close_socket()
            self._open_again_at_s = 0.0
            self._open_again()
            self.reopened += 1

    def _open_again(self) -> None:
        """Bind anew; where somebody is in the way, frames go on without this endpoint until a later try."""
        now_s = time.monotonic()
        if now_s < self._open_again_at_s:
            return
        self._open_again_at_s = now_s + OPEN_AGAIN_AFTER_S
        with contextlib.suppress(OSError):
            self._open()

    def _close_socket(self) -> None:
        if self._socket is None:
            return
        self._refused_before = self.refused
        if self._doorkeeper is not None:
            self._doorkeeper.close()
            self._doorkeeper = None
        self._socket.close(0)
        self._socket = None
        self._poll = select.poll().poll  # nothing comes any more, and the old descriptor's number may be another's
        self._listeners = 0
        self._context.term()  # waits for the end of the listening thread
