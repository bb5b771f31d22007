"""Merging: one box an object, whatever the tiles do to it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.detector.boxes import (
    Boxes,
    distance_intersection_over_union,
    intersection_over_smaller,
    intersection_over_union,
    no_boxes,
)
from services.detector.merge import merge
from services.detector.tiles import Tile, plan_tiles

Row = tuple[float, float, float, float, float, int]


def boxes(*rows: Row) -> Boxes:
    return Boxes(
        np.array([row[:4] for row in rows], np.float32).reshape(-1, 4),
        np.array([row[4] for row in rows], np.float32),
        np.array([row[5] for row in rows], np.intp),
    )


def seen(tile: Tile, frame_row: Row) -> Boxes:
    """What a perfect network sees of an object in a tile."""
    left, upper, right, lower, score, label = frame_row
    left, right = (min(max(x - tile.x_px, 0), tile.width_px) for x in (left, right))
    upper, lower = (min(max(y - tile.y_px, 0), tile.height_px) for y in (upper, lower))
    if right - left < 8 or lower - upper < 8:
        return no_boxes()
    return boxes((left, upper, right, lower, score, label))


def test_an_object_seen_whole_by_two_tiles_is_one_box() -> None:
    tiles = plan_tiles(600, 1000, 600, 200)
    found = [boxes((450, 100, 500, 250, 0.8, 0)), boxes((51, 101, 101, 249, 0.9, 0))]
    merged = merge(tiles, found, 0.5, 0.6)
    assert merged.corners.tolist() == [[451, 101, 501, 249]]
    assert merged.scores.tolist() == pytest.approx([0.9])


def test_a_piece_goes_where_the_neighbour_sees_the_whole() -> None:
    tiles = plan_tiles(600, 1000, 600, 200)
    found = [boxes((560, 100, 598, 250, 0.95, 0)), boxes((160, 100, 240, 250, 0.6, 0))]
    assert merge(tiles, found, 0.5, 0.6).corners.tolist() == [[560, 100, 640, 250]]


def test_an_object_larger_than_the_overlap_is_joined() -> None:
    tiles = plan_tiles(600, 1000, 600, 200)
    found = [boxes((250, 100, 599, 300, 0.7, 1)), boxes((1, 110, 350, 305, 0.8, 1))]
    merged = merge(tiles, found, 0.5, 0.6)
    assert merged.corners.tolist() == [[250, 100, 750, 305]]
    assert merged.scores.tolist() == pytest.approx([0.8])


def test_an_object_over_three_tiles_is_joined() -> None:
    tiles = plan_tiles(600, 1400, 600, 200)
    row = (100.0, 100.0, 1300.0, 400.0, 0.7, 0)
    merged = merge(tiles, [seen(tile, row) for tile in tiles], 0.5, 0.6)
    assert merged.corners.tolist() == [[100, 100, 1300, 400]]


def test_a_piece_that_no_other_tile_shows_stays() -> None:
    tiles = plan_tiles(600, 1000, 600, 200)
    merged = merge(tiles, [boxes((560, 100, 600, 250, 0.7, 0)), no_boxes()], 0.5, 0.6)
    assert len(merged) == 1


def test_a_box_at_the_edge_of_the_frame_is_whole() -> None:
    tiles = plan_tiles(600, 1000, 600, 200)
    found = [boxes((0, 0, 60, 150, 0.7, 0), (0, 20, 100, 400, 0.5, 0)), no_boxes()]
    assert len(merge(tiles, found, 0.5, 0.6)) == 2


def test_two_who_stand_close_stay_two() -> None:
    tiles = plan_tiles(600, 1000, 600, 200)
    found = [boxes((480, 100, 540, 250, 0.8, 0), (520, 100, 580, 250, 0.7, 0)), boxes((81, 100, 141, 250, 0.6, 0))]
    assert sorted(merge(tiles, found, 0.5, 0.6).corners[:, 0].tolist()) == [480, 520]


def test_labels_do_not_suppress_each_other() -> None:
    tiles = plan_tiles(600, 600, 600, 200)
    found = [boxes((100, 100, 200, 300, 0.8, 0), (100, 150, 200, 310, 0.7, 1), (101, 100, 200, 300, 0.5, 0))]
    merged = merge(tiles, found, 0.5, 0.6)
    assert merged.labels.tolist() == [0, 1]


def test_the_most_certain_comes_first() -> None:
    tiles = plan_tiles(600, 600, 600, 200)
    found = [boxes((0, 0, 50, 50, 0.5, 0), (100, 0, 150, 50, 0.9, 1), (200, 0, 250, 50, 0.7, 0))]
    assert merge(tiles, found, 0.5, 0.6).scores.tolist() == pytest.approx([0.9, 0.7, 0.5])


def test_nothing_found_is_no_box() -> None:
    tiles = plan_tiles(600, 1000, 600, 200)
    assert len(merge(tiles, [no_boxes(), no_boxes()], 0.5, 0.6)) == 0
    assert len(merge((), (), 0.5, 0.6)) == 0


@settings(deadline=None)
@given(
    x=st.integers(0, 2900),
    y=st.integers(0, 500),
    width=st.integers(40, 90),
    height=st.integers(110, 200),
    tile=st.sampled_from([450, 600, 688]),
)
def test_a_person_anywhere_is_one_box(x: int, y: int, width: int, height: int, tile: int) -> None:
    """Wherever the edges of the tiles fall, a person no larger than the overlap is one box, and the right one."""
    row = (float(x), float(y), float(min(x + width, 3000)), float(min(y + height, 688)), 0.7, 0)
    tiles = plan_tiles(688, 3000, tile, 220)
    merged = merge(tiles, [seen(part, row) for part in tiles], 0.5, 0.6)
    assert merged.corners.tolist() == [list(row[:4])]


def test_overlap_measures() -> None:
    first = boxes((0, 0, 10, 10, 1, 0), (20, 20, 30, 30, 1, 0)).corners
    second = boxes((5, 0, 15, 10, 1, 0), (0, 0, 5, 10, 1, 0), (7, 7, 7, 7, 1, 0)).corners
    assert intersection_over_union(first, second) == pytest.approx(np.array([[1 / 3, 0.5, 0], [0, 0, 0]]))
    assert intersection_over_smaller(first, second) == pytest.approx(np.array([[0.5, 1, 0], [0, 0, 0]]))
    apart = distance_intersection_over_union(first, second)
    assert apart[0, 0] == pytest.approx(1 / 3 - 25 / (15**2 + 10**2))
    assert apart[1, 0] == pytest.approx(-(15**2 + 20**2) / (25**2 + 30**2))
    assert distance_intersection_over_union(first, first).diagonal() == pytest.approx([1, 1])
