"""Notifications over ZeroMQ: hints that a frame is there. The only user of zmq.

A notification is one single-part message, a msgpack array ``[stream, epoch, sequence, slot, height, width, channels,
dtype, pixel_format, captured_ns, published_ns]``. Other languages may listen to it; framebus itself takes it only as a
reason to look at the shared memory, which alone is the truth, so a message that is lost, late, forged or garbage costs
nothing but a look.

Sources: zmq_socket(3), zmq_ipc(7); zmq_setsockopt(3), ZMQ_CONFLATE, ZMQ_MAXMSGSIZE, ZMQ_FD.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

import msgpack
import zmq

from framebus.segment import companion_path, denied

SOCKET_MODE: Final = 0o660
MAX_MESSAGE_BYTES: Final = 4096
FIELDS: Final = 11
MAX_HANDSHAKE_BYTES: Final = 256
"""Enough for ZMTP's greeting and a subscription to everything, which is all that a subscriber sends."""
MAX_DRAINED: Final = 64
MAX_ODD_SUBSCRIPTIONS: Final = 10_000


def socket_path(stream: str) -> Path:
    """Where a stream's notifications are bound."""
    return companion_path(stream, "sock")


class Notifier:
    """The publisher's socket. The caller holds the stream's exclusion: a second bind would steal the path."""

    def __init__(self, stream: str, endpoint: str | None = None) -> None:
        """Bind the stream's Unix socket and, if given, a further ZeroMQ endpoint such as ``tcp://127.0.0.1:5555``.

        Raises:
            PermissionDenied: The socket's path belongs to another user.
            OSError: An endpoint cannot be bound.
        """
        self.path = socket_path(stream)
        self.reopened = 0
        """Times the socket was bound anew because somebody flooded it with subscriptions."""
        self._endpoint = endpoint
        self._pack = msgpack.Packer().pack
        self._context = zmq.Context()
        try:
            self._bind()
        except BaseException:
            self.close()
            raise

    def _bind(self) -> None:
        self._listeners = 0
        self._odd_subscriptions = 0
        self._socket = self._context.socket(zmq.XPUB)
        self._socket.set(zmq.LINGER, 0)
        self._socket.set(zmq.SNDHWM, 64)
        self._socket.set(zmq.MAXMSGSIZE, MAX_HANDSHAKE_BYTES)
        # Whatever waits here is taken in one go, by any call on the socket: so it must be little.
        self._socket.set(zmq.RCVHWM, 1)
        try:
            self.path.unlink(missing_ok=True)
        except PermissionError as error:
            raise denied(self.path, error) from None
        try:
            self._socket.bind(f"ipc://{self.path}")
            self.path.chmod(SOCKET_MODE)
            if self._endpoint is not None:
                self._socket.bind(self._endpoint)
        except zmq.ZMQError as error:
            reason = f"{self._endpoint or self.path} cannot be bound: {error.strerror}"
            raise OSError(error.errno, reason) from None

    def has_listeners(self) -> bool:
        """Whether anybody subscribes, by the subscriptions that have come so far."""
        for _ in range(MAX_DRAINED):  # a flood is left where it is
            if not int(self._socket.get(zmq.EVENTS)) & zmq.POLLIN:
                break
            try:
                message = self._socket.recv(zmq.NOBLOCK)
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
            self._socket.close(0)
            self._context.term()  # waits for the end of the old listener, which would else take the new one's path away
            self._context = zmq.Context()
            self._bind()
            self.reopened += 1
        return self._listeners > 0

    def notify(self, fields: tuple[object, ...]) -> None:
        """Send a hint to all who listen, without waiting; nothing is sent while nobody does."""
        if self.has_listeners():
            self._socket.send(self._pack(fields), zmq.NOBLOCK)

    def close(self) -> None:
        """Close the socket and remove its path."""
        self._socket.close(0)
        self._context.term()
        with contextlib.suppress(PermissionError):
            self.path.unlink(missing_ok=True)


class Listener:
    """A subscriber's socket. It keeps the newest message only, so a flood fills no memory."""

    def __init__(self, stream: str) -> None:
        self.rejected = 0
        """Messages that were no notifications of this stream."""
        self._stream = stream
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.set(zmq.LINGER, 0)
        self._socket.set(zmq.CONFLATE, 1)
        self._socket.set(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        self._socket.set(zmq.RECONNECT_IVL, 20)
        self._socket.set(zmq.RECONNECT_IVL_MAX, 200)
        self._socket.subscribe(b"")
        self._socket.connect(f"ipc://{socket_path(stream)}")

    def fileno(self) -> int:
        """Descriptor that becomes readable when something happened; edge-triggered, so drain after each wake."""
        return int(self._socket.get(zmq.FD))

    def drain(self) -> None:
        """Take what has come, so that the descriptor tells of the next message."""
        for _ in range(MAX_DRAINED):  # a flood is left where it is
            try:
                message = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            if not self._is_notification(message):
                self.rejected += 1

    def wait(self, timeout_s: float) -> None:
        """Sleep until a message comes, at most ``timeout_s``."""
        self._socket.poll(int(timeout_s * 1000) or 1)

    def _is_notification(self, message: bytes) -> bool:
        try:
            content = msgpack.unpackb(message)
        except (ValueError, msgpack.UnpackException):
            return False
        return isinstance(content, list) and len(content) == FIELDS and content[0] == self._stream

    def close(self) -> None:
        """Close the socket."""
        self._socket.close(0)
        self._context.term()
