"""The WebSocket's messages."""

from __future__ import annotations

import json
import time

import pytest

from services.common.detections import Detection, Detections
from services.streamer.frames import EncodedFrame
from services.streamer.messages import (
    MalformedMessage,
    detections_message,
    frame_message,
    read_acknowledgement,
    split_frame_message,
    state_message,
)

EPOCH = (1 << 64) - 3


def test_a_frame_comes_back_as_it_was() -> None:
    frame = EncodedFrame(
        jpeg=b"\xff\xd8 picture \xff\xd9",
        epoch=EPOCH,
        sequence=7,
        captured_ns=time.monotonic_ns() - 250_000_000,
        captured_wall_ns=1_700_000_000_123_000_000,
        width_px=2448,
        height_px=344,
        full_width_px=4896,
        full_height_px=688,
    )
    head, jpeg = split_frame_message(frame_message(frame, skipped=2, fps=24.987, latency_s=0.0421))
    assert jpeg == frame.jpeg
    assert head.pop("age_ms") >= 250
    assert head == {
        "type": "frame",
        "epoch": "fffffffffffffffd",
        "sequence": 7,
        "captured_wall_ms": 1_700_000_000_123.0,
        "width": 2448,
        "height": 344,
        "full_width": 4896,
        "full_height": 688,
        "skipped": 2,
        "fps": 24.99,
        "latency_ms": 42.1,
    }


@pytest.mark.parametrize("message", [b"", b"\0\0\0", b"\0\0\0\2[]", b"\0\0\0\2{}", b"\0\0\0\x09{", b"\xff" * 40])
def test_what_is_no_frame_is_refused(message: bytes) -> None:
    with pytest.raises(MalformedMessage):
        split_frame_message(message)


def test_detections_are_told_in_pixels_of_the_full_frame() -> None:
    found = Detection("car", 0.87654, 10.04, 20.0, 30.0, 40.0, 5)
    now_ns = time.monotonic_ns()
    message = json.loads(detections_message(Detections("s", "one", EPOCH, 9, now_ns, now_ns, 688, 4896, (found,))))
    assert message.pop("age_ms") >= 0
    assert message == {
        "type": "detections",
        "epoch": "fffffffffffffffd",
        "sequence": 9,
        "instance": "one",
        "full_width": 4896,
        "full_height": 688,
        "objects": [{"label": "car", "score": 0.877, "x": 10.0, "y": 20.0, "width": 30.0, "height": 40.0, "track": 5}],
    }


@pytest.mark.parametrize(("absence", "live"), [("", True), ("stream x has ended", False)])
def test_the_state_says_why_there_is_no_picture(absence: str, live: bool) -> None:
    message = json.loads(state_message(absence=absence, fps=25.0, clients=3, boxes_max_age_s=2.0))
    assert message == {
        "type": "state",
        "live": live,
        "reason": absence,
        "fps": 25.0,
        "clients": 3,
        "boxes_max_age_ms": 2000,
    }


def test_an_acknowledgement_is_read() -> None:
    assert read_acknowledgement('{"ack": 12}') == 12


@pytest.mark.parametrize("text", ["", "12", "[12]", '{"ack": "12"}', '{"ack": true}', '{"ack": 1.5}', "{}", "[" * 5000])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(MalformedMessage):
        read_acknowledgement(text)
