"""The format of a notification, which tells subscribers that there is a new frame.

A notification is a single-part message with a msgpack array: ``[stream, epoch, sequence, slot, height, width, channels,
dtype, pixel_format, captured_ns, published_ns]``. Programs in other languages may use its content.

framebus itself uses it only as a hint to read the shared memory, which is authoritative. If a message is lost, late,
forged or invalid, the worst that happens is an unnecessary read.
"""

from __future__ import annotations

from typing import Final

import msgpack

from framebus.notify.zmtp import FRAME_HEADER_BYTES, frame_header
from framebus.ring.frame_header import Description
from framebus.ring.message import Message

FIELDS: Final = 11
_ARRAY: Final = bytes([0x90 | FIELDS])
_UINT8, _UINT64, _INT64 = 0xCC, 0xCF, 0xD3


def topic(stream: str) -> bytes:
    """Return the bytes with which every notification of a stream begins."""
    content: bytes = msgpack.packb(stream)
    return _ARRAY + content


def notification_message(stream: str, epoch: int, frame: Description) -> Message:
    """Return the notification of all frames of one format, as a complete ZMTP frame to fill in."""
    head = topic(stream) + bytes((_UINT64,)) + epoch.to_bytes(8, "big") + bytes((_UINT64,))
    # These fields are the same for all frames of the format, so pack them only once.
    described = b"".join(map(msgpack.packb, frame[:5]))
    body = head + bytes(8) + bytes((_UINT8, 0)) + described + bytes((_INT64, *bytes(8), _INT64, *bytes(8)))
    # The offsets follow from the order of the fields: each number is preceded by one byte for its msgpack type.
    sequence_at, end = FRAME_HEADER_BYTES + len(head), FRAME_HEADER_BYTES + len(body)
    return Message(frame_header(len(body)) + body, sequence_at, sequence_at + 9, end - 17, end - 8)
