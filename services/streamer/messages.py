"""The messages of the WebSocket.

To the page: text messages are JSON objects with a ``type`` of ``state`` or ``detections``; a binary message is a frame:
the length of its head (4 bytes, big-endian), the head (JSON, ``type`` ``frame``), and the JPEG file.

From the page: ``{"ack": SEQUENCE}`` once a frame has been drawn, or dropped for a newer one. It may also contain
``at``, the page's clock in milliseconds, and ``held_ms``, the time since the frame arrived at the page. ``at`` may also
be sent alone.

Times that end in ``captured_ms``, ``received_ms`` and ``sent_ms`` are of the server's monotonic clock. Every message
contains ``sent_ms`` and, as ``echo``, the page's last ``at`` with the time of its arrival. From these, the page
computes the offset of the two clocks (like NTP, RFC 5905, section 8), and from it the age of a picture.

Epochs are hexadecimal text, because a JavaScript number cannot hold 64 bits.
"""

from __future__ import annotations

import json
import math
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from services.common.detections import Detection, Detections
from services.streamer.encode import LEVELS
from services.streamer.frames import EncodedFrame
from services.streamer.freshness import Freshness, Limits
from services.streamer.hub import DetectorSeen
from services.streamer.presence import Absent

HEAD_LENGTH: Final = struct.Struct(">I")
MAX_PAGE_MESSAGE_BYTES: Final = 256
EXPECTED: Final = 'only {"ack": SEQUENCE, "at": MILLISECONDS} is understood'


Echo = tuple[float, float]
"""The page's clock in its last message, and the server's clock at its arrival, in milliseconds."""


class MalformedMessage(ValueError):
    """The message is malformed."""


@dataclass(frozen=True, slots=True)
class PageMessage:
    """A message of the page."""

    acknowledged: int | None
    """Sequence of the acknowledged frame."""
    at_ms: float | None
    """The page's clock at the time of sending."""
    held_s: float | None
    """Seconds from the frame's arrival at the page to this message; ``None`` if the page does not send it."""


def frame_message(
    frame: EncodedFrame, level: int, *, skipped: int, fps: float, latency_s: float | None, echo: Echo | None = None
) -> bytes:
    """Return the message of a frame.

    Args:
        frame: The frame.
        level: Which of its pictures.
        skipped: Frames that this viewer skipped since its previous one.
        fps: Frame rate of the stream.
        latency_s: Seconds from the capture to the acknowledgement of the frame that this viewer acknowledged last.
        echo: The clock in the viewer's last message.
    """
    picture = frame.pictures[level]
    head = _dump(
        {
            "type": "frame",
            "epoch": f"{frame.epoch:x}",
            "sequence": frame.sequence,
            "captured_wall_ms": frame.captured_wall_ns / 1e6,
            "age_ms": _age_ms(frame.captured_ns),
            "width": picture.width_px,
            "height": picture.height_px,
            "full_width": frame.full_width_px,
            "full_height": frame.full_height_px,
            "skipped": skipped,
            "fps": round(fps, 2),
            "latency_ms": None if latency_s is None else round(latency_s * 1e3, 1),
            "captured_ms": _ms(frame.captured_ns),
            "level": level,
            "quality": LEVELS[level].name,
            **_clock(echo),
        }
    ).encode()
    # One message, so that a picture and its times cannot be separated.
    return b"".join((HEAD_LENGTH.pack(len(head)), head, picture.jpeg))


def split_frame_message(message: bytes) -> tuple[dict[str, Any], bytes]:
    """Split a frame's message into its head and JPEG file, as a client does.

    Raises:
        MalformedMessage: The message is not a frame's message.
    """
    try:
        (length,) = HEAD_LENGTH.unpack_from(message)
        start = HEAD_LENGTH.size
        head = json.loads(message[start : start + length])
    except (struct.error, ValueError) as error:
        raise MalformedMessage(f"not a frame's message: {error}") from None
    if not isinstance(head, dict) or head.get("type") != "frame":
        raise MalformedMessage("not a frame's message: its head is not an object of that type")
    return head, message[start + length :]


def detections_message(detections: Detections, echo: Echo | None = None) -> str:
    """Return the message of a frame's detections; boxes in pixels of the full frame."""
    return _dump(
        {
            "type": "detections",
            "epoch": f"{detections.epoch:x}",
            "sequence": detections.sequence,
            "instance": detections.instance,
            "tracker": f"{detections.tracker:x}",
            "age_ms": _age_ms(detections.captured_ns),
            "captured_ms": _ms(detections.captured_ns),
            **_clock(echo),
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
                    "track": found.track_id,
                    **_second_stage(found),
                }
                for found in detections.objects
            ],
        }
    )


def state_message(
    freshness: Freshness,
    *,
    captured_ns: int | None,
    fps: float,
    clients: int,
    limits: Limits,
    silent_after_s: float,
    boxes_max_age_s: float,
    detectors: Mapping[str, DetectorSeen],
    absent: Sequence[Absent],
    notices: Sequence[str],
    page_version: str,
    received_ms: float,
    echo: Echo | None = None,
) -> str:
    """Return the message that says how fresh the stream is, why, and what is missing."""
    return _dump(
        {
            "type": "state",
            "live": freshness.served,
            "state": freshness.state,
            "reason": freshness.reason,
            "captured_ms": None if captured_ns is None else _ms(captured_ns),
            "fps": round(fps, 2),
            "clients": clients,
            "delayed_after_ms": round(limits.delayed_s * 1e3),
            "stale_after_ms": round(limits.stale_s * 1e3),
            "silent_after_ms": round(silent_after_s * 1e3),
            "boxes_max_age_ms": round(boxes_max_age_s * 1e3),
            "detectors": [
                {"instance": instance, "captured_ms": _ms(seen.captured_ns), "received_ms": _ms(seen.received_ns)}
                for instance, seen in sorted(detectors.items())
            ],
            "absent": [
                {"kind": one.kind, "name": one.name, "silent_s": round(one.silent_s, 1), "reason": one.reason}
                for one in absent
            ],
            "notices": list(notices),
            "page_version": page_version,
            "received_ms": received_ms,
            **_clock(echo),
        }
    )


def read_page_message(message: str) -> PageMessage:
    """Parse and validate an untrusted message of a page.

    Raises:
        MalformedMessage: The message has neither a valid acknowledgement nor a time.
    """
    try:
        content = json.loads(message)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise MalformedMessage(EXPECTED)
    sequence = content.get("ack")
    at_ms, held_ms = (_number(content.get(key)) for key in ("at", "held_ms"))
    # type() instead of isinstance(), because True is an int.
    if (sequence is None and at_ms is None) or (sequence is not None and type(sequence) is not int):
        raise MalformedMessage(EXPECTED)
    return PageMessage(sequence, at_ms, None if held_ms is None else max(held_ms, 0.0) / 1e3)


def server_ms() -> float:
    """Return the server's monotonic clock in milliseconds, as in the messages."""
    return _ms(time.monotonic_ns())


def _clock(echo: Echo | None) -> dict[str, Any]:
    return {"sent_ms": server_ms(), "echo": None if echo is None else list(echo)}


def _second_stage(found: Detection) -> dict[str, Any]:
    """Return the fields of the second stage, or an empty map if the object has no second class."""
    if found.sub_class is None or found.sub_score is None:
        return {}
    return {"sub_class": found.sub_class, "sub_score": round(found.sub_score, 3)}


def _number(value: object) -> float | None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        return None
    return float(value)


def _ms(time_ns: int) -> float:
    return round(time_ns / 1e6, 3)


def _age_ms(captured_ns: int) -> float:
    return round((time.monotonic_ns() - captured_ns) / 1e6, 1)


def _dump(content: dict[str, Any]) -> str:
    return json.dumps(content, separators=(",", ":"))
