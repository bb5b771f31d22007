from __future__ import annotations

import av
import cv2
import numpy as np
import numpy.typing as npt
import pytest

from services.stitcher.rendering.colour import PLAIN, conversion
from services.stitcher.rendering.convert import Converter, Image, Planes
from services.stitcher.rendering.warp import Warp

HEIGHT, WIDTH = 90, 130
BGR = np.array([(30, 60, 220), (200, 150, 20), (40, 190, 60), (128, 128, 128), (235, 235, 235)], np.uint8)
UNSPECIFIED, BT601, BT709, BT2020 = 2, 6, 1, 9
UNTAGGED, LIMITED, FULL = 0, 1, 2
SHARES = {UNSPECIFIED: (0.299, 0.114), BT601: (0.299, 0.114), BT709: (0.2126, 0.0722), BT2020: (0.2627, 0.0593)}
"""Of red and blue in the luma, from the recommendations."""
STEPS = {"420": (2, 2), "422": (1, 2), "444": (1, 1), "nv12": (2, 2), "gray": (2, 2)}
ONES = np.ones(3)


def stripes() -> Image:
    return np.broadcast_to(np.repeat(BGR, WIDTH // len(BGR), axis=0), (HEIGHT, WIDTH, 3)).copy()


def chart(pixel_format: str, matrix: int = BT601, color_range: int = LIMITED) -> av.VideoFrame:
    """Return the stripes as a perfect encoder would give them."""
    red, blue = SHARES[matrix]
    bits = 10 if "10le" in pixel_format else 8
    is_full = color_range == FULL or "yuvj" in pixel_format or pixel_format == "gray"
    step = next(step for name, step in STEPS.items() if name in pixel_format)
    b, g, r = np.moveaxis(stripes().astype(np.float64), -1, 0)
    luma = red * r + (1 - red - blue) * g + blue * b
    largest = 2**bits - 1
    one = 2 ** (bits - 8)
    scale, chroma_scale, black = (
        (largest / 255,) * 2 + (0,) if is_full else (one * 219 / 255, one * 224 / 255, 16 * one)
    )
    planes = [black + luma * scale]
    for colour, share in ((b, blue), (r, red)):
        planes.append((128 * one + (colour - luma) / 2 / (1 - share) * chroma_scale)[:: step[0], :: step[1]])
    if pixel_format == "nv12":
        planes = [planes[0], np.stack(planes[1:], axis=-1).reshape(planes[1].shape[0], -1)]
    elif pixel_format == "gray":
        planes = planes[:1]
    made = av.VideoFrame(WIDTH, HEIGHT, pixel_format)
    for plane, values in zip(made.planes, planes, strict=True):
        whole = np.rint(values).clip(0, largest).astype(np.uint16 if bits > 8 else np.uint8)
        padded = np.zeros((plane.height, plane.line_size), np.uint8)
        padded[:, : whole.shape[1] * whole.itemsize] = whole.view(np.uint8)
        plane.update(padded.tobytes())
    made.colorspace, made.color_range = matrix, color_range
    return made


def convert(picture: Planes, gains: npt.NDArray[np.float64] = ONES) -> Image:
    """Return the converted picture."""
    height, width = picture.y.shape
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    out = np.zeros((height, width, 3), np.uint8)
    Warp(x, y).fill(picture, [(slice(0, width), out)], conversion(picture.matrix, picture.is_full_range, gains))
    return out


def middles(picture: Image) -> npt.NDArray[np.int_]:
    columns = np.arange(len(BGR)) * (WIDTH // len(BGR)) + WIDTH // len(BGR) // 2
    return np.asarray(picture[HEIGHT // 2, columns], int)


@pytest.mark.parametrize(
    ("pixel_format", "matrix", "color_range"),
    [
        ("yuv420p", BT601, LIMITED),
        ("yuv420p", UNSPECIFIED, UNTAGGED),
        ("yuv420p", BT709, LIMITED),
        ("yuv420p", BT709, FULL),
        ("yuv420p", BT601, FULL),
        ("yuv420p", BT2020, LIMITED),
        ("yuvj420p", BT601, FULL),
        ("yuvj420p", UNSPECIFIED, UNTAGGED),
        ("nv12", BT601, LIMITED),
        ("nv12", BT709, LIMITED),
        ("yuv422p", BT601, LIMITED),
        ("yuv422p10le", BT709, LIMITED),
        ("yuv444p", BT709, LIMITED),
        ("yuv420p10le", BT709, LIMITED),
        ("yuv420p10le", BT709, FULL),
    ],
)
def test_every_format_gives_the_same_colours(pixel_format: str, matrix: int, color_range: int) -> None:
    out = convert(Converter().planes(chart(pixel_format, matrix, color_range), WIDTH, HEIGHT))
    np.testing.assert_allclose(middles(out), BGR.astype(int), atol=2)


@pytest.mark.parametrize("color_range", [UNTAGGED, LIMITED, FULL])
def test_a_grey_format_gives_grey(color_range: int) -> None:
    out = convert(Converter().planes(chart("gray", BT601, color_range), WIDTH, HEIGHT))
    grey = np.rint(BGR @ np.array([0.114, 0.587, 0.299])).astype(int)
    np.testing.assert_allclose(middles(out), grey[:, None].repeat(3, axis=1), atol=2)


@pytest.mark.parametrize("pixel_format", ["rgb24", "gbrp", "yuv410p", "nv16"])
def test_rare_formats_are_converted_by_ffmpeg(pixel_format: str) -> None:
    made = av.VideoFrame.from_ndarray(stripes(), format="bgr24").reformat(format=pixel_format)
    np.testing.assert_allclose(middles(convert(Converter().planes(made, WIDTH, HEIGHT))), BGR.astype(int), atol=6)


@pytest.mark.parametrize(("matrix", "color_range"), [(BT601, LIMITED), (BT601, FULL), (BT709, LIMITED), (BT709, FULL)])
@pytest.mark.parametrize("gains", [(0.8, 0.8, 0.8), (1.0, 1.05, 0.9)])
def test_gains_multiply_the_colours(matrix: int, color_range: int, gains: tuple[float, float, float]) -> None:
    picture = Converter().planes(chart("yuv420p", matrix, color_range), WIDTH, HEIGHT)
    out = convert(picture, np.array(gains))
    np.testing.assert_allclose(middles(out), (BGR * np.array(gains)).clip(0, 255), atol=2.5)


def test_the_usual_format_needs_no_extra_pass() -> None:
    assert conversion(BT601, False, ONES) is PLAIN
    assert conversion(BT601, True, ONES).whole is None, "full range is two factors"
    assert conversion(BT601, False, np.full(3, 1.2)).whole is None, "and so is a gain of all colours"


def in_floating_point(picture: Planes, matrix: int, is_full_range: bool) -> npt.NDArray[np.float64]:
    """Return the picture of the planes, with colours interpolated for each pixel."""
    red, blue = SHARES[matrix]
    luma_scale, chroma_scale, black = (1, 1, 0) if is_full_range else (255 / 219, 255 / 224, 16)
    y = (picture.y.astype(np.float64) - black) * luma_scale
    height, width = y.shape
    across, down = np.meshgrid(np.arange(width) / 2, np.arange(height) / 2 - 0.25)
    maps = across.astype(np.float32), down.astype(np.float32)
    u, v = (
        (cv2.remap(plane.astype(np.float32), *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE) - 128.0)
        * chroma_scale
        for plane in (picture.u, picture.v)
    )
    b, r = y + 2 * (1 - blue) * u, y + 2 * (1 - red) * v
    return np.stack([b, (y - blue * b - red * r) / (1 - blue - red), r], axis=-1).clip(0, 255)


@pytest.mark.parametrize("gain", [1.0, 0.9])
@pytest.mark.parametrize(("matrix", "color_range"), [(BT601, LIMITED), (BT601, FULL), (BT709, LIMITED), (BT709, FULL)])
def test_a_picture_is_converted_nearly_as_in_floating_point(matrix: int, color_range: int, gain: float) -> None:
    """This holds although two by two pixels share a sample of colour, and values are rounded to 8 bits twice."""
    random = np.random.default_rng(3)
    colours = cv2.resize(random.integers(70, 186, (6, 10, 3), np.uint8), (640, 368), interpolation=cv2.INTER_CUBIC)
    detail = cv2.GaussianBlur(random.standard_normal((368, 640)).astype(np.float32), (0, 0), 1) * 60
    truth = (colours + detail[..., None]).clip(0, 255).astype(np.uint8)
    frame = av.VideoFrame.from_ndarray(truth, format="bgr24").reformat(
        format="yuv420p",
        dst_colorspace="ITU709" if matrix == BT709 else "ITU601",
        dst_color_range="JPEG" if color_range == FULL else "MPEG",
    )
    frame.colorspace, frame.color_range = matrix, color_range
    picture = Converter().planes(frame, 640, 368)
    ideal = in_floating_point(picture, matrix, color_range == FULL) * gain
    out = convert(picture, np.full(3, gain))
    assert np.sqrt(np.mean((out - ideal) ** 2)) < 1.3, "levels"


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuvj420p", "yuv422p10le"])
def test_another_size_is_scaled(pixel_format: str) -> None:
    converter = Converter()
    assert converter.planes(chart(pixel_format), 64, 48).y.shape == (48, 64)
    assert converter.planes(chart(pixel_format), WIDTH, HEIGHT).y.shape == (HEIGHT, WIDTH)


def test_the_last_column_and_row_of_an_odd_size_have_their_colours() -> None:
    frame = av.VideoFrame.from_ndarray(stripes(), format="bgr24")
    converted = Converter().planes(frame, 65, 47)
    assert (converted.y.shape, converted.u.shape) == ((47, 65), (24, 33))


def address(plane: Image) -> int:
    return int(plane.__array_interface__["data"][0])


@pytest.mark.parametrize(
    ("pixel_format", "matrix", "color_range"),
    [("yuv420p", BT601, LIMITED), ("yuv420p", BT709, FULL), ("yuvj420p", BT601, FULL), ("yuv422p", BT709, LIMITED)],
)
def test_planes_are_not_copied_and_outlive_the_frame(pixel_format: str, matrix: int, color_range: int) -> None:
    plain = chart(pixel_format, matrix, color_range)
    converted = Converter().planes(plain, WIDTH, HEIGHT)
    views = (converted.y, converted.u, converted.v)
    assert [address(view) for view in views] == [plane.buffer_ptr for plane in plain.planes]
    before = converted.y.copy()
    del plain
    others = [chart("yuv420p", color_range=FULL) for _ in range(3)]
    np.testing.assert_array_equal(converted.y, before)
    assert len(others) == 3


@pytest.mark.parametrize("pixel_format", ["yuv420p10le", "nv12"])
def test_the_same_frame_is_not_converted_again(pixel_format: str) -> None:
    converter = Converter()
    one, other = chart(pixel_format), chart(pixel_format)
    first = converter.planes(one, WIDTH, HEIGHT)
    assert converter.planes(one, WIDTH, HEIGHT) is first
    assert converter.planes(other, WIDTH, HEIGHT) is not first
