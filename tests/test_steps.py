"""What the steps of a hand-over give out of a slot, compiled and in Python; and that both mean the same bytes."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import numpy as np
import pytest

from framebus import layout
from framebus.layout import DTYPES, Geometry, describe
from framebus.ring import PublisherRing, SubscriberRing

SHAPE = (2, 3, 4)


@pytest.fixture
def publisher(stream: str) -> Iterator[PublisherRing]:
    opened = PublisherRing(stream, Geometry.for_frames(4, 24 * 8))
    yield opened
    opened.close(unlink=True)


def publish(publisher: PublisherRing, typestr: str) -> None:
    slot = publisher.writer.claim(describe(SHAPE, typestr, "bgr"))
    assert slot is not None
    publisher.writer.publish(slot, 10, 20)


@pytest.mark.usefixtures("compiled_steps")
def test_the_compiled_steps_know_the_same_bytes() -> None:
    native = importlib.import_module("framebus._native")
    names = (
        "TAIL",
        "EVENT",
        "SLOT_TABLE",
        "SLOT_HEADER_BYTES",
        "SLOT_FIELDS",
        "SLOT_DESCRIPTION",
        "MAX_SLOTS",
        "LOCK_SLOTS",
    )
    assert {name: getattr(native, name) for name in names} == {name: getattr(layout, name) for name in names}
    assert native.DESCRIPTION_BYTES == layout.DESCRIPTION.size


@pytest.mark.usefixtures("each_steps")
@pytest.mark.parametrize("typestr", DTYPES)
def test_a_lease_is_a_read_only_array_of_any_element_type(stream: str, publisher: PublisherRing, typestr: str) -> None:
    publish(publisher, typestr)
    lease = SubscriberRing(stream).take()
    assert lease is not None
    pixels = np.asarray(lease)
    assert (pixels.shape, pixels.dtype.str, pixels.flags.writeable) == (SHAPE, typestr, False)
    offset = publisher.geometry.pixels(lease.slot)
    assert pixels.ctypes.data == lease.reader.segment.address + offset
    publisher.segment.buffer[offset : offset + pixels.nbytes] = bytes(range(pixels.nbytes))
    assert pixels.tobytes() == bytes(range(pixels.nbytes))


@pytest.mark.usefixtures("each_steps")
def test_a_rehearsal_holds_no_slot(stream: str, publisher: PublisherRing) -> None:
    publish(publisher, "|u1")
    subscriber = SubscriberRing(stream)
    lease = subscriber.rehearse()
    assert lease is not None
    assert np.asarray(lease).shape == SHAPE
    assert subscriber.reader.leases == 0
    assert subscriber.take() is not None


@pytest.mark.usefixtures("compiled_steps")
def test_the_compiled_lease_has_no_pixels_before_its_header_nor_beyond_its_slot(
    stream: str, publisher: PublisherRing
) -> None:
    publish(publisher, "|u1")
    subscriber = SubscriberRing(stream)
    lease = subscriber.reader.take()
    assert lease is not None
    header = lease.header
    del lease.header
    with pytest.raises(BufferError):
        memoryview(lease)  # type: ignore[arg-type]
    lease.header = header._replace(height=header.height * 1_000_000)
    with pytest.raises(BufferError):
        memoryview(lease)  # type: ignore[arg-type]
    lease.header = header
    assert memoryview(lease).readonly  # type: ignore[arg-type]
