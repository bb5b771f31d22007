"""Detections on the wire: one msgpack message a frame, on ZeroMQ sockets of each detector.

A detector binds ``framebus.STREAM.detections2.INSTANCE.sock`` in /dev/shm; a program that wants detections finds the
sockets in the directory, so neither side needs a network or the other's address. docs/detections.md has the messages.

A program of before version 2 looks for ``detections.INSTANCE.sock``, and gets version 1 there.
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
RETRY_S = 0.005
KIND, OLD_KIND = "detections2", "detections"
"""Beginning of the names of the sockets for version 2 and 1."""


class DetectionPublisher:
    """Sends a detector's detections to all who listen. Owned by one thread."""

    def __init__(self, stream: str, instance: str, *, stop: threading.Event | None = None) -> None:
        """Open the detector's sockets.

        Args:
            stream: Name of the stream that the frames are of.
            instance: Name of the detector.
            stop: Given where no message may be lost: the publisher then waits for slow listeners, until it is set, and
                at its close for at most ``LINGER_S``. Else they miss messages.
        """
        self._stop = stop
        self.dropped = 0
        """Boxes that made no sense, such as one with NaN, and were left out of their messages."""
        self._context = zmq.Context()
        # In this order: a subscriber that sees the old socket must find the new one.
        self._socket, self.path = self._bind(zmq.PUB, stream, f"{KIND}.{instance}.sock")
        # XPUB tells whether there is a subscriber, so that version 1 costs nothing where no program reads it.
        self._old_socket, self._old_path = self._bind(zmq.XPUB, stream, f"{OLD_KIND}.{instance}.sock")
        self._old_subscribers = False

    def _bind(self, kind: int, stream: str, suffix: str) -> tuple[zmq.Socket[bytes], Path]:
        path = companion_path(stream, suffix)
        path.unlink(missing_ok=True)
        bound = self._context.socket(kind)
        bound.set(zmq.LINGER, 0 if self._stop is None else round(LINGER_S * 1e3))
        bound.set(zmq.SNDHWM, 32)
        bound.set(zmq.XPUB_NODROP, self._stop is not None)
        bound.bind(f"ipc://{path}")
        path.chmod(SOCKET_MODE)
        return bound, path

    def publish(self, detections: Detections) -> None:
        """Send to all who listen. Bad boxes, and bad second classes, are left out."""
        bad = count_bad(detections)
        if bad and not self.dropped:
            structlog.get_logger().warning(
                "boxes dropped",
                reason="a box or its second class has a number that is not finite or out of its range",
                boxes=bad,
            )
        self.dropped += bad
        self._send(self._socket, pack(detections))
        with contextlib.suppress(zmq.Again):
            while True:
                # The first subscription comes as 1, the end of the last as 0.
                self._old_subscribers = self._old_socket.recv(zmq.NOBLOCK)[:1] == b"\1"
        if self._old_subscribers:
            self._send(self._old_socket, pack_old(detections))

    def _send(self, bound: zmq.Socket[bytes], message: bytes) -> None:
        while True:
            try:
                bound.send(message, zmq.NOBLOCK)
            except zmq.Again:  # never where messages may be lost
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
        """Messages that were no detections of this stream."""
        self.dropped = 0
        """Boxes that made no sense, in messages that were received."""
        self._stream = stream
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.set(zmq.LINGER, 0)
        self._socket.set(zmq.RCVHWM, 64)
        self._socket.set(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        self._socket.subscribe(b"")
        self._connected: set[str] = set()

    def look_for_detectors(self) -> None:
        """Connect to the detectors that have come, and disconnect from those that are gone."""
        endpoints = {f"ipc://{path}" for path in self._paths()}
        for endpoint in endpoints - self._connected:
            self._socket.connect(endpoint)
        for endpoint in self._connected - endpoints:
            with contextlib.suppress(zmq.ZMQError):
                self._socket.disconnect(endpoint)
        self._connected = endpoints

    def _paths(self) -> list[Path]:
        """One socket of each detector: that of version 2, where it has one."""
        old_paths = companion_paths(self._stream, f"{OLD_KIND}.*.sock")
        paths = companion_paths(self._stream, f"{KIND}.*.sock")
        for old_path in old_paths:
            instance = old_path.stem.rpartition(".")[2]
            path = companion_path(self._stream, f"{KIND}.{instance}.sock")
            if path not in paths:
                paths.append(old_path)
            elif not _is_served(path) and _is_served(old_path):
                # Left by a killed detector, which one of before version 2 has replaced.
                paths[paths.index(path)] = old_path
        return paths

    def receive(self, timeout_s: float) -> Iterator[Detections]:
        """Wait at most ``timeout_s`` for a message, then yield all that have come."""
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
        """Disconnect from all."""
        self._socket.close()
        self._context.term()


def _is_served(path: Path) -> bool:
    """Whether a process accepts connections on a Unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except BlockingIOError:
            return True  # its queue is full
        except OSError:
            return False
        return True
