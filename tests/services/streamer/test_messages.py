"""The WebSocket's messages."""

from __future__ import annotations

import json
import time

import pytest

from services.common.detections import Detection, Detections
from services.streamer.frames import EncodedFrame, Picture
from services.streamer.freshness import Freshness, Limits, State
from services.streamer.hub import DetectorSeen
from services.streamer.messages import (
    MalformedMessage,
    PageMessage,
    detections_message,
    frame_message,
    read_page_message,
    server_ms,
    split_frame_message,
    state_message,
)
from services.streamer.presence import Absent

EPOCH = (1 << 64) - 3


def test_a_frame_message_survives_a_round_trip() -> None:
    captured_ns = time.monotonic_ns() - 250_000_000
    frame = EncodedFrame(
        pictures={2: Picture(b"\xff\xd8 picture \xff\xd9", 1224, 172)},
        epoch=EPOCH,
        sequence=7,
        captured_ns=captured_ns,
        captured_wall_ns=1_700_000_000_123_000_000,
        full_width_px=4896,
        full_height_px=688,
    )
    head, jpeg = split_frame_message(frame_message(frame, 2, skipped=2, fps=24.987, latency_s=0.0421, echo=(5.5, 7.5)))
    assert jpeg == frame.pictures[2].jpeg
    assert head.pop("age_ms") >= 250
    assert captured_ns / 1e6 + 249 < head.pop("sent_ms") <= server_ms()
    assert head == {
        "type": "frame",
        "epoch": "fffffffffffffffd",
        "sequence": 7,
        "captured_wall_ms": 1_700_000_000_123.0,
        "captured_ms": round(captured_ns / 1e6, 3),
        "level": 2,
        "quality": "quarter size",
        "echo": [5.5, 7.5],
        "width": 1224,
        "height": 172,
        "full_width": 4896,
        "full_height": 688,
        "skipped": 2,
        "fps": 24.99,
        "latency_ms": 42.1,
    }


@pytest.mark.parametrize("message", [b"", b"\0\0\0", b"\0\0\0\2[]", b"\0\0\0\2{}", b"\0\0\0\x09{", b"\xff" * 40])
def test_a_message_that_is_not_a_frame_is_rejected(message: bytes) -> None:
    with pytest.raises(MalformedMessage):
        split_frame_message(message)


def test_detections_are_given_in_pixels_of_the_full_frame() -> None:
    found = Detection("car", 0.87654, 10.04, 20.0, 30.0, 40.0, 5)
    now_ns = time.monotonic_ns()
    message = json.loads(detections_message(Detections("s", "one", EPOCH, 9, now_ns, now_ns, 688, 4896, (found,))))
    assert message.pop("age_ms") >= 0
    assert message.pop("sent_ms") >= message["captured_ms"]
    assert message == {
        "type": "detections",
        "epoch": "fffffffffffffffd",
        "sequence": 9,
        "instance": "one",
        "tracker": "0",
        "captured_ms": round(now_ns / 1e6, 3),
        "echo": None,
        "full_width": 4896,
        "full_height": 688,
        "objects": [{"label": "car", "score": 0.877, "x": 10.0, "y": 20.0, "width": 30.0, "height": 40.0, "track": 5}],
    }


def test_a_class_of_the_second_stage_is_sent_only_if_there_is_one() -> None:
    plain = Detection("person", 0.9, 10.0, 20.0, 30.0, 40.0, 5)
    found = Detection("person", 0.9, 10.0, 20.0, 30.0, 40.0, 6, sub_class="helmet", sub_score=0.87654)
    message = json.loads(detections_message(Detections("s", "one", EPOCH, 9, 1, 1, 688, 4896, (plain, found))))
    assert "sub_class" not in message["objects"][0]
    assert (message["objects"][1]["sub_class"], message["objects"][1]["sub_score"]) == ("helmet", 0.877)


@pytest.mark.parametrize(
    ("freshness", "live"),
    [
        (Freshness(State.LIVE, "", 0.1), True),
        (Freshness(State.DELAYED, "", 1.5), True),
        (Freshness(State.STALE, "stream x has no new frame", 4.0), False),
        (Freshness(State.ABSENT, "stream x has ended", None), False),
    ],
)
def test_the_state_contains_the_freshness_and_what_is_missing(freshness: Freshness, live: bool) -> None:
    message = json.loads(
        state_message(
            freshness,
            captured_ns=4_000_000,
            fps=25.0,
            clients=3,
            limits=Limits(1.0, 3.0),
            silent_after_s=2.0,
            boxes_max_age_s=2.0,
            detectors={"one": DetectorSeen(1_000_000, 2_000_000)},
            absent=[Absent("camera", "cam3", 7.25, "lost: no data in time")],
            notices=["cam1 and cam2 no longer fit"],
            page_version="abc",
            received_ms=12.5,
        )
    )
    assert message.pop("sent_ms") > 0
    assert message == {
        "type": "state",
        "live": live,
        "state": freshness.state.value,
        "reason": freshness.reason,
        "captured_ms": 4.0,
        "fps": 25.0,
        "clients": 3,
        "delayed_after_ms": 1000,
        "stale_after_ms": 3000,
        "silent_after_ms": 2000,
        "boxes_max_age_ms": 2000,
        "detectors": [{"instance": "one", "captured_ms": 1.0, "received_ms": 2.0}],
        "absent": [{"kind": "camera", "name": "cam3", "silent_s": 7.2, "reason": "lost: no data in time"}],
        "notices": ["cam1 and cam2 no longer fit"],
        "page_version": "abc",
        "received_ms": 12.5,
        "echo": None,
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"ack": 12}', PageMessage(12, None, None)),
        ('{"ack": 12, "at": 5.5, "held_ms": 250}', PageMessage(12, 5.5, 0.25)),
        ('{"at": 7}', PageMessage(None, 7.0, None)),
        ('{"ack": 1, "at": "x", "held_ms": -5}', PageMessage(1, None, 0.0)),
    ],
)
def test_a_message_of_a_page_is_parsed(text: str, said: PageMessage) -> None:
    assert read_page_message(text) == said


@pytest.mark.parametrize(
    "text",
    [
        "",
        "12",
        "[12]",
        '{"ack": "12"}',
        '{"ack": true}',
        '{"ack": 1.5}',
        "{}",
        '{"at": NaN}',
        '{"at": true}',
        "[" * 5000,
    ],
)
def test_any_other_message_is_rejected(text: str) -> None:
    with pytest.raises(MalformedMessage):
        read_page_message(text)
