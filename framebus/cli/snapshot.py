"""``snapshot``: write the newest frame to a picture file. This is the only command that takes a lease."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Final

from framebus.bus import Subscriber
from framebus.errors import FramebusError
from framebus.shm.directory import check_directory

PICTURE_CHANNELS: Final = (1, 3, 4)
PICTURE_TYPES: Mapping[str, tuple[str, ...]] = {
    ".tif": ("uint8", "uint16", "float32"),
    ".png": ("uint8", "uint16"),
}
"""Element types that a picture format supports, by the file's suffix. Other formats support only uint8."""
_TO_BGR: Final = {"rgb": (2, 1, 0), "rgba": (2, 1, 0, 3)}


def run_snapshot(options: argparse.Namespace) -> int:
    """Write the newest frame to ``options.file``."""
    try:
        import cv2  # noqa: PLC0415  optional dependency of this command
    except ImportError:
        raise FramebusError("snapshot needs OpenCV: pip install 'framebus[snapshot]'") from None
    check_directory(writable=True)
    with (
        Subscriber(options.name, name="snapshot", max_leases=1, attach_timeout_s=0) as subscriber,
        subscriber.receive(options.timeout) as frame,
    ):
        pixels = frame.pixels
        if frame.pixel_format in _TO_BGR:
            pixels = pixels[..., _TO_BGR[frame.pixel_format]]
        _check_picture(pixels.shape[2], str(pixels.dtype), options.file.suffix.lower())
        try:
            # imwrite() would print to standard error, and does not return why a file cannot be written.
            encoded, picture = cv2.imencode(options.file.suffix, pixels)
        except cv2.error as error:
            reason = f"{error.err or error}".strip().splitlines()[0]
            raise FramebusError(
                f"{options.file}: not written as a picture: {reason}. The file's suffix selects the format: .png, .jpg"
            ) from None
        finally:
            # The view holds the lease, and the file may take long to write.
            del pixels
    if not encoded:
        raise FramebusError(f"{options.file}: not written as a picture: take another format, such as .png")
    try:
        options.file.write_bytes(picture.tobytes())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise FramebusError(f"{options.file} cannot be written: {reason}") from None
    return 0


def _check_picture(channels: int, dtype: str, suffix: str) -> None:
    """Check that the format supports the frame. OpenCV would convert its values, or print to standard error."""
    types = PICTURE_TYPES.get(suffix[:4], ("uint8",))
    if channels not in PICTURE_CHANNELS or dtype not in types:
        raise FramebusError(
            f"a frame of {channels} channels of {dtype} is not written as {suffix or 'this'}: "
            f"use a frame of 1, 3 or 4 channels of {' or '.join(types)}, or read it with a Subscriber"
        )
