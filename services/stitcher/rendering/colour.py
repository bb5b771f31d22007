"""Convert the colours of a picture's planes to BGR: one affine map combines matrix, range and gain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

LUMA_WEIGHTS: Final = {
    1: (0.2126, 0.0722),
    4: (0.30, 0.11),
    5: (0.299, 0.114),
    6: (0.299, 0.114),
    7: (0.212, 0.087),
    9: (0.2627, 0.0593),
}
"""Weights of red and blue in the luma, by ISO/IEC 23091-2 colour matrix: BT.709, FCC, the two numbers of BT.601, SMPTE
240M, BT.2020."""
BT601: Final = 6
UNSPECIFIED: Final = 2


def is_known(matrix: int) -> bool:
    """Return whether :func:`to_bgr` supports the matrix."""
    return matrix in LUMA_WEIGHTS


def to_bgr(matrix: int, is_full_range: bool, gains: Array | None = None) -> Array:
    """Return the float64 3x4 matrix from ``(Y, U, V, 1)`` to BGR, 8 bits each.

    Args:
        matrix: Colour matrix of ISO/IEC 23091-2, a key of ``LUMA_WEIGHTS``.
        is_full_range: Whether luma runs from 0 to 255, not from 16 to 235.
        gains: Factors of blue, green and red, shape ``(3,)``.
    """
    # U and V are the differences of blue and red from the luma, scaled to the range -0.5 to 0.5.
    red, blue = LUMA_WEIGHTS[matrix]
    green = 1 - red - blue
    luma, chroma = (1.0, 1.0) if is_full_range else (255 / 219, 255 / 224)
    black = 0.0 if is_full_range else 16.0
    linear = np.array(
        [
            [luma, 2 * (1 - blue) * chroma, 0.0],
            [luma, -2 * (1 - blue) * blue / green * chroma, -2 * (1 - red) * red / green * chroma],
            [luma, 0.0, 2 * (1 - red) * chroma],
        ]
    )
    if gains is not None:
        linear *= gains[:, None]
    return np.column_stack([linear, -linear @ np.array([black, 128.0, 128.0])])


@dataclass(frozen=True, slots=True)
class Conversion:
    """How to convert planes to BGR with OpenCV, whose only conversion from planes is BT.601 in limited range."""

    luma: tuple[float, float] | None
    """Factor and offset to apply to Y beforehand; ``None`` if none is needed."""
    chroma: tuple[float, float] | None
    """The same for U and V."""
    whole: Array | None
    """The 3x4 matrix to use instead of OpenCV's conversion if factors do not suffice: for another colour matrix, or for
    gains that differ between colours."""


PLAIN: Final = Conversion(None, None, None)
SMALL: Final = 0.004
"""A gain this close to 1 is treated as 1: half a level in a grey of 128."""
SMALL_TINT: Final = 0.01
"""Gains this close to their mean are treated as equal: a level in a grey of 128, and no change of its luma."""


def conversion(matrix: int, is_full_range: bool, gains: Array) -> Conversion:
    """Return the cheapest conversion from planes to BGR.

    Args:
        matrix: Colour matrix, a key of ``LUMA_WEIGHTS``.
        is_full_range: Whether luma runs from 0 to 255.
        gains: Factors of blue, green and red, shape ``(3,)``.
    """
    # One gain of all colours is a factor of each plane, which costs less than a matrix.
    mean = float(gains.mean())
    is_grey = np.abs(gains / mean - 1).max() < SMALL_TINT
    if LUMA_WEIGHTS[matrix] != LUMA_WEIGHTS[BT601] or not is_grey:
        return Conversion(None, None, to_bgr(matrix, is_full_range, gains))
    if not is_full_range and abs(mean - 1) < SMALL:
        return PLAIN
    luma, chroma, black = (219 / 255 * mean, 224 / 255 * mean, 0.0) if is_full_range else (mean, mean, 16.0)
    return Conversion((luma, 16 - luma * black), (chroma, 128 * (1 - chroma)), None)
