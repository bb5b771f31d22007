"""Divide a panorama: a part for each camera, strips in which two cameras blend, bars where no camera sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from services.stitcher.calibration.poses import CameraPose
from services.stitcher.rendering.convert import Image
from services.stitcher.rendering.exposure import Array, Exposure, lens_factors, radius_squared
from services.stitcher.rendering.mark import hatch, write
from services.stitcher.rendering.panorama import Map, Panorama, inside, source_maps

LENS_STEP = 0.008
"""Least difference of two lenses along a seam that is corrected, as a logarithm: one level in 128."""

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Strip:
    """Columns in which the left camera fades into the right one."""

    cameras: tuple[int, int]
    columns: slice
    fade: Map
    """Weight of the right camera for each pixel that both see, of the shape of the strip."""
    seen: tuple[Mask, Mask]
    """Which pixels each camera sees."""
    radii: tuple[Array, Array]
    """``r^2`` in each camera's picture of the pixels of the seam that both see."""
    mark: Image
    """Pixels to show while both cameras are gone."""


@dataclass(frozen=True, slots=True)
class Part:
    """A rectangle that one camera fills, between the strips."""

    camera: int
    rows: slice
    """Rows of which the camera sees a pixel, as multiples of 4."""
    columns: slice
    left: Strip | None
    right: Strip | None
    maps: tuple[Map, Map]
    """Where the pixels are in the camera's picture, from the left strip's first column to the right one's last, in all
    rows of the panorama."""
    mark: Image
    """Pixels to show in these rows and columns while the camera is gone."""

    @property
    def first(self) -> int:
        """The first column of the maps."""
        first: int = self.columns.start if self.left is None else self.left.columns.start
        return first

    def tops(self, parts: int) -> list[slice]:
        """Split the rows into at most ``parts`` slices, without empty ones."""
        height = self.rows.stop - self.rows.start
        tops = [self.rows.start + height // 4 * i // parts * 4 for i in range(parts + 1)]
        return [slice(top, bottom) for top, bottom in pairwise(tops) if bottom > top]


@dataclass(frozen=True, slots=True)
class Layout:
    """The division of a whole panorama."""

    parts: tuple[Part, ...]
    strips: tuple[Strip, ...]
    bars: tuple[tuple[slice, slice], ...]
    """Rows and columns that stay black."""

    def lenses_differ(self, exposure: Exposure) -> bool:
        """Return whether the vignetting of two lenses shows at a seam."""
        return any(_differ(strip, exposure) for strip in self.strips)


def divide(cameras: Sequence[CameraPose], panorama: Panorama, feather_px: int) -> Layout:
    """Divide a panorama.

    Args:
        cameras: The calibration's cameras, in its order.
        panorama: The geometry, and which camera shows which columns.
        feather_px: Width of the strips at the seams.
    """
    parts, strips, bars = [], [], []
    left: Strip | None = None
    for number, owner in enumerate(panorama.owners):
        right = _strip(cameras, panorama, number, feather_px // 2)
        if owner is None:
            bars.append((slice(None), slice(panorama.edges_px[number], panorama.edges_px[number + 1])))
        else:
            part = _part(cameras[owner], panorama, number, left, right)
            if part is not None:
                parts.append(part)
                bars += [
                    (rows, part.columns)
                    for rows in (slice(0, part.rows.start), slice(part.rows.stop, panorama.height_px))
                    if rows.stop > rows.start
                ]
        if right is not None:
            strips.append(right)
        left = right
    return Layout(tuple(parts), tuple(strips), tuple(bars))


def _strip(cameras: Sequence[CameraPose], panorama: Panorama, part: int, half: int) -> Strip | None:
    """Return the strip to the right of a part, or ``None`` if no camera is on its right."""
    edges_px = panorama.edges_px
    if part + 1 == len(panorama.owners):
        return None
    left, right = panorama.owners[part : part + 2]
    if left is None or right is None:
        return None
    edge = edges_px[part + 1]
    # A strip takes at most half of each part beside it, so that strips do not overlap. Its half is even, because a
    # sample of chroma serves two columns.
    half = min(half, (edge - edges_px[part]) // 2, (edges_px[part + 2] - edge) // 2) // 2 * 2
    both = cameras[left], cameras[right]
    height_px = panorama.height_px
    while True:
        seen = [inside(one, *source_maps(panorama, one, edge - half, edge + half)) for one in both]
        # Narrow the strip if the two cameras do not both see all of it, unless bars are allowed.
        if half <= 0 or panorama.view == "fit" or (seen[0].all() and seen[1].all()):
            break
        half = half // 4 * 2
    seam = [source_maps(panorama, one, edge, edge + 1) for one in both]
    common = inside(both[0], *seam[0]) & inside(both[1], *seam[1])
    radii = [radius_squared(one, maps[0][common], maps[1][common]) for one, maps in zip(both, seam, strict=True)]
    fade = ((np.arange(2 * half, dtype=np.float32) + 0.5) / max(2 * half, 1))[None, :].repeat(height_px, axis=0)
    return Strip(
        (left, right),
        slice(edge - half, edge + half),
        np.ascontiguousarray(fade),
        (seen[0], seen[1]),
        (radii[0], radii[1]),
        hatch(height_px, edge - half, edge + half),
    )


def _part(pose: CameraPose, panorama: Panorama, number: int, left: Strip | None, right: Strip | None) -> Part | None:
    """Return the part that a camera fills between two strips, or ``None`` if it is empty."""
    edges_px = panorama.edges_px
    first, start = (left.columns.start, left.columns.stop) if left else (edges_px[number],) * 2
    end, last = (right.columns.start, right.columns.stop) if right else (edges_px[number + 1],) * 2
    if first == last:
        return None
    maps = source_maps(panorama, pose, first, last)
    seen = np.flatnonzero(inside(pose, *maps).any(axis=1))
    top, bottom = (int(seen[0]) // 4 * 4, -(-int(seen[-1] + 1) // 4) * 4) if seen.size else (0, 0)
    mark = hatch(panorama.height_px, start, end)[top:bottom]
    if mark.size:
        write(mark, (pose.name, "no signal"))
    owner = panorama.owners[number]
    assert owner is not None
    return Part(owner, slice(top, bottom), slice(start, end), left, right, maps, mark)


def _differ(strip: Strip, exposure: Exposure) -> bool:
    logs = [
        np.log(lens_factors(exposure.lens[camera], squared))
        for camera, squared in zip(strip.cameras, strip.radii, strict=True)
    ]
    return bool((np.abs(logs[0] - logs[1]) > LENS_STEP).any())
