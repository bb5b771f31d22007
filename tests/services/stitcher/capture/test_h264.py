from __future__ import annotations

import random
from pathlib import Path

import pytest

from services.stitcher.capture.h264 import FrameNumbers
from tests.services.stitcher.faulty import Units, encode_units


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Units:
    return encode_units(tmp_path_factory.mktemp("plain") / "clip.ts", count=200, gop=50)


@pytest.mark.parametrize("b_frames", [0, 3])
def test_nothing_is_missing_in_a_whole_stream(tmp_path: Path, b_frames: int) -> None:
    units = encode_units(tmp_path / "clip.ts", count=200, gop=50, b_frames=b_frames)
    numbers = FrameNumbers()
    assert not any(numbers.misses(packet) for packet in units.packets)


def test_frame_numbers_of_another_kind_are_ignored(plain: Units) -> None:
    numbers = FrameNumbers()
    seen = [numbers.misses(packet) for packet in plain.packets[::4] * 4]
    assert any(seen)
    assert not any(seen[60:])


def test_a_missing_picture_is_seen_at_the_next_one_and_only_there(plain: Units) -> None:
    numbers = FrameNumbers()
    lost = {30, 77, 78, 120}
    seen = [i for i, packet in enumerate(plain.packets) if i not in lost and numbers.misses(packet)]
    assert seen == [31, 79, 121]


def test_the_last_picture_before_a_key_frame_is_not_missed(plain: Units) -> None:
    numbers = FrameNumbers()
    assert not any(numbers.misses(packet) for i, packet in enumerate(plain.packets) if i != 49)


def test_a_stream_joined_anywhere_misses_nothing(plain: Units) -> None:
    numbers = FrameNumbers()
    assert not any(numbers.misses(packet) for packet in plain.packets[17:])


def test_other_bytes_raise_no_error() -> None:
    chance, numbers = random.Random(1), FrameNumbers()
    for _ in range(2000):
        data = bytearray(chance.randbytes(chance.randrange(60)))
        if data:
            data[:4] = b"\x00\x00\x01" + bytes([chance.choice([0x67, 0x65, 0x41, 0x01, 0x09])])
        assert numbers.misses(bytes(data)) in (True, False)
