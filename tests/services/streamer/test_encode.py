"""Half-size pictures: exact averages, 4:2:0, one buffer."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from services.streamer.encode import PictureEncoder, UnsupportedFrame


def textured(height: int, width: int, channels: int = 3) -> NDArray[np.uint8]:
    generator = np.random.default_rng(5)
    coarse = generator.integers(0, 256, (height // 16 + 1, width // 16 + 1, channels)).astype(np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    return smooth.reshape(height, width, channels).astype(np.uint8)


@pytest.mark.parametrize(("height", "width", "channels"), [(688, 4896, 3), (64, 512, 3), (65, 513, 3), (10, 6, 1)])
def test_shrinking_averages_two_by_two_pixels(height: int, width: int, channels: int) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (height, width, channels)).astype(np.uint8)
    small = PictureEncoder(80).shrink(pixels, "bgr" if channels == 3 else "gray")
    even = pixels[: height // 2 * 2, : width // 2 * 2].astype(np.float64)
    mean = even.reshape(height // 2, 2, width // 2, 2, channels).mean((1, 3))
    assert small.shape == mean.shape
    assert np.abs(small - mean).max() <= 0.5


def test_read_only_pixels_are_accepted_and_the_buffer_is_reused() -> None:
    pixels = textured(64, 512)
    pixels.flags.writeable = False
    encoder = PictureEncoder(80)
    assert encoder.shrink(pixels).ctypes.data == encoder.shrink(pixels).ctypes.data


def test_the_picture_is_a_baseline_jpeg_with_halved_chroma_that_looks_like_the_frame() -> None:
    encoder = PictureEncoder(80)
    small = encoder.shrink(textured(688, 4896))
    jpeg = encoder.encode(small)
    start = jpeg.index(b"\xff\xc0")  # SOF0: length, precision, height, width, components, then id, sampling, table
    assert int.from_bytes(jpeg[start + 5 : start + 7], "big") == 344
    assert int.from_bytes(jpeg[start + 7 : start + 9], "big") == 2448
    assert [jpeg[start + 11 + 3 * component] for component in range(3)] == [0x22, 0x11, 0x11]
    back = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert back is not None
    assert cv2.PSNR(back, small) > 30


def test_a_better_quality_makes_a_larger_file() -> None:
    pixels = textured(128, 1024)
    sizes = [len(encoder.encode(encoder.shrink(pixels))) for encoder in map(PictureEncoder, (30, 60, 90))]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]


@pytest.mark.parametrize(
    ("pixels", "pixel_format"),
    [
        (np.zeros((4, 4, 3), np.uint16), "bgr"),
        (np.zeros((4, 4, 4), np.uint8), "bgr"),
        (np.zeros((4, 4, 3), np.uint8), "rgb"),
        (np.zeros((4, 4, 3), np.uint8), "gray"),
        (np.zeros((4, 4), np.uint8), "gray"),
        (np.zeros((1, 4, 3), np.uint8), "bgr"),
    ],
)
def test_a_frame_that_cannot_be_shown_is_rejected_in_one_sentence(pixels: NDArray[np.uint8], pixel_format: str) -> None:
    with pytest.raises(UnsupportedFrame, match="shown"):
        PictureEncoder(80).shrink(pixels, pixel_format)


def test_a_picture_too_large_for_jpeg_is_rejected_in_one_sentence() -> None:
    encoder = PictureEncoder(80)
    with pytest.raises(UnsupportedFrame, match="70000x1 has no JPEG"):
        encoder.encode(encoder.shrink(np.zeros((2, 140000, 3), np.uint8)))
