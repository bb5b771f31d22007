"""Notifications over ZeroMQ's protocol: hints that a frame is there.

A notification is one single-part message, a msgpack array ``[stream, epoch, sequence, slot, height, width, channels,
dtype, pixel_format, captured_ns, published_ns]``. Other languages may listen to it; framebus itself takes it only as a
reason to look at the shared memory, which alone is the truth, so a message that is lost, late, forged or garbage costs
nothing but a look.

Source: unix(7).
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from pathlib import Path
from typing import Final

import msgpack

from framebus.notify.zmtp import (
    COMMAND,
    FRAME_HEADER_BYTES,
    MORE,
    SUBSCRIBE_TO_ALL,
    Decoder,
    LocalOutlet,
    LocalSocket,
    ProtocolError,
    command,
    frame_header,
    hello,
)
from framebus.ring.layout import Description
from framebus.ring.message import Message
from framebus.shm import forks
from framebus.shm.limits import exhausted
from framebus.shm.paths import companion_path

MAX_MESSAGE_BYTES: Final = 4096
FIELDS: Final = 11
LOOK_EVERY_NS: Final = 500_000_000
"""How often the Unix socket is asked who has come, while nobody is about to: who is new may miss as much."""
LOOK_CLOSELY_NS: Final = 1_000_000_000
"""For how long it is asked with every frame at first: subscribers of the publisher before come back."""
READ_BYTES: Final = 16 << 10
MAX_READS: Final = 16
"""As much is read of a flood at a time."""
CONNECT_EVERY_S: Final = 0.02
"""How often a subscriber without a connection tries to connect."""
_ARRAY: Final = bytes([0x90 | FIELDS])
_UINT8, _UINT64, _INT64 = 0xCC, 0xCF, 0xD3
_PING_HEADER_BYTES: Final = 1 + len(b"PING")


def _topic(stream: str) -> bytes:
    """What every notification of a stream begins with."""
    content: bytes = msgpack.packb(stream)
    return _ARRAY + content


def socket_path(stream: str) -> Path:
    """Where a stream's notifications are bound."""
    return companion_path(stream, "sock")


def notification_message(stream: str, epoch: int, frame: Description) -> Message:
    """The notifications of frames of one format, each a whole frame of ZMTP."""
    head = _topic(stream) + bytes((_UINT64,)) + epoch.to_bytes(8, "big") + bytes((_UINT64,))
    described = b"".join(map(msgpack.packb, frame[:5]))
    body = head + bytes(8) + bytes((_UINT8, 0)) + described + bytes((_INT64, *bytes(8), _INT64, *bytes(8)))
    sequence_at, end = FRAME_HEADER_BYTES + len(head), FRAME_HEADER_BYTES + len(body)
    return Message(frame_header(len(body)) + body, sequence_at, sequence_at + 9, end - 17, end - 8)


class Notifier:
    """The publisher's outlet. The caller holds the stream's exclusion: a second bind would steal the path."""

    def __init__(self, stream: str) -> None:
        """Bind the stream's Unix socket.

        Raises:
            PermissionDenied: The socket's path belongs to another user.
            NotEnoughSharedMemory: /dev/shm has no room for one more file.
            ResourceExhausted: The process has no descriptor left.
            OSError: The socket cannot be bound.
        """
        self.look_at_ns: int = 0
        """When :meth:`look` is due, CLOCK_MONOTONIC."""
        self._look_closely_until_ns = time.monotonic_ns() + LOOK_CLOSELY_NS
        self.local: LocalOutlet = LocalOutlet(socket_path(stream), _topic(stream))
        """The Unix socket."""

    def look(self, now_ns: int) -> None:
        """See who has come and gone; never waits.

        Args:
            now_ns: The time, CLOCK_MONOTONIC.
        """
        self.local.has_listeners()
        is_new = now_ns < self._look_closely_until_ns
        self.look_at_ns = now_ns + LOOK_EVERY_NS if self.local.is_settled(now_ns) and not is_new else now_ns

    def close(self) -> None:
        """Close the socket and remove the path."""
        self.local.close()


class Listener:
    """A subscriber's connection to the notifications. Without a publisher it has none, and tries again.

    One thread uses it; it takes one descriptor, and one more from the first :meth:`fileno` on.
    """

    def __init__(self, stream: str) -> None:
        """Connect.

        Raises:
            ResourceExhausted: The process has no descriptor left.
        """
        self.rejected: int = 0
        """Messages that were not notifications of this stream."""
        self._path = str(socket_path(stream))
        self._topic = _topic(stream)
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
        """Descriptor that is readable while there is something to :meth:`drain`; the same one for all connections."""
        if self._epoll is None:
            try:
                self._epoll = select.epoll(1)
            except OSError as error:
                raise exhausted(error) or error from None
            if self._socket is not None:
                self._epoll.register(self._socket, select.EPOLLIN)
        return self._epoll.fileno()

    def drain(self) -> None:
        """Take what has come; connect if there is no connection."""
        if self._socket is None:
            self._connect_again()
            return
        for _ in range(MAX_READS):  # a flood is left where it is
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
            if len(received) < READ_BYTES:
                return

    def wait(self, timeout_s: float) -> None:
        """Sleep until something comes, at most ``timeout_s``; drain before it."""
        if self._socket is None:
            timeout_s = min(timeout_s, CONNECT_EVERY_S)
        self._poll(int(timeout_s * 1000) or 1)

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
                self._obey(body)
            elif flags & MORE or not body.startswith(self._topic):
                self.rejected += 1

    def _obey(self, body: bytes) -> None:
        if self._socket is None:
            return
        if body.startswith(b"\5READY"):  # libzmq hangs up on a peer that subscribes before the handshake is over
            self._socket.send(SUBSCRIBE_TO_ALL, socket.MSG_NOSIGNAL)
        elif body.startswith(b"\4PING"):
            # Two bytes of time to live precede the context, which goes back (RFC 37).
            context = body[_PING_HEADER_BYTES + 2 : _PING_HEADER_BYTES + 18]
            self._socket.send(command(b"PONG", context), socket.MSG_NOSIGNAL)

    def _connect_again(self) -> None:
        now_s = time.monotonic()
        if now_s < self._connect_at_s:
            return
        self._connect_at_s = now_s + CONNECT_EVERY_S
        with contextlib.suppress(OSError):  # out of descriptors: frames are found by looking, meanwhile
            self._connect()

    def _connect(self) -> None:
        """Connect if a publisher listens.

        Raises:
            OSError: No socket could be made.
        """
        connected = LocalSocket()
        try:
            connected.connect(self._path)
            connected.send(hello(b"SUB"), socket.MSG_NOSIGNAL)
        except OSError:  # nobody listens, or too many wait to be accepted
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
