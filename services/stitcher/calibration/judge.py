"""Verify a solved rig, pair by pair: how much of the overlaps it explains, how well, and what stays undetermined."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from services.stitcher.calibration.adjust import Free, Layout, Prior, covariance, distances, jacobian
from services.stitcher.calibration.prepare import View
from services.stitcher.calibration.rays import Points, Rig, points_of
from services.stitcher.calibration.search import Lens, Matches, Pair, count_agreeing
from services.stitcher.calibration.solve import FOCAL_PRIOR, Solution, apart
from services.stitcher.calibration.tracks import STRAY_PX, overlap_directions

Matrix = npt.NDArray[np.float64]

GOOD_PX = 1.6
"""A tracked point that is further than this from its position by the calibration, in working pixels, disagrees."""
LEAST_GOOD = 14
LEAST_SHARE = 0.6
"""Least share of an overlap's corners that must be found where the calibration predicts them."""
LEAST_CELLS = 0.4
"""Least share of the overlap's parts with corners in which some must be found."""
MOST_STRAY = 0.012
"""Share of the tracked points that may be more than :data:`STRAY_PX` away."""
CONTRADICTED_SHARE = 0.15
CONTRADICTED_CORNERS = 40
CONTRADICTED_OVERLAP = 0.03
"""Two cameras contradict each other if less than this share of the corners is found, of at least this many, in an
overlap of at least this share of a picture."""
MOST_MISFIT = 0.08
"""Share of the tracked points that may be more than :data:`GOOD_PX` away."""
MOST_TORN = 4
"""Points that may lie in textured parts of the overlap that look different in both pictures."""
MOST_GONE, MOST_GONE_SHARE = 9, 0.025
"""Points that may lie in parts of the overlap of which nothing is found in the other picture: a number, and a share."""
STRICT = 0.3
"""Factor of the limits of strays and of missing parts if the lenses are implausible."""
MOST_RIVAL = 0.5
"""Largest fit of another displacement, relative to that of the calibration."""
MOST_ON_ANOTHER = 7
"""Matches that may agree among themselves on another rotation than the calibration's."""
ANOTHER_PX = 8.0
"""Distance from which a match counts as not explained, in working pixels of a picture 1920 wide."""
MOST_OPEN_PX = 1.3
"""Largest uncertainty of a seam, as twice its deviation."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict on one pair of cameras."""

    good: int
    """Points that are where the calibration predicts them."""
    corners: int
    strays: int
    """Points that were tracked to another place."""
    overlap: float
    rms_px: float
    """Of the good ones, in working pixels of the coarser camera."""
    open_px: float
    """Twice the deviation of the seam at its worst place."""
    confidence: float
    is_link: bool
    """Whether this pair links its cameras."""
    is_contradiction: bool
    """Whether the two should show the same scene but do not."""
    fault: str
    """Why the pair does not link its cameras."""
    has_parallax: bool
    """Whether the fault may be that the cameras do not stand at one point."""


def judge(
    solution: Solution,
    views: list[View],
    matches: Mapping[Pair, Matches],
    min_confidence: float,
    marked: Mapping[Pair, int],
    *,
    has_parallax: bool = False,
) -> dict[Pair, Verdict]:
    """Judge each pair of the rig that should overlap.

    Args:
        solution: The solved rig.
        views: The rig's cameras.
        matches: Feature matches, by pair.
        min_confidence: Least confidence of a link.
        marked: Number of points marked by the operator, by pair.
        has_parallax: Whether an earlier verdict on the same pictures found parallax.
    """
    opens, open_focal = _open_px(solution, views), _open_focal(solution)
    # If the lenses are implausible, be strict about what remains unexplained: near things, seen from different places,
    # can be explained by wrong lenses in most of an overlap.
    strict = STRICT if solution.is_odd else 1.0
    verdicts = {}
    for pair, tracks in solution.tracks.items():
        good = tracks.moved_px < GOOD_PX
        # A coarse picture lacks the other's fine texture, so some of its parts cannot be found.
        focal = solution.rig.camera_focal[list(pair)]
        unlike = float(focal.max() / focal.min())
        count, strays = int(good.sum()), int((tracks.moved_px > STRAY_PX).sum()) + tracks.elsewhere
        share = count / max(tracks.corners, 1)
        # Brown and Lowe's criterion of a match, n_i > 8 + 0.3 n_f, as OpenCV's stitcher counts it.
        confidence = count / (8 + 0.3 * tracks.corners)
        rms = float(np.sqrt(np.mean(tracks.moved_px[good] ** 2))) if count else 0.0
        open_px = opens.get(pair, np.inf)
        fault, is_parallax = "", False
        if count < LEAST_GOOD:
            fault = f"only {count} points of their overlap agree"
        elif share < LEAST_SHARE or tracks.cells < LEAST_CELLS or confidence < min_confidence:
            fault = f"only {count} of {tracks.corners} points of their overlap agree"
        elif has_parallax and (solution.is_odd or solution.has_own_lenses):
            # In one overlap alone, wrong lenses can explain the same parallax completely.
            fault = (
                "their overlap fits only if each camera has another lens, and other overlaps look as if the cameras do"
                " not stand at one point; if the lenses do differ, give each camera its hfov_deg"
            )
        elif strays > strict * max(4, MOST_STRAY * len(tracks.moved_px)):
            is_parallax = True
            fault = (
                f"{strays} of {len(tracks.moved_px)} points of their overlap are more than {STRAY_PX:.0f} px apart,"
                " as with cameras that do not stand at one point, or with things that move"
            )
        elif count < (1 - MOST_MISFIT) * len(tracks.moved_px):
            is_parallax = True
            fault = (
                f"{len(tracks.moved_px) - count} of {len(tracks.moved_px)} points of their overlap are more than"
                f" {GOOD_PX:.1f} px apart: the lens is not as modelled, or the cameras do not stand at one point"
            )
        elif tracks.gone > strict * unlike * max(MOST_GONE, MOST_GONE_SHARE * tracks.corners) or (
            tracks.torn > strict * unlike**2 * MOST_TORN
        ):
            is_parallax = True
            fault = (
                f"{max(tracks.gone, tracks.torn)} of {tracks.corners} points lie in parts of their overlap that look"
                " different in both, as with near things if the cameras do not stand at one point, or with things that"
                " moved, unless a mask hides them"
            )
        elif tracks.rival > MOST_RIVAL:
            fault = f"their overlap is repetitive: a displaced picture fits {tracks.rival:.0%} as well"
        elif (others := _on_another_turn(solution, views, pair, matches[pair])) > MOST_ON_ANOTHER:
            fault = (
                f"{others} of their matches agree on another rotation of the two cameras: what they show is repetitive,"
                " or they do not stand at one point"
            )
        elif open_px > MOST_OPEN_PX:
            fault = f"what they show determines their seam only to {open_px:.1f} px"
        elif (focal_share := open_focal[solution.rig.kinds[list(pair)]].max()) >= FOCAL_PRIOR:
            fault = f"what they show determines a focal length only to {focal_share:.0%}"
        if fault and marked.get(pair, 0) >= 3:
            fault = ""  # trust the operator: two points determine the rotation, and the third confirms it
        is_contradiction = bool(
            share < CONTRADICTED_SHARE
            and tracks.corners >= CONTRADICTED_CORNERS
            and tracks.overlap > CONTRADICTED_OVERLAP
            and marked.get(pair, 0) < 3
        )
        verdicts[pair] = Verdict(
            good=count,
            corners=tracks.corners,
            strays=strays,
            overlap=tracks.overlap,
            rms_px=rms,
            open_px=open_px,
            confidence=confidence,
            is_link=not fault,
            is_contradiction=is_contradiction,
            fault=fault,
            has_parallax=is_parallax,
        )
    return verdicts


def _on_another_turn(solution: Solution, views: list[View], pair: Pair, matches: Matches) -> int:
    """Count the matches that the solved rig does not explain but that agree among themselves."""
    i, j = pair
    points = Points(
        np.full(len(matches), i, np.intp),
        np.full(len(matches), j, np.intp),
        matches.p,
        matches.q,
        np.ones(len(matches)),
    )
    unit = max(views[i].size[0], views[j].size[0]) / 1920
    left = distances(solution.rig, points) > ANOTHER_PX * unit
    if left.sum() < MOST_ON_ANOTHER:
        return 0
    rig = solution.rig
    lenses = [Lens(float(rig.focal[kind]), float(rig.k1[kind])) for kind in rig.kinds[[i, j]]]
    sizes = (float(views[i].size[0]), float(views[j].size[0]))
    return int(count_agreeing(Matches(matches.p[left], matches.q[left]), lenses[0], lenses[1], sizes)[0])


def _open_px(solution: Solution, views: list[View]) -> dict[Pair, float]:
    """Return twice the deviation of each seam at its worst place, in working pixels.

    Each camera has a separate lens here, with roughly known distortion and centre, to account for effects that the
    solved model omits.
    """
    rig, prior = apart(solution.rig, solution.prior)
    rough = solution.free.k2
    # The deviations of the lens that are plausible although the solved model does not include them.
    prior = replace(
        prior,
        log_focal_deviation=np.full(len(rig.focal), 0.02),
        k1_deviation=0.03,
        k2_deviation=0.1 if rough else 0.02,
        center_deviation_px=0.005 * max(view.size[0] for view in views),
    )
    if len(solution.points) < 12:
        return {}
    matrix, layout = _covariance(solution, rig, Free(k2=True, centers=True), prior)
    opens = {}
    for pair in solution.tracks:
        i, j = pair
        directions, _ = overlap_directions(rig, views, i, j, 10)
        if not len(directions):
            # A narrow overlap lies between the points of a coarse grid.
            directions, _ = overlap_directions(rig, views, i, j, 24)
        if not len(directions):
            continue
        seam = _finite(points_of(i, j, rig.project(i, directions), rig.project(j, directions)))
        # Use pixels of the coarser camera: those of the finer one are not visible.
        coarse = rig.camera_focal[[i, j]].min() / rig.camera_focal[seam.j]
        rows = (jacobian(rig, seam, layout) * coarse[:, None, None]).reshape(-1, layout.width)
        variances = np.einsum("na,ab,nb->n", rows, matrix, rows)
        opens[pair] = 2 * float(np.sqrt(max(variances.max(initial=0.0), 0.0)))
    return opens


def _open_focal(solution: Solution) -> Matrix:
    """Return the deviation of each kind's focal length, as a share.

    With a configured field of view it is below :data:`FOCAL_PRIOR`.
    """
    if not len(solution.points):
        return np.full(len(solution.rig.focal), np.inf)
    matrix, layout = _covariance(solution, solution.rig, solution.free, solution.prior)
    column = layout.lens_start + layout.lens.index("focal") + len(layout.lens) * np.arange(layout.kinds)
    return np.asarray(np.sqrt(np.maximum(np.diag(matrix)[column], 0.0)))


def _covariance(solution: Solution, rig: Rig, free: Free, prior: Prior) -> tuple[Matrix, Layout]:
    """Return the covariance of the rig's parameters, for the errors that its points have."""
    points = solution.points[np.arange(len(solution.points)) % max(len(solution.points) // 1500, 1) == 0]
    spread = max(1.48 * float(np.median(distances(rig, points))), 0.15)
    matrix, layout = covariance(rig, points, free, 3 * spread, prior)
    # Neighbouring points share their errors, so they count for less than their number.
    return matrix * (2 * spread) ** 2, layout


def _finite(points: Points) -> Points:
    return points[np.isfinite(np.concatenate([points.p, points.q], axis=1)).all(axis=1)]
