"""The bytes of a notification: a hint that a frame is there.

A notification is one single-part message, a msgpack array ``[stream, epoch, sequence, slot, height, width, channels,
dtype, pixel_format, captured_ns, published_ns]``. Programs in other languages may listen to it; framebus itself takes
it only as a reason to look at the shared memory, which alone is the truth, so a message that is lost, late, forged or
garbage costs nothing but a look.
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
    """What every notification of a stream begins with."""
    content: bytes = msgpack.packb(stream)
    return _ARRAY + content


def notification_message(stream: str, epoch: int, frame: Description) -> Message:
    """The notifications of frames of one format, each a whole frame of ZMTP."""
    head = topic(stream) + bytes((_UINT64,)) + epoch.to_bytes(8, "big") + bytes((_UINT64,))
    described = b"".join(map(msgpack.packb, frame[:5]))
    body = head + bytes(8) + bytes((_UINT8, 0)) + described + bytes((_INT64, *bytes(8), _INT64, *bytes(8)))
    sequence_at, end = FRAME_HEADER_BYTES + len(head), FRAME_HEADER_BYTES + len(body)
    return Message(frame_header(len(body)) + body, sequence_at, sequence_at + 9, end - 17, end - 8)
