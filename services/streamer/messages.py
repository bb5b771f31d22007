"""The messages of the WebSocket.

To the page: text messages are JSON objects with a ``type`` of ``state`` or ``detections``; a binary message is a frame:
the length of its head (4 bytes, big-endian), the head (JSON, ``type`` ``frame``), and the JPEG file.

From the page: ``{"ack": SEQUENCE}`` once a frame has been drawn, or dropped for a newer one.

Epochs are hexadecimal text, since a JavaScript number does not hold 64 bits.
"""

from __future__ import annotations

import json
import struct
import time
from typing import Any, Final

from services.common.detections import Detections
from services.streamer.frames import EncodedFrame

HEAD_LENGTH: Final = struct.Struct(">I")
MAX_ACKNOWLEDGEMENT_BYTES: Final = 256


class MalformedMessage(ValueError):
    """A message that the page would not send."""


def frame_message(frame: EncodedFrame, *, skipped: int, fps: float, latency_s: float | None) -> bytes:
    """The message of a frame.

    Args:
        frame: The picture.
        skipped: Frames of the stream that this viewer did not get since its previous one.
        fps: Frames a second that the stream delivers.
        latency_s: Seconds from the capture to the acknowledgement of the frame that this viewer acknowledged last.
    """
    head = _dump(
        {
            "type": "frame",
            "epoch": f"{frame.epoch:x}",
            "sequence": frame.sequence,
            "captured_wall_ms": frame.captured_wall_ns / 1e6,
            "age_ms": _age_ms(frame.captured_ns),
            "width": frame.width_px,
            "height": frame.height_px,
            "full_width": frame.full_width_px,
            "full_height": frame.full_height_px,
            "skipped": skipped,
            "fps": round(fps, 2),
            "latency_ms": None if latency_s is None else round(latency_s * 1e3, 1),
        }
    ).encode()
    return b"".join((HEAD_LENGTH.pack(len(head)), head, frame.jpeg))


def split_frame_message(message: bytes) -> tuple[dict[str, Any], bytes]:
    """Head and JPEG file of a frame's message; what a client does.

    Raises:
        MalformedMessage: It is no such message.
    """
    try:
        (length,) = HEAD_LENGTH.unpack_from(message)
        start = HEAD_LENGTH.size
        head = json.loads(message[start : start + length])
    except (struct.error, ValueError) as error:
        raise MalformedMessage(f"not a frame's message: {error}") from None
    if not isinstance(head, dict) or head.get("type") != "frame":
        raise MalformedMessage("not a frame's message: its head is no object of that type")
    return head, message[start + length :]


def detections_message(detections: Detections) -> str:
    """The message of a frame's detections; boxes in pixels of the full frame."""
    return _dump(
        {
            "type": "detections",
            "epoch": f"{detections.epoch:x}",
            "sequence": detections.sequence,
            "instance": detections.instance,
            "age_ms": _age_ms(detections.captured_ns),
            "full_width": detections.frame_width_px,
            "full_height": detections.frame_height_px,
            "objects": [
                {
                    "label": found.label,
                    "score": round(found.score, 3),
                    "x": round(found.x_px, 1),
                    "y": round(found.y_px, 1),
                    "width": round(found.width_px, 1),
                    "height": round(found.height_px, 1),
                    "track": found.track,
                }
                for found in detections.objects
            ],
        }
    )


def state_message(*, absence: str, fps: float, clients: int, boxes_max_age_s: float) -> str:
    """The message that says whether the stream is live, and why not."""
    return _dump(
        {
            "type": "state",
            "live": not absence,
            "reason": absence,
            "fps": round(fps, 2),
            "clients": clients,
            "boxes_max_age_ms": round(boxes_max_age_s * 1e3),
        }
    )


def read_acknowledgement(message: str) -> int:
    """Sequence of the frame that the page has drawn.

    Raises:
        MalformedMessage: It is no acknowledgement.
    """
    try:
        content = json.loads(message)
    except (ValueError, RecursionError):
        content = None
    sequence = content.get("ack") if isinstance(content, dict) else None
    if type(sequence) is not int:
        raise MalformedMessage('only {"ack": SEQUENCE} is understood')
    return sequence


def _age_ms(captured_ns: int) -> float:
    return round((time.monotonic_ns() - captured_ns) / 1e6, 1)


def _dump(content: dict[str, Any]) -> str:
    return json.dumps(content, separators=(",", ":"))
