"""A frame cut into overlapping tiles, each a view on the frame's own pixels.

A model that sees 300 x 300 pixels finds nobody in a panorama squeezed into them; a tile shows it people as large as
those that it was trained on. Neighbours overlap, so that who stands on the edge of one tile is whole in the next.
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
    """Upper edge."""
    width_px: int
    """Width."""
    height_px: int
    """Height."""
    inner_edges: tuple[bool, bool, bool, bool]
    """Which of the left, upper, right and lower edge cut the frame, rather than end with it."""

    @property
    def corners(self) -> tuple[int, int, int, int]:
        """Left, upper, right and lower edge, in pixels of the frame."""
        return self.x_px, self.y_px, self.x_px + self.width_px, self.y_px + self.height_px

    def view(self, pixels: Pixels) -> Pixels:
        """The tile's pixels of a frame of shape ``(height, width, channels)``: a view, no copy."""
        return pixels[self.y_px : self.y_px + self.height_px, self.x_px : self.x_px + self.width_px]


OVERLAP_SHARE = 0.32
"""Of a tile's shorter side, where no overlap is configured."""


def tile_size(tile_px: int, overlap_px: int | None, input_px: tuple[int, int]) -> tuple[tuple[int, int], int]:
    """Derive the tiles' size from the configuration and the model's input.

    Args:
        tile_px: Height of a tile.
        overlap_px: What neighbours have in common, at least; ``None`` for a share of the tile.
        input_px: Height and width of the model's input, whose proportions the tiles have.

    Returns:
        Height and width, and the overlap, in pixels of the frame.
    """
    size = (tile_px, max(1, round(tile_px * input_px[1] / input_px[0])))
    return size, round(OVERLAP_SHARE * min(size)) if overlap_px is None else min(overlap_px, min(size) * 3 // 4)


def plan_tiles(
    frame_height_px: int, frame_width_px: int, tile_px: int | tuple[int, int], overlap_px: int
) -> tuple[Tile, ...]:
    """Lay the fewest tiles over a frame that cover it with the wanted overlap, evenly spaced.

    Args:
        frame_height_px: Height of the frame.
        frame_width_px: Width of the frame.
        tile_px: Height and width of a tile, or the side of a square one; where the frame is smaller than that, the tile
            is as small.
        overlap_px: What neighbours have in common, at least; less than ``tile_px``.

    Returns:
        The tiles, row by row.
    """
    tile_height_px, tile_width_px = (tile_px, tile_px) if isinstance(tile_px, int) else tile_px
    rows = _spread(frame_height_px, tile_height_px, overlap_px)
    columns = _spread(frame_width_px, tile_width_px, overlap_px)
    return tuple(
        Tile(
            left,
            upper,
            right - left,
            lower - upper,
            (left > 0, upper > 0, right < frame_width_px, lower < frame_height_px),
        )
        for upper, lower in rows
        for left, right in columns
    )


def _spread(extent_px: int, tile_px: int, overlap_px: int) -> list[tuple[int, int]]:
    """Start and end of each tile along one axis."""
    if extent_px < 1 or not 0 <= overlap_px < tile_px:
        raise ValueError(f"no tiles of {tile_px} px that overlap by {overlap_px} px in {extent_px} px")
    if tile_px >= extent_px:
        return [(0, extent_px)]
    steps = -(-(extent_px - tile_px) // (tile_px - overlap_px))
    starts = [(extent_px - tile_px) * step // steps for step in range(steps + 1)]
    return [(start, start + tile_px) for start in starts]
