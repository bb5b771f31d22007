"""Detections on the wire: messages arrive unchanged, and messages of other programs are validated."""

from __future__ import annotations

import math
import socket
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import msgpack
import pytest
import zmq
from hypothesis import example, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

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
    TileAge,
    pack,
    pack_old,
    unpack,
)
from tests.support import PATIENCE_S, ROOT, wait_until

pytestmark = pytest.mark.slow

numbers = st.integers(0, 2**64 - 1)
sides = st.integers(0, 2**20)
# Eighths are exact, so that a corner and a size give the other corner and the size again.
lengths = st.integers(0, 2**23).map(lambda eighths: eighths / 8)
places = st.integers(-(2**23), 2**23).map(lambda eighths: eighths / 8)
angles = st.floats(-7, 7)
sub_classes = st.just((None, None)) | st.tuples(st.text(max_size=20), st.floats(0, 1))
objects = st.builds(
    lambda sub, **fields: Detection(**fields, sub_class=sub[0], sub_score=sub[1]),
    sub=sub_classes,
    label=st.text(max_size=20),
    score=st.floats(0, 1),
    x_px=places,
    y_px=places,
    width_px=lengths,
    height_px=lengths,
    track_id=numbers,
    angles=st.none() | st.tuples(angles, angles, angles, angles),
    age_ms=st.floats(0, 1e6),
)
tiles = st.builds(TileAge, st.tuples(sides, sides, sides, sides), st.none() | st.floats(0, 1e6))
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
    model=st.text(max_size=20),
    tracker=numbers,
    tiles=st.lists(tiles, max_size=3).map(tuple),
    dropped=st.integers(0, 1000),
)
plain = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary()
readable = st.recursive(plain, st.lists)
anything = st.recursive(
    plain,
    lambda inner: st.lists(inner) | st.dictionaries(plain, inner) | st.builds(msgpack.ExtType, st.just(5), st.binary()),
)

PERSON = Detection("person", 0.75, 10.0, 20.0, 30.0, 40.0, 7, (0.1, 0.02, 0.2, -0.03), 250.0, "helmet", 0.875)
TILES = (TileAge((0, 0, 688, 688), 0.0), TileAge((468, 0, 1156, 688), None))
FRAME = Detections("panorama", "detector", 2**63, 12, 1000, 2000, 688, 4896, (PERSON,), "coco 1", 2**60, TILES)
CONTENT = msgpack.unpackb(pack(FRAME))


@settings(deadline=None)
@given(frames)
def test_packed_detections_are_unpacked_unchanged(detections: Detections) -> None:
    assert unpack(pack(detections)) == detections


@settings(deadline=None)
@given(st.binary(max_size=200))
@example(b"")
@example(b"\x91" * 100_000)
@example(msgpack.packb(msgpack.Timestamp(1, 1)))
@example(msgpack.packb([VERSION, "\ud800"], unicode_errors="surrogatepass"))
@example(b"\xdd\xff\xff\xff\xff")
@example(b"\xc6\xff\xff\xff\xff")
def test_arbitrary_bytes_are_detections_or_malformed(message: bytes) -> None:
    with pytest.raises(MalformedDetections):
        unpack(message)


@settings(deadline=None, max_examples=40)
@given(anything)
def test_other_messages_are_malformed(content: Any) -> None:
    with pytest.raises(MalformedDetections):
        unpack(msgpack.packb(content))


@settings(deadline=None)
@given(detections=frames)
def test_a_streamer_of_version_1_gets_the_same_boxes(detections: Detections) -> None:
    read = unpack(pack_old(detections))
    assert msgpack.unpackb(pack_old(detections))[0] == 1
    plain = [replace(one, angles=None, age_ms=0.0, sub_class=None, sub_score=None) for one in detections.objects]
    assert read == replace(detections, objects=tuple(plain), model="", tracker=0, tiles=(), dropped=0)


@settings(deadline=None, max_examples=40)
@given(name=st.sampled_from(sorted(CONTENT)), value=anything)
def test_a_message_with_a_wrong_field_is_malformed_or_has_valid_values(name: str, value: Any) -> None:
    accept_or_refuse(CONTENT | {name: value})


@settings(deadline=None, max_examples=40)
@given(position=st.integers(0, 9), value=anything)
def test_a_version_1_message_with_a_wrong_field_is_malformed_or_has_valid_values(position: int, value: Any) -> None:
    content = msgpack.unpackb(pack_old(FRAME))
    content[position] = value
    accept_or_refuse(content)


@settings(deadline=None, max_examples=40)
@given(name=st.sampled_from(sorted(CONTENT["objects"][0])), value=readable)
def test_a_wrong_field_of_an_object_drops_at_most_that_object(name: str, value: Any) -> None:
    wrong = CONTENT["objects"][0] | {name: value}
    found = accept_or_refuse(CONTENT | {"objects": [wrong, CONTENT["objects"][0]]})
    assert found is not None
    assert found.objects[-1] == PERSON
    if name.startswith("sub_"):
        assert found.objects[0] == replace(PERSON, **{name: value}) or (
            found.objects[0] == replace(PERSON, sub_class=None, sub_score=None) and found.dropped == 1
        )
    else:
        assert len(found.objects) + found.dropped == 2


@settings(deadline=None, max_examples=40)
@given(position=st.integers(0, 6), value=readable)
def test_a_wrong_field_of_an_object_of_version_1_drops_at_most_that_object(position: int, value: Any) -> None:
    content = msgpack.unpackb(pack_old(FRAME))
    good = list(content[-1][0])
    content[-1][0][position] = value
    content[-1].append(good)
    found = accept_or_refuse(content)
    assert found is not None
    assert len(found.objects) + found.dropped == 2


@settings(deadline=None)
@given(cut=st.integers(0, len(pack(FRAME)) - 1), flip=st.integers(0, 255))
def test_a_damaged_message_is_malformed_or_has_valid_values(cut: int, flip: int) -> None:
    message = bytearray(pack(FRAME))
    with pytest.raises(MalformedDetections):
        unpack(bytes(message[:cut]))
    message[cut] = flip
    accept_or_refuse(bytes(message))


def accept_or_refuse(content: Any) -> Detections | None:
    """Check that an accepted message has the promised types and ranges, so that clients need no further check."""
    try:
        found = unpack(content if isinstance(content, bytes) else msgpack.packb(content))
    except MalformedDetections:
        return None
    for field in ("epoch", "sequence", "captured_ns", "detected_ns", "frame_height_px", "frame_width_px", "tracker"):
        assert type(getattr(found, field)) is int
        assert getattr(found, field) >= 0
    assert type(found.stream) is type(found.instance) is type(found.model) is str
    for one in found.objects:
        assert type(one.label) is str
        numbers = (one.score, one.x_px, one.y_px, one.width_px, one.height_px, one.age_ms, *(one.angles or ()))
        assert all(type(number) in (float, int) and math.isfinite(number) for number in numbers)
        assert 0 <= one.score <= 1
        assert min(one.width_px, one.height_px, one.track_id, one.age_ms) >= 0
        if one.sub_class is None:
            assert one.sub_score is None
        else:
            assert type(one.sub_class) is str
            assert type(one.sub_score) in (float, int)
            assert 0 <= (one.sub_score or 0) <= 1
    for tile in found.tiles:
        assert all(type(value) is int for value in tile.xyxy)
    return found


BAD = [
    ("score", 1.5),
    ("score", -0.1),
    ("score", math.nan),
    ("x_px", math.inf),
    ("width_px", -1.0),
    ("track_id", -1),
    ("angles", (0.0, math.nan, 0.0, 0.0)),
    ("age_ms", -1.0),
]


@pytest.mark.parametrize(("field", "value"), BAD)
def test_a_bad_box_drops_no_other_box(field: str, value: Any) -> None:
    """Both in the detector, and in a message of a detector that did not check."""
    wrong: Any = {field: value}
    found = unpack(pack(replace(FRAME, objects=(PERSON, replace(PERSON, **wrong), PERSON))))
    assert (found.objects, found.dropped) == ((PERSON, PERSON), 1)


@pytest.mark.parametrize("xyxy", [[10.0, 20.0, math.nan, 60.0], [40.0, 20.0, 10.0, 60.0], [1.0], "box", None])
def test_a_bad_box_of_another_detector_drops_no_other_box(xyxy: object) -> None:
    good = CONTENT["objects"][0]
    found = unpack(msgpack.packb(CONTENT | {"objects": [good | {"xyxy": xyxy}, good]}))
    assert (found.objects, found.dropped) == ((PERSON,), 1)


BAD_SUB = [("helmet", math.nan), ("helmet", 1.5), ("helmet", None), (None, 0.5), (3, 0.5), ("helmet", True)]


@pytest.mark.parametrize(("sub_class", "sub_score"), BAD_SUB)
def test_a_bad_second_class_drops_no_box(sub_class: Any, sub_score: Any) -> None:
    """Both in the detector, and in a message of a detector that did not check."""
    without = replace(PERSON, sub_class=None, sub_score=None)
    wrong = replace(PERSON, sub_class=sub_class, sub_score=sub_score)
    found = unpack(pack(replace(FRAME, objects=(wrong, PERSON))))
    assert (found.objects, found.dropped) == ((without, PERSON), 1)
    content = CONTENT["objects"][0] | {"sub_class": sub_class, "sub_score": sub_score}
    found = unpack(msgpack.packb(CONTENT | {"objects": [content]}))
    assert (found.objects, found.dropped) == ((without,), 1)


def test_an_object_without_a_second_class_is_packed_as_before() -> None:
    plain = replace(PERSON, sub_class=None, sub_score=None)
    (content,) = msgpack.unpackb(pack(replace(FRAME, objects=(plain,))))["objects"]
    assert set(content) == {"xyxy", "class", "score", "track", "age_ms", "angles"}


def test_fields_of_a_later_version_are_ignored() -> None:
    added = CONTENT | {"masks": [1], "objects": [CONTENT["objects"][0] | {"speed": 3.5}]}
    assert unpack(msgpack.packb(added)) == FRAME


def test_the_page_on_the_format_names_every_field() -> None:
    text = (ROOT / "docs" / "detections.md").read_text()
    for name in (*CONTENT, *CONTENT["objects"][0], *CONTENT["tiles"][0]):
        assert f"| `{name}` |" in text, name


def test_too_many_objects_are_malformed() -> None:
    unpack(pack(replace(FRAME, objects=(PERSON,) * MAX_DETECTIONS)))
    with pytest.raises(MalformedDetections, match=f"at most {MAX_DETECTIONS} objects"):
        unpack(pack(replace(FRAME, objects=(PERSON,) * (MAX_DETECTIONS + 1))))


def test_a_long_message_is_not_even_read() -> None:
    with pytest.raises(MalformedDetections, match="at most"):
        unpack(bytes(MAX_MESSAGE_BYTES + 1))


def first_from(publisher: DetectionPublisher, subscriber: DetectionSubscriber, detections: Detections) -> Detections:
    """Publish until a message arrives, because a listener misses messages sent before it was connected."""
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


def test_a_detector_that_restarts_is_received_again(stream: str) -> None:
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


def test_an_old_streamer_receives_a_new_detector_and_without_listeners_nothing_is_packed(stream: str) -> None:
    """The streamer is older than version 2: it knows one name of sockets, and one version."""
    context = zmq.Context()
    old = context.socket(zmq.SUB)
    old.subscribe(b"")
    publisher = DetectionPublisher(stream, "detector")
    try:
        old.connect(f"ipc://{companion_path(stream, 'detections.detector.sock')}")
        deadline_s = time.monotonic() + 20
        while not old.poll(50) and time.monotonic() < deadline_s:
            publisher.publish(replace(FRAME, stream=stream))
        version, *_, objects = msgpack.unpackb(old.recv(zmq.NOBLOCK))
        assert (version, objects) == (1, [["person", 0.75, 10.0, 20.0, 30.0, 40.0, 7]])
    finally:
        publisher.close()
        old.close(linger=0)
        context.term()


@pytest.mark.parametrize("left_over", [False, True])
def test_a_new_streamer_receives_an_old_detector(stream: str, left_over: bool) -> None:
    """This also works if the old detector has replaced a new one that was killed and left its socket."""
    new_path = companion_path(stream, "detections2.detector.sock")
    if left_over:
        with socket.socket(socket.AF_UNIX) as killed:
            killed.bind(str(new_path))
    context = zmq.Context()
    old = context.socket(zmq.PUB)
    path = companion_path(stream, "detections.detector.sock")
    old.bind(f"ipc://{path}")
    subscriber = DetectionSubscriber(stream)
    received: list[Detections] = []
    try:
        deadline_s = time.monotonic() + 20
        while not received and time.monotonic() < deadline_s:
            subscriber.look_for_detectors()
            old.send(pack_old(replace(FRAME, stream=stream)))
            received += subscriber.receive(0.05)
        assert [one.track_id for one in received[0].objects] == [7]
    finally:
        subscriber.close()
        old.close(linger=0)
        context.term()
        path.unlink(missing_ok=True)
        new_path.unlink(missing_ok=True)


@pytest.mark.long
def test_a_slow_listener_misses_no_message_that_must_not_be_lost(stream: str) -> None:
    """The messages are larger than the buffers of the sockets, which hold about a hundred of them."""
    count = 200
    stop = threading.Event()
    publisher, subscriber = DetectionPublisher(stream, "detector", stop=stop), DetectionSubscriber(stream)
    sent = replace(FRAME, stream=stream, objects=(PERSON,) * 100)
    gone: list[int] = []

    def publish() -> None:
        for sequence in range(1000, 1000 + count):
            publisher.publish(replace(sent, sequence=sequence))
            gone.append(sequence)

    def stalls() -> bool:
        before = len(gone)
        time.sleep(0.2)
        return len(gone) == before > 0

    with ThreadPoolExecutor(1) as pool:
        try:
            first_from(publisher, subscriber, sent)
            publishing = pool.submit(publish)
            wait_until(stalls, "the sockets are full")
            assert len(gone) < count
            received: list[int] = []
            while not received or received[-1] < 999 + count:
                received += [found.sequence for found in subscriber.receive(PATIENCE_S) if found.sequence >= 1000]
            publishing.result(PATIENCE_S)
            assert received == gone == list(range(1000, 1000 + count))
            gone.clear()
            publishing = pool.submit(publish)
            wait_until(stalls, "the sockets are full again")
            stop.set()
            publishing.result(PATIENCE_S)
        finally:
            stop.set()
            subscriber.close()
            publisher.close()


def test_a_killed_detectors_old_socket_is_not_taken_for_an_old_detector(stream: str) -> None:
    paths = [companion_path(stream, f"{kind}.detector.sock") for kind in ("detections", "detections2")]
    for path in paths:
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(path))
    publisher, subscriber = None, DetectionSubscriber(stream)
    try:
        subscriber.look_for_detectors()
        publisher = DetectionPublisher(stream, "detector")
        received: list[Detections] = []
        deadline_s = time.monotonic() + PATIENCE_S
        while not received and time.monotonic() < deadline_s:
            publisher.publish(replace(FRAME, stream=stream, tracker=7))
            received += subscriber.receive(0.05)
        assert received[0].tracker == 7
    finally:
        subscriber.close()
        if publisher is not None:
            publisher.close()


def test_each_message_of_a_detector_is_received_once(stream: str) -> None:
    publisher, subscriber = DetectionPublisher(stream, "detector"), DetectionSubscriber(stream)
    try:
        sent = replace(FRAME, stream=stream)
        first_from(publisher, subscriber, sent)
        publisher.publish(replace(sent, sequence=99))
        received = [found.sequence for _ in range(5) for found in subscriber.receive(0.05)]
        assert received.count(99) == 1
    finally:
        publisher.close()
        subscriber.close()


def test_bad_boxes_are_counted_and_logged_once(stream: str) -> None:
    publisher = DetectionPublisher(stream, "detector")
    bad = replace(PERSON, x_px=math.nan)
    try:
        with capture_logs() as logs:
            for _ in range(3):
                publisher.publish(replace(FRAME, stream=stream, objects=(bad, PERSON)))
        assert publisher.dropped == 3
        assert [entry["event"] for entry in logs] == ["boxes dropped"]
    finally:
        publisher.close()


def test_only_owner_and_group_may_connect(stream: str) -> None:
    publisher = DetectionPublisher(stream, "detector")
    try:
        assert stat.S_IMODE(publisher.path.stat().st_mode) == 0o660
    finally:
        publisher.close()
    assert not publisher.path.exists()


@pytest.mark.parametrize("strange", [b"junk", pack(replace(FRAME, stream="another"))])
def test_a_message_that_is_not_detections_of_the_stream_is_counted(stream: str, strange: bytes) -> None:
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
