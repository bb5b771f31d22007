"""Where something has changed: a person counts, noise does not."""

from __future__ import annotations

import numpy as np

from services.detector.activity import Activity
from services.detector.tiles import plan_tiles


def frame(seed: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    noise = np.random.default_rng(seed).normal(120, 4, (688, 2000, 3))
    return noise.clip(0, 255).astype(np.uint8)


def test_a_walking_person_is_activity_and_noise_is_not() -> None:
    tiles = plan_tiles(688, 2000, 688, 220)
    activity = Activity(tiles)
    for step in range(5):
        pixels = frame(step)
        pixels[300:340, 1500 + 12 * step : 1518 + 12 * step] = 20
        activity.update(pixels)
    inside = [tile.x_px < 1566 and tile.x_px + tile.width_px > 1500 for tile in tiles]
    assert set(inside) == {True, False}
    assert [bool(changes) for changes in activity.changes] == inside


def test_activity_counts_until_the_tile_is_looked_at() -> None:
    activity = Activity(plan_tiles(688, 2000, 688, 220))
    activity.update(np.zeros((688, 2000, 3), np.uint8))
    activity.update(np.full((688, 2000, 3), 200, np.uint8))
    before = activity.changes.copy()
    activity.looked_at([1])
    assert (before > 1000).all()
    assert activity.changes.tolist() == [before[0], 0, *before[2:]]


def test_a_frame_smaller_than_a_step_is_not_an_error() -> None:
    activity = Activity(plan_tiles(5, 9, 688, 220))
    for value in (0, 200):
        activity.update(np.full((5, 9, 3), value, np.uint8))
    assert activity.changes.tolist() == [1]
