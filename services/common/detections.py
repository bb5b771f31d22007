"""Detections on the wire: one msgpack message for each frame, on ZeroMQ sockets of each detector.

A detector binds ``framebus.STREAM.detections2.INSTANCE.sock`` in /dev/shm. Subscribers discover the sockets by listing
the directory, so neither side needs a network or the other's address. docs/detections.md specifies the messages.

A subscriber that predates version 2 connects to ``detections.INSTANCE.sock`` and receives version 1 there.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import structlog
import zmq

from framebus import companion_path, companion_paths
from services.common.detection_wire import (
    MAX_DETECTIONS,
    MAX_MESSAGE_BYTES,
    VERSION,
    Detection,
    Detections,
    MalformedDetections,
    TileAge,
    count_bad,
    pack,
    pack_old,
    to_map,
    unpack,
)

__all__ = [
    "MAX_DETECTIONS",
    "MAX_MESSAGE_BYTES",
    "VERSION",
    "Detection",
    "DetectionPublisher",
    "DetectionSubscriber",
    "Detections",
    "MalformedDetections",
    "TileAge",
    "pack",
    "pack_old",
    "to_map",
    "unpack",
]

SOCKET_MODE = 0o660
LINGER_S = 5.0
"""Longest wait at the close for slow subscribers, if no message may be lost."""
RETRY_S = 0.005
KIND, OLD_KIND = "detections2", "detections"
"""Prefixes of the sockets' names, for version 2 and version 1."""


class DetectionPublisher:
    """Sends a detector's detections to all subscribers. Owned by one thread."""

    def __init__(self, stream: str, instance: str, *, stop: threading.Event | None = None) -> None:
        """Open the detector's sockets.

        Args:
            stream: Name of the frames' stream.
            instance: Name of the detector.
            stop: Pass an event to prevent message loss: the publisher then blocks on slow subscribers until the event
                is set, and at its close for at most ``LINGER_S``. If it is None, slow subscribers miss messages.
        """
        self._stop = stop
        self.dropped = 0
        """Invalid boxes, such as one with NaN, that were dropped from their messages."""
        self._context = zmq.Context()
        # Bind in this order: a subscriber that sees the old socket must find the new one.
        self._socket, self.path = self._bind(zmq.PUB, stream, f"{KIND}.{instance}.sock")
        # XPUB reports subscriptions, so that version 1 costs nothing while no program reads it.
        self._old_socket, self._old_path = self._bind(zmq.XPUB, stream, f"{OLD_KIND}.{instance}.sock")
        self._old_subscribers = False

    def _bind(self, kind: int, stream: str, suffix: str) -> tuple[zmq.Socket[bytes], Path]:
        path = companion_path(stream, suffix)
        # A killed detector of this instance leaves its socket. The status server prevents two live ones.
        path.unlink(missing_ok=True)
        bound = self._context.socket(kind)
        bound.set(zmq.LINGER, 0 if self._stop is None else round(LINGER_S * 1e3))
        bound.set(zmq.SNDHWM, 32)  # bounds the memory that a subscriber that never reads can take
        bound.set(zmq.XPUB_NODROP, self._stop is not None)
        bound.bind(f"ipc://{path}")
        path.chmod(SOCKET_MODE)
        return bound, path

    def publish(self, detections: Detections) -> None:
        """Send to all subscribers. Bad boxes and bad second classes are dropped."""
        bad = count_bad(detections)
        if bad and not self.dropped:
            structlog.get_logger().warning(
                "boxes dropped",
                reason="a box or its second class has a number that is not finite or out of its range",
                boxes=bad,
            )
        self.dropped += bad
        self._send(self._socket, pack(detections))
        # Read the subscriptions that have arrived since the previous message; the newest state counts.
        with contextlib.suppress(zmq.Again):
            while True:
                # XPUB delivers byte 1 for the first subscription and byte 0 when the last one ends.
                self._old_subscribers = self._old_socket.recv(zmq.NOBLOCK)[:1] == b"\1"
        if self._old_subscribers:
            self._send(self._old_socket, pack_old(detections))

    def _send(self, bound: zmq.Socket[bytes], message: bytes) -> None:
        while True:
            try:
                bound.send(message, zmq.NOBLOCK)
            except zmq.Again:  # raised only with XPUB_NODROP, that is with a stop event
                if self._stop is None or self._stop.wait(RETRY_S):
                    return
            else:
                return

    def close(self) -> None:
        """Remove the sockets."""
        self._old_path.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)
        self._socket.close()
        self._old_socket.close()
        self._context.term()


class DetectionSubscriber:
    """Receives the detections of every detector of a stream. Owned by one thread."""

    def __init__(self, stream: str) -> None:
        self.rejected = 0
        """Received messages that were malformed or of another stream."""
        self.dropped = 0
        """Invalid boxes in the messages that were accepted."""
        self._stream = stream
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.set(zmq.LINGER, 0)
        self._socket.set(zmq.RCVHWM, 64)
        self._socket.set(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        self._socket.subscribe(b"")
        self._connected: set[str] = set()

    def look_for_detectors(self) -> None:
        """Connect to new detectors, and disconnect from those that are gone."""
        endpoints = {f"ipc://{path}" for path in self._paths()}
        for endpoint in endpoints - self._connected:
            self._socket.connect(endpoint)
        # Otherwise ZeroMQ would try to reconnect to a detector that is gone, for ever.
        for endpoint in self._connected - endpoints:
            with contextlib.suppress(zmq.ZMQError):
                self._socket.disconnect(endpoint)
        self._connected = endpoints

    def _paths(self) -> list[Path]:
        """Return one socket for each detector: version 2 if the detector has it, version 1 otherwise."""
        old_paths = companion_paths(self._stream, f"{OLD_KIND}.*.sock")
        paths = companion_paths(self._stream, f"{KIND}.*.sock")
        for old_path in old_paths:
            instance = old_path.stem.rpartition(".")[2]
            path = companion_path(self._stream, f"{KIND}.{instance}.sock")
            if path not in paths:
                paths.append(old_path)
            elif not _is_served(path) and _is_served(old_path):
                # A killed detector left its version 2 socket, and a detector that predates version 2 replaced it.
                paths[paths.index(path)] = old_path
        return paths

    def receive(self, timeout_s: float) -> Iterator[Detections]:
        """Wait at most ``timeout_s`` for a message, then yield all pending messages."""
        if not self._socket.poll(int(timeout_s * 1000)):
            return
        while True:
            try:
                message = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                detections = unpack(message)
            except MalformedDetections:
                self.rejected += 1
                continue
            if detections.stream == self._stream:
                self.dropped += detections.dropped
                yield detections
            else:
                self.rejected += 1

    def close(self) -> None:
        """Disconnect from all detectors."""
        self._socket.close()
        self._context.term()


def _is_served(path: Path) -> bool:
    """Return whether a process accepts connections on a Unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # connect() would wait while the queue of connections is full
        try:
            probe.connect(os.fspath(path))
        except BlockingIOError:
            return True  # a listener exists: its queue of pending connections is full
        except OSError:
            return False
        return True
