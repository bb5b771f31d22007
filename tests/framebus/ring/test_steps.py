"""What the steps of a hand-over give out of a slot, compiled and in Python; and that both mean the same bytes."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from framebus.ring.admission import RecordFile, new_record, read_records
from framebus.ring.frame_header import DTYPES, Description
from framebus.ring.layout import Geometry
from framebus.ring.message import Message, send_all
from framebus.ring.publisher_ring import PublisherRing
from framebus.ring.subscriber_ring import SubscriberRing

SHAPE = (2, 3, 4)


@pytest.fixture
def publisher(stream: str) -> Iterator[PublisherRing]:
    opened = PublisherRing(stream, Geometry.for_frames(4, 24 * 8))
    yield opened
    opened.close(unlink=True)


def publish(publisher: PublisherRing, typestr: str) -> None:
    claimed = publisher.writer.claim(Description(*SHAPE, typestr, "bgr").pack())
    assert claimed is not None
    publisher.writer.publish(claimed, 10, 20)


@pytest.mark.usefixtures("each_steps")
@pytest.mark.parametrize("typestr", DTYPES)
def test_a_lease_is_a_read_only_array_of_any_element_type(stream: str, publisher: PublisherRing, typestr: str) -> None:
    publish(publisher, typestr)
    lease = SubscriberRing(stream).reader.take()
    assert lease is not None
    pixels = np.asarray(lease)
    assert (pixels.shape, pixels.dtype.str, pixels.flags.writeable) == (SHAPE, typestr, False)
    offset = publisher.geometry.pixels(lease.slot)
    assert pixels.ctypes.data == lease.reader.segment.address + offset
    publisher.segment.buffer[offset : offset + pixels.nbytes] = bytes(range(pixels.nbytes))
    assert pixels.tobytes() == bytes(range(pixels.nbytes))


@pytest.mark.usefixtures("each_steps")
def test_a_warm_up_holds_no_slot(stream: str, publisher: PublisherRing) -> None:
    publish(publisher, "|u1")
    subscriber = SubscriberRing(stream)
    lease = subscriber.reader.warm_up()
    assert lease is not None
    assert np.asarray(lease).shape == SHAPE
    assert subscriber.reader.leases == 0
    assert subscriber.reader.take() is not None


@pytest.mark.usefixtures("compiled_steps")
def test_the_compiled_lease_has_no_pixels_before_its_header_nor_beyond_its_slot(
    stream: str, publisher: PublisherRing
) -> None:
    from framebus.ring import _ring_c  # noqa: PLC0415  it may not be there

    publish(publisher, "|u1")
    ring = SubscriberRing(stream)
    sizes = ring.geometry.slots, ring.geometry.slot_bytes, ring.geometry.first_slot
    lease = _ring_c.Reader(ring.segment, *sizes, every=False, history=0).take()
    assert lease is not None
    header = lease.header
    del lease.header
    with pytest.raises(BufferError):
        memoryview(lease)
    lease.header = header._replace(shape=(header.height * 1_000_000, *header.shape[1:]))
    with pytest.raises(BufferError):
        memoryview(lease)
    lease.header = header
    assert memoryview(lease).readonly


@pytest.mark.usefixtures("each_steps")
def test_a_reader_reports_what_it_took_and_continues_counting_in_another_ring(
    stream: str, publisher: PublisherRing
) -> None:
    record = RecordFile(stream, new_record("reader", "newest", "futex", 2))
    first = SubscriberRing(stream).reader
    first.report_to(record.segment)
    leases = []
    for frames in (1, 3):
        for _ in range(frames):
            publish(publisher, "|u1")
        leases.append(first.take())
    assert [lease and lease.skipped for lease in leases] == [0, 2]
    ((_, told, _),) = read_records(stream)
    assert told is not None
    assert (told.received, told.skipped, told.sequence, told.leases) == (2, 2, 4, 2)
    assert told.latency_ns == told.received_ns - 10
    second = SubscriberRing(stream).reader
    second.resume_from(first, 4)
    second.report_to(record.segment)
    assert (second.received, second.skipped, second.overruns, second.rejected, second.last) == (2, 2, 0, 0, 3)
    lease = second.take()
    assert lease is not None
    assert (lease.sequence, lease.skipped, second.received) == (4, 0, 3)
    ((_, told, _),) = read_records(stream)
    assert told is not None
    assert (told.received, told.leases) == (3, 1)
    record.remove()


@pytest.fixture
def pairs() -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    opened = [socket.socketpair() for _ in range(3)]
    yield opened
    for ours, theirs in opened:
        ours.close()
        theirs.close()


@pytest.mark.usefixtures("each_steps")
def test_a_notification_goes_to_all_whole_or_not_at_all(
    publisher: PublisherRing, pairs: list[tuple[socket.socket, socket.socket]]
) -> None:
    (full, asleep), (gone, nobody), (open_, reader) = pairs  # all of which would wait
    with contextlib.suppress(BlockingIOError):
        while True:
            full.send(b"x" * 1000, socket.MSG_DONTWAIT)
    nobody.close()
    message = Message(b"before" + bytes(8) + b"?s" + b"between" + bytes(8) + b"?" + bytes(8), 6, 15, 23, 32)
    for sequence in (1, 2):
        claimed = publisher.writer.claim(Description(*SHAPE, "|u1", "bgr").pack())
        assert claimed is not None
        published_ns = publisher.writer.publish(claimed, -10, 20, [full, gone, open_], message)
        assert reader.recv(100) == struct.pack(
            ">6sQcB7sqcq", b"before", sequence, b"?", claimed.slot, b"between", -10, b"?", published_ns
        )
    full.close()
    while received := asleep.recv(1 << 20):
        assert set(received) == set(b"x")


def test_a_peer_that_accepts_a_part_of_a_message_is_cut_off(
    pairs: list[tuple[socket.socket, socket.socket]],
) -> None:
    ours, theirs = pairs[0]
    send_all([ours], b"long" * 1_000_000)
    received = b""
    while chunk := theirs.recv(1 << 20):
        received += chunk
    assert 0 < len(received) < 4_000_000


@pytest.mark.usefixtures("each_steps")
@pytest.mark.parametrize(
    ("size", "offsets"),
    [
        (258, (0, 8, 9, 17)),
        (0, (0, 0, 0, 0)),
        (24, (0, 8, 9, 17)),
        (25, (18, 8, 9, 17)),
        (25, (0, 25, 9, 17)),
        (25, (0, 8, 18, 17)),
        (25, (0, 8, 9, 18)),
        (25, (-1, 8, 9, 17)),
        (25, (0, -1, 9, 17)),
        (40, (0, 8, 1 << 40, 17)),
    ],
)
def test_a_publication_checks_its_message_before_anything_is_written(
    publisher: PublisherRing, size: int, offsets: tuple[int, int, int, int]
) -> None:
    message = Message(bytes(size), *offsets)
    claimed = publisher.writer.claim(Description(*SHAPE, "|u1", "bgr").pack())
    assert claimed is not None
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with pytest.raises(ValueError, match="message"):
            publisher.writer.publish(claimed, 10, 20, [ours], message)
        assert publisher.writer.next_sequence == 1
        publisher.writer.publish(claimed, 10, 20, (), message)
        claimed = publisher.writer.claim(Description(*SHAPE, "|u1", "bgr").pack())
        assert claimed is not None
        publisher.writer.publish(claimed, 10, 20, [ours], Message(bytes(25), 0, 8, 9, 17))
        assert len(theirs.recv(100)) == 25
    wrong: list[tuple[Any, ...]] = [
        (None, message),
        ([ours], None),
        ([ours], (b"", 0)),
        ([ours], (b"", 0, 0, 0, "")),
        ([ours], (None, 0, 0, 0, 0)),
        ([ours],),
    ]
    for audience in wrong:
        with pytest.raises(TypeError):
            publisher.writer.publish(claimed, 10, 20, *audience)
    assert publisher.writer.next_sequence == 3


@pytest.mark.usefixtures("compiled_steps")
def test_an_object_that_is_not_a_socket_does_not_prevent_other_notifications(publisher: PublisherRing) -> None:
    claimed = publisher.writer.claim(Description(*SHAPE, "|u1", "bgr").pack())
    assert claimed is not None
    ours, theirs = socket.socketpair()
    with ours, theirs:
        publisher.writer.publish(claimed, 10, 20, [None, ours], Message(bytes(25), 0, 8, 9, 17))  # type: ignore[list-item]
        assert len(theirs.recv(100)) == 25
