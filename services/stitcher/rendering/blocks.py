"""Maps in the form that the compiled warp reads: a position and a step for each block of 16 pixels in a row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from services.stitcher.calibration.poses import CameraPose
from services.stitcher.rendering.exposure import Array, lens_factors, radius_squared
from services.stitcher.rendering.panorama import Map

Places = npt.NDArray[np.int32]
Seen = npt.NDArray[np.uint16]
Brightness = npt.NDArray[np.int16]

BLOCK_PX = 16
POSITION = 4096
"""Fixed-point 1 of a position, in pixels of the picture."""
BRIGHTNESS = 16384
"""Fixed-point 1 of a brightness factor."""
HALF_PIXEL = 0.5
"""A pixel of the panorama whose centre lies at most this far beyond the centres of the picture's outermost pixels is
still covered by one of them."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """A rectangle of the panorama in blocks. The last block of each row may extend beyond its edge."""

    width_px: int
    places: Places
    """Shape ``(rows, blocks, 4)``: x and y of the first pixel and their steps per pixel, in 1/4096 pixels."""
    seen: Seen | None
    """Shape ``(rows, blocks)``: a bit for each pixel that lies in the picture, the lowest first; ``None`` if all do."""

    def rows(self, rows: slice) -> Blocks:
        """Return some of its rows."""
        return Blocks(self.width_px, self.places[rows], None if self.seen is None else self.seen[rows])


def to_blocks(camera: CameraPose, map_x: Map, map_y: Map) -> Blocks:
    """Fit a line to the positions of each block, through its first and last pixel that the camera sees.

    Args:
        camera: The camera of the maps.
        map_x: Position of each pixel of a rectangle in the picture, in its pixels.
        map_y: Likewise.
    """
    rows, width_px = map_x.shape
    count = -(-width_px // BLOCK_PX)  # rounded up
    padding = ((0, 0), (0, count * BLOCK_PX - width_px))
    x, y = (np.pad(one, padding, mode="edge").reshape(rows, count, BLOCK_PX) for one in (map_x, map_y))
    seen = (x >= -HALF_PIXEL) & (x <= camera.width_px - HALF_PIXEL)
    seen &= (y >= -HALF_PIXEL) & (y <= camera.height_px - HALF_PIXEL)
    is_padding = (np.arange(count * BLOCK_PX) >= width_px).reshape(count, BLOCK_PX)
    places = np.zeros((rows, count, 4), np.int32)
    # Padding and unseen pixels have positions that a line through the others must not be fitted to.
    usable = seen & ~is_padding
    first, last = usable.argmax(axis=2), BLOCK_PX - 1 - usable[:, :, ::-1].argmax(axis=2)
    some = usable.any(axis=2)
    for axis, positions in enumerate((x, y)):
        start, step = _fit(positions.astype(np.float64), first, last)
        places[..., axis] = np.where(some, np.rint(start * POSITION), 0)
        places[..., 2 + axis] = np.where(some, np.rint(step * POSITION), 0)
    if (seen | is_padding).all():
        return Blocks(width_px, places, None)
    bits = (usable.astype(np.uint16) << np.arange(BLOCK_PX, dtype=np.uint16)).sum(axis=2, dtype=np.uint16)
    return Blocks(width_px, places, bits)


def _fit(positions: Array, first: npt.NDArray[np.intp], last: npt.NDArray[np.intp]) -> tuple[Array, Array]:
    """Return start and step of lines that balance the errors at their ends and in their middle."""

    def at(pixel: npt.NDArray[np.intp]) -> Array:
        return np.asarray(np.take_along_axis(positions, pixel[..., None], axis=2)[..., 0])

    length = last - first
    step = (at(last) - at(first)) / np.maximum(length, 1)
    middle = first + length // 2
    # A lens bends the line, most in its middle: half of that as an offset halves the largest error.
    bulge = at(middle) - (at(first) + step * (length // 2))
    return at(first) - step * first + bulge / 2, step


def brightness(camera: CameraPose, blocks: Blocks, lens: Array) -> Brightness:
    """Return the factors that compensate a lens' vignetting.

    Args:
        camera: The camera with that lens.
        blocks: Positions of the pixels in its picture.
        lens: Coefficients ``a`` and ``b`` of the lens.

    Returns:
        Shape ``(rows, blocks, 2)``: factors at the first pixel of each block and 16 pixels further, in 1/16384.
    """
    # The warp interpolates between the two factors of a block, because vignetting changes slowly.
    x, y, step_x, step_y = np.moveaxis(blocks.places / POSITION, -1, 0)
    ends = [radius_squared(camera, x + length * step_x, y + length * step_y) for length in (0, BLOCK_PX)]
    factors = lens_factors(lens, np.stack(ends, axis=-1))
    return np.asarray(np.rint((factors * BRIGHTNESS).clip(0, np.iinfo(np.int16).max)), np.int16)
