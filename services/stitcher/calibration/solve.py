"""Solve a rig: first from the strongest links, then all consistent matches, then points tracked in the overlaps."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from services.stitcher.calibration.adjust import Free, Prior, adjust, distances
from services.stitcher.calibration.prepare import View
from services.stitcher.calibration.rays import Points, Rig, join, points_of
from services.stitcher.calibration.search import Lens, Matches, Pair, count_agreeing
from services.stitcher.calibration.tracks import Tracks, follow

Matrix = npt.NDArray[np.float64]

LEAST_LINK = 5.5
"""Least number of agreeing matches, as counted by :func:`count_agreeing`, for a pair's rotation to be accepted."""
FAR_PX = (150.0, 40.0, 15.0, 8.0)
"""Largest error of matches in each round of the adjustment, in working pixels of a picture 1920 wide."""
NEAR_PX = 15.0
LEAST_IN_PAIR = 6
FOCAL_PRIOR = 0.1
"""Deviation of the focal length from that of a configured field of view, as a share."""
ODD_FOCAL, ODD_CENTER = 0.01, 0.012
"""Lenses are implausible beyond these: the difference of two focal lengths of one kind, as a share, and the offset of a
centre, as a share of the picture's width."""
RICHER_GAIN = 12.0
"""Least reduction of the cost by each additional parameter, in variances of a point."""


@dataclass(frozen=True, slots=True)
class Solution:
    """A solved rig of some of the cameras."""

    cameras: tuple[int, ...]
    """The cameras' indices, in the rig's order."""
    rig: Rig
    free: Free
    points: Points
    """Points of the last adjustment; cameras by their place in the rig."""
    tracks: dict[Pair, Tracks]
    """Tracked points by pair of places in the rig."""
    prior: Prior
    unit: float
    """Working pixels per pixel of a picture 1920 wide."""
    is_odd: bool
    """Whether the solved lenses are implausible: see :data:`ODD_FOCAL`."""
    has_own_lenses: bool
    """Whether each camera has a lens of its own, although some cameras seem to be of one kind."""

    def follows(self, i: int, j: int, matches: Matches) -> bool:
        """Return whether the rig agrees with enough of the matches of two of its cameras."""
        if len(matches) < 2:
            return True  # such a link is of points marked by the operator
        near = distances(self.rig, points_of(i, j, matches.p, matches.q)) < NEAR_PX * self.unit
        return int(near.sum()) >= LEAST_IN_PAIR


def make_prior(rig: Rig, known: Mapping[int, float]) -> Prior:
    """Return each kind's known focal length or, if it is unknown, the estimate with a small weight."""
    log_focal = np.log(rig.focal)
    deviation = np.full(len(rig.focal), 0.7)
    for kind, focal in known.items():
        log_focal[kind], deviation[kind] = np.log(focal), FOCAL_PRIOR
    return Prior(log_focal, deviation)


def find_links(
    pairs: Mapping[Pair, Matches], lenses: Sequence[Lens], widths: Sequence[float], least: float = LEAST_LINK
) -> dict[Pair, tuple[float, Matrix]]:
    """Return the pairs whose matches agree on a rotation: how many, and the rotation from first to second camera."""
    links = {}
    for (i, j), matches in pairs.items():
        if len(matches) < 2:
            continue
        agreeing, turn = count_agreeing(matches, lenses[i], lenses[j], (widths[i], widths[j]))
        if agreeing >= least:
            links[i, j] = agreeing, turn
    return links


def groups_of(links: Sequence[Pair], count: int) -> list[list[int]]:
    """Return the groups of connected cameras, the largest first."""
    groups: list[set[int]] = [{camera} for camera in range(count)]
    for i, j in links:
        joined = [group for group in groups if i in group or j in group]
        groups = [group for group in groups if group not in joined] + [set().union(*joined)]
    return sorted((sorted(group) for group in groups), key=lambda group: (-len(group), group))


def chain(group: Sequence[int], links: Mapping[Pair, tuple[float, Matrix]]) -> tuple[list[Matrix], list[Pair]]:
    """Return the rotations of a group's cameras along their strongest links, and those links."""
    inside = {pair: link for pair, link in links.items() if set(pair) <= set(group)}
    # The maximum spanning tree, by Prim's algorithm: a weak link could rotate all cameras behind it wrongly.
    first = max(inside, key=lambda pair: inside[pair][0])[0]
    rotations: dict[int, Matrix] = {first: np.eye(3)}
    tree: list[Pair] = []
    while len(rotations) < len(group):
        edge = [pair for pair in inside if (pair[0] in rotations) != (pair[1] in rotations)]
        i, j = max(edge, key=lambda pair: inside[pair][0])
        turn = inside[i, j][1]
        if i in rotations:
            rotations[j] = rotations[i] @ turn.T
        else:
            rotations[i] = rotations[j] @ turn
        tree.append((i, j))
    return [rotations[camera] for camera in group], tree


class Solver:
    """Solves groups of cameras. Positions in ``group`` are places in the rig.

    Args:
        views: All cameras' pictures.
        pairs: Matches by pair.
        marked: Points marked by the operator, by pair, in working pixels.
        lenses: Initial estimate of each camera's lens.
        kinds: Cameras with the same number have the same lens.
        known_focal: Configured focal length, by kind, in working pixels.
    """

    def __init__(
        self,
        views: list[View],
        pairs: Mapping[Pair, Matches],
        marked: Mapping[Pair, Matches],
        *,
        lenses: Sequence[Lens],
        kinds: Sequence[int],
        known_focal: Mapping[int, float],
    ) -> None:
        self._views, self._pairs, self._marked = views, pairs, marked
        self._lenses, self._kinds, self._known_focal = lenses, kinds, known_focal

    def solve(self, group: Sequence[int], links: Mapping[Pair, tuple[float, Matrix]]) -> Solution:
        """Solve one group of connected cameras."""
        rotations, tree = chain(group, links)
        place = {camera: number for number, camera in enumerate(group)}
        used = sorted({self._kinds[camera] for camera in group})
        first = {kind: next(c for c in group if self._kinds[c] == kind) for kind in used}
        rig = Rig(
            np.stack(rotations),
            np.array([used.index(self._kinds[camera]) for camera in group], np.intp),
            np.array([self._lenses[first[kind]].focal for kind in used]),
            np.array([self._lenses[first[kind]].k1 for kind in used]),
            np.zeros(len(used)),
            np.zeros((len(group), 2)),
        )
        prior = make_prior(rig, {used.index(k): f for k, f in self._known_focal.items() if k in used})
        everything = self._matched(place)
        in_tree = np.zeros(len(everything), bool)
        for i, j in tree:
            in_tree |= everything.between(place[i], place[j])
        unit = max(view.size[0] for view in (self._views[c] for c in group)) / 1920
        trunk = everything[in_tree]
        # Adjust to the tree alone first: it has no loops in which links could contradict each other. Then judge all
        # matches by the rig that it gives, more strictly each time.
        for far, scale in ((90.0, 12.0), (30.0, 5.0)):
            near = trunk[distances(rig, trunk) < far * unit]
            rig = adjust(rig, near, Free(), scale * unit, prior=prior, iterations=15)
        points = everything
        for far in FAR_PX:
            points = self._near(rig, everything, far * unit)
            rig = adjust(rig, points, Free(), max(far / 5, 1.5) * unit, prior=prior, iterations=12)
        return self._refine(group, rig, points, prior, unit)

    def _matched(self, place: Mapping[int, int]) -> Points:
        inside = [(pair, m) for pair, m in self._pairs.items() if set(pair) <= set(place) and len(m)]
        measured = [points_of(place[i], place[j], m.p, m.q) for (i, j), m in inside]
        return join(measured + self._by_hand(place))

    def _by_hand(self, place: Mapping[int, int]) -> list[Points]:
        inside = [(pair, m) for pair, m in self._marked.items() if set(pair) <= set(place)]
        # The weight exceeds LEAST_IN_PAIR, so that a single marked point is enough for its pair.
        return [points_of(place[i], place[j], m.p, m.q, 25.0) for (i, j), m in inside]

    @staticmethod
    def _near(rig: Rig, points: Points, far_px: float) -> Points:
        """Return the points close to their expected position, of pairs with enough of them; marked points always."""
        keep = (distances(rig, points) < far_px) | (points.weight > 1)
        # Both directions of a pair count together: see points_of().
        low, high = np.minimum(points.i, points.j), np.maximum(points.i, points.j)
        pair = low * len(rig.rotations) + high
        enough = np.bincount(pair, keep * points.weight, len(rig.rotations) ** 2) >= LEAST_IN_PAIR
        return points[keep & enough[pair]]

    def _follow(self, group: Sequence[int], rig: Rig, levels: int, *, last: bool = False) -> dict[Pair, Tracks]:
        views = [self._views[camera] for camera in group]
        found = {}
        for i, j in itertools.combinations(range(len(group)), 2):
            tracks = follow(rig, views, i, j, levels, with_rival=last)
            if tracks is not None:
                found[i, j] = tracks
        return found

    def _refine(self, group: Sequence[int], rig: Rig, matched: Points, prior: Prior, unit: float) -> Solution:
        """Track points in all overlaps and adjust to them, first coarsely, then finely."""
        place = {camera: number for number, camera in enumerate(group)}
        by_hand = self._by_hand(place)
        free, points = Free(), matched
        tracks: dict[Pair, Tracks] = {}
        for levels, far, scale in ((3, 12.0, 2.0), (1, 4.0, 0.8)):
            tracks = self._follow(group, rig, levels)
            points = join([points_of(i, j, t.p, t.q) for (i, j), t in tracks.items()] + by_hand)
            # Where no point can be tracked, the matches still constrain the rotation.
            followed = {pair for pair, t in tracks.items() if len(t.p) >= 12}
            rest = [matched[matched.between(*pair)] for pair in _pairs_of(matched) - followed]
            points = join([self._near(rig, points, far * unit), *rest])
            rig = adjust(rig, points, free, scale * unit, prior=prior, iterations=15)
            rig, free, prior = self._richer(rig, points, free, scale * unit, prior)
        return Solution(
            tuple(group),
            rig,
            free,
            points,
            self._follow(group, rig, 2, last=True),
            prior,
            unit,
            self._is_odd(group, rig),
            len(rig.focal) > len({self._kinds[camera] for camera in group}),
        )

    def _is_odd(self, group: Sequence[int], rig: Rig) -> bool:
        """Return whether the lenses are implausible: parallax of near things can be mistaken for distortion."""
        alike: dict[int, list[float]] = {}
        for number, camera in enumerate(group):
            alike.setdefault(self._kinds[camera], []).append(float(rig.camera_focal[number]))
        widths = np.array([self._views[camera].size[0] for camera in group])
        return bool(
            max(max(focals) / min(focals) for focals in alike.values()) > 1 + ODD_FOCAL
            or (np.abs(rig.centers).max(axis=1) > ODD_CENTER * widths).any()
        )

    def _richer(self, rig: Rig, points: Points, free: Free, scale_px: float, prior: Prior) -> tuple[Rig, Free, Prior]:
        """Solve for more lens parameters if they explain significantly more."""
        thin = points[np.arange(len(points)) % max(len(points) // 1200, 1) == 0]
        if len(thin) < 40:
            return rig, free, prior
        for trial_free, own in ((replace(free, k2=True), False), (free, True), (replace(free, centers=True), False)):
            trial, trial_prior = (apart(rig, prior)) if own else (rig, prior)
            if trial_free == free and len(trial.focal) == len(rig.focal):
                continue  # used already
            before, after = rig, adjust(trial, thin, trial_free, scale_px, prior=trial_prior, iterations=12)
            costs = [float(np.log1p((distances(r, thin) / scale_px) ** 2).sum()) for r in (before, after)]
            # More parameters always reduce the cost: require more than each of them would explain of the noise.
            spread = np.median(distances(after, thin)) ** 2 / scale_px**2 + 1e-4
            more = 2 * len(rig.rotations) if trial_free.centers and not free.centers else 0
            more += len(trial.focal) * (1 + trial_free.k1 + trial_free.k2) - len(rig.focal) * (1 + free.k1 + free.k2)
            if costs[0] - costs[1] > RICHER_GAIN * more * spread and costs[1] < 0.8 * costs[0]:
                free, prior = trial_free, trial_prior
                rig = adjust(after, points, free, scale_px, prior=prior, iterations=12)
        return rig, free, prior


def apart(rig: Rig, prior: Prior) -> tuple[Rig, Prior]:
    """Return the same rig with a separate lens for each camera."""
    if len(rig.focal) == len(rig.rotations):
        return rig, prior
    own = replace(
        rig,
        kinds=np.arange(len(rig.rotations)),
        focal=rig.focal[rig.kinds],
        k1=rig.k1[rig.kinds],
        k2=rig.k2[rig.kinds],
    )
    return own, replace(
        prior, log_focal=prior.log_focal[rig.kinds], log_focal_deviation=prior.log_focal_deviation[rig.kinds]
    )


def _pairs_of(points: Points) -> set[Pair]:
    low, high = np.minimum(points.i, points.j), np.maximum(points.i, points.j)
    return {(int(i), int(j)) for i, j in set(zip(low.tolist(), high.tolist(), strict=True))}
