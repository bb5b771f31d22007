"""Convert a solved rig to a calibration: poses in the pictures' own pixels, and residuals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from services.stitcher.calibration.horizon import align, rotation_from, straighten
from services.stitcher.calibration.judge import GOOD_PX, Verdict
from services.stitcher.calibration.poses import Calibration, CameraPose, CameraPrior, PairResidual, undistort
from services.stitcher.calibration.prepare import View
from services.stitcher.calibration.search import Lens, Pair
from services.stitcher.calibration.solve import Solution

Matrix = npt.NDArray[np.float64]

MOST_POINTS = 24
"""Matched points of a pair that a calibration keeps."""


def hfov_deg(solution: Solution, views: Sequence[View], number: int) -> float:
    """Return a camera's horizontal field of view, including distortion."""
    rig = solution.rig
    kind = rig.kinds[number]
    edge = views[solution.cameras[number]].size[0] / 2 / rig.focal[kind]
    plane = undistort(np.array([edge, 0.0]), float(rig.k1[kind]), float(rig.k2[kind]))[0]
    return math.degrees(2 * math.atan(float(np.nan_to_num(plane, nan=edge))))


def to_calibration(
    solution: Solution,
    verdicts: Mapping[Pair, Verdict],
    views: Sequence[View],
    *,
    priors: Mapping[str, CameraPrior],
    lenses: Sequence[Lens],
    refused: Mapping[str, str],
) -> Calibration:
    """Return the poses of the solved cameras, and of those that only the configuration places.

    Args:
        solution: The solved rig.
        verdicts: Verdicts on its pairs.
        views: All cameras.
        priors: Known properties of each.
        lenses: Estimate of each camera's lens.
        refused: Cameras that must not be placed, with the reason.
    """
    names = [view.name for view in views]
    rotations = {names[camera]: solution.rig.rotations[n] for n, camera in enumerate(solution.cameras)}
    # Only the cameras' rotations against each other are solved, so the rig may be rotated as a whole.
    turn = align(rotations, priors)
    if turn is None:
        turn = straighten(rotations)
    links = {pair: verdict for pair, verdict in verdicts.items() if verdict.is_link}
    residuals = {pair: verdict.rms_px * _source_px(solution, views, pair) for pair, verdict in links.items()}
    poses = []
    for number, camera in enumerate(solution.cameras):
        mine = [pair for pair in links if number in pair]
        # Average the squares over all points, so that a pair with many of them counts for more.
        total = sum(links[pair].good for pair in mine)
        squares = sum(links[pair].good * residuals[pair] ** 2 for pair in mine)
        poses.append(
            _pose(
                views[camera],
                _lens(solution, number),
                solution.rig.centers[number],
                turn @ rotations[names[camera]],
                confidence=max((links[pair].confidence for pair in mine), default=0.0),
                rms_px=math.sqrt(squares / total) if total else None,
            )
        )
    # A configured direction means something only if the rig was aligned with configured directions.
    if any(rotation_from(priors[name]) is not None for name in rotations):
        poses += _as_configured(solution, views, priors, lenses, {*rotations, *refused})
    poses.sort(key=lambda pose: pose.yaw_rad)
    placed = {pose.name for pose in poses}
    pairs = tuple(
        PairResidual(
            cameras=(names[solution.cameras[i]], names[solution.cameras[j]]),
            matches=links[i, j].good,
            rms_px=residuals[i, j],
            points_px=_some_points(solution, views, (i, j)),
        )
        for i, j in links
    )
    return Calibration(tuple(poses), tuple(name for name in names if name not in placed), {}, pairs)


def _lens(solution: Solution, number: int) -> tuple[float, float, float]:
    """Return focal length in working pixels, k1 and k2."""
    rig = solution.rig
    kind = rig.kinds[number]
    return float(rig.focal[kind]), float(rig.k1[kind]), float(rig.k2[kind])


def _some_points(
    solution: Solution, views: Sequence[View], pair: Pair
) -> tuple[tuple[float, float, float, float], ...]:
    """Return some of the points that agree, in the pictures' own pixels."""
    tracks = solution.tracks[pair]
    good = np.flatnonzero(tracks.moved_px < GOOD_PX)
    some = good[:: max(math.ceil(len(good) / MOST_POINTS), 1)]
    ends = []
    for number, measured in zip(pair, (tracks.p, tracks.q), strict=True):
        view = views[solution.cameras[number]]
        ends.append((np.array(view.source_size) - 1) / 2 + measured[some] / np.array(view.scale))
    return tuple(tuple(row) for row in np.round(np.concatenate(ends, axis=1), 1).tolist())


def _source_px(solution: Solution, views: Sequence[View], pair: Pair) -> float:
    """Return the source pixels per working pixel of the coarser camera of a pair."""
    focal = [_lens(solution, number)[0] for number in pair]
    # The camera with the smaller focal length in pixels has the coarser pixels.
    own = [f / views[solution.cameras[number]].scale[0] for f, number in zip(focal, pair, strict=True)]
    return min(own) / min(focal)


def _pose(
    view: View,
    lens: tuple[float, float, float],
    center: Matrix,
    rotation: Matrix,
    *,
    confidence: float,
    rms_px: float | None,
) -> CameraPose:
    width_px, height_px = view.source_size
    return CameraPose(
        name=view.name,
        width_px=width_px,
        height_px=height_px,
        focal_px=lens[0] / view.scale[0],
        pixel_aspect=view.scale[0] / view.scale[1],
        k1=lens[1],
        k2=lens[2],
        center_x_px=(width_px - 1) / 2 + float(center[0]) / view.scale[0],
        center_y_px=(height_px - 1) / 2 + float(center[1]) / view.scale[1],
        rotation=rotation.tolist(),
        confidence=confidence,
        rms_px=rms_px,
    )


def _as_configured(
    solution: Solution,
    views: Sequence[View],
    priors: Mapping[str, CameraPrior],
    lenses: Sequence[Lens],
    others: set[str],
) -> list[CameraPose]:
    """Return the cameras that only the configuration places, with their group's lens or the configured one."""
    poses = []
    for camera, view in enumerate(views):
        rotation = rotation_from(priors[view.name])
        if view.name in others or rotation is None:
            continue
        known_deg = priors[view.name].hfov_deg
        alike = [n for n, c in enumerate(solution.cameras) if views[c].source_size == view.source_size]
        if known_deg is not None:
            lens = (view.size[0] / 2 / math.tan(math.radians(known_deg) / 2), 0.0, 0.0)
        elif alike:
            lens = _lens(solution, alike[0])
        else:
            lens = (lenses[camera].focal, lenses[camera].k1, 0.0)
        poses.append(_pose(view, lens, np.zeros(2), rotation, confidence=0.0, rms_px=None))
    return poses
