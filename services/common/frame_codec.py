"""Encode frames for the storage, and decode them: JPEG, PNG, or the raw pixels, plain or compressed.

| format | loss | frames |
| --- | --- | --- |
| jpeg | lossy | uint8, BGR or grey |
| png | lossless | uint8, BGR or grey |
| raw, lz4, zstd | lossless | any shape and type |

Source: ITU-T T.81 (JPEG), RFC 2083 (PNG), RFC 8878 (Zstandard), "LZ4 Frame Format Description".
"""

from __future__ import annotations

from typing import Any, Final

import cv2
import lz4.frame
import numpy as np
import numpy.typing as npt
import zstandard

from services.common.picture_header import picture_size
from services.common.reference import FrameReference, pixels_bytes

Pixels = npt.NDArray[Any]
_ZSTD_LEVEL: Final = 1


class CannotEncode(ValueError):
    """The frame cannot be encoded in this format; the message says why."""


class CannotDecode(ValueError):
    """The object does not match its reference; the message says why."""


def check_encodable(shape: tuple[int, ...], dtype: np.dtype[Any], pixel_format: str, encoding: str) -> None:
    """Reject frames that a format cannot represent.

    Raises:
        CannotEncode: The frames are not uint8 with one grey or three BGR channels.
    """
    if encoding not in ("jpeg", "png"):
        return
    channels = {"bgr": (3,), "gray": ()}.get(pixel_format)
    if dtype != np.uint8 or shape[2:] != channels:
        raise CannotEncode(
            f"{encoding} holds uint8 frames in bgr or gray, not {dtype} {pixel_format} of shape {shape}: "
            "set relay.encoding to raw, lz4 or zstd"
        )


def encode(pixels: Pixels, encoding: str, quality: int = 90) -> memoryview:
    """Encode a frame's pixels.

    Args:
        pixels: C-contiguous.
        encoding: One of :data:`services.common.reference.FORMATS`. With ``raw``, the result is a view of ``pixels``,
            not a copy.
        quality: JPEG quality, 1 to 100.

    Raises:
        CannotEncode: OpenCV rejects the frame, for example because it is too wide for JPEG.
    """
    data = pixels.reshape(-1).view(np.uint8).data
    if encoding == "raw":
        return data
    if encoding == "lz4":
        return memoryview(lz4.frame.compress(data))
    if encoding == "zstd":
        return memoryview(zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(data))
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if encoding == "jpeg" else [cv2.IMWRITE_PNG_COMPRESSION, 1]
    try:
        written, encoded = cv2.imencode(".jpg" if encoding == "jpeg" else ".png", pixels, options)
    except cv2.error as error:
        raise CannotEncode(f"OpenCV cannot write {encoding} of shape {pixels.shape}: {error.err}") from None
    if not written:
        raise CannotEncode(f"OpenCV cannot write {encoding} of shape {pixels.shape}")
    return encoded.data


def decode(data: bytes | memoryview, reference: FrameReference) -> Pixels:
    """Decode a frame's pixels.

    Raises:
        CannotDecode: The object is damaged, or its shape or type differs from its reference.
        BadReference: The frame exceeds the limit for decoded frames.
    """
    size = pixels_bytes(reference)
    if reference.format in ("jpeg", "png"):
        pixels = _decode_picture(data, reference)
    else:
        plain = np.frombuffer(_decompress(data, reference.format, size), np.uint8)
        if plain.size != size:
            raise CannotDecode(f"the object holds {plain.size} bytes of pixels, and its reference says {size}")
        pixels = plain.view(np.dtype(reference.dtype)).reshape(reference.shape)
    if pixels.shape != reference.shape or pixels.dtype != np.dtype(reference.dtype):
        raise CannotDecode(
            f"the object holds {pixels.dtype} of shape {pixels.shape}, and its reference says "
            f"{np.dtype(reference.dtype)} of shape {reference.shape}"
        )
    return pixels


def _decode_picture(data: bytes | memoryview, reference: FrameReference) -> Pixels:
    # Check the header before decoding, for two reasons: a small file may claim a size of gigabytes, and OpenCV detects
    # the format by content, so that it would also read formats that no relay writes.
    found = picture_size(memoryview(data), reference.format)
    if found is None:
        raise CannotDecode(f"the object is not a whole {reference.format}")
    if found != reference.shape[:2]:
        raise CannotDecode(f"the object is a picture of {found} pixels, and its reference says {reference.shape}")
    # The shape is that of the stored pixels, whatever orientation the file's metadata has.
    flags = cv2.IMREAD_COLOR if len(reference.shape) == 3 else cv2.IMREAD_GRAYSCALE
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise CannotDecode(f"the object is not a whole {reference.format}: {error.err}") from None
    if pixels is None:
        raise CannotDecode(f"the object is not a whole {reference.format}")
    return pixels


def _decompress(data: bytes | memoryview, encoding: str, size: int) -> bytes | memoryview:
    # Ask for one byte more than expected: that detects a longer object, but never decompresses all of it.
    try:
        if encoding == "lz4":
            return bytes(lz4.frame.LZ4FrameDecompressor().decompress(data, max_length=size + 1))
        if encoding == "zstd":
            with zstandard.ZstdDecompressor().stream_reader(data) as reader:
                return bytes(reader.read(size + 1))
    except (RuntimeError, EOFError, zstandard.ZstdError) as error:
        raise CannotDecode(f"the object is not a whole {encoding}: {error}") from None
    return data
