"""Tiles cover every pixel, overlap enough, and are views."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.detector.tiles import plan_tiles


@settings(deadline=None)
@given(
    height=st.integers(1, 900),
    width=st.integers(1, 900),
    tile=st.integers(100, 700),
    overlap_part=st.floats(0, 0.75),
)
def test_tiles_cover_every_pixel(height: int, width: int, tile: int, overlap_part: float) -> None:
    seen = np.zeros((height, width), np.int64)
    for part in plan_tiles(height, width, tile, int(tile * overlap_part)):
        assert part.width_px == min(tile, width)
        assert part.height_px == min(tile, height)
        view = part.view(seen)  # type: ignore[arg-type]
        assert view.shape == (part.height_px, part.width_px)
        view += 1
        assert part.inner_edges == (
            part.x_px > 0,
            part.y_px > 0,
            part.x_px + part.width_px < width,
            part.y_px + part.height_px < height,
        )
    assert seen.min() >= 1


@settings(deadline=None)
@given(width=st.integers(701, 20000), overlap=st.integers(0, 500))
def test_neighbours_have_the_requested_overlap_and_no_tile_is_superfluous(width: int, overlap: int) -> None:
    tiles = plan_tiles(700, width, 700, overlap)
    common = [left.x_px + left.width_px - right.x_px for left, right in pairwise(tiles)]
    assert min(common) >= overlap
    assert max(common) - min(common) <= 1
    assert (len(tiles) - 1) * (700 - overlap) + overlap < width


def test_the_default_panorama_takes_one_row() -> None:
    tiles = plan_tiles(688, 4896, 688, 220)
    assert [tile.y_px for tile in tiles] == [0] * 10
    assert tiles[0].inner_edges == (False, False, True, False)
    assert tiles[-1].inner_edges == (True, False, False, False)


def test_tiles_are_views() -> None:
    pixels = np.zeros((688, 4896, 3), np.uint8)
    pixels.flags.writeable = False
    for tile in plan_tiles(688, 4896, 500, 200):
        view = tile.view(pixels)
        assert np.shares_memory(view, pixels)
        assert view.strides == pixels.strides


@pytest.mark.parametrize(("extent", "tile", "overlap"), [(0, 300, 0), (300, 300, 300), (300, 300, -1)])
def test_impossible_tiles_are_rejected(extent: int, tile: int, overlap: int) -> None:
    with pytest.raises(ValueError, match="no tiles"):
        plan_tiles(extent, 300, tile, overlap)
