"""Detections on the wire: one msgpack message a frame, on a ZeroMQ socket of each detector.

A detector binds ``framebus.STREAM.detections.INSTANCE.sock`` in /dev/shm; who wants detections finds the sockets in the
directory, so neither side needs a network or the other's address.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from typing import Any

import msgpack
import zmq

from framebus import companion_path, companion_paths

VERSION = 1
MAX_DETECTIONS = 1000
MAX_MESSAGE_BYTES = 1 << 18
SOCKET_MODE = 0o660


class MalformedDetections(ValueError):
    """A message that is no detections message of this version."""


@dataclass(frozen=True, slots=True)
class Detection:
    """One object found in a frame."""

    label: str
    """What it is, by COCO's name."""
    score: float
    """How sure the model is, 0 to 1."""
    x_px: float
    """Left edge, in pixels of the full frame."""
    y_px: float
    """Upper edge."""
    width_px: float
    """Width of the box."""
    height_px: float
    """Height of the box."""
    track: int = 0
    """The same number for the same object from frame to frame; 0 where it is not tracked."""


@dataclass(frozen=True, slots=True)
class Detections:
    """All objects found in one frame."""

    stream: str
    """Stream of the frame."""
    instance: str
    """Which detector found them."""
    epoch: int
    """Epoch of the frame's publisher."""
    sequence: int
    """Sequence of the frame."""
    captured_ns: int
    """When the frame was captured, CLOCK_MONOTONIC."""
    detected_ns: int
    """When they were found, CLOCK_MONOTONIC."""
    frame_height_px: int
    """Height of the frame that the boxes refer to."""
    frame_width_px: int
    """Width of that frame."""
    objects: tuple[Detection, ...]
    """The objects, most certain first."""


_PLAIN = ("stream", "instance", "epoch", "sequence", "captured_ns", "detected_ns", "frame_height_px", "frame_width_px")
_PLAIN_TYPES = (str, str, int, int, int, int, int, int)
_OBJECT_TYPES = (str, float, float, float, float, float, int)


def pack(detections: Detections) -> bytes:
    """The message of ``detections``: an array of the version, the plain fields, and an array for each object."""
    plain = [getattr(detections, name) for name in _PLAIN]
    content: bytes = msgpack.packb([VERSION, *plain, [astuple(found) for found in detections.objects]])
    return content


def unpack(message: bytes) -> Detections:
    """Read a message, believing nothing of it.

    Raises:
        MalformedDetections: It is not msgpack, of another version, too large, or a field has a wrong type or range.
    """
    if len(message) > MAX_MESSAGE_BYTES:
        raise MalformedDetections(f"a message of {len(message)} bytes; at most {MAX_MESSAGE_BYTES} are read")
    try:
        content: Any = msgpack.unpackb(message, max_map_len=0, max_ext_len=0)
    except (ValueError, msgpack.UnpackException) as error:
        raise MalformedDetections(f"not msgpack: {error}") from None
    if not isinstance(content, list) or len(content) != len(_PLAIN) + 2 or content[0] != VERSION:
        raise MalformedDetections(f"not a detections message of version {VERSION}")
    *plain, objects = content[1:]
    _check(plain, _PLAIN_TYPES)
    if min(plain[2:]) < 0:
        raise MalformedDetections("a negative number")
    if not isinstance(objects, list) or len(objects) > MAX_DETECTIONS:
        raise MalformedDetections(f"no list of at most {MAX_DETECTIONS} objects")
    for found in objects:
        if not isinstance(found, list):
            raise MalformedDetections("an object that is no list")
        _check(found, _OBJECT_TYPES)
        if not all(math.isfinite(number) for number in found[1:6]):
            raise MalformedDetections("an object with a number that is not finite")
        _, score, _, _, width_px, height_px, track = found
        if not 0 <= score <= 1 or min(width_px, height_px, track) < 0:
            raise MalformedDetections("an object with a number out of its range")
    return Detections(**dict(zip(_PLAIN, plain, strict=True)), objects=tuple(Detection(*found) for found in objects))


def _check(values: list[Any], types: tuple[type, ...]) -> None:
    if len(values) != len(types) or any(type(value) is not wanted for value, wanted in zip(values, types, strict=True)):
        raise MalformedDetections("a field is missing or of a wrong type")


class DetectionPublisher:
    """Sends a detector's detections to all who listen. Owned by one thread."""

    def __init__(self, stream: str, instance: str) -> None:
        self.path = companion_path(stream, f"detections.{instance}.sock")
        self.path.unlink(missing_ok=True)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUB)
        self._socket.set(zmq.LINGER, 0)
        self._socket.set(zmq.SNDHWM, 32)
        self._socket.bind(f"ipc://{self.path}")
        self.path.chmod(SOCKET_MODE)

    def publish(self, detections: Detections) -> None:
        """Send without waiting; a listener that is too slow misses messages."""
        self._socket.send(pack(detections), zmq.NOBLOCK)

    def close(self) -> None:
        """Remove the socket."""
        self._socket.close()
        self._context.term()
        self.path.unlink(missing_ok=True)


class DetectionSubscriber:
    """Receives the detections of every detector of a stream. Owned by one thread."""

    def __init__(self, stream: str) -> None:
        self.rejected = 0
        """Messages that were no detections of this stream."""
        self._stream = stream
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.set(zmq.LINGER, 0)
        self._socket.set(zmq.RCVHWM, 64)
        self._socket.set(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        self._socket.subscribe(b"")
        self._connected: set[str] = set()

    def look_for_detectors(self) -> None:
        """Connect to the detectors that have come, and let go of those that are gone."""
        endpoints = {f"ipc://{path}" for path in companion_paths(self._stream, "detections.*.sock")}
        for endpoint in endpoints - self._connected:
            self._socket.connect(endpoint)
        for endpoint in self._connected - endpoints:
            with contextlib.suppress(zmq.ZMQError):
                self._socket.disconnect(endpoint)
        self._connected = endpoints

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
                yield detections
            else:
                self.rejected += 1

    def close(self) -> None:
        """Disconnect from all."""
        self._socket.close()
        self._context.term()
