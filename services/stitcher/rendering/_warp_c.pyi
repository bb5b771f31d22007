"""Types of the compiled warp; see ``_warp_c.c``."""

from typing import Final

import numpy as np
import numpy.typing as npt

HAS_AVX2: Final[bool]
"""Whether this processor has AVX2 and BMI2; without them the same pixels take several times as long."""

def warp(
    out: npt.NDArray[np.uint8],
    row: int,
    column: int,
    width: int,
    places: npt.NDArray[np.int32],
    seen: npt.NDArray[np.uint16] | None,
    y: npt.NDArray[np.uint8],
    u: npt.NDArray[np.uint8],
    v: npt.NDArray[np.uint8],
    chroma_step: tuple[int, int],
    black: int,
    factors: npt.NDArray[np.int16],
    brightness: npt.NDArray[np.int16] | None,
    shares: npt.NDArray[np.uint16] | None,
    may_use_avx2: bool,
    /,
) -> None:
    """Fill a rectangle of a panorama from a camera's planes, in blocks of 16 pixels in a row.

    Args:
        out: The panorama, writable, shape ``(height, width, 3)``; its pixels lie side by side.
        row: First row of the rectangle, which has as many rows as ``places``.
        column: First column.
        width: Number of columns.
        places: Shape ``(rows, blocks, 4)``: x and y of a block's first pixel in the picture, and their steps per pixel,
            in 1/4096 luma pixels. A position outside a plane reads its edge.
        seen: Shape ``(rows, blocks)``: a bit for each pixel, the lowest first; a pixel without it is black.
        y: The luma, shape ``(height, width)``; like ``u`` and ``v`` at least 2x2, its rows without gaps.
        u: U, of the same shape and stride as ``v``.
        v: V.
        chroma_step: Rows and columns of luma per sample of ``u`` and ``v``, 1 or 2 each.
        black: Luma of black.
        factors: Shape ``(3, 3)``: of luma, U and V in blue, green and red, in 1/4096.
        brightness: Shape ``(rows, blocks, 2)``: factors of all planes at a block's first pixel and 16 pixels further,
            in 1/16384.
        shares: Shape ``(rows, width)``: this camera's share of each pixel in 1/256, over the content of ``out``.
        may_use_avx2: Whether to use AVX2 if the processor has it. The result is identical.

    Raises:
        TypeError: An array is of another type or number of axes, or is not an array.
        ValueError: A shape, a stride or a number does not fit, or ``out`` is an array that is read-only.
        BufferError: ``out`` is another buffer that is read-only.
    """
