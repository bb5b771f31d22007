"""Frames as objects and back: equal or nearly equal. Damaged or false objects are rejected before they cost memory."""

from __future__ import annotations

import dataclasses
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import lz4.frame
import numpy as np
import numpy.typing as npt
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from services.common.frame_codec import CannotDecode, CannotEncode, check_encodable, decode, encode
from services.common.reference import MAX_OBJECT_BYTES, BadReference, FrameReference
from tests.support import ROOT

ALL = ("png", "jpeg", "raw", "lz4", "zstd")
PLAIN = ("raw", "lz4", "zstd")


def reference_of(pixels: npt.NDArray[Any], encoding: str, **changed: Any) -> FrameReference:
    reference = FrameReference(
        address="frames/roof/1/1-0",
        size_bytes=0,
        sha256="0" * 64,
        stream="roof",
        epoch=1,
        sequence=1,
        captured_ns=0,
        captured_wall_ns=0,
        format=encoding,
        shape=pixels.shape,
        dtype=pixels.dtype.str,
        pixel_format="bgr" if pixels.ndim == 3 else "gray",
    )
    return dataclasses.replace(reference, **changed)


def scene(*shape: int) -> npt.NDArray[np.uint8]:
    """Return a smooth picture with a few edges, as JPEG was made for."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    plane = (100 + 60 * np.sin(x / 9) + 40 * np.cos(y / 7) + 30 * (x > shape[1] // 2)).astype(np.uint8)
    return plane if len(shape) == 2 else np.stack([plane, plane // 2, 255 - plane], axis=-1)


def noise(*shape: int, dtype: str = "|u1") -> npt.NDArray[Any]:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(np.random.default_rng(7).bytes(size), dtype).reshape(shape)


@pytest.mark.parametrize("encoding", ["png", *PLAIN])
@pytest.mark.parametrize("shape", [(48, 64, 3), (48, 64), (1, 1, 3), (1, 1), (7, 501, 3), (333, 2)])
def test_lossless_formats_lose_nothing(encoding: str, shape: tuple[int, ...]) -> None:
    pixels = noise(*shape)
    found = decode(encode(pixels, encoding), reference_of(pixels, encoding))
    assert found.dtype == np.uint8
    assert np.array_equal(found, pixels)


@pytest.mark.parametrize("encoding", PLAIN)
@pytest.mark.parametrize("dtype", ["|u1", "|i1", "<u2", ">u2", "<i4", "<f2", "<f4", ">f8", "<c8", "|b1"])
@pytest.mark.parametrize("shape", [(5,), (3, 4), (3, 4, 2), (2, 1, 3, 1, 2)])
def test_frames_of_any_shape_and_type_can_be_encoded_raw(encoding: str, dtype: str, shape: tuple[int, ...]) -> None:
    pixels = noise(*shape, dtype=dtype) if dtype != "|b1" else noise(*shape) > 100
    found = decode(encode(pixels, encoding), reference_of(pixels, encoding))
    assert found.dtype == pixels.dtype
    assert found.shape == shape
    assert found.tobytes() == pixels.tobytes()


@pytest.mark.parametrize("shape", [(96, 128, 3), (96, 128)])
def test_jpeg_loses_little_and_less_at_a_higher_quality(shape: tuple[int, ...]) -> None:
    pixels = scene(*shape)
    ratios_db, sizes = [], []
    for quality in (30, 90):
        data = encode(pixels, "jpeg", quality)
        ratios_db.append(cv2.PSNR(decode(data, reference_of(pixels, "jpeg")), pixels))
        sizes.append(len(data))
    assert ratios_db[1] > max(34, ratios_db[0])
    assert sizes[0] < sizes[1] < pixels.nbytes


@pytest.mark.parametrize("encoding", ALL)
def test_a_view_with_gaps_is_encoded_as_its_visible_pixels(encoding: str) -> None:
    view = scene(96, 128, 3)[::2, 10:70]
    assert not view.flags.c_contiguous
    whole = np.ascontiguousarray(view)
    assert bytes(encode(view, encoding)) == bytes(encode(whole, encoding))


def test_raw_is_not_copied() -> None:
    pixels = noise(48, 64, 3).copy()
    data = encode(pixels, "raw")
    assert np.shares_memory(np.frombuffer(data, np.uint8), pixels)
    assert np.shares_memory(decode(data, reference_of(pixels, "raw")), pixels)


@pytest.mark.parametrize("encoding", ["jpeg", "png"])
@pytest.mark.parametrize(
    ("shape", "dtype", "pixel_format"),
    [
        ((4, 5, 3), "uint16", "bgr"),
        ((4, 5), "float32", "depth"),
        ((4, 5), "uint8", "bgr"),
        ((4, 5, 1), "uint8", "gray"),
        ((4, 5, 4), "uint8", "bgra"),
        ((4, 5, 3), "uint8", "rgb"),
    ],
)
def test_a_frame_that_a_format_cannot_hold_is_rejected_with_the_setting(
    encoding: str, shape: tuple[int, ...], dtype: str, pixel_format: str
) -> None:
    with pytest.raises(CannotEncode, match=r"set relay\.encoding to raw, lz4 or zstd"):
        check_encodable(shape, np.dtype(dtype), pixel_format, encoding)
    for plain in PLAIN:
        check_encodable(shape, np.dtype(dtype), pixel_format, plain)


@pytest.mark.parametrize(("shape", "pixel_format"), [((4, 5, 3), "bgr"), ((4, 5), "gray")])
def test_bgr_and_gray_fit_every_format(shape: tuple[int, ...], pixel_format: str) -> None:
    for encoding in ALL:
        check_encodable(shape, np.dtype("uint8"), pixel_format, encoding)


def test_a_frame_too_wide_for_jpeg_is_rejected() -> None:
    with pytest.raises(CannotEncode, match="OpenCV cannot write jpeg"):
        encode(np.zeros((1, 70_000), np.uint8), "jpeg")


@pytest.mark.parametrize("encoding", ALL)
@pytest.mark.parametrize("shape", [(47, 64, 3), (48, 65, 3), (49, 64, 3), (48, 64, 3, 2)])
def test_an_object_of_another_shape_is_rejected(encoding: str, shape: tuple[int, ...]) -> None:
    pixels = scene(48, 64, 3)
    with pytest.raises(CannotDecode, match="reference"):
        decode(encode(pixels, encoding), reference_of(pixels, encoding, shape=shape))


@pytest.mark.parametrize("encoding", ["png", "jpeg"])
def test_a_picture_of_another_type_is_rejected(encoding: str) -> None:
    pixels = scene(48, 64, 3)
    with pytest.raises(CannotDecode, match="float32"):
        decode(encode(pixels, encoding), reference_of(pixels, encoding, dtype="<f4"))


@pytest.mark.parametrize("encoding", ["png", "raw", "lz4", "zstd"])
@pytest.mark.parametrize("kept", [0, 1, 20, -9])
def test_a_truncated_object_is_rejected(encoding: str, kept: int) -> None:
    pixels = noise(48, 64, 3)
    with pytest.raises(CannotDecode):
        decode(encode(pixels, encoding)[:kept], reference_of(pixels, encoding))


@pytest.mark.parametrize("suffix", [".webp", ".bmp", ".tiff", ".png", ".jpg"])
@pytest.mark.parametrize("encoding", ["png", "jpeg"])
def test_a_picture_of_another_format_is_rejected(encoding: str, suffix: str) -> None:
    if suffix == {"png": ".png", "jpeg": ".jpg"}[encoding]:
        return
    pixels = scene(48, 64, 3)
    with pytest.raises(CannotDecode, match=f"not a whole {encoding}"):
        decode(cv2.imencode(suffix, pixels)[1].tobytes(), reference_of(pixels, encoding))


@pytest.mark.parametrize("encoding", ALL)
@given(st.data())
def test_damage_gives_the_right_error_or_pixels_of_the_right_shape(encoding: str, data: st.DataObject) -> None:
    pixels = scene(9, 14, 3)
    damaged = bytearray(encode(pixels, encoding))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    found, refusal = None, ""
    try:
        found = decode(bytes(damaged), reference_of(pixels, encoding))
    except CannotDecode as error:
        refusal = str(error)
    assert "\n" not in refusal
    assert found is None or found.shape == pixels.shape


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def huge_png(side_px: int) -> bytes:
    header = struct.pack(">IIBBBBB", side_px, side_px, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def huge_jpeg() -> bytes:
    data = bytearray(encode(scene(48, 64, 3), "jpeg"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = b"\xff\xdc\xff\xdc"
    return bytes(data)


BOMBS: dict[str, Callable[[], bytes]] = {
    "png": lambda: huge_png(20_000),
    "jpeg": huge_jpeg,
    "lz4": lambda: bytes(lz4.frame.compress(bytes(200 << 20))),
    "zstd": lambda: zstandard.compress(bytes(200 << 20)),
}


@pytest.mark.slow
def test_small_objects_that_claim_to_be_huge_take_no_memory(tmp_path: Path) -> None:
    for encoding, bomb in BOMBS.items():
        (tmp_path / encoding).write_bytes(bomb())
    # Linux counts the peak memory of a process. A child starts its own count.
    measure = f"""
import pathlib, resource
from services.common.frame_codec import CannotDecode, decode
from tests.services.common.test_frame_codec import reference_of, scene
for encoding in {tuple(BOMBS)}:
    data, reference = pathlib.Path({str(tmp_path)!r}, encoding).read_bytes(), reference_of(scene(48, 64, 3), encoding)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        decode(data, reference)
    except CannotDecode:
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    answer = subprocess.run([sys.executable, "-c", measure], capture_output=True, check=True, cwd=ROOT)
    taken_kb = [int(number) for number in answer.stdout.split()]
    assert len(taken_kb) == len(BOMBS)
    assert max(taken_kb) < 40_000


def test_a_reference_to_more_pixels_than_allowed_is_rejected() -> None:
    pixels = scene(48, 64, 3)
    for encoding in ALL:
        with pytest.raises(BadReference, match="at most"):
            decode(b"", reference_of(pixels, encoding, shape=(MAX_OBJECT_BYTES // 2, 3)))
