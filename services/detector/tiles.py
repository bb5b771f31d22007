"""Split a frame into overlapping tiles, each a view of the frame's own pixels.

A model with an input of 300 x 300 pixels finds no people in a panorama scaled down to that size. A tile shows people at
the size that the model was trained on. Neighbours overlap, so that a person on the edge of one tile is complete in the
next.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Tile:
    """A rectangle of the frame."""

    x_px: int
    """Left edge, in pixels of the frame."""
    y_px: int
    """Top edge."""
    width_px: int
    """Width."""
    height_px: int
    """Height."""
    inner_edges: tuple[bool, bool, bool, bool]
    """Which of left, top, right and bottom is inside the frame, rather than at its border."""

    @property
    def xyxy(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom, in pixels of the frame."""
        return self.x_px, self.y_px, self.x_px + self.width_px, self.y_px + self.height_px

    def view(self, pixels: Pixels) -> Pixels:
        """Return a view of the tile's pixels, without a copy, of a frame of shape ``(height, width, channels)``."""
        return pixels[self.y_px : self.y_px + self.height_px, self.x_px : self.x_px + self.width_px]


OVERLAP_SHARE = 0.32
"""Default overlap, as a share of a tile's shorter side."""


def tile_size(tile_px: int, overlap_px: int | None, input_px: tuple[int, int]) -> tuple[tuple[int, int], int]:
    """Derive the tiles' size from the configuration and the model's input.

    Args:
        tile_px: Height of a tile.
        overlap_px: Least overlap of neighbours; ``None`` for a share of the tile.
        input_px: Height and width of the model's input. The tiles have the same proportions.

    Returns:
        Height and width, and the overlap, in pixels of the frame.
    """
    size = (tile_px, max(1, round(tile_px * input_px[1] / input_px[0])))
    # Limit the overlap as the configuration does, because a model's input may make tiles narrower than tile_px.
    return size, round(OVERLAP_SHARE * min(size)) if overlap_px is None else min(overlap_px, min(size) * 3 // 4)


def plan_tiles(
    frame_height_px: int, frame_width_px: int, tile_px: int | tuple[int, int], overlap_px: int
) -> tuple[Tile, ...]:
    """Cover a frame with the fewest evenly spaced tiles that have the required overlap.

    Args:
        frame_height_px: Height of the frame.
        frame_width_px: Width of the frame.
        tile_px: Height and width of a tile, or the side of a square one. In a smaller frame, the tile is as small as
            the frame.
        overlap_px: Least overlap of neighbours, less than ``tile_px``.

    Returns:
        The tiles, row by row.
    """
    tile_height_px, tile_width_px = (tile_px, tile_px) if isinstance(tile_px, int) else tile_px
    rows = _spread(frame_height_px, tile_height_px, overlap_px)
    columns = _spread(frame_width_px, tile_width_px, overlap_px)
    return tuple(
        Tile(
            left,
            top,
            right - left,
            bottom - top,
            (left > 0, top > 0, right < frame_width_px, bottom < frame_height_px),
        )
        for top, bottom in rows
        for left, right in columns
    )


def _spread(extent_px: int, tile_px: int, overlap_px: int) -> list[tuple[int, int]]:
    """Return start and end of each tile along one axis."""
    if extent_px < 1 or not 0 <= overlap_px < tile_px:
        raise ValueError(f"no tiles of {tile_px} px that overlap by {overlap_px} px in {extent_px} px")
    if tile_px >= extent_px:
        return [(0, extent_px)]
    # Round up, and space the tiles evenly: the overlap grows rather than that a part is left uncovered.
    steps = -(-(extent_px - tile_px) // (tile_px - overlap_px))
    starts = [(extent_px - tile_px) * step // steps for step in range(steps + 1)]
    return [(start, start + tile_px) for start in starts]
