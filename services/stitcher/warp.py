"""Warps a camera's planes into columns of the panorama, which are BGR.

The planes are warped, not a BGR picture made of them: half as many bytes are read and interpolated, and none are
written but the panorama's. Rows go in bands through a small scratch that stays in the cache. A panorama of 4896x688
takes 18 ms of one core, decoded pictures to BGR, instead of 24 by way of BGR pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from services.stitcher.convert import Image, Planes
from services.stitcher.panorama import Map

Fixed = tuple[npt.NDArray[np.int16], npt.NDArray[np.uint16]]
"""Fixed-point maps, as cv2.convertMaps makes them."""

BAND_ROWS = 60
"""Of 16 to 96, what takes the least time with a thousand columns a camera."""


class NotInPlace(RuntimeError):
    """OpenCV rendered into memory of its own instead of the slot."""


@dataclass(frozen=True, slots=True)
class _Band:
    """Some rows, and the scratch that they are warped into."""

    rows: slice
    luma: Fixed
    chroma: Fixed
    y: Image
    u: Image
    v: Image
    uv: Image


class Warp:
    """Warps one rectangle from one camera. It has a scratch, so only one thread at a time may use it.

    Args:
        map_x: Where each pixel is in the camera's picture, in its pixels: float32; width and height are even.
        map_y: Likewise.
    """

    def __init__(self, map_x: Map, map_y: Map) -> None:
        height, width = map_x.shape
        luma = _fixed(map_x, map_y)
        # A colour sample of the panorama is amid four pixels; where the picture's are, see Planes.
        chroma = _fixed(_quarter(map_x) / np.float32(2), _quarter(map_y) / np.float32(2) - np.float32(0.25))
        y = np.empty((BAND_ROWS, width), np.uint8)
        u, v = (np.empty((BAND_ROWS // 2, width // 2), np.uint8) for _ in range(2))
        uv = np.empty((*u.shape, 2), np.uint8)
        self._bands = []
        for top in range(0, height, BAND_ROWS):
            rows = slice(top, min(top + BAND_ROWS, height))
            half = slice(rows.start // 2, rows.stop // 2)
            count, half_count = rows.stop - rows.start, half.stop - half.start
            self._bands.append(
                _Band(
                    rows,
                    (luma[0][rows], luma[1][rows]),
                    (chroma[0][half], chroma[1][half]),
                    y[:count],
                    u[:half_count],
                    v[:half_count],
                    uv[:half_count],
                )
            )

    def fill(self, picture: Planes, targets: Sequence[tuple[slice, Image]]) -> None:
        """Fill some columns of the rectangle.

        Args:
            picture: The camera's.
            targets: From which even column to which, and where to: BGR of so many columns, and all rows.

        Raises:
            NotInPlace: OpenCV did not write there.
        """
        for band in self._bands:
            _remap(picture.y, band.luma, band.y)
            _remap(picture.u, band.chroma, band.u)
            _remap(picture.v, band.chroma, band.v)
            cv2.merge([band.u, band.v], dst=band.uv)
            for columns, target in targets:
                y, uv = band.y[:, columns], band.uv[:, columns.start // 2 : columns.stop // 2]
                pixels = target[band.rows]
                check_place(cv2.cvtColorTwoPlane(y, uv, cv2.COLOR_YUV2BGR_NV12, dst=pixels), pixels)


def check_place(result: npt.NDArray[np.generic], target: npt.NDArray[np.generic]) -> None:
    """Check that OpenCV gave ``target`` back: it silently makes a new array when ``dst`` does not fit.

    Raises:
        NotInPlace: It did.
    """
    # The same object as a rule, and that is cheap to see.
    if result is not target and result.__array_interface__["data"][0] != target.__array_interface__["data"][0]:
        raise NotInPlace(f"OpenCV made an array of shape {result.shape} instead of filling {target.shape} in the slot")


def _remap(plane: Image, maps: Fixed, target: Image) -> None:
    # Replicated, because half a pixel at the edge must not fade to black.
    cv2.remap(plane, *maps, cv2.INTER_LINEAR, dst=target, borderMode=cv2.BORDER_REPLICATE)


def _fixed(map_x: Map, map_y: Map) -> Fixed:
    # Six bytes a pixel instead of eight: rendering waits for memory.
    whole, fraction = cv2.convertMaps(map_x, map_y, cv2.CV_16SC2)
    return np.asarray(whole, np.int16), np.asarray(fraction, np.uint16)


def _quarter(positions: Map) -> Map:
    """The means of 2x2 positions."""
    height, width = positions.shape
    return np.asarray(positions.reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3)), np.float32)
