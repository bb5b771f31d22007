"""Read a picture's size from its header, before memory is allocated for its pixels or its chunks.

Source: RFC 2083 (PNG), sections 3 and 4.1; ITU-T T.81 (JPEG), annex B.
"""

from __future__ import annotations

from typing import Final

_PNG_START: Final = b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR"
_PNG_SIGNATURE_BYTES: Final = 8
_CHUNK_BYTES: Final = 12
"""Length, type and checksum of a chunk, beside its data."""
_JPEG_START: Final = b"\xff\xd8"
_FRAME_HEADERS: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Second bytes of the markers SOF0 to SOF15. DHT, JPG and DAC lie in the same range and are excluded."""
_WITHOUT_LENGTH: Final = frozenset((0x01, *range(0xD0, 0xD8)))
"""Second bytes of TEM and RST0 to RST7, which no length follows."""
_ENDS: Final = frozenset((0xD9, 0xDA))
"""Second bytes of EOI and SOS. The frame header precedes both."""


def picture_size(data: memoryview, encoding: str) -> tuple[int, int] | None:
    """Return height and width in pixels of a ``png`` or ``jpeg``.

    Returns:
        None if the data has no such header, or if a PNG's chunks do not fill it up to the last one, IEND.
    """
    return _png_size(data) if encoding == "png" else _jpeg_size(data)


def _png_size(data: memoryview) -> tuple[int, int] | None:
    start = len(_PNG_START)
    if bytes(data[:start]) != _PNG_START or not _has_whole_chunks(data):
        return None
    # IHDR is the first chunk, and begins with the width and the height.
    width_px, height_px = (int.from_bytes(data[at : at + 4], "big") for at in (start, start + 4))
    return height_px, width_px


def _has_whole_chunks(data: memoryview) -> bool:
    """Return whether no chunk of a PNG is cut off. For one that claims gigabytes, OpenCV would take seconds."""
    at = _PNG_SIGNATURE_BYTES
    while at + _CHUNK_BYTES <= len(data):
        kind = bytes(data[at + 4 : at + 8])
        at += _CHUNK_BYTES + int.from_bytes(data[at : at + 4], "big")
        if kind == b"IEND":
            return at <= len(data)
    return False


def _jpeg_size(data: memoryview) -> tuple[int, int] | None:
    if bytes(data[:2]) != _JPEG_START:
        return None
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker in _WITHOUT_LENGTH:
            at += 2
        elif marker in _FRAME_HEADERS:
            # Length (2 bytes), precision (1), height (2), width (2).
            return int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
        elif marker in _ENDS:
            return None
        else:  # another segment, whose length counts itself
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None
