"""The size of a picture from its header: equal to OpenCV's for its pictures, and None for anything else."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.common.picture_header import picture_size


def written(suffix: str, *options: int, height_px: int = 3, width_px: int = 700, channels: int = 3) -> bytes:
    pixels = np.full((height_px, width_px, channels), 200, np.uint8)
    return cv2.imencode(suffix, pixels, list(options))[1].tobytes()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("encoding", "options"),
    [
        ("png", ()),
        ("jpeg", ()),
        ("jpeg", (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)),
        ("jpeg", (cv2.IMWRITE_JPEG_RST_INTERVAL, 1)),
    ],
)
def test_height_and_width_are_those_of_the_picture(encoding: str, options: tuple[int, ...], channels: int) -> None:
    data = written("." + encoding.replace("jpeg", "jpg"), *options, channels=channels)
    assert picture_size(memoryview(data), encoding) == (3, 700)


def test_segments_before_the_frame_header_of_a_jpeg_are_skipped() -> None:
    data = written(".jpg")
    comment = b"\xff\xfe\x00\x06abcd"
    assert picture_size(memoryview(data[:2] + comment + b"\xff\xff\xff" + data[3:]), "jpeg") == (3, 700)


@pytest.mark.parametrize("chunk", [b"IHDR", b"IDAT", b"IEND"])
@pytest.mark.parametrize("length", [0x7FFF_FFFF, 0x0100_0000, 100_000])
def test_a_png_whose_chunk_claims_more_than_there_is_has_no_size(chunk: bytes, length: int) -> None:
    data = bytearray(written(".png"))
    at = data.index(chunk) - 4
    data[at : at + 4] = length.to_bytes(4, "big")
    assert picture_size(memoryview(data), "png") is None


@pytest.mark.parametrize("left_out", [1, 12, 13, 40])
def test_a_png_that_is_cut_off_has_no_size(left_out: int) -> None:
    assert picture_size(memoryview(written(".png")[:-left_out]), "png") is None


@pytest.mark.parametrize("suffix", [".webp", ".bmp", ".tiff"])
def test_unknown_pictures_have_no_size(suffix: str) -> None:
    data = memoryview(written(suffix))
    assert picture_size(data, "png") is None
    assert picture_size(data, "jpeg") is None


@given(st.sampled_from(["png", "jpeg"]), st.binary(max_size=64), st.integers(0, 64))
@example("jpeg", b"\xff\xd8" + b"\xff" * 40, 0)
@example("jpeg", b"\xff\xd8\xff\xe0\x00\x00" * 8, 0)
def test_arbitrary_data_raises_no_error(encoding: str, data: bytes, kept: int) -> None:
    whole = written("." + encoding.replace("jpeg", "jpg"))
    for content in (data, whole[:kept] + data):
        size = picture_size(memoryview(content), encoding)
        assert size is None or all(0 <= side < 1 << 32 for side in size)
