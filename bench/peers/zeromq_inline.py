"""ZeroMQ with the pixels in the message: pyzmq over a Unix socket and TCP, and imagezmq."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import zmq

from bench.peers import OPEN_TIMEOUT_S, Config, Peer, Pixels, Receiver, Sender
from bench.peers.places import (
    SEND_TIMEOUT_S,
    HoldingReceiver,
    ReceiverStalled,
    free_port,
    pixels_of,
    temporary_folder,
    touched,
)

QUEUED: Final = 2
"""Frames that wait for each receiver, at most."""
ARRAYS: Final = QUEUED + 2
"""Arrays of the sender: the waiting frames, one that is being sent, and one that is being filled."""

NOWHERE: Final = "inproc://nowhere"
"""Given to imagezmq, which binds or connects at once, while high-water marks apply only to later binds and connects."""


class Port:
    """A socket in a context of its own."""

    def __init__(self, kind: int) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(kind)
        self.socket.set(zmq.LINGER, 0)

    def close(self) -> None:
        self.socket.close(0)
        self.context.term()


def await_subscribers(socket: zmq.Socket[bytes], count: int) -> None:
    """Wait until ``count`` receivers have subscribed to an XPUB socket with XPUB_VERBOSE."""
    for _ in range(count):
        if not socket.poll(int(OPEN_TIMEOUT_S * 1000)):
            raise TimeoutError("a subscriber did not connect in time")
        socket.recv()


class InlineSender(Sender):
    def __init__(self, config: Config) -> None:
        self._port = Port(zmq.XPUB)
        self._socket = self._port.socket
        self._socket.set(zmq.SNDHWM, QUEUED)
        # A full queue blocks the sender instead of dropping the frame.
        self._socket.set(zmq.XPUB_NODROP, 1)
        self._socket.set(zmq.XPUB_VERBOSE, 1)
        self._socket.set(zmq.SNDTIMEO, int(SEND_TIMEOUT_S * 1000))
        self._socket.bind(config.handles)
        await_subscribers(self._socket, config.receivers)
        self._arrays: deque[tuple[Pixels, zmq.MessageTracker | None]] = deque(
            (touched(config.shape), None) for _ in range(ARRAYS)
        )

    def loan(self) -> Pixels:
        pixels, tracker = self._arrays[0]
        if tracker is not None:
            try:
                # Without a copy, the array must not change until the I/O thread has sent it.
                tracker.wait(SEND_TIMEOUT_S)
            except zmq.NotDone:
                raise ReceiverStalled("a receiver") from None
        return pixels

    def publish(self) -> None:
        pixels, _ = self._arrays.popleft()
        try:
            tracker = self._socket.send(pixels.data, copy=False, track=True)
        except zmq.Again:
            raise ReceiverStalled("a receiver") from None
        self._arrays.append((pixels, tracker))

    def close(self) -> None:
        self._port.close()


class InlineReceiver(HoldingReceiver):
    def __init__(self, config: Config) -> None:
        self._port = Port(zmq.SUB)
        self._socket = self._port.socket
        # Keep only the newest message, as a subscriber of framebus does by default.
        self._socket.set(zmq.CONFLATE, 1)
        self._socket.set(zmq.RECONNECT_IVL, 20)
        self._socket.subscribe(b"")
        self._socket.connect(config.handles)
        self._shape = config.shape

    def receive(self, timeout_s: float) -> Pixels:
        if not self._socket.poll(int(timeout_s * 1000)):
            raise TimeoutError
        return self.hold(pixels_of(self._socket.recv(copy=False).buffer, self._shape))

    def close(self) -> None:
        self._port.close()


class Inline(Peer):
    distribution = "pyzmq"
    module = "zmq"

    def version(self) -> str:
        return f"libzmq {zmq.zmq_version()}, pyzmq {zmq.pyzmq_version()}"

    def sender(self, config: Config) -> Sender:
        return InlineSender(config)

    def receiver(self, config: Config, index: int) -> Receiver:
        del index
        return InlineReceiver(config)


class InlineIpc(Inline):
    name = "zmq-inline-ipc"
    title = "pyzmq, pixels inline, ipc"
    how = (
        "Two copies for each receiver, by the I/O threads into a Unix socket and out of it into a new message. The "
        "receiver polls a SUB socket that keeps the newest; a full queue blocks the sender."
    )

    @contextmanager
    def prepare(self, config: Config) -> Iterator[str]:
        del config
        with temporary_folder() as folder:
            yield f"ipc://{folder}/frames"


class InlineTcp(Inline):
    name = "zmq-inline-tcp"
    title = "pyzmq, pixels inline, tcp"
    how = "As over ipc, through TCP on the loopback."

    @contextmanager
    def prepare(self, config: Config) -> Iterator[str]:
        del config
        yield f"tcp://127.0.0.1:{free_port()}"


class ImageSender(Sender):
    """Sends greetings until every receiver has received one, because its PUB socket does not report subscriptions."""

    def __init__(self, config: Config) -> None:
        import imagezmq

        address, heard = config.handles
        self._sender: Any = imagezmq.ImageSender(connect_to=NOWHERE, REQ_REP=False)
        self._sender.zmq_socket.set(zmq.SNDHWM, QUEUED)
        self._sender.zmq_socket.set(zmq.SNDTIMEO, int(SEND_TIMEOUT_S * 1000))
        self._sender.zmq_socket.bind(address)
        self._arrays = deque(touched(config.shape) for _ in range(ARRAYS))
        greeting = touched((1, 1, 3))
        deadline_s = time.monotonic() + OPEN_TIMEOUT_S
        waiting = config.receivers
        while waiting:
            if time.monotonic() > deadline_s:
                raise TimeoutError("a subscriber did not connect in time")
            self._sender.send_image("greeting", greeting)
            waiting -= heard.acquire(timeout=0.02)
        # Greetings may be lost. From now on a full queue blocks the sender instead of losing a frame.
        self._sender.zmq_socket.set(zmq.XPUB_NODROP, 1)

    def loan(self) -> Pixels:
        return self._arrays[0]

    def publish(self) -> None:
        try:
            self._sender.send_image("frame", self._arrays[0])
        except zmq.Again:
            raise ReceiverStalled("a receiver") from None
        self._arrays.rotate(-1)

    def close(self) -> None:
        self._sender.zmq_socket.set(zmq.LINGER, 0)
        self._sender.close()


class ImageReceiver(HoldingReceiver):
    def __init__(self, config: Config) -> None:
        import imagezmq

        address, heard = config.handles
        self._hub: Any = imagezmq.ImageHub(open_port=NOWHERE, REQ_REP=False)
        self._hub.zmq_socket.set(zmq.RCVHWM, QUEUED)
        self._hub.zmq_socket.set(zmq.RECONNECT_IVL, 20)
        self._hub.connect(address)
        if not self._hub.zmq_socket.poll(int(OPEN_TIMEOUT_S * 1000)):
            raise TimeoutError("the sender sent no greeting in time")
        self._hub.recv_image()
        heard.release()

    def receive(self, timeout_s: float) -> Pixels:
        deadline_s = time.monotonic() + timeout_s
        while self._hub.zmq_socket.poll(max(0, int((deadline_s - time.monotonic()) * 1000))):
            # Greetings may still be queued before the first frame.
            kind, pixels = self._hub.recv_image()
            if kind == "frame":
                return self.hold(pixels)
        raise TimeoutError

    def close(self) -> None:
        self._hub.zmq_socket.set(zmq.LINGER, 0)
        self._hub.close()


class ImageZmq(Peer):
    name = "imagezmq"
    title = "imagezmq, PUB/SUB"
    how = (
        "As pyzmq over tcp, with a JSON header before each frame. PUB/SUB, which its documentation recommends for "
        "more than one receiver; its high-water marks are lowered to limit the memory."
    )
    lossless = True
    distribution = "imagezmq"
    module = "imagezmq"

    @contextmanager
    def prepare(self, config: Config) -> Iterator[tuple[str, Any]]:
        from multiprocessing import get_context

        del config
        yield f"tcp://127.0.0.1:{free_port()}", get_context("spawn").Semaphore(0)

    def sender(self, config: Config) -> Sender:
        return ImageSender(config)

    def receiver(self, config: Config, index: int) -> Receiver:
        del index
        return ImageReceiver(config)


PEERS = (InlineIpc(), InlineTcp(), ImageZmq())
