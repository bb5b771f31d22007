"""Estimate the lenses and each pair's rotation from matches with many outliers.

With a trial lens, matches become pairs of rays, and two correct matches determine the rotation. The lens with which
most matches agree on a rotation is close to the true one; the adjustment does the rest. Comparing rays handles strong
distortion, different resolutions and rolled cameras without special cases.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from services.stitcher.calibration.rays import cross, lens_rays, nearest_rotation

Matrix = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]
Pair = tuple[int, int]

HFOVS_DEG = (28.0, 34.0, 41.0, 50.0, 60.0, 71.0, 84.0, 98.0, 112.0)
K1S = (0.0, -0.1, -0.2, -0.3, 0.1)
SAMPLES = 160
MATCHES = 120
TOLERANCE = 0.007
"""Largest error of a match that agrees, as a share of the picture's width: trial lenses are up to half a step wrong."""
LEAST_MATCHES = 8
POOR_SHARE = 0.5
"""If less than this share of a pair's matches agrees with equal lenses, unequal ones are tried."""
HINT_GAIN = 0.15
"""Share by which the score rises if all configured fields of view hold."""
COARSE_SCORE = 1.5
"""Least score of a pair in the coarse search."""
UNEQUAL_MATCHES = 40
"""Least number of matches of a pair for which unequal lenses are tried."""
UNEQUAL_GAIN = 1.25
"""Factor by which the score must increase for a single camera to get a lens of its own."""


@dataclass(frozen=True, slots=True)
class Matches:
    """Matches of one pair, the most distinct first."""

    p: Matrix
    q: Matrix

    def __len__(self) -> int:
        return len(self.p)


@dataclass(frozen=True, slots=True)
class Lens:
    """A trial lens."""

    focal: float
    """Focal length, in working pixels."""
    k1: float


def trial_lens(width: float, hfov_deg: float, k1: float) -> Lens | None:
    """Return a lens with this field of view, or ``None`` if none exists with this k1."""
    half = np.tan(np.radians(hfov_deg) / 2)
    # The distortion must still increase clearly at the picture's edge: see max_radius().
    if k1 < 0 and 1 + 3 * k1 * half**2 < 0.15:
        return None
    return Lens(float(width / 2 / (half * (1 + k1 * half**2))), k1)


def count_agreeing(matches: Matches, lens_i: Lens, lens_j: Lens, widths: tuple[float, float]) -> tuple[float, Matrix]:
    """Find the rotation that most matches agree on. Exact matches have more weight.

    Returns:
        The weighted count, and the rotation from the first camera's axes to the second's.
    """
    count = min(len(matches), MATCHES)
    rays_i = lens_rays(matches.p[:count], lens_i.focal, lens_i.k1, 0.0)
    rays_j = lens_rays(matches.q[:count], lens_j.focal, lens_j.k1, 0.0)
    angle = TOLERANCE * max(widths[0] / lens_i.focal, widths[1] / lens_j.focal)
    a, b = _sample_pairs(count)
    spread_i, spread_j = (rays_i[a] * rays_i[b]).sum(axis=1), (rays_j[a] * rays_j[b]).sum(axis=1)
    # A rotation keeps the angle between two rays. Two rays that are close together determine it poorly.
    apart = np.abs(np.arccos(np.clip(spread_i, -1, 1)) - np.arccos(np.clip(spread_j, -1, 1)))
    is_possible = (apart < 2 * angle) & (spread_i < np.cos(6 * angle))
    a, b = a[is_possible], b[is_possible]
    if not len(a):
        return 0.0, np.eye(3)
    turns = _frames(rays_j[a], rays_j[b]) @ _frames(rays_i[a], rays_i[b]).transpose(0, 2, 1)
    # The scalar product of a ray and a rotated one is that of the rotation and the outer product of the two, so one
    # matrix product compares all matches by all rotations.
    outer = (rays_j[:, :, None] * rays_i[:, None, :]).reshape(count, 9)
    squared = 2 - 2 * (turns.reshape(-1, 9) @ outer.T)
    squared[:, np.isnan(outer).any(axis=1)] = 9.0  # more than two unit vectors can have
    scores = np.maximum(1 - squared / angle**2, 0).sum(axis=1)
    best = int(scores.argmax())
    is_near = squared[best] < (angle / 2) ** 2
    if is_near.sum() < 2:
        return float(scores[best]), turns[best]
    # Two matches gave this rotation: fit it to all that are near.
    return float(scores[best]), nearest_rotation(rays_j[is_near].T @ rays_i[is_near])


@functools.lru_cache(maxsize=MATCHES + 1)
def _sample_pairs(count: int) -> tuple[Indices, Indices]:
    """Choose pairs of matches to derive rotations from. They are the same for each lens, to make lenses comparable."""
    if count * (count - 1) // 2 <= SAMPLES:
        a, b = np.array(list(itertools.combinations(range(count), 2))).reshape(-1, 2).T
        return a.astype(np.intp), b.astype(np.intp)
    random = np.random.default_rng(count)
    # Distinct matches come first and are drawn more often.
    a, b = (random.random((2, 2 * SAMPLES)) ** 1.5 * count).astype(np.intp)
    differ = np.flatnonzero(a != b)[:SAMPLES]
    return a[differ], b[differ]


def _frames(a: Matrix, b: Matrix) -> Matrix:
    """Return right-handed axes for pairs of rays: along their middle, across, and along their difference."""
    middle, across = a + b, cross(a, b)
    middle /= np.linalg.norm(middle, axis=1, keepdims=True)
    across /= np.linalg.norm(across, axis=1, keepdims=True) + 1e-15
    return np.stack([middle, across, cross(middle, across)], axis=2)


def find_lenses(
    pairs: Mapping[Pair, Matches],
    widths: Sequence[float],
    groups: Sequence[int],
    known_hfov_deg: Sequence[float | None],
) -> list[Lens]:
    """Choose the lens of each camera.

    Args:
        pairs: Matches by pair of cameras.
        widths: Widths of the cameras' pictures, in working pixels.
        groups: Cameras of one group have the same lens, unless their matches contradict it.
        known_hfov_deg: Configured field of view, by camera.
    """
    cameras = len(widths)
    useful = {pair: matches for pair, matches in pairs.items() if len(matches) >= LEAST_MATCHES}
    everything = useful
    scores: dict[tuple[Pair, float, float, float], float] = {}

    def score(pair: Pair, hfovs: Sequence[float], k1: float) -> float:
        key = (pair, hfovs[pair[0]], hfovs[pair[1]], k1)
        if key not in scores:
            lenses = [trial_lens(widths[c], hfovs[c], k1) for c in pair]
            if lenses[0] is None or lenses[1] is None:
                scores[key] = 0.0
            else:
                sizes = (widths[pair[0]], widths[pair[1]])
                scores[key] = count_agreeing(everything[pair], lenses[0], lenses[1], sizes)[0]
        # A pair without overlap has some matches that agree by chance and must not influence the choice of the lens.
        return max(scores[key] - 5, 0.0)

    def total(hfovs: Sequence[float], k1: float) -> float:
        # Prefer the configured value if the matches support it about as well as another lens.
        trust = sum(k is None or abs(np.log(h / k)) < 0.1 for h, k in zip(hfovs, known_hfov_deg, strict=True))
        return float(sum(score(pair, hfovs, k1) for pair in useful)) * float(1 + HINT_GAIN * trust / cameras)

    def choices(camera: int) -> list[float]:
        known = known_hfov_deg[camera]
        return list(HFOVS_DEG) if known is None else [*HFOVS_DEG, known]

    # Most pairs do not overlap: drop those that agree with no lens of a coarse search, unless they have many matches.
    coarse = list(itertools.product(HFOVS_DEG[::2], K1S[:3:2]))
    firm = {pair for pair in useful if max(score(pair, [hfov] * cameras, k1) for hfov, k1 in coarse) > COARSE_SCORE}
    useful = {pair: matches for pair, matches in useful.items() if pair in firm or len(matches) > MATCHES}

    # First, all cameras share a lens; then each group has its own; then each camera of a pair that fits poorly.
    best: tuple[float, list[float], float] = (-1.0, [60.0] * cameras, 0.0)
    for hfov_deg, k1 in itertools.product(HFOVS_DEG, K1S):
        best = max(best, (total([hfov_deg] * cameras, k1), [hfov_deg] * cameras, k1), key=lambda one: one[0])
        hfovs = [known if known is not None else hfov_deg for known in known_hfov_deg]
        best = max(best, (total(hfovs, k1), hfovs, k1), key=lambda one: one[0])
    agreed, hfovs, k1 = best
    sets = [[c for c in range(cameras) if groups[c] == group] for group in sorted(set(groups))]
    poor = [
        pair
        for pair, matches in everything.items()
        if score(pair, hfovs, k1) < POOR_SHARE * min(len(matches), MATCHES) and len(matches) > UNEQUAL_MATCHES
    ]
    if poor:
        sets += [[camera] for camera in sorted({camera for pair in poor for camera in pair})]
        useful = {pair: matches for pair, matches in everything.items() if pair in useful or pair in poor}
        agreed = total(hfovs, k1)
    for _ in range(2):
        for members in sets:
            for hfov_deg in choices(members[0]):
                trial = [hfov_deg if c in members else old for c, old in enumerate(hfovs)]
                now = total(trial, k1)
                if now > UNEQUAL_GAIN * agreed or (now > agreed and len(members) > 1):
                    agreed, hfovs = now, trial
        for other in K1S:
            now = total(hfovs, other)
            if now > agreed:
                agreed, k1 = now, other
    # The distortion may be impossible for a wide lens: take one of 60 degrees then, as a start for the adjustment.
    return [trial_lens(widths[c], hfovs[c], k1) or Lens(widths[c] / 1.15, 0.0) for c in range(cameras)]
