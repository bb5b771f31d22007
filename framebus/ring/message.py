"""The message that accompanies each publication: prepared bytes, and the offsets of the numbers to fill in.

Only :mod:`framebus.notify.notification` knows what the bytes mean.

Source: send(2).
"""

from __future__ import annotations

import contextlib
import operator
import socket
import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

MAX_MESSAGE_BYTES: Final = 257
SEND_FLAGS: Final = socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT


class Message(NamedTuple):
    """The messages of all frames of one format: their common bytes, and the offsets of what differs."""

    content: bytes
    """A complete message of at most 257 bytes. The bytes of the numbers are arbitrary."""
    sequence_at: int
    """Offset of the sequence: 8 bytes, big-endian, like the times."""
    slot_at: int
    """Offset of the slot: one byte."""
    captured_at: int
    """Offset of the time of capture."""
    published_at: int
    """Offset of the time of publication."""

    def render(self, sequence: int, slot: int, captured_ns: int, published_ns: int) -> bytes:
        """Return the message of one frame.

        Args:
            sequence: The frame's sequence.
            slot: The frame's slot.
            captured_ns: Time of capture, CLOCK_MONOTONIC.
            published_ns: Time of publication, CLOCK_MONOTONIC.
        """
        content = bytearray(self.content)
        struct.pack_into(">Q", content, self.sequence_at, sequence)
        content[self.slot_at] = slot
        struct.pack_into(">q", content, self.captured_at, captured_ns)
        struct.pack_into(">q", content, self.published_at, published_ns)
        return bytes(content)


def check_message(message: object) -> Message:
    """Return ``message`` if :meth:`Message.render` can render it.

    Raises:
        TypeError: ``message`` is not a :class:`Message`.
        ValueError: It is longer than ``MAX_MESSAGE_BYTES``, or an offset is outside it.
    """
    if not isinstance(message, tuple) or len(message) != len(Message._fields) or not isinstance(message[0], bytes):
        raise TypeError("a message is required")
    checked = Message._make(message)
    sequence_at, slot_at, captured_at, published_at = map(operator.index, checked[1:])
    ends = (sequence_at + 8, slot_at + 1, captured_at + 8, published_at + 8)
    length = len(checked.content)
    if length > MAX_MESSAGE_BYTES or max(ends) > length or min(checked[1:]) < 0:
        raise ValueError("the message is too long, or an offset is outside it")
    return checked


def send_all(sockets: Sequence[socket.socket], content: bytes) -> None:
    """Send the message to each socket, without waiting.

    The message is dropped for a socket whose buffer is full. A socket that accepts only a part of it is shut down,
    because its reader could not find the boundary of the next message. Linux never splits a few kB on a Unix socket.
    """
    for each in sockets:
        with contextlib.suppress(OSError):
            if each.send(content, SEND_FLAGS) < len(content):
                each.shutdown(socket.SHUT_RDWR)
