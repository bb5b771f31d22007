"""Notifications over ZeroMQ: hints that a frame is there. The only users of zmq are this, outlet.py and curve.py.

A notification is one single-part message, a msgpack array ``[stream, epoch, sequence, slot, height, width, channels,
dtype, pixel_format, captured_ns, published_ns]``. Other languages may listen to it; framebus itself takes it only as a
reason to look at the shared memory, which alone is the truth, so a message that is lost, late, forged or garbage costs
nothing but a look.

Sources: zmq_socket(3), zmq_ipc(7); zmq_setsockopt(3), ZMQ_CONFLATE, ZMQ_MAXMSGSIZE, ZMQ_FD.
"""

from __future__ import annotations

import select
import struct
from pathlib import Path
from typing import Final

import msgpack
import zmq

from framebus.curve import CurveServer, Keys, check_endpoint
from framebus.errors import UnprotectedEndpoint
from framebus.outlet import MAX_DRAINED, Outlet
from framebus.segment import companion_path

MAX_MESSAGE_BYTES: Final = 4096
FIELDS: Final = 11
_ARRAY: Final = bytes([0x90 | FIELDS])
_INT64: Final = 0xD3
_TIMES: Final = struct.Struct(">BqBq")


def pack_format(shape: tuple[int, int, int], dtype: str, pixel_format: str) -> bytes:
    """A notification's fields from height to pixel_format."""
    return b"".join(map(msgpack.packb, (*shape, dtype, pixel_format)))


def socket_path(stream: str) -> Path:
    """Where a stream's notifications are bound."""
    return companion_path(stream, "sock")


class Notifier:
    """The publisher's outlets. The caller holds the stream's exclusion: a second bind would steal the path."""

    def __init__(self, stream: str, endpoint: str | None = None, curve: CurveServer | None = None) -> None:
        """Bind the stream's Unix socket and, if given, a further ZeroMQ endpoint such as ``tcp://127.0.0.1:5555``.

        Raises:
            UnprotectedEndpoint: ``endpoint`` reaches beyond the host and there is no ``curve``.
            InvalidKey: ``curve`` names a file that is missing, open to others, or no key.
            PermissionDenied: The socket's path belongs to another user.
            NotEnoughSharedMemory: /dev/shm has no room for one more file.
            OSError: An endpoint cannot be bound.
        """
        if endpoint is None and curve is not None:
            raise UnprotectedEndpoint("keys are for a further endpoint: give endpoint='tcp://ADDRESS:PORT' too")
        if endpoint is not None:
            check_endpoint(endpoint, protected=curve is not None)
        keys = Keys(curve) if curve is not None else None
        self._head = _ARRAY + msgpack.packb(stream)
        self._pack = msgpack.Packer().pack
        self._prepared = b""
        path = socket_path(stream)
        self._outlets = [Outlet(f"ipc://{path}", path=path)]
        self.endpoint: str | None = None
        """Where the further endpoint was bound, with the port that was chosen for a ``*``."""
        if endpoint is not None:
            try:
                self._outlets.append(Outlet(endpoint, keys=keys))
            except BaseException:
                self.close()
                raise
            self.endpoint = self._outlets[-1].bound

    @property
    def refused(self) -> int:
        """Handshakes with keys that are not allowed."""
        return sum(outlet.refused for outlet in self._outlets)

    def has_listeners(self) -> bool:
        """Whether anybody subscribes, by the subscriptions that have come so far."""
        listeners = False
        for outlet in self._outlets:
            listeners = outlet.has_listeners() or listeners
        return listeners

    def prepare(self, epoch: int, sequence: int, slot: int, packed_format: bytes) -> None:
        """Pack all of the next notification but its two times, if anybody listens.

        Args:
            epoch: The publisher's epoch.
            sequence: The frame's sequence.
            slot: The frame's slot.
            packed_format: What :func:`pack_format` made of its format.
        """
        if self.has_listeners():
            pack = self._pack
            self._prepared = self._head + pack(epoch) + pack(sequence) + pack(slot) + packed_format
        else:
            self._prepared = b""

    def notify(self, captured_ns: int, published_ns: int) -> None:
        """Send the prepared notification to all who listen, without waiting; nothing is sent while nobody does."""
        if self._prepared:
            message = self._prepared + _TIMES.pack(_INT64, captured_ns, _INT64, published_ns)
            for outlet in self._outlets:
                outlet.send(message)

    def close(self) -> None:
        """Close the sockets and remove the path."""
        for outlet in self._outlets:
            outlet.close()


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
        poller = select.poll()
        poller.register(self.fileno(), select.POLLIN)
        self._poll = poller.poll

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
        """Sleep until something comes, at most ``timeout_s``; drain before it.

        It waits on the descriptor alone, for what comes is looked at when the frame is taken: that is quicker than the
        socket's own poll.
        """
        self._poll(int(timeout_s * 1000) or 1)

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
