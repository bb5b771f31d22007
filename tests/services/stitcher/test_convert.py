from __future__ import annotations

import av
import cv2
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
    converted = Converter().planes(frame(pixel_format, matrix, color_range), WIDTH, HEIGHT)
    assert converted.y.shape == (HEIGHT, WIDTH)
    assert converted.u.shape == converted.v.shape == (HEIGHT // 2, WIDTH // 2)
    bgr = cv2.cvtColorTwoPlane(converted.y, cv2.merge([converted.u, converted.v]), cv2.COLOR_YUV2BGR_NV12)
    middles = np.arange(len(BGR)) * (WIDTH // len(BGR)) + WIDTH // len(BGR) // 2
    np.testing.assert_allclose(bgr[HEIGHT // 2, middles].astype(int), BGR.astype(int), atol=6)


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuvj420p"])
def test_another_size_is_scaled(pixel_format: str) -> None:
    converter = Converter()
    assert converter.planes(frame(pixel_format), 64, 48).y.shape == (48, 64)
    assert converter.planes(frame(pixel_format), WIDTH, HEIGHT).y.shape == (HEIGHT, WIDTH)


def test_an_odd_size_has_its_last_colours() -> None:
    converted = Converter().planes(frame("bgr24"), 65, 47)
    assert (converted.y.shape, converted.u.shape) == ((47, 65), (24, 33))


def address(plane: npt.NDArray[np.uint8]) -> int:
    return int(plane.__array_interface__["data"][0])


def test_plain_planes_are_where_the_decoder_left_them_and_outlive_the_frame() -> None:
    plain = frame("yuv420p")
    converted = Converter().planes(plain, WIDTH, HEIGHT)
    views = (converted.y, converted.u, converted.v)
    assert [address(view) for view in views] == [plane.buffer_ptr for plane in plain.planes]
    before = converted.y.copy()
    del plain
    others = [frame("yuv420p", color_range=FULL) for _ in range(3)]
    np.testing.assert_array_equal(converted.y, before)
    assert len(others) == 3


def test_the_same_frame_is_not_converted_again() -> None:
    converter = Converter()
    one, other = frame("yuv422p"), frame("yuv422p")
    first = converter.planes(one, WIDTH, HEIGHT)
    assert address(converter.planes(one, WIDTH, HEIGHT).y) == address(first.y)
    assert address(converter.planes(other, WIDTH, HEIGHT).y) != address(first.y)
