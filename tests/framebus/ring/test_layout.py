"""The byte map: geometry, and headers that survive a round trip or are refused. test_spec.py has its tables."""

from __future__ import annotations

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framebus.errors import InvalidName, LayoutMismatch
from framebus.ring import frame_header, layout, record
from framebus.ring.frame_header import FrameHeader
from framebus.ring.layout import Geometry, RingHeader
from framebus.ring.record import SubscriberRecord
from framebus.shm.paths import check_name


def test_words_lie_on_cache_lines_of_their_own() -> None:
    assert len({offset // 64 for offset in (0, layout.TAIL, layout.EVENT, layout.STATE)}) == 4
    assert layout.SLOT_HEADER_BYTES % 64 == 0


@given(slots=st.integers(3, 255), frame_bytes=st.integers(1, 60_000_000))
def test_slots_are_whole_pages_and_do_not_overlap(slots: int, frame_bytes: int) -> None:
    geometry = Geometry.for_frames(slots, frame_bytes)
    assert geometry.slot_header(slots - 1) + layout.SLOT_HEADER_BYTES <= geometry.first_slot
    assert geometry.first_slot % layout.PAGE_BYTES == geometry.slot_bytes % layout.PAGE_BYTES == 0
    assert frame_bytes <= geometry.slot_bytes < frame_bytes + layout.PAGE_BYTES
    assert geometry.pixels(slots - 1) + geometry.slot_bytes == geometry.total_bytes


@pytest.mark.parametrize(("slots", "frame_bytes"), [(2, 1), (256, 1), (8, 0), (8, 1 << 60)])
def test_impossible_geometry_is_rejected(slots: int, frame_bytes: int) -> None:
    with pytest.raises(ValueError, match="ring"):
        Geometry.for_frames(slots, frame_bytes)


def test_header_survives_a_round_trip() -> None:
    header = RingHeader(Geometry.for_frames(8, 100), 7, 1 << 52, 3)
    assert RingHeader.unpack(header.pack(), header.geometry.total_bytes) == header


@given(content=st.binary(max_size=200), file_bytes=st.integers(0, 1 << 40))
def test_garbage_is_rejected_as_a_header(content: bytes, file_bytes: int) -> None:
    with pytest.raises(LayoutMismatch):
        RingHeader.unpack(content, file_bytes)


@given(offset=st.integers(0, 23), value=st.integers(0, 255))
def test_header_with_a_changed_byte_is_refused_or_the_same(offset: int, value: int) -> None:
    header = RingHeader(Geometry.for_frames(8, 100), 7, 1 << 52, 3)
    content = bytearray(header.pack())
    unchanged = content[offset] == value
    content[offset] = value
    if unchanged:
        assert RingHeader.unpack(bytes(content), header.geometry.total_bytes) == header
    else:
        with pytest.raises(LayoutMismatch):
            RingHeader.unpack(bytes(content), header.geometry.total_bytes)


def test_another_version_says_what_to_do() -> None:
    header = RingHeader(Geometry.for_frames(8, 100), 1, 1, 1)
    content = bytearray(header.pack())
    struct.pack_into("<I", content, 8, 1)
    with pytest.raises(LayoutMismatch, match="same version of framebus in all containers"):
        RingHeader.unpack(bytes(content), header.geometry.total_bytes)


@given(content=st.binary(min_size=frame_header.SLOT.size, max_size=frame_header.SLOT.size))
def test_garbage_slot_header_is_refused_or_fits(content: bytes) -> None:
    try:
        header = FrameHeader.unpack_from(bytes(layout.SLOT_FIELDS) + content, 0, 4096)
    except LayoutMismatch:
        return
    assert 0 < math.prod(header.shape) * frame_header.DTYPES[header.dtype] <= 4096
    assert header.metadata_bytes <= layout.MAX_METADATA_BYTES


@given(content=st.binary(max_size=300))
def test_garbage_is_rejected_as_a_record(content: bytes) -> None:
    with pytest.raises(LayoutMismatch):
        SubscriberRecord.unpack(content)


def test_record_survives_a_round_trip() -> None:
    told = SubscriberRecord("detector", "newest", "zmq", 2, 5, 1, 2, 3, 4, 5, 6)
    content = told.pack().ljust(record.RECORD_RECEIVED, b"\0") + struct.pack("<6Q", 1, 2, 3, 4, 5, 6)
    assert SubscriberRecord.unpack(content) == told


@pytest.mark.parametrize("name", ["", "a/b", "../x", "a.b", "-a", "é", "a" * 49, "a b", "a\n"])
def test_invalid_stream_names_are_rejected(name: str) -> None:
    with pytest.raises(InvalidName, match="letters, digits"):
        check_name(name)


def test_valid_stream_names_are_accepted() -> None:
    assert [check_name(name) for name in ("a", "Cam-0_x", "9", "a" * 48)]
