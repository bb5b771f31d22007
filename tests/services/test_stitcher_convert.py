from __future__ import annotations

import av
import numpy as np
import numpy.typing as npt
import pytest

from services.stitcher.convert import Converter

HEIGHT, WIDTH = 90, 130
BGR = np.array([(30, 60, 220), (200, 150, 20), (40, 190, 60), (128, 128, 128), (235, 235, 235)], np.uint8)
BT601, BT709 = 6, 1
LIMITED, FULL = 1, 2


def stripes() -> npt.NDArray[np.uint8]:
    return np.broadcast_to(np.repeat(BGR, WIDTH // len(BGR), axis=0), (HEIGHT, WIDTH, 3)).copy()


def frame(pixel_format: str, matrix: int = BT601, color_range: int = LIMITED) -> av.VideoFrame:
    made = av.VideoFrame.from_ndarray(stripes(), format="bgr24").reformat(
        format=pixel_format,
        dst_colorspace="ITU709" if matrix == BT709 else "ITU601",
        dst_color_range="JPEG" if color_range == FULL else "MPEG",
    )
    made.colorspace, made.color_range = matrix, color_range
    return made


@pytest.mark.parametrize(
    ("pixel_format", "matrix", "color_range"),
    [
        ("yuv420p", BT601, LIMITED),
        ("yuv420p", 2, 0),
        ("yuv420p", BT709, LIMITED),
        ("yuv420p", BT601, FULL),
        ("yuvj420p", BT601, FULL),
        ("nv12", BT601, LIMITED),
        ("yuv422p", BT601, LIMITED),
        ("yuv420p10le", BT709, LIMITED),
    ],
)
def test_every_format_gives_the_same_colours(pixel_format: str, matrix: int, color_range: int) -> None:
    converted = Converter().bgr(frame(pixel_format, matrix, color_range), WIDTH, HEIGHT)
    assert converted.shape == (HEIGHT, WIDTH, 3)
    middles = np.arange(len(BGR)) * (WIDTH // len(BGR)) + WIDTH // len(BGR) // 2
    np.testing.assert_allclose(converted[HEIGHT // 2, middles].astype(int), BGR.astype(int), atol=6)


def test_another_size_is_scaled() -> None:
    converter = Converter()
    assert converter.bgr(frame("yuv420p"), 64, 48).shape == (48, 64, 3)
    assert converter.bgr(frame("yuv420p"), WIDTH, HEIGHT).shape == (HEIGHT, WIDTH, 3)


def test_memory_is_kept_and_the_same_frame_is_not_converted_again() -> None:
    converter = Converter()
    one, other = frame("yuv420p"), frame("yuv420p")
    first = converter.bgr(one, WIDTH, HEIGHT)
    first[0, 0] = 7
    assert converter.bgr(one, WIDTH, HEIGHT)[0, 0, 0] == 7
    assert converter.bgr(other, WIDTH, HEIGHT) is first
    assert first[0, 0, 0] != 7
