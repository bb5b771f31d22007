"""Warp a camera's planes into BGR columns of the panorama.

Warping the planes, instead of a BGR picture converted from them, halves the bytes to read and interpolate and avoids
intermediate pictures. The rows pass in bands through a small scratch buffer that stays in the cache, where matrix,
range and gain are applied as well. A panorama of 4896x688 takes 18 ms of one core from decoded pictures to BGR, instead
of 24 ms with intermediate BGR pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from services.stitcher.rendering.colour import Conversion
from services.stitcher.rendering.convert import Image, Planes
from services.stitcher.rendering.panorama import Map

Fixed = tuple[npt.NDArray[np.int16], npt.NDArray[np.uint16]]
"""Fixed-point maps, as returned by cv2.convertMaps."""

Bounds = tuple[slice, slice]

BAND_ROWS = 60
"""Rows of a band. Fastest of 16 to 96, with a thousand columns per camera."""
LENS_SCALE = 128
"""Fixed-point 1 of a map of factors, which are at most 255."""
GREY = 128


class NotInPlace(RuntimeError):
    """OpenCV rendered into newly allocated memory instead of the slot."""


@dataclass(frozen=True, slots=True)
class _Scratch:
    """Buffers of one band."""

    y: Image
    u: Image
    v: Image
    uv: Image
    wide: tuple[Image, Image]
    """``u`` and ``v`` with each sample twice in its row."""
    yuv: Image
    """Y, U and V of every other row of the band."""

    @staticmethod
    def make(width: int) -> _Scratch:
        half_rows, half = BAND_ROWS // 2, width // 2
        return _Scratch(
            np.empty((BAND_ROWS, width), np.uint8),
            np.empty((half_rows, half), np.uint8),
            np.empty((half_rows, half), np.uint8),
            np.empty((half_rows, half, 2), np.uint8),
            (np.empty((half_rows, width), np.uint8), np.empty((half_rows, width), np.uint8)),
            np.empty((half_rows, width, 3), np.uint8),
        )

    def first(self, rows: int) -> _Scratch:
        """Return the part of it for an even number of rows."""
        half = rows // 2
        u_wide, v_wide = self.wide
        return _Scratch(
            self.y[:rows], self.u[:half], self.v[:half], self.uv[:half], (u_wide[:half], v_wide[:half]), self.yuv[:half]
        )


class Warp:
    """Warps one rectangle from one camera. Not thread-safe, because it owns a scratch buffer.

    Args:
        map_x: Position of each pixel in the camera's picture, in its pixels: float32 of even width and height.
        map_y: Likewise.
        is_covered: Whether the picture covers the whole rectangle. Uncovered pixels become black.
    """

    def __init__(self, map_x: Map, map_y: Map, is_covered: bool = True) -> None:
        height, width = map_x.shape
        self._luma = _fixed(map_x, map_y)
        # A chroma sample of the panorama lies in the middle of four pixels.
        self.middles = _quarter(map_x), _quarter(map_y)
        """Where the middles of 2x2 pixels are in the picture."""
        self._chroma_step = (0, 0)
        self._chroma: Fixed = self._luma
        # Replicate the border, to prevent half a pixel at the edge from fading to black.
        self._border = cv2.BORDER_REPLICATE if is_covered else cv2.BORDER_CONSTANT
        scratch = _Scratch.make(width)
        bands = [slice(top, min(top + BAND_ROWS, height)) for top in range(0, height, BAND_ROWS)]
        self._bands = [
            (
                rows,
                _bounds(map_x[rows], map_y[rows]) if is_covered else None,
                scratch.first(rows.stop - rows.start),
            )
            for rows in bands
        ]

    def fill(
        self,
        picture: Planes,
        targets: Sequence[tuple[slice, Image]],
        conversion: Conversion,
        lens: Image | None = None,
    ) -> None:
        """Fill some columns of the rectangle.

        Args:
            picture: The camera's picture.
            targets: Column ranges with even bounds, each with its target: BGR of that width, and all rows.
            conversion: Conversion from the planes to BGR.
            lens: Factors of the luma's distance from black, times ``LENS_SCALE``, of the shape of the maps.

        Raises:
            NotInPlace: OpenCV did not write to a target.
        """
        if picture.chroma_step != self._chroma_step:
            self._set_chroma_step(picture.chroma_step)
        black = 0 if picture.is_full_range else 16
        for rows, bounds, scratch in self._bands:
            half = slice(rows.start // 2, rows.stop // 2)  # the panorama's chroma always has half the resolution
            if bounds is not None:
                _fetch(picture, bounds)
            self._remap(picture.y, self._luma, rows, scratch.y, black)
            self._remap(picture.u, self._chroma, half, scratch.u, GREY)
            self._remap(picture.v, self._chroma, half, scratch.v, GREY)
            if lens is not None:
                _brighten(scratch.y, lens[rows], black)
            if conversion.luma is not None:
                _scale(scratch.y, conversion.luma)
            if conversion.chroma is not None:
                _scale(scratch.u, conversion.chroma)
                _scale(scratch.v, conversion.chroma)
            pixels = [(columns, target[rows]) for columns, target in targets]
            if conversion.whole is None:
                _convert(scratch, pixels)
            else:
                _transform(scratch, pixels, conversion.whole)

    def _remap(self, plane: Image, maps: Fixed, rows: slice, target: Image, border: int) -> None:
        whole, fraction = maps
        cv2.remap(
            plane,
            whole[rows],
            fraction[rows],
            cv2.INTER_LINEAR,
            dst=target,
            borderMode=self._border,
            borderValue=border,
        )

    def _set_chroma_step(self, step: tuple[int, int]) -> None:
        # Where the picture's samples lie: see Planes. In x on the first of their columns, in y between their rows.
        down, across = step
        x, y = self.middles
        self._chroma = _fixed(x / np.float32(across), y / np.float32(down) - np.float32((down - 1) / 2 / down))
        self._chroma_step = step


def check_place(result: npt.NDArray[np.generic], target: npt.NDArray[np.generic]) -> None:
    """Check that OpenCV wrote to ``target``: it silently allocates a new array if ``dst`` does not fit.

    Raises:
        NotInPlace: It allocated one.
    """
    # Usually it returns the same object, which is cheap to check.
    if result is not target and result.__array_interface__["data"][0] != target.__array_interface__["data"][0]:
        raise NotInPlace(f"OpenCV made an array of shape {result.shape} instead of filling {target.shape} in the slot")


def _bounds(map_x: Map, map_y: Map) -> Bounds:
    """Return the part of the picture that the maps read."""
    return slice(int(map_y.min()), int(map_y.max()) + 2), slice(int(map_x.min()), int(map_x.max()) + 2)


def _fetch(picture: Planes, bounds: Bounds) -> None:
    """Read a part of the picture sequentially, to prefetch it into the cache.

    A warp jumps between rows and would stall on memory. This saves 1.5 of 20 ms per panorama.
    """
    rows, columns = bounds
    down, across = picture.chroma_step
    part = slice(rows.start // down, rows.stop // down), slice(columns.start // across, columns.stop // across)
    for plane in (picture.y[bounds], picture.u[part], picture.v[part]):
        if plane.size:
            cv2.norm(plane, cv2.NORM_INF)


def _convert(scratch: _Scratch, targets: Sequence[tuple[slice, Image]]) -> None:
    """Convert with OpenCV's own conversion."""
    cv2.merge([scratch.u, scratch.v], dst=scratch.uv)
    for columns, target in targets:
        y, uv = scratch.y[:, columns], scratch.uv[:, columns.start // 2 : columns.stop // 2]
        check_place(cv2.cvtColorTwoPlane(y, uv, cv2.COLOR_YUV2BGR_NV12, dst=target), target)


def _transform(scratch: _Scratch, targets: Sequence[tuple[slice, Image]], matrix: npt.NDArray[np.float64]) -> None:
    """Convert with an arbitrary matrix, which takes twice as long."""
    half_rows = len(scratch.u)
    for plane, wide in ((scratch.u, scratch.wide[0]), (scratch.v, scratch.wide[1])):
        cv2.merge([plane, plane], dst=wide.reshape(half_rows, -1, 2))
    for parity in (0, 1):  # both rows of a pair have the same colour samples
        cv2.merge([scratch.y[parity::2], *scratch.wide], dst=scratch.yuv)
        for columns, target in targets:
            rows = target[parity::2]
            check_place(cv2.transform(scratch.yuv[:, columns], matrix, dst=rows), rows)


def _scale(plane: Image, by: tuple[float, float]) -> None:
    factor, offset = by
    cv2.convertScaleAbs(plane, dst=plane, alpha=factor, beta=offset)


def _brighten(y: Image, factors: Image, black: int) -> None:
    # A lens darkens the light, not the offset of limited range.
    if black:
        cv2.subtract(y, black, dst=y)  # type: ignore[call-overload]  # a number does
    cv2.multiply(y, factors, dst=y, scale=1 / LENS_SCALE)
    if black:
        cv2.add(y, black, dst=y)  # type: ignore[call-overload]


def _fixed(map_x: Map, map_y: Map) -> Fixed:
    # Fixed-point maps take six bytes a pixel instead of eight: rendering is bound by memory bandwidth. They reduced a
    # panorama from 19.5 to 17.4 ms.
    whole, fraction = cv2.convertMaps(map_x, map_y, cv2.CV_16SC2)
    return np.asarray(whole, np.int16), np.asarray(fraction, np.uint16)


def _quarter(positions: Map) -> Map:
    """Return the means of 2x2 positions."""
    height, width = positions.shape
    return np.asarray(positions.reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3)), np.float32)
