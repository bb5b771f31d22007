"""Cameras with the faults of real ones, served over HTTP, and a camera that refuses every log-in."""

from __future__ import annotations

import io
import json
import math
import random
import socket
import socketserver
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from tests.services.simulator.clips import SYSTEM_COMMAND, need_rtsp
from tests.support import ROOT

Image = npt.NDArray[np.uint8]

TICKS = 90_000
"""Of MPEG-TS, a second."""


@dataclass(frozen=True)
class Units:
    """The packets of a clip as an encoder emits them."""

    codec: str
    packets: tuple[bytes, ...]
    is_key: tuple[bool, ...]
    template: Path
    """The clip itself, for its stream's parameters."""


def encode_units(
    path: Path,
    codec: str = "libx264",
    *,
    count: int = 50,
    gop: int = 25,
    b_frames: int = 0,
    picture: Callable[[int], Image] | None = None,
) -> Units:
    """Encode pictures, grey ones of one size by their number; without them, moving blocks."""
    height, width = 96, 160
    blocks = np.random.default_rng(1).integers(40, 200, (height // 16, width // 16)).astype(np.uint8)
    draw = picture or (lambda index: np.roll(blocks.repeat(16, 0).repeat(16, 1), 3 * index, 1))
    height, width = draw(0).shape
    with av.open(str(path), "w") as container:
        options = {"g": str(gop), "bf": str(b_frames), "preset": "ultrafast", "sc_threshold": "0"}
        stream = container.add_stream(codec, rate=25, options={} if codec == "mjpeg" else options)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for index in range(count):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(draw(index)), format="gray").reformat(
                format=stream.pix_fmt
            )
            frame.pts, frame.time_base = index, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        name = container.streams.video[0].codec_context.name
    return Units(name, tuple(bytes(packet) for packet in packets), tuple(p.is_keyframe for p in packets), path)


@dataclass
class FaultyCamera:
    """The behaviour of the camera."""

    units: Units
    fps: float = 25.0
    mode: str = "ts"
    """``ts``, ``mjpeg`` (multipart) or ``raw`` (the codec's bytes alone)."""
    start: int = 0
    """Unit at which each connection begins."""
    damaged: float = 0.0
    """Share of the units, key frames left out, of which some bytes are wrong."""
    lost: float = 0.0
    """Share of the units, key frames left out, that are not sent."""
    pts_jump_s: tuple[int, float] = (1 << 62, 0.0)
    """From this unit on, the times are later by so much."""
    seed: int = 1
    epoch_s: float | None = None
    """Monotonic time of unit 0, for cameras that show the same instant; without it, each connection begins anew."""
    connections: int = field(default=0, init=False)

    def unit(self, index: int, chance: random.Random) -> bytes:
        """Return what the camera sends instead of a unit."""
        position = index % len(self.units.packets)
        data = self.units.packets[position]
        if chance.random() >= self.damaged or self.units.is_key[position]:
            return data
        wrong = bytearray(data)
        for _ in range(8):
            wrong[chance.randrange(len(wrong) // 2, len(wrong))] ^= 0xFF
        return bytes(wrong)

    def send(self, connection: socket.socket) -> None:
        """Send until the client disconnects."""
        self.connections += 1
        kinds = {
            "ts": "video/mp2t",
            "mjpeg": "multipart/x-mixed-replace; boundary=frame",
            "raw": "application/octet-stream",
        }
        connection.sendall(f"HTTP/1.0 200 OK\r\nContent-Type: {kinds[self.mode]}\r\n\r\n".encode())
        write = self._ts_writer(connection) if self.mode == "ts" else self._plain_writer(connection)
        now_s, chance = time.monotonic(), random.Random(self.seed)
        epoch_s = now_s - self.start / self.fps if self.epoch_s is None else self.epoch_s
        index = math.ceil((now_s - epoch_s) * self.fps)
        while True:
            time.sleep(max(0.0, epoch_s + index / self.fps - time.monotonic()))
            is_key = self.units.is_key[index % len(self.units.packets)]
            if is_key or chance.random() >= self.lost:
                write(index, self.unit(index, chance))
            index += 1

    def _plain_writer(self, connection: socket.socket) -> Callable[[int, bytes], None]:
        def write(_index: int, data: bytes) -> None:
            head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n".encode()
            connection.sendall(head + data + b"\r\n" if self.mode == "mjpeg" else data)

        return write

    def _ts_writer(self, connection: socket.socket) -> Callable[[int, bytes], None]:
        container = av.open(_Sink(connection), "w", format="mpegts")
        with av.open(str(self.units.template)) as template:
            stream = container.add_stream_from_template(template.streams.video[0])

        def write(index: int, data: bytes) -> None:
            packet = av.Packet(data)
            packet.stream, packet.time_base = stream, Fraction(1, TICKS)
            jump_s = self.pts_jump_s[1] if index >= self.pts_jump_s[0] else 0.0
            packet.pts = packet.dts = round((10 + index / self.fps + jump_s) * TICKS)
            packet.is_keyframe = self.units.is_key[index % len(self.units.packets)]
            container.mux(packet)

        return write


class _Sink(io.RawIOBase):
    """A socket with the interface of a file, for PyAV."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self._connection.sendall(data)
        return len(data)


@contextmanager
def serve(camera: FaultyCamera, port: int = 0) -> Iterator[str]:
    """Serve the camera during the block, by default on a free port; yield its URL."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            head = b""
            while b"\r\n\r\n" not in head:
                if not (part := self.request.recv(4096)):
                    return
                head += part
            with suppress(OSError, av.error.FFmpegError):  # the client is gone
                camera.send(self.request)

    with listening(Handler, port) as taken:
        yield f"http://127.0.0.1:{taken}/cam"


class Denying:
    """An RTSP camera that refuses every log-in and counts them."""

    def __init__(self) -> None:
        self.log_ins = 0


@contextmanager
def deny() -> Iterator[tuple[str, Denying]]:
    """Yield the address of a camera that refuses, as ``HOST:PORT``, and the counter of its log-ins."""
    seen = Denying()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while lines := self._request():
                sequence = next((line for line in lines if line.lower().startswith("cseq")), "CSeq: 1")
                seen.log_ins += any(line.lower().startswith("authorization") for line in lines)
                if lines[0].startswith("OPTIONS"):
                    answer = f"RTSP/1.0 200 OK\r\n{sequence}\r\nPublic: OPTIONS, DESCRIBE, SETUP, PLAY\r\n\r\n"
                else:
                    answer = (
                        f"RTSP/1.0 401 Unauthorized\r\n{sequence}\r\n"
                        f'WWW-Authenticate: Digest realm="cam", nonce="{time.monotonic_ns()}"\r\n\r\n'
                    )
                self.wfile.write(answer.encode())

        def _request(self) -> list[str]:
            lines = []
            while (line := self.rfile.readline().strip()) != b"":
                lines.append(line.decode())
            return lines

    with listening(Handler) as port:
        yield f"127.0.0.1:{port}", seen


@contextmanager
def rtsp_cameras(clip: Path, *, prefix: Sequence[str] = (), **wanted: Any) -> Iterator[str]:
    """Yield the address of a server whose cameras all show the clip, as ``HOST:PORT``.

    Args:
        clip: The clip that they show.
        prefix: Beginning of its command, such as that of a network namespace.
        wanted: The options of tests/programs/rtsp_cameras.py.
    """
    need_rtsp()
    program = [*SYSTEM_COMMAND, str(ROOT / "tests/programs/rtsp_cameras.py"), str(clip), json.dumps(wanted)]
    with subprocess.Popen([*prefix, *program], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield f"{wanted.get('address', '127.0.0.1')}:{int(server.stdout.readline())}"
        finally:
            server.kill()


@contextmanager
def listening(handler: type[socketserver.BaseRequestHandler], port: int = 0) -> Iterator[int]:
    """Serve during the block, by default on a free port; yield the port."""

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True
        block_on_close = False

    with Server(("127.0.0.1", port), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()
