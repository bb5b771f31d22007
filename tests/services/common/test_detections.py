"""Detections on the wire: what is sent arrives, and nothing of what strangers send is believed."""

from __future__ import annotations

import math
import stat
import time
from dataclasses import astuple, replace
from typing import Any

import msgpack
import pytest
import zmq
from hypothesis import example, given, settings
from hypothesis import strategies as st

from framebus import companion_path
from services.common.detections import (
    MAX_DETECTIONS,
    MAX_MESSAGE_BYTES,
    VERSION,
    Detection,
    DetectionPublisher,
    Detections,
    DetectionSubscriber,
    MalformedDetections,
    pack,
    unpack,
)

numbers = st.integers(0, 2**64 - 1)
lengths = st.floats(0, 1e6)
objects = st.builds(
    Detection,
    label=st.text(max_size=20),
    score=st.floats(0, 1),
    x_px=st.floats(-1e6, 1e6),
    y_px=st.floats(-1e6, 1e6),
    width_px=lengths,
    height_px=lengths,
    track=numbers,
)
frames = st.builds(
    Detections,
    stream=st.text(max_size=20),
    instance=st.text(max_size=20),
    epoch=numbers,
    sequence=numbers,
    captured_ns=numbers,
    detected_ns=numbers,
    frame_height_px=numbers,
    frame_width_px=numbers,
    objects=st.lists(objects, max_size=5).map(tuple),
)
plain = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary()
anything = st.recursive(
    plain,
    lambda inner: st.lists(inner) | st.dictionaries(plain, inner) | st.builds(msgpack.ExtType, st.just(5), st.binary()),
)

PERSON = Detection("person", 0.75, 10.0, 20.0, 30.0, 40.0, 7)
FRAME = Detections("panorama", "detector", 2**63, 12, 1000, 2000, 688, 4896, (PERSON,))


@settings(deadline=None)
@given(frames)
def test_what_is_packed_is_unpacked(detections: Detections) -> None:
    assert unpack(pack(detections)) == detections


@settings(deadline=None)
@given(st.binary(max_size=200))
@example(b"")
@example(b"\x91" * 100_000)
@example(msgpack.packb(msgpack.Timestamp(1, 1)))
@example(msgpack.packb([VERSION, "\ud800"], unicode_errors="surrogatepass"))
@example(b"\xdd\xff\xff\xff\xff")
@example(b"\xc6\xff\xff\xff\xff")
def test_bytes_are_detections_or_malformed(message: bytes) -> None:
    with pytest.raises(MalformedDetections):
        unpack(message)


@settings(deadline=None)
@given(anything)
def test_other_messages_are_malformed(content: Any) -> None:
    with pytest.raises(MalformedDetections):
        unpack(msgpack.packb(content))


@settings(deadline=None)
@given(position=st.integers(0, 9), value=anything)
def test_a_wrong_field_is_malformed_or_a_fair_value(position: int, value: Any) -> None:
    content = msgpack.unpackb(pack(FRAME))
    content[position] = value
    accept_or_refuse(content)


@settings(deadline=None)
@given(position=st.integers(0, 6), value=anything)
def test_a_wrong_field_of_an_object_is_malformed_or_a_fair_value(position: int, value: Any) -> None:
    content = msgpack.unpackb(pack(FRAME))
    content[-1][0][position] = value
    accept_or_refuse(content)


@settings(deadline=None)
@given(cut=st.integers(0, len(pack(FRAME)) - 1), flip=st.integers(0, 255))
def test_a_damaged_message_is_malformed_or_fair(cut: int, flip: int) -> None:
    message = bytearray(pack(FRAME))
    with pytest.raises(MalformedDetections):
        unpack(bytes(message[:cut]))
    message[cut] = flip
    accept_or_refuse(bytes(message))


def accept_or_refuse(content: Any) -> None:
    """Whatever is accepted is of the promised types and ranges, so that no client needs to look again."""
    try:
        found = unpack(content if isinstance(content, bytes) else msgpack.packb(content))
    except MalformedDetections:
        return
    for field in ("epoch", "sequence", "captured_ns", "detected_ns", "frame_height_px", "frame_width_px"):
        assert type(getattr(found, field)) is int
        assert getattr(found, field) >= 0
    assert type(found.stream) is type(found.instance) is str
    for one in found.objects:
        assert type(one.label) is str
        assert all(type(number) is float and math.isfinite(number) for number in astuple(one)[1:6])
        assert 0 <= one.score <= 1
        assert min(one.width_px, one.height_px, one.track) >= 0


@pytest.mark.parametrize(
    ("field", "value"),
    [("score", 1.5), ("score", -0.1), ("score", math.nan), ("x_px", math.inf), ("width_px", -1.0), ("track", -1)],
)
def test_numbers_out_of_range_are_malformed(field: str, value: float) -> None:
    wrong: Any = {field: value}
    with pytest.raises(MalformedDetections):
        unpack(pack(replace(FRAME, objects=(replace(PERSON, **wrong),))))


def test_too_many_objects_are_malformed() -> None:
    unpack(pack(replace(FRAME, objects=(PERSON,) * MAX_DETECTIONS)))
    with pytest.raises(MalformedDetections, match=f"at most {MAX_DETECTIONS} objects"):
        unpack(pack(replace(FRAME, objects=(PERSON,) * (MAX_DETECTIONS + 1))))


def test_a_long_message_is_not_even_read() -> None:
    with pytest.raises(MalformedDetections, match="at most"):
        unpack(bytes(MAX_MESSAGE_BYTES + 1))


def first_from(publisher: DetectionPublisher, subscriber: DetectionSubscriber, detections: Detections) -> Detections:
    """Publish until it arrives: a listener misses what was sent before its connection stood."""
    deadline_s = time.monotonic() + 20
    while time.monotonic() < deadline_s:
        subscriber.look_for_detectors()
        publisher.publish(detections)
        for received in subscriber.receive(0.05):
            if received == detections:
                return received
    raise AssertionError("nothing arrived")


def test_detections_arrive_from_every_instance(stream: str) -> None:
    subscriber = DetectionSubscriber(stream)
    first, second = DetectionPublisher(stream, "day"), DetectionPublisher(stream, "night")
    try:
        for publisher, instance in ((first, "day"), (second, "night")):
            sent = replace(FRAME, stream=stream, instance=instance)
            assert first_from(publisher, subscriber, sent) == sent
    finally:
        for one in (first, second, subscriber):
            one.close()


def test_a_detector_that_comes_back_is_heard(stream: str) -> None:
    subscriber = DetectionSubscriber(stream)
    sent = replace(FRAME, stream=stream)
    try:
        for sequence in (1, 2):
            publisher = DetectionPublisher(stream, "detector")
            try:
                first_from(publisher, subscriber, replace(sent, sequence=sequence))
            finally:
                publisher.close()
    finally:
        subscriber.close()


def test_a_socket_left_by_a_crash_is_replaced(stream: str) -> None:
    companion_path(stream, "detections.detector.sock").touch()
    publisher, subscriber = DetectionPublisher(stream, "detector"), DetectionSubscriber(stream)
    try:
        first_from(publisher, subscriber, replace(FRAME, stream=stream))
    finally:
        publisher.close()
        subscriber.close()


def test_only_owner_and_group_may_connect(stream: str) -> None:
    publisher = DetectionPublisher(stream, "detector")
    try:
        assert stat.S_IMODE(publisher.path.stat().st_mode) == 0o660
    finally:
        publisher.close()
    assert not publisher.path.exists()


@pytest.mark.parametrize("strange", [b"junk", pack(replace(FRAME, stream="another"))])
def test_what_is_no_detections_message_of_the_stream_is_counted(stream: str, strange: bytes) -> None:
    context = zmq.Context()
    socket = context.socket(zmq.PUB)
    path = companion_path(stream, "detections.stranger.sock")
    socket.bind(f"ipc://{path}")
    subscriber = DetectionSubscriber(stream)
    try:
        subscriber.look_for_detectors()
        deadline_s = time.monotonic() + 20
        while not subscriber.rejected and time.monotonic() < deadline_s:
            socket.send(strange)
            assert list(subscriber.receive(0.05)) == []
        assert subscriber.rejected
    finally:
        subscriber.close()
        socket.close(linger=0)
        context.term()
        path.unlink(missing_ok=True)
