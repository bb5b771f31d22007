"""The message that goes with each publication: ready but for a few numbers, whose places it names.

What the bytes mean is known to :mod:`framebus.notify.notification` alone.

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
    """The messages of all frames of one format, and the offsets of what differs from frame to frame."""

    content: bytes
    """A whole message of at most 257 bytes, with anything where a number will stand."""
    sequence_at: int
    """Offset of the sequence: 8 bytes, big-endian, as those of the times."""
    slot_at: int
    """Offset of the slot: one byte."""
    captured_at: int
    """Offset of the time of capture."""
    published_at: int
    """Offset of the time of publication."""

    def render(self, sequence: int, slot: int, captured_ns: int, published_ns: int) -> bytes:
        """The message of one frame.

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
    """Return the message if :meth:`Message.render` can fill it in.

    Raises:
        TypeError: It is not a message.
        ValueError: It is longer than ``MAX_MESSAGE_BYTES``, or an offset is outside it.
    """
    if not isinstance(message, tuple) or len(message) != len(Message._fields) or not isinstance(message[0], bytes):
        raise TypeError("a message is wanted")
    checked = Message._make(message)
    sequence_at, slot_at, captured_at, published_at = map(operator.index, checked[1:])
    ends = (sequence_at + 8, slot_at + 1, captured_at + 8, published_at + 8)
    length = len(checked.content)
    if length > MAX_MESSAGE_BYTES or max(ends) > length or min(checked[1:]) < 0:
        raise ValueError("the message is too long, or an offset is outside it")
    return checked


def send_all(sockets: Sequence[socket.socket], content: bytes) -> None:
    """Send the same to each socket, without waiting, and whole or not at all.

    A socket that is full is left out. One that takes a part is shut down, because its reader could make no sense of
    what follows: Linux's Unix sockets never do so with a few kB.
    """
    for each in sockets:
        with contextlib.suppress(OSError):
            if each.send(content, SEND_FLAGS) < len(content):
                each.shutdown(socket.SHUT_RDWR)
