"""The subset of ZeroMQ's wire protocol that notifications require. This module does no I/O.

Sources: RFC 23, ZMTP 3.0; RFC 37, ZMTP 3.1 (SUBSCRIBE, CANCEL, PING and PONG); RFC 29, PUB and SUB.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

FRAME_HEADER_BYTES: Final = 2
MAX_FRAME_BYTES: Final = 255
"""Longest body of a frame whose length takes one byte."""
MORE, LONG, COMMAND = 1, 2, 4
"""Flags of a frame."""
GREETING_BYTES: Final = 64
SIGNATURE_BEGIN: Final = 0xFF
SIGNATURE_END_AT: Final = 9
SIGNATURE_END_BIT: Final = 1
"""This bit is set in the last byte of the signature, 0x7F."""
VERSION_AT: Final = 10
"""Offset of the major version."""
MIN_VERSION: Final = 3
MECHANISM: Final = slice(12, 32)
"""The security mechanism, padded with NUL."""
GREETING: Final = (b"\xff" + bytes(8) + b"\x7f" + b"\3\0" + b"NULL").ljust(GREETING_BYTES, b"\0")
SUBSCRIBE, CANCEL = b"\1", b"\0"


class ProtocolError(Exception):
    """The peer violates the protocol."""


def frame_header(length: int, flags: int = 0) -> bytes:
    """Return the header of a frame with a body of at most 255 bytes."""
    return bytes((flags, length))


def command(name: bytes, body: bytes) -> bytes:
    """Return the frame of a command."""
    content = bytes((len(name),)) + name + body
    return frame_header(len(content), COMMAND) + content


def read_command(body: bytes) -> tuple[bytes, bytes]:
    """Split the body of a command into its name and its data."""
    length = body[0] if body else 0
    return body[1 : 1 + length], body[1 + length :]


def pong(ping: bytes) -> bytes:
    """Return the PONG for the data of a PING: a time to live of two bytes, and a context to return (RFC 37)."""
    return command(b"PONG", ping[2:18])


def _property(name: bytes, value: bytes) -> bytes:
    return bytes((len(name),)) + name + len(value).to_bytes(4, "big") + value


def hello(socket_type: bytes) -> bytes:
    """Return what a peer sends first: the greeting, and the READY command with its socket type."""
    return GREETING + command(b"READY", _property(b"Socket-Type", socket_type))


SUBSCRIBE_TO_ALL: Final = frame_header(len(SUBSCRIBE)) + SUBSCRIBE
SUBSCRIBERS: Final = tuple(_property(b"Socket-Type", kind) for kind in (b"SUB", b"XSUB"))


class Decoder:
    """Splits the bytes of a connection, which may arrive in arbitrary pieces, into frames."""

    def __init__(self, max_frame_bytes: int) -> None:
        """Create a decoder that expects the greeting.

        Args:
            max_frame_bytes: Longest body of a frame that is accepted.
        """
        self._max_frame_bytes = max_frame_bytes
        self._received = bytearray()
        self._greeted = False

    def feed(self, received: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield the flags and body of each frame that is complete now.

        Raises:
            ProtocolError: The bytes are not ZMTP 3, or a frame is too long.
        """
        # A peer may send any number of bytes at a time, so keep what does not complete a frame.
        self._received += received
        if not self._greeted and self._received:
            self._greeted = self._take_greeting()
        if self._greeted:
            while (taken := self._take_frame()) is not None:
                yield taken

    def _take_greeting(self) -> bool:
        content = self._received
        # Reject a peer as soon as its version is there: one of ZMTP 2 or older waits for an answer after 10 bytes.
        is_zmtp = content[0] == SIGNATURE_BEGIN
        if is_zmtp and len(content) > VERSION_AT:
            is_zmtp = bool(content[SIGNATURE_END_AT] & SIGNATURE_END_BIT) and content[VERSION_AT] >= MIN_VERSION
        if not is_zmtp:
            raise ProtocolError("not a greeting of ZMTP 3")
        if len(content) < GREETING_BYTES:
            return False
        if content[MECHANISM].rstrip(b"\0") != b"NULL":
            raise ProtocolError("the security mechanism is not NULL")
        # The rest may already contain frames, because a peer need not wait for an answer.
        del content[:GREETING_BYTES]
        return True

    def _take_frame(self) -> tuple[int, bytes] | None:
        content = self._received
        if not content:
            return None
        flags = content[0]
        # Check the declared size before buffering the body, to limit the memory that a peer can take.
        size_bytes = 8 if flags & LONG else 1
        size = int.from_bytes(content[1 : 1 + size_bytes], "big")
        if size > self._max_frame_bytes:
            raise ProtocolError("the frame is too long")
        end = 1 + size_bytes + size
        if len(content) < end:
            return None
        body = bytes(content[1 + size_bytes : end])
        del content[:end]
        return flags, body
