"""Positions of the cameras' pictures and of the seams in the panorama, for drawings of a calibration."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from services.stitcher.calibration.poses import Calibration, CameraPose
from services.stitcher.rendering.panorama import Panorama

Array = npt.NDArray[np.float64]

POINTS_A_SIDE: Final = 8
MAX_V: Final = 3.0
"""Limit of an outline, 72 degrees from the horizon: on a cylinder, it could extend to infinity."""


def describe(calibration: Calibration, panorama: Panorama) -> dict[str, Any]:
    """Return the panorama's size, its seams and the outlines of its cameras, in its pixels, for the status.

    The page draws them over its picture of the panorama. Some 5 kB of JSON for five cameras.
    """
    return {
        "width_px": panorama.width_px,
        "height_px": panorama.height_px,
        "turn_px": round(2 * math.pi * panorama.scale_px),
        "seams_px": seams(panorama),
        "outlines_px": {
            camera.name: np.rint(outline(camera, panorama)).astype(int).tolist() for camera in calibration.cameras
        },
        "matches_px": [np.round(ends, 1).tolist() for _, ends in matches(calibration, panorama)],
    }


def seams(panorama: Panorama) -> list[int]:
    """Return the columns at which one camera ends and the next begins."""
    return sorted({edge for edge in panorama.edges_px if 0 < edge < panorama.width_px})


def matches(calibration: Calibration, panorama: Panorama) -> Iterator[tuple[tuple[str, str], Array]]:
    """Yield the positions in the panorama of the matched points, by each camera of a pair.

    Yields:
        For each match, the names of the cameras, and float64 of shape ``(2, 2)``: x and y by the first and the second.
    """
    poses, geometry = {camera.name: camera for camera in calibration.cameras}, panorama.geometry
    for pair in calibration.pairs:
        points = np.reshape(pair.points_px, (-1, 2, 2)).astype(np.float64)
        ones, others = (
            geometry.pixels(_angles(poses[name].directions(points[:, end]))) for end, name in enumerate(pair.cameras)
        )
        # If a match lies across the cut of a full circle, its two positions may be at opposite ends.
        turn_px = 2 * math.pi * panorama.scale_px
        others[:, 0] -= turn_px * np.round((others - ones)[:, 0] / turn_px)
        for one, other in zip(ones, others, strict=True):
            if np.isfinite([one, other]).all():
                yield pair.cameras, np.stack([one, other])


def _angles(rays: Array) -> Array:
    """Return yaw and pitch of directions, in rad."""
    return np.stack(
        [np.arctan2(rays[:, 0], rays[:, 2]), -np.arctan2(rays[:, 1], np.hypot(rays[:, 0], rays[:, 2]))], axis=-1
    )


def outline(camera: CameraPose, panorama: Panorama, points_a_side: int = POINTS_A_SIDE) -> Array:
    """Return the edge of a camera's picture in the panorama, clockwise from its top left corner.

    Returns:
        float64 of shape ``(points, 2)``: x and y in pixels of the panorama, which may lie outside of it. The whole
        outline is shifted by full turns to the position nearest to the panorama's middle.
    """
    edge = np.array(list(_edge(camera, points_a_side)))
    rays = camera.directions(edge)
    rays = rays[np.isfinite(rays).all(axis=1)]
    level = np.hypot(rays[:, 0], rays[:, 2])
    # An outline across the back would otherwise jump by a turn.
    yaw = np.unwrap(np.arctan2(rays[:, 0], rays[:, 2]))
    middle = panorama.yaw_min_rad + panorama.width_px / panorama.scale_px / 2
    yaw -= 2 * math.pi * round((float(yaw.min() + yaw.max()) / 2 - middle) / (2 * math.pi))
    v = np.clip(rays[:, 1] / np.maximum(level, 1e-9), -MAX_V, MAX_V)
    # The middle of pixel x is x + 0.5 steps from the edge: see Panorama.
    x = (yaw - panorama.yaw_min_rad) * panorama.scale_px - 0.5
    return np.stack([x, (v - panorama.v_min) * panorama.scale_px - 0.5], axis=-1)


def between(left: Array, right: Array, turn_px: float) -> tuple[float, float, float]:
    """Return the middle and the bottom of the intersection of two outlines: x of the middle, y of both.

    If the outlines of two neighbours are at opposite ends of a full circle, one is shifted by a turn to the other.
    """
    low, high = left.min(axis=0), left.max(axis=0)
    other_low, other_high = right.min(axis=0), right.max(axis=0)
    apart = float(other_low[0] + other_high[0] - low[0] - high[0]) / 2
    shift = np.array([-turn_px * round(apart / turn_px), 0.0])
    low, high = np.maximum(low, other_low + shift), np.minimum(high, other_high + shift)
    return float(low[0] + high[0]) / 2, float(low[1] + high[1]) / 2, float(high[1])


def _edge(camera: CameraPose, points_a_side: int) -> Iterator[tuple[float, float]]:
    right, bottom = camera.width_px - 1.0, camera.height_px - 1.0
    corners = [(0.0, 0.0), (right, 0.0), (right, bottom), (0.0, bottom), (0.0, 0.0)]
    for (x0, y0), (x1, y1) in pairwise(corners):
        for step in range(points_a_side):
            share = step / points_a_side
            yield x0 + share * (x1 - x0), y0 + share * (y1 - y0)
