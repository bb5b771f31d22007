"""The adjustment on synthetic points, whose truth is known exactly."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from services.stitcher.calibration.adjust import Free, Layout, _move, adjust, distances, jacobian, residuals
from services.stitcher.calibration.rays import Points, Rig, join, points_of, rotation_of
from services.stitcher.calibration.search import Lens, Matches, count_agreeing, find_lenses

STEP_DEG = 50.0
HALF = np.array([640.0, 360.0])


def make(k1: float = -0.2, k2: float = 0.0, noise_px: float = 0.1, seed: int = 1) -> tuple[Rig, Points]:
    """Return five cameras of 1280x720 beside each other, and 150 points in each overlap."""
    random = np.random.default_rng(seed)
    turns = [
        rotation_of(np.array([0, np.radians(STEP_DEG) * i, 0])) @ rotation_of(np.radians(random.uniform(-3, 3, 3)))
        for i in range(5)
    ]
    rig = Rig(np.stack(turns), np.zeros(5, int), np.array([1100.0]), np.array([k1]), np.array([k2]), np.zeros((5, 2)))
    pairs = []
    for i in range(4):
        p = random.uniform(-HALF, HALF, (6000, 2))
        q = rig.project(i + 1, rig.directions(i, p))
        inside = np.flatnonzero((np.abs(np.nan_to_num(q, nan=1e9)) < HALF).all(axis=1))[:150]
        p, q = (side[inside] + noise_px * random.standard_normal((len(inside), 2)) for side in (p, q))
        pairs.append(points_of(i, i + 1, p, q))
    return rig, join(pairs)


def shaken(rig: Rig) -> Rig:
    random = np.random.default_rng(2)
    turned = np.stack([r @ rotation_of(random.uniform(-0.03, 0.03, 3)) for r in rig.rotations])
    return replace(rig, rotations=turned, focal=rig.focal * 1.1, k1=rig.k1 + 0.08, k2=np.zeros(1))


def test_the_jacobian_is_that_of_finite_differences() -> None:
    rig, points = make(k2=0.02)
    layout = Layout(5, 1, Free(k2=True, centers=True))
    exact = jacobian(rig, points, layout)
    for column in range(layout.width):
        step = np.zeros(layout.width)
        step[column] = 1e-6
        difference = residuals(_move(rig, step, layout), points) - residuals(_move(rig, -step, layout), points)
        np.testing.assert_allclose(exact[:, :, column], difference / 2e-6, atol=1e-4)


@pytest.mark.parametrize("k1", [0.0, -0.05, -0.2, -0.3])
def test_lens_and_rotations_are_found_from_a_wrong_start(k1: float) -> None:
    rig, points = make(k1)
    found = adjust(shaken(rig), points, Free(), 5.0)
    assert found.focal[0] == pytest.approx(rig.focal[0], rel=0.001)
    assert found.k1[0] == pytest.approx(k1, abs=0.002)
    assert np.median(distances(found, points)) < 0.25


def test_k2_is_also_found() -> None:
    rig, points = make(-0.2, 0.05)
    found = adjust(shaken(rig), points, Free(k2=True), 5.0)
    assert found.k2[0] == pytest.approx(0.05, abs=0.01)


def test_wrong_points_do_not_move_the_result() -> None:
    rig, points = make()
    wrong = points.q.copy()
    wrong[::4] += np.random.default_rng(3).uniform(-80, 80, wrong[::4].shape)
    found = adjust(shaken(rig), replace(points, q=wrong), Free(), 5.0)
    assert found.focal[0] == pytest.approx(rig.focal[0], rel=0.005)
    assert np.median(distances(found, points)) < 0.5


def test_the_trial_lens_with_most_agreement_is_near_the_true_one() -> None:
    rig, points = make(-0.2)
    pairs = {}
    for i in range(4):
        one = points[points.between(i, i + 1)]
        swap = (one.i > one.j)[:, None]
        p, q = np.where(swap, one.q, one.p), np.where(swap, one.p, one.q)
        q[::3] = np.random.default_rng(i).uniform(-HALF, HALF, q[::3].shape)
        pairs[i, i + 1] = Matches(p, q)
    lenses = find_lenses(pairs, [1280.0] * 5, [0] * 5, [None] * 5)
    assert lenses[0].focal == pytest.approx(1100.0, rel=0.1)
    assert lenses[0].k1 == pytest.approx(-0.2, abs=0.11)
    agreeing, turn = count_agreeing(pairs[0, 1], Lens(1100.0, -0.2), Lens(1100.0, -0.2), (1280.0, 1280.0))
    assert agreeing > 50
    np.testing.assert_allclose(turn, rig.rotations[1].T @ rig.rotations[0], atol=0.01)
