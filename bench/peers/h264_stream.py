"""An H.264 stream over TCP, encoded and decoded with PyAV."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from struct import Struct
from typing import Any, Final

import numpy as np

from bench.peers import OPEN_TIMEOUT_S, Config, Peer, Pixels, Receiver, Sender
from bench.peers.places import SEND_TIMEOUT_S, HoldingReceiver, ReceiverStalled, free_port, touched, wait_until

STAMP_BYTES: Final = 64
HEAD: Final = Struct(f"!I{STAMP_BYTES}s")
"""Precedes each packet: its length, and the first bytes of the frame, because encoding would change their stamp."""
RATE: Final = 25


def settle(connection: socket.socket) -> None:
    """Disable Nagle's algorithm, so that small pieces are sent without delay."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class EncodingSender(Sender):
    def __init__(self, config: Config) -> None:
        import av

        self._av = av
        height, width, _ = config.shape
        self._encoder: Any = av.CodecContext.create("libx264", "w")
        self._encoder.width, self._encoder.height = width, height
        self._encoder.pix_fmt = "yuv420p"
        self._encoder.time_base, self._encoder.framerate = Fraction(1, RATE), Fraction(RATE)
        # The settings with the least delay.
        self._encoder.options = {"preset": "ultrafast", "tune": "zerolatency"}
        self._pixels = touched(config.shape)
        self._start = self._pixels.reshape(-1)[:STAMP_BYTES]
        self._number = 0
        self._connections: list[socket.socket] = []
        with socket.create_server(("127.0.0.1", config.handles)) as listening:
            listening.settimeout(OPEN_TIMEOUT_S)
            while len(self._connections) < config.receivers:
                connection, _ = listening.accept()
                settle(connection)
                connection.settimeout(SEND_TIMEOUT_S)
                self._connections.append(connection)

    def loan(self) -> Pixels:
        return self._pixels

    def publish(self) -> None:
        frame = self._av.VideoFrame.from_numpy_buffer(self._pixels, format="bgr24")
        frame.pts, self._number = self._number, self._number + 1
        stamp = self._start.tobytes()
        try:
            for packet in self._encoder.encode(frame):
                head = HEAD.pack(packet.size, stamp)
                for connection in self._connections:
                    connection.sendall(head)
                    connection.sendall(packet)
        except TimeoutError:
            raise ReceiverStalled("a receiver") from None

    def close(self) -> None:
        for connection in self._connections:
            connection.close()


class DecodingReceiver(HoldingReceiver):
    def __init__(self, config: Config) -> None:
        import av

        self._av = av
        self._decoder: Any = av.CodecContext.create("h264", "r")
        # Threads by frame would delay the output by a frame for each thread.
        self._decoder.thread_type = "SLICE"
        self._decoder.flags |= av.codec.context.Flags.low_delay
        self._connection: socket.socket

        def connected() -> bool:
            try:
                self._connection = socket.create_connection(("127.0.0.1", config.handles), OPEN_TIMEOUT_S)
            except ConnectionRefusedError:
                return False
            return True

        wait_until(connected, "the sender")
        settle(self._connection)

    def _read_into(self, rest: memoryview) -> None:
        while rest:
            count = self._connection.recv_into(rest)
            if not count:
                raise ConnectionResetError("the sender closed the stream")
            rest = rest[count:]

    def receive(self, timeout_s: float) -> Pixels:
        deadline_s = time.monotonic() + timeout_s
        while True:
            self._connection.settimeout(max(0.001, deadline_s - time.monotonic()))
            head = bytearray(HEAD.size)
            self._read_into(memoryview(head))
            size, stamp = HEAD.unpack(head)
            packet = self._av.Packet(size)
            self._read_into(memoryview(packet))
            for frame in self._decoder.decode(packet):
                pixels: Pixels = frame.to_ndarray(format="bgr24")
                # Put the stamp back, which the encoding has changed.
                pixels.reshape(-1)[:STAMP_BYTES] = np.frombuffer(stamp, np.uint8)
                return self.hold(pixels)

    def close(self) -> None:
        self._connection.close()


class H264(Peer):
    name = "h264-tcp"
    title = "H.264 stream over TCP"
    how = (
        "Encoded once (libx264, ultrafast, zerolatency) and decoded by each receiver, with losses. Flat pictures, as "
        "here, are its best case. The receiver waits on a TCP socket of the loopback."
    )
    distribution = "av"
    module = "av"
    lossless = True
    exact = False

    @contextmanager
    def prepare(self, config: Config) -> Iterator[int]:
        height, width, channels = config.shape
        if height % 2 or width % 2 or min(height, width) < 16 or channels != 3:
            raise OSError(
                f"H.264 takes three channels, and even heights and widths of at least 16, not "
                f"{height}x{width}x{channels}: choose another size"
            )
        yield free_port()

    def sender(self, config: Config) -> Sender:
        return EncodingSender(config)

    def receiver(self, config: Config, index: int) -> Receiver:
        del index
        return DecodingReceiver(config)


PEERS = (H264(),)
