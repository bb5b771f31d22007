"""Merging: one box for each object, however the tiles cut it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.detector import merge as merging
from services.detector.boxes import (
    Boxes,
    concatenate,
    distance_of_pairs,
    intersection_over_union,
    no_boxes,
)
from services.detector.merge import Rules, group_labels
from services.detector.tiles import Tile, plan_tiles

LABELS = ("person", "bicycle", "car", "bus", "truck")
Row = tuple[float, float, float, float, float, int]


def boxes(*rows: Row) -> Boxes:
    return Boxes(
        np.array([row[:4] for row in rows], np.float32).reshape(-1, 4),
        np.array([row[4] for row in rows], np.float32),
        np.array([row[5] for row in rows], np.intp),
    )


def merge(
    tiles: Sequence[Tile],
    found: Sequence[Boxes],
    iou_threshold: float,
    inside_threshold: float,
    rivals: Sequence[Sequence[str]] = (),
) -> Boxes:
    return merging.merge(tiles, found, Rules(iou_threshold, inside_threshold, group_labels(LABELS, rivals))).boxes


def seen(tile: Tile, frame_row: Row) -> Boxes:
    """Return what a perfect network finds of an object in a tile."""
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
    assert merged.xyxy.tolist() == [[451, 101, 501, 249]]
    assert merged.scores.tolist() == pytest.approx([0.9])


def test_a_piece_is_dropped_if_a_neighbouring_tile_shows_the_whole_object() -> None:
    tiles = plan_tiles(600, 1000, 600, 200)
    found = [boxes((560, 100, 598, 250, 0.95, 0)), boxes((160, 100, 240, 250, 0.6, 0))]
    assert merge(tiles, found, 0.5, 0.6).xyxy.tolist() == [[560, 100, 640, 250]]


def test_an_object_larger_than_the_overlap_is_joined() -> None:
    tiles = plan_tiles(600, 1000, 600, 200)
    found = [boxes((250, 100, 599, 300, 0.7, 1)), boxes((1, 110, 350, 305, 0.8, 1))]
    merged = merge(tiles, found, 0.5, 0.6)
    assert merged.xyxy.tolist() == [[250, 100, 750, 305]]
    assert merged.scores.tolist() == pytest.approx([0.8])


def test_an_object_across_three_tiles_is_joined() -> None:
    tiles = plan_tiles(600, 1400, 600, 200)
    row = (100.0, 100.0, 1300.0, 400.0, 0.7, 0)
    merged = merge(tiles, [seen(tile, row) for tile in tiles], 0.5, 0.6)
    assert merged.xyxy.tolist() == [[100, 100, 1300, 400]]


def test_a_piece_that_no_other_tile_shows_stays() -> None:
    tiles = plan_tiles(600, 1000, 600, 200)
    merged = merge(tiles, [boxes((560, 100, 600, 250, 0.7, 0)), no_boxes()], 0.5, 0.6)
    assert len(merged) == 1


def test_a_box_at_the_edge_of_the_frame_is_whole() -> None:
    tiles = plan_tiles(600, 1000, 600, 200)
    found = [boxes((0, 0, 60, 150, 0.7, 0), (0, 20, 100, 400, 0.5, 0)), no_boxes()]
    assert len(merge(tiles, found, 0.5, 0.6)) == 2


def test_two_people_close_to_each_other_stay_two_boxes() -> None:
    tiles = plan_tiles(600, 1000, 600, 200)
    found = [boxes((480, 100, 540, 250, 0.8, 0), (520, 100, 580, 250, 0.7, 0)), boxes((81, 100, 141, 250, 0.6, 0))]
    assert sorted(merge(tiles, found, 0.5, 0.6).xyxy[:, 0].tolist()) == [480, 520]


def test_labels_do_not_suppress_each_other() -> None:
    tiles = plan_tiles(600, 600, 600, 200)
    found = [boxes((100, 100, 200, 300, 0.8, 0), (100, 150, 200, 310, 0.7, 1), (101, 100, 200, 300, 0.5, 0))]
    merged = merge(tiles, found, 0.5, 0.6)
    assert merged.labels.tolist() == [0, 1]


def test_the_most_certain_box_comes_first() -> None:
    tiles = plan_tiles(600, 600, 600, 200)
    found = [boxes((0, 0, 50, 50, 0.5, 0), (100, 0, 150, 50, 0.9, 1), (200, 0, 250, 50, 0.7, 0))]
    assert merge(tiles, found, 0.5, 0.6).scores.tolist() == pytest.approx([0.9, 0.7, 0.5])


def test_a_box_without_a_score_is_dropped_in_company_and_alone() -> None:
    nothing, person = (100, 100, 150, 250, 0.0, 0), (300, 100, 350, 250, 0.7, 0)
    tiles = plan_tiles(600, 1000, 600, 200)
    assert len(merge(tiles, [boxes(nothing), no_boxes()], 0.5, 0.6)) == 0
    assert merge(tiles, [boxes(nothing, person), no_boxes()], 0.5, 0.6).scores.tolist() == pytest.approx([0.7])


def test_the_label_with_most_area_and_score_wins_with_its_own_score() -> None:
    tiles = [tile for tile in plan_tiles(400, 900, 400, 275) if tile.x_px <= 480 and tile.x_px + tile.width_px >= 500]
    rows = [(440, 100, 480, 200, 0.9, 2), (439, 100, 480, 202, 0.6, 4), (440, 99, 481, 200, 0.7, 4)]
    found = [seen(*pair) for pair in zip(tiles, rows, strict=True)]
    merged = merge(tiles, found, 0.5, 0.6, [("car", "bus", "truck")])
    assert merged.labels.tolist() == [4]
    assert merged.scores.tolist() == pytest.approx([0.7])
    assert merged.xyxy.tolist() == [[440, 100, 480, 200]], "the box is that of the best"


def test_without_detections_there_are_no_boxes() -> None:
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
    """A person that fits into the overlap is one correct box, wherever the edges of the tiles are."""
    row = (float(x), float(y), float(min(x + width, 3000)), float(min(y + height, 688)), 0.7, 0)
    tiles = plan_tiles(688, 3000, tile, 220)
    merged = merge(tiles, [seen(part, row) for part in tiles], 0.5, 0.6)
    assert merged.xyxy.tolist() == [list(row[:4])]


def test_overlap_is_measured_by_union_and_by_the_smaller_box() -> None:
    first = boxes((0, 0, 10, 10, 1, 0), (20, 20, 30, 30, 1, 0)).xyxy
    second = boxes((5, 0, 15, 10, 1, 0), (0, 0, 5, 10, 1, 0), (7, 7, 7, 7, 1, 0)).xyxy
    assert intersection_over_union(first, second) == pytest.approx(np.array([[1 / 3, 0.5, 0], [0, 0, 0]]))
    apart = distance_of_pairs(first[:, None], second[None])
    assert apart[0, 0] == pytest.approx(1 / 3 - 25 / (15**2 + 10**2))
    assert apart[1, 0] == pytest.approx(-(15**2 + 20**2) / (25**2 + 30**2))
    assert distance_of_pairs(first, first) == pytest.approx([1, 1])


SCENE: tuple[Row, ...] = (
    # A van as wide as 1.4 tiles, a car, a bus beyond a van, pairs of people, and a person cut by the top of the frame.
    (150, 150, 1100, 560, 0.8, 4),
    (1500, 300, 1900, 520, 0.7, 2),
    (2200, 80, 2800, 500, 0.75, 3),
    (2950, 300, 3020, 480, 0.9, 0),
    (3060, 310, 3130, 500, 0.6, 0),
    (3300, 0, 3370, 160, 0.6, 0),
    (3600, 380, 3690, 640, 0.85, 0),
    (3610, 500, 3800, 660, 0.55, 1),
)
VEHICLES = (2, 3, 4)


def flipped(part: Boxes, whole: bool, rng: np.random.Generator) -> Boxes:
    """Give pieces another vehicle's label and an arbitrary score."""
    if whole or not len(part) or int(part.labels[0]) not in VEHICLES:
        return part
    return Boxes(part.xyxy, rng.uniform(0.4, 0.95, 1).astype(np.float32), rng.choice(VEHICLES, 1))


@pytest.mark.parametrize(("tile_px", "overlap_px"), [(688, 220), (688, 40), (400, 150)])
def test_each_object_is_one_box_of_one_class_wherever_the_tiles_are(tile_px: int, overlap_px: int) -> None:
    """The panorama is rolled under the tiles, and an ideal model gives pieces arbitrary labels."""
    rng = np.random.default_rng(7)
    width_px = 4200
    tiles = plan_tiles(688, width_px, tile_px, overlap_px)
    for offset in range(0, 400, 16):
        rows = [(left + offset, upper, right + offset, lower, *rest) for left, upper, right, lower, *rest in SCENE]
        found = []
        for tile in tiles:
            parts = []
            for row in rows:
                part = seen(tile, row)  # type: ignore[arg-type]
                whole = len(part) > 0 and (row[2] - row[0]) * (row[3] - row[1]) <= float(
                    np.prod(part.xyxy[0, 2:] - part.xyxy[0, :2])
                )
                parts.append(flipped(part, whole, rng))
            found.append(concatenate(parts))
        merged = merge(tiles, found, 0.5, 0.6, [("car", "bus", "truck")])
        left_to_right = merged.xyxy[np.argsort(merged.xyxy[:, 0])].tolist()
        assert left_to_right == sorted([list(row[:4]) for row in rows]), offset
        people = merged.labels[np.isin(merged.labels, (0, 1))]
        assert sorted(people.tolist()) == [0, 0, 0, 0, 1]


def test_the_end_of_a_van_with_another_label_belongs_to_the_van() -> None:
    tiles = plan_tiles(600, 1000, 600, 200)
    found = [boxes((250, 100, 599, 300, 0.9, 4)), boxes((1, 102, 100, 299, 0.5, 1))]
    merged = merge(tiles, found, 0.5, 0.6)
    assert len(merged) == 1
    assert merged.labels.tolist() == [4]


def test_two_rival_boxes_in_one_place_become_one() -> None:
    tiles = plan_tiles(600, 600, 600, 200)
    found = [boxes((100, 100, 400, 300, 0.6, 2), (105, 100, 400, 300, 0.7, 4))]
    assert merge(tiles, found, 0.5, 0.6).labels.tolist() == [2, 4][::-1]
    assert merge(tiles, found, 0.5, 0.6, [("car", "truck")]).labels.tolist() == [4]


def test_a_person_before_a_van_on_a_tiles_edge_stays() -> None:
    tiles = plan_tiles(600, 1000, 600, 200)
    rows: list[Row] = [(250, 100, 800, 400, 0.8, 4), (560, 180, 640, 420, 0.7, 0)]
    found = [concatenate(seen(tile, row) for row in rows) for tile in tiles]
    assert merge(tiles, found, 0.5, 0.6).labels.tolist() == [4, 0]


def test_tiles_without_an_overlap_join_objects_on_their_edge() -> None:
    tiles = plan_tiles(600, 1200, 600, 0)
    row = (500.0, 100.0, 800.0, 300.0, 0.7, 2)
    assert merge(tiles, [seen(tile, row) for tile in tiles], 0.5, 0.6).xyxy.tolist() == [list(row[:4])]


def test_only_the_most_certain_boxes_are_compared() -> None:
    """The boxes are those of a broken model: each touches all others, and there are as many as a frame may have."""
    rng = np.random.default_rng(3)
    tiles = plan_tiles(688, 4896, 688, 220)
    starts = rng.uniform(0, 300, (len(tiles), 2000, 2))
    xyxy = np.concatenate([starts, starts + rng.uniform(20, 688, starts.shape)], axis=2).clip(0, 688)
    found = [
        Boxes(part.astype(np.float32), rng.uniform(0.3, 1, 2000).astype(np.float32), np.zeros(2000, np.intp))
        for part in xyxy
    ]
    calls = []
    rules = Rules(0.5, 0.6, group_labels(LABELS, ()))
    merged = merging.merge(tiles, found, rules, lambda: calls.append(1)).boxes
    assert 0 < len(merged) <= merging.MAX_BOXES
    assert len(calls) >= 3


def test_merging_stops_on_request() -> None:
    class Told(Exception):
        pass

    def stop() -> None:
        raise Told

    tiles = plan_tiles(600, 1000, 600, 200)
    with pytest.raises(Told):
        merging.merge(tiles, [no_boxes()] * len(tiles), Rules(0.5, 0.6, group_labels(LABELS, ())), stop)
