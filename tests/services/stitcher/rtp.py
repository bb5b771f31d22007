"""An RTSP camera that sends H.264 or H.265 in RTP packets over UDP, and omits the packets that a test names.

Sources: RFC 2326 (RTSP), RFC 3550 (RTP), RFC 6184 and RFC 7798 (the payloads of H.264 and H.265).
"""

from __future__ import annotations

import re
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress

from tests.services.stitcher.faulty import Units, listening

MOST_BYTES = 1000
"""Largest payload of a packet."""
CLOCK_HZ = 90_000
_START = re.compile(rb"\x00?\x00\x00\x01")
_FRAGMENT = {"h264": 28, "hevc": 49}
"""Type of a packet with a part of a NAL unit."""


def payloads(codec: str, unit: bytes) -> Iterator[bytes]:
    """Yield the payloads of the RTP packets of one picture."""
    for nal in filter(None, _START.split(unit)):
        if len(nal) <= MOST_BYTES:
            yield nal
            continue
        if codec == "h264":
            head, kind, content = bytes([nal[0] & 0xE0 | _FRAGMENT[codec]]), nal[0] & 31, nal[1:]
        else:
            head, kind, content = bytes([nal[0] & 0x81 | _FRAGMENT[codec] << 1, nal[1]]), nal[0] >> 1 & 63, nal[2:]
        for first in range(0, len(content), MOST_BYTES):
            last = first + MOST_BYTES >= len(content)
            part = bytes([(first == 0) << 7 | last << 6 | kind])
            yield head + part + content[first : first + MOST_BYTES]


@contextmanager
def serve_rtp(units: Units, *, lost: Collection[tuple[int, int]] = (), fps: float = 25.0) -> Iterator[str]:
    """Serve the units once, from the first one, to each client. Yield the URL.

    Args:
        units: The pictures.
        lost: Packets that are not sent: the index of the picture, and of the packet in it.
        fps: Pictures per second.
    """

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            with suppress(OSError):  # the client is gone
                self._answer()

        def _answer(self) -> None:
            to: tuple[str, int] | None = None
            while request := self._request():
                method, headers = request
                answer, body = "", b""
                if method == "DESCRIBE":
                    body = _description(units.codec)
                    answer = f"Content-Type: application/sdp\r\nContent-Length: {len(body)}\r\n"
                elif method == "SETUP":
                    port = int(re.findall(r"client_port=(\d+)", headers["transport"])[0])
                    to = (self.client_address[0], port)
                    answer = f"Transport: {headers['transport']};server_port=9000-9001\r\n"
                head = f"RTSP/1.0 200 OK\r\nCSeq: {headers['cseq']}\r\nSession: 1\r\n{answer}\r\n"
                self.wfile.write(head.encode() + body)
                if method == "PLAY":
                    assert to is not None
                    threading.Thread(target=_send, args=(units, lost, fps, to), daemon=True).start()

        def _request(self) -> tuple[str, dict[str, str]] | None:
            lines = []
            while line := self.rfile.readline().decode().strip():
                lines.append(line)
            if not lines:
                return None
            headers = dict(line.lower().split(": ", 1) for line in lines[1:])
            return lines[0].split()[0], headers

    with listening(Handler) as port:
        yield f"rtsp://127.0.0.1:{port}/cam"


def _description(codec: str) -> bytes:
    name = {"h264": "H264", "hevc": "H265"}[codec]
    mode = "a=fmtp:96 packetization-mode=1\r\n" if codec == "h264" else ""
    return (
        "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\n"
        f"m=video 0 RTP/AVP 96\r\na=rtpmap:96 {name}/{CLOCK_HZ}\r\n{mode}a=control:track\r\n"
    ).encode()


def _send(units: Units, lost: Collection[tuple[int, int]], fps: float, to: tuple[str, int]) -> None:
    begun_s, number = time.monotonic(), 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as connection:
        for index, unit in enumerate(units.packets):
            time.sleep(max(0.0, begun_s + index / fps - time.monotonic()))
            parts = list(payloads(units.codec, unit))
            for position, payload in enumerate(parts):
                last = position == len(parts) - 1
                head = struct.pack(
                    "!BBHII", 0x80, last << 7 | 96, number % (1 << 16), round(index / fps * CLOCK_HZ), 0x1234
                )
                number += 1
                if (index, position) not in lost:
                    connection.sendto(head + payload, to)
