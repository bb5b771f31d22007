"""``snapshot``: the newest frame as a picture file. The only command that takes a lease."""

from __future__ import annotations

import argparse

from framebus.bus import Subscriber
from framebus.errors import FramebusError

_TO_BGR = {"rgb": (2, 1, 0), "rgba": (2, 1, 0, 3)}


def run_snapshot(options: argparse.Namespace) -> int:
    """Write the newest frame to ``options.file``."""
    try:
        import cv2  # noqa: PLC0415  the library itself does without it
    except ImportError:
        raise FramebusError("snapshot needs OpenCV: pip install 'framebus[snapshot]'") from None
    with (
        Subscriber(options.name, name="snapshot", max_leases=1, attach_timeout_s=0) as subscriber,
        subscriber.receive(options.timeout) as frame,
    ):
        pixels = frame.pixels
        if frame.pixel_format in _TO_BGR:
            pixels = pixels[..., _TO_BGR[frame.pixel_format]]
        try:
            written = cv2.imwrite(str(options.file), pixels)
        except cv2.error as error:
            raise FramebusError(f"{options.file}: not written as a picture: {error.err}") from None
        del pixels
        if not written:
            raise FramebusError(f"{options.file} cannot be written: does its folder exist, and may you write there?")
    return 0
