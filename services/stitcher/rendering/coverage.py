"""How much a panorama shows of the cameras' pictures, as numbers and as a sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from services.stitcher.calibration.poses import CameraPose
from services.stitcher.rendering.view import COLUMNS, STEP_RAD, Sight

LEAST_DEG = 0.5
"""A camera that shows less is only a sliver at the panorama's edge."""


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much the panorama shows of the cameras' pictures."""

    shown_deg: float
    """Width of the panorama, in degrees of yaw."""
    all_deg: float
    """Width of the directions that any camera sees, in degrees of yaw."""
    outside: tuple[str, ...]
    """Cameras that show less than half a degree."""
    cameras_deg: Mapping[str, float]
    """How many degrees each camera shows."""
    size_for_all_px: tuple[int, int]
    """Width and height of a panorama of the same scale that shows all if the view is ``fit``; multiples of 4."""

    def sentence(self) -> str:
        """Return a sentence like "112 of 227 degrees, cam3 and cam4 outside; 9924x1432 would show all"."""
        text = f"{self.shown_deg:.0f} of {self.all_deg:.0f} degrees"
        if self.outside:
            *others, last = self.outside
            text += f", {', '.join(others)}{' and ' if others else ''}{last} outside"
        if self.shown_deg < self.all_deg - math.degrees(STEP_RAD):
            width_px, height_px = self.size_for_all_px
            text += f"; {width_px}x{height_px} would show all"
        return text


def cover(
    cameras: Sequence[CameraPose],
    sight: Sight,
    scale_px: float,
    edges_px: Sequence[int],
    owners: Sequence[int | None],
) -> Coverage:
    """Measure how much the parts of a panorama show.

    Args:
        cameras: The calibration's cameras; ``owners`` holds indexes into them.
        sight: What they see, from the first to the last column that any camera sees.
        scale_px: Pixels per radian.
        edges_px: Edges of the parts.
        owners: The camera that shows each part.
    """
    width_px = [0] * len(cameras)
    for start, end, owner in zip(edges_px, edges_px[1:], owners, strict=False):
        if owner is not None:
            width_px[owner] += end - start
    seen = np.asarray(sight.height.any(axis=0))
    # Each run of columns has one interval less than columns; the whole circle has as many.
    runs = int(seen[0]) + int((seen[1:] & ~seen[:-1]).sum())
    all_rad = (int(seen.sum()) - (0 if len(seen) == COLUMNS else runs)) * STEP_RAD
    span_rad = (len(seen) - (0 if len(seen) == COLUMNS else 1)) * STEP_RAD
    height = float(sight.high.max() - sight.low.min())
    return Coverage(
        # The edges are rounded to pixels, so the parts may be wider than what the cameras see.
        shown_deg=min(math.degrees(sum(width_px) / scale_px), math.degrees(all_rad)),
        all_deg=math.degrees(all_rad),
        outside=tuple(
            camera.name
            for camera, width in zip(cameras, width_px, strict=True)
            if math.degrees(width / scale_px) < LEAST_DEG
        ),
        cameras_deg={
            camera.name: math.degrees(width / scale_px) for camera, width in zip(cameras, width_px, strict=True)
        },
        size_for_all_px=(_multiple_of_4(span_rad * scale_px), _multiple_of_4(height * scale_px)),
    )


def _multiple_of_4(size_px: float) -> int:
    return math.ceil(size_px / 4 - 1e-6) * 4
