"""Types of the compiled warp; see ``_warp_c.c``."""

from typing import Final

import numpy as np
import numpy.typing as npt

HAS_AVX2: Final[bool]
"""Whether this processor has AVX2; without it the same pixels take several times as long."""

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
        row: First row of the rectangle; ``places`` has as many as it.
        column: First column.
        width: Columns.
        places: Shape ``(rows, blocks, 4)``: x and y of a block's first pixel in the picture, and their steps a pixel,
            in 1/4096 luma pixels. What lies outside of a plane reads its edge.
        seen: Shape ``(rows, blocks)``: a bit a pixel, the lowest first; a pixel without it is black.
        y: The luma, shape ``(height, width)``; like ``u`` and ``v`` at least 2x2, its rows without gaps.
        u: The colours, of a shape and stride that ``v`` has too.
        v: Likewise.
        chroma_step: Rows and columns of luma that a sample of colour stands for, 1 or 2 each.
        black: Luma of black.
        factors: Shape ``(3, 3)``: of luma, U and V in blue, green and red, in 1/4096.
        brightness: Shape ``(rows, blocks, 2)``: factors of all at a block's first pixel and 16 pixels on, in 1/16384.
        shares: Shape ``(rows, width)``: this camera's share of each pixel in 1/256; the rest is what ``out`` has there.
        may_use_avx2: Whether AVX2 may be used where the processor has it. It changes no pixel.

    Raises:
        TypeError: An array is of another type or number of axes, or is not an array.
        ValueError: A shape, a stride or a number does not fit, or ``out`` is an array that cannot be written to.
        BufferError: ``out`` is another buffer that cannot be written to.
    """
