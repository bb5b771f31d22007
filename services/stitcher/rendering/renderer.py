"""Fills panoramas with OpenCV: warps each camera's columns, blends at the seams, marks what is missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, wait
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import cv2
import numpy as np

from services.stitcher.calibration.poses import CameraPose
from services.stitcher.rendering.colour import Conversion, conversion
from services.stitcher.rendering.convert import Image, Planes
from services.stitcher.rendering.exposure import Array, Exposure, lens_factors, radius_squared
from services.stitcher.rendering.mark import hatch, write
from services.stitcher.rendering.panorama import Map, Panorama, inside, is_inside, source_maps
from services.stitcher.rendering.warp import LENS_SCALE, Warp, check_place

LENS_STEP = 0.008
"""What two lenses may differ by along a seam before it is corrected, as a logarithm: a level in 128."""
LENS_CELL_PX = 16


class Renderer(Protocol):
    """What fills panoramas; another way to do it may stand beside OpenCV's."""

    def prepare(self, cameras: Sequence[CameraPose], panorama: Panorama, feather_px: int) -> None:
        """Make what :meth:`render` needs, which takes a second or so.

        Args:
            cameras: Those of the calibration, in its order.
            panorama: What is shown, and which camera has which columns.
            feather_px: Width of the strips at the seams.
        """

    def set_exposure(self, exposure: Exposure) -> None:
        """Render with these gains from the next frame on; from any thread."""

    def render(self, pictures: Sequence[Planes | None], out: Image) -> None:
        """Fill ``out``, every pixel of it; as :meth:`services.stitcher.rendering.stitch.Stitcher.render`."""


@dataclass(frozen=True, slots=True)
class _Strip:
    """Columns in which the left camera fades into the right one."""

    cameras: tuple[int, int]
    columns: slice
    weights: tuple[Map, Map]
    scratch: tuple[Image, Image]
    """What each camera shows there, BGR."""
    radii: tuple[Array, Array]
    """``r^2`` in either camera of the pixels of the seam that both see."""
    mark: Image
    """What is shown while both cameras are gone."""


@dataclass(frozen=True, slots=True)
class _Region:
    """A rectangle that one camera fills, and its ends in the strips beside it."""

    camera: int
    rows: slice
    columns: slice
    warped: slice
    """The columns that are warped, of the panorama: with those of the strips."""
    warp: Warp
    ends: tuple[tuple[slice, Image], ...]
    """Columns of the warp, and the strip's scratch that they go to."""
    mark: Image
    """What is shown while the camera is gone."""


@dataclass(frozen=True, slots=True)
class _Correction:
    """An exposure, and the factors of the regions where the lenses' vignetting would show."""

    exposure: Exposure
    lens: tuple[Image | None, ...]


class OpenCvRenderer:
    """Renders with OpenCV. Owned by one thread, but for :meth:`set_exposure`.

    Args:
        pool: Renders in its threads; without it the calling thread renders alone.
        parts: In how many parts, one above the other, each camera's region is given to the pool.
    """

    def __init__(self, pool: Executor | None = None, parts: int = 1) -> None:
        self._pool = pool
        self._parts = parts
        self._cameras: Sequence[CameraPose] = ()
        self._strips: list[_Strip] = []
        self._regions: list[_Region] = []
        self._bars: list[tuple[slice, slice]] = []

    def prepare(self, cameras: Sequence[CameraPose], panorama: Panorama, feather_px: int) -> None:
        """Make maps, scratch and marks."""
        self._cameras, self._panorama = cameras, panorama
        self._strips, self._regions, self._bars = [], [], []
        left: _Strip | None = None
        for part, owner in enumerate(panorama.owners):
            right = self._strip(part, feather_px // 2)
            if owner is None:
                self._bars.append((slice(None), slice(panorama.edges_px[part], panorama.edges_px[part + 1])))
            else:
                self._add_regions(part, owner, left, right)
            if right is not None:
                self._strips.append(right)
            left = right
        self._correction = self._correct(Exposure.neutral(len(cameras)))

    def set_exposure(self, exposure: Exposure) -> None:
        """Render with these gains from the next frame on; from any thread."""
        if exposure is not self._correction.exposure:
            self._correction = self._correct(exposure, self._correction)

    def render(self, pictures: Sequence[Planes | None], out: Image) -> None:
        """Fill ``out``."""
        correction = self._correction
        conversions = [
            None if picture is None else conversion(picture.matrix, picture.is_full_range, gains)
            for picture, gains in zip(pictures, correction.exposure.gains, strict=True)
        ]
        tasks: list[Callable[[], None]] = [
            partial(_fill, region, pictures[region.camera], conversions[region.camera], lens, out)
            for region, lens in zip(self._regions, correction.lens, strict=True)
        ]
        if self._pool is None:
            for task in tasks:
                task()
        else:
            # All must have ended before an error leaves: the slot may be another frame's after that.
            futures = [self._pool.submit(task) for task in tasks]
            wait(futures)
            for future in futures:
                future.result()
        for strip in self._strips:
            left, right = (pictures[camera] is not None for camera in strip.cameras)
            _blend(strip, left, right, out)
        for rows, columns in self._bars:
            out[rows, columns] = 0

    def _strip(self, part: int, half: int) -> _Strip | None:
        """The strip to the right of a part; ``None`` where no other camera is beside it."""
        panorama, edges_px = self._panorama, self._panorama.edges_px
        if part + 1 == len(panorama.owners):
            return None
        left, right = panorama.owners[part : part + 2]
        if left is None or right is None:
            return None
        edge = edges_px[part + 1]
        half = min(half, (edge - edges_px[part]) // 2, (edges_px[part + 2] - edge) // 2) // 2 * 2
        cameras = self._cameras[left], self._cameras[right]
        height_px = panorama.height_px
        while True:
            seen = [inside(one, *source_maps(panorama, one, edge - half, edge + half)) for one in cameras]
            # Narrower where the two do not both see all of it, unless there may be bars.
            if half <= 0 or panorama.view == "fit" or (seen[0].all() and seen[1].all()):
                break
            half = half // 4 * 2
        seam = [source_maps(panorama, one, edge, edge + 1) for one in cameras]
        both = inside(cameras[0], *seam[0]) & inside(cameras[1], *seam[1])
        radii = [radius_squared(one, maps[0][both], maps[1][both]) for one, maps in zip(cameras, seam, strict=True)]
        fade = ((np.arange(2 * half, dtype=np.float32) + 0.5) / max(2 * half, 1))[None, :].repeat(height_px, axis=0)
        return _Strip(
            (left, right),
            slice(edge - half, edge + half),
            (np.ascontiguousarray((1 - fade) * seen[0]), np.ascontiguousarray(fade * seen[1])),
            (np.zeros((height_px, 2 * half, 3), np.uint8), np.zeros((height_px, 2 * half, 3), np.uint8)),
            (radii[0], radii[1]),
            hatch(height_px, edge - half, edge + half),
        )

    def _add_regions(self, part: int, camera: int, left: _Strip | None, right: _Strip | None) -> None:
        """A part in regions one above the other, and the bars above and below."""
        panorama = self._panorama
        first, start = (left.columns.start, left.columns.stop) if left else (panorama.edges_px[part],) * 2
        end, last = (right.columns.start, right.columns.stop) if right else (panorama.edges_px[part + 1],) * 2
        if first == last:
            return
        pose = self._cameras[camera]
        map_x, map_y = source_maps(panorama, pose, first, last)
        seen = np.flatnonzero(inside(pose, map_x, map_y).any(axis=1))
        top, bottom = (int(seen[0]) // 4 * 4, -(-int(seen[-1] + 1) // 4) * 4) if seen.size else (0, 0)
        self._bars += [
            (rows, slice(start, end))
            for rows in (slice(0, top), slice(bottom, panorama.height_px))
            if rows.stop > rows.start
        ]
        mark = hatch(panorama.height_px, start, end)[top:bottom]
        if mark.size:
            write(mark, (pose.name, "no signal"))
        tops = [top + (bottom - top) // 4 * i // self._parts * 4 for i in range(self._parts + 1)]
        for rows in map(slice, tops, tops[1:]):
            if rows.start == rows.stop:
                continue
            ends = []
            if left:
                ends.append((slice(0, start - first), left.scratch[1][rows]))
            if right:
                ends.append((slice(end - first, last - first), right.scratch[0][rows]))
            maps = map_x[rows], map_y[rows]
            warp = Warp(*maps, is_inside(pose, *maps))
            within = slice(rows.start - top, rows.stop - top)
            self._regions.append(
                _Region(camera, rows, slice(start, end), slice(first, last), warp, tuple(ends), mark[within])
            )

    def _correct(self, exposure: Exposure, before: _Correction | None = None) -> _Correction:
        """Vignetting is corrected only if two lenses differ along a seam: it costs a pass over all luma."""
        if before is not None and exposure.lens is before.exposure.lens:
            return _Correction(exposure, before.lens)
        if not any(_differ(strip, exposure) for strip in self._strips):
            return _Correction(exposure, (None,) * len(self._regions))
        return _Correction(exposure, tuple(self._lens(region, exposure) for region in self._regions))

    def _lens(self, region: _Region, exposure: Exposure) -> Image:
        """The factors of a region's pixels: smooth, so few of them are calculated."""
        pose = self._cameras[region.camera]
        height, width = region.rows.stop - region.rows.start, region.warped.stop - region.warped.start
        few = max(width // LENS_CELL_PX, 1), max(height // LENS_CELL_PX, 1)
        x, y = (
            cv2.resize(positions.clip(0, size_px - 1), few, interpolation=cv2.INTER_AREA)
            for positions, size_px in zip(region.warp.middles, (pose.width_px, pose.height_px), strict=True)
        )
        factors = lens_factors(
            exposure.lens[region.camera], radius_squared(pose, np.asarray(x, np.float64), np.asarray(y, np.float64))
        )
        whole = cv2.resize(factors, (width, height), interpolation=cv2.INTER_LINEAR)
        return np.asarray(np.rint((whole * LENS_SCALE).clip(0, 255)), np.uint8)


def _differ(strip: _Strip, exposure: Exposure) -> bool:
    logs = [
        np.log(lens_factors(exposure.lens[camera], squared))
        for camera, squared in zip(strip.cameras, strip.radii, strict=True)
    ]
    return bool((np.abs(logs[0] - logs[1]) > LENS_STEP).any())


def _fill(region: _Region, picture: Planes | None, made: Conversion | None, lens: Image | None, out: Image) -> None:
    target = out[region.rows, region.columns]
    if picture is None or made is None:
        np.copyto(target, region.mark)
        return
    offset = region.warped.start
    inner = slice(region.columns.start - offset, region.columns.stop - offset)
    targets = [(columns, image) for columns, image in ((inner, target), *region.ends) if image.size]
    region.warp.fill(picture, targets, made, lens)


def _blend(strip: _Strip, left: bool, right: bool, out: Image) -> None:
    target = out[:, strip.columns]
    if not target.size:
        return
    if left and right:
        check_place(cv2.blendLinear(*strip.scratch, *strip.weights, dst=target), target)
    else:
        np.copyto(target, strip.scratch[0] if left else strip.scratch[1] if right else strip.mark)
