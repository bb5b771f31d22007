"""Notifications over ZeroMQ: hints that a frame is there. The only users of zmq are this, outlet.py and curve.py.

A notification is one single-part message, a msgpack array ``[stream, epoch, sequence, slot, height, width, channels,
dtype, pixel_format, captured_ns, published_ns]``. Other languages may listen to it; framebus itself takes it only as a
reason to look at the shared memory, which alone is the truth, so a message that is lost, late, forged or garbage costs
nothing but a look.

Sources: zmq_socket(3), zmq_ipc(7); zmq_setsockopt(3), ZMQ_RCVHWM, ZMQ_MAXMSGSIZE, ZMQ_FD.
"""

from __future__ import annotations

import select
import time
from pathlib import Path
from typing import Final

import msgpack
import zmq

from framebus.curve import CurveServer, Keys, check_endpoint
from framebus.errors import UnprotectedEndpoint
from framebus.outlet import MAX_DRAINED, Outlet
from framebus.segment import companion_path
from framebus.steps import Template, fill
from framebus.zmtp import FRAME_HEADER_BYTES, LocalOutlet, frame_header

MAX_MESSAGE_BYTES: Final = 4096
FIELDS: Final = 11
LOOK_EVERY_NS: Final = 500_000_000
"""How often the Unix socket is asked who has come, while nobody is about to: who is new may miss as much."""
LOOK_CLOSELY_NS: Final = 1_000_000_000
"""For how long it is asked with every frame at first: subscribers of the publisher before come back."""
_ARRAY: Final = bytes([0x90 | FIELDS])
_UINT8, _UINT64, _INT64 = 0xCC, 0xCF, 0xD3


def _topic(stream: str) -> bytes:
    """What every notification of a stream begins with."""
    content: bytes = msgpack.packb(stream)
    return _ARRAY + content


def socket_path(stream: str) -> Path:
    """Where a stream's notifications are bound."""
    return companion_path(stream, "sock")


def notification_template(
    stream: str, epoch: int, shape: tuple[int, int, int], dtype: str, pixel_format: str
) -> Template:
    """The notifications of frames of one format, each a whole frame of ZMTP."""
    head = _topic(stream) + bytes((_UINT64,)) + epoch.to_bytes(8, "big") + bytes((_UINT64,))
    described = b"".join(map(msgpack.packb, (*shape, dtype, pixel_format)))
    body = head + bytes(8) + bytes((_UINT8, 0)) + described + bytes((_INT64, *bytes(8), _INT64, *bytes(8)))
    return Template(frame_header(len(body)) + body, FRAME_HEADER_BYTES + len(head))


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
        self.is_heard_further = False
        """Whether anybody subscribes at the further endpoint, as far as is known."""
        self.look_at_ns = 0
        """When :meth:`look` is due, CLOCK_MONOTONIC."""
        self._look_closely_until_ns = time.monotonic_ns() + LOOK_CLOSELY_NS
        self.local = LocalOutlet(socket_path(stream), _topic(stream))
        """The Unix socket."""
        self._further: Outlet | None = None
        self.endpoint: str | None = None
        """Where the further endpoint was bound, with the port that was chosen for a ``*``."""
        if endpoint is not None:
            try:
                self._further = Outlet(endpoint, keys=keys)
            except BaseException:
                self.close()
                raise
            self.endpoint = self._further.bound

    @property
    def refused(self) -> int:
        """Handshakes with keys that are not allowed."""
        return self._further.refused if self._further is not None else 0

    def look(self, now_ns: int) -> None:
        """See who has come and gone; never waits.

        Args:
            now_ns: The time, CLOCK_MONOTONIC.
        """
        self.local.has_listeners()
        if self._further is not None:
            self.is_heard_further = self._further.has_listeners()
        is_new = now_ns < self._look_closely_until_ns
        is_settled = self.local.is_settled and self._further is None and not is_new
        self.look_at_ns = now_ns + LOOK_EVERY_NS if is_settled else now_ns

    def notify_further(self, template: Template, sequence: int, slot: int, captured_ns: int, published_ns: int) -> None:
        """Tell those at the further endpoint of a frame, without waiting. The others were told when it was published.

        Args:
            template: The notifications of frames of its format.
            sequence: The frame's sequence.
            slot: The frame's slot.
            captured_ns: Time of capture, CLOCK_MONOTONIC.
            published_ns: Time of publication, CLOCK_MONOTONIC.
        """
        if self._further is not None:
            content = fill(template, sequence, slot, captured_ns, published_ns)
            self._further.send(content[FRAME_HEADER_BYTES:])

    def close(self) -> None:
        """Close the sockets and remove the path."""
        self.local.close()
        if self._further is not None:
            self._further.close()


class Listener:
    """A subscriber's socket. It keeps few messages, so a flood fills no memory.

    ZMQ_CONFLATE would keep one, and lose the memory of some: libzmq's pull request 4925.
    """

    def __init__(self, stream: str) -> None:
        self.rejected = 0
        """Messages that were no notifications of this stream."""
        self._stream = stream
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.set(zmq.LINGER, 0)
        self._socket.set(zmq.RCVHWM, MAX_DRAINED)
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
