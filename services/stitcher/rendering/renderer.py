"""Render panoramas with OpenCV: warp each camera's columns, blend at the seams, mark missing cameras."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import cv2
import numpy as np

from services.stitcher.calibration.poses import CameraPose
from services.stitcher.rendering.colour import Conversion, conversion
from services.stitcher.rendering.convert import Image, Planes
from services.stitcher.rendering.exposure import Exposure, lens_factors, radius_squared
from services.stitcher.rendering.layout import Layout, Part, Strip, divide
from services.stitcher.rendering.panorama import Map, Panorama, is_inside
from services.stitcher.rendering.tasks import run_all
from services.stitcher.rendering.warp import LENS_SCALE, Warp, check_place

LENS_CELL_PX = 16
"""Pixels between the computed factors of a lens, along each axis."""


class Renderer(Protocol):
    """Interface of a renderer of panoramas."""

    def prepare(self, cameras: Sequence[CameraPose], panorama: Panorama, feather_px: int) -> None:
        """Precompute what :meth:`render` needs. This takes about a second.

        Args:
            cameras: The calibration's cameras, in its order.
            panorama: The geometry, and which camera shows which columns.
            feather_px: Width of the strips at the seams.
        """

    def set_exposure(self, exposure: Exposure) -> None:
        """Use these gains from the next frame on. Thread-safe."""

    def render(self, pictures: Sequence[Planes | None], out: Image) -> None:
        """Fill every pixel of ``out``, as :meth:`services.stitcher.rendering.stitch.Stitcher.render` does."""


@dataclass(frozen=True, slots=True)
class _Blend:
    """A strip, and the two pictures that it blends."""

    strip: Strip
    weights: tuple[Map, Map]
    scratch: tuple[Image, Image]
    """Each camera's pixels of the strip, BGR."""

    @staticmethod
    def of(strip: Strip) -> _Blend:
        left, right = strip.seen
        weights = np.ascontiguousarray((1 - strip.fade) * left), np.ascontiguousarray(strip.fade * right)
        return _Blend(strip, weights, (np.zeros_like(strip.mark), np.zeros_like(strip.mark)))


@dataclass(frozen=True, slots=True)
class _Region:
    """A rectangle that one camera fills, and its ends in the strips beside it."""

    camera: int
    rows: slice
    columns: slice
    warped: slice
    """Columns of the panorama to warp, including those of the strips."""
    warp: Warp
    ends: tuple[tuple[slice, Image], ...]
    """Columns of the warp, and the strip's scratch that they go to."""
    mark: Image
    """Pixels to show while the camera is gone."""


@dataclass(frozen=True, slots=True)
class _Correction:
    """An exposure, and the factors of the regions where the lenses' vignetting would show."""

    exposure: Exposure
    lens: tuple[Image | None, ...]


class OpenCvRenderer:
    """Renders with OpenCV. Owned by one thread, except for :meth:`set_exposure`.

    Args:
        pool: Renders in the pool's threads. If it is None, the calling thread renders alone.
        parts: Number of horizontal slices into which each camera's region is split for the pool.
    """

    def __init__(self, pool: Executor | None = None, parts: int = 1) -> None:
        self._pool = pool
        self._parts = parts
        self._cameras: Sequence[CameraPose] = ()
        self._layout = Layout((), (), ())
        self._blends: list[_Blend] = []
        self._regions: list[_Region] = []

    def prepare(self, cameras: Sequence[CameraPose], panorama: Panorama, feather_px: int) -> None:
        """Precompute maps, scratch buffers and marks."""
        self._cameras = cameras
        self._layout = divide(cameras, panorama, feather_px)
        self._blends = [_Blend.of(strip) for strip in self._layout.strips]
        self._regions = [region for part in self._layout.parts for region in self._regions_of(part)]
        self._correction = self._correct(Exposure.neutral(len(cameras)))

    def set_exposure(self, exposure: Exposure) -> None:
        """Use these gains from the next frame on. Thread-safe."""
        if exposure is not self._correction.exposure:
            self._correction = self._correct(exposure, self._correction)

    def render(self, pictures: Sequence[Planes | None], out: Image) -> None:
        """Fill ``out``."""
        correction = self._correction  # read once: another thread may replace it
        conversions = [
            None if picture is None else conversion(picture.matrix, picture.is_full_range, gains)
            for picture, gains in zip(pictures, correction.exposure.gains, strict=True)
        ]
        tasks: list[Callable[[], None]] = [
            partial(_fill, region, pictures[region.camera], conversions[region.camera], lens, out)
            for region, lens in zip(self._regions, correction.lens, strict=True)
        ]
        # Strips need the pixels of both cameras, so blend them after all regions.
        run_all(self._pool, tasks)
        for blend in self._blends:
            left, right = (pictures[camera] is not None for camera in blend.strip.cameras)
            _blend(blend, left, right, out)
        for rows, columns in self._layout.bars:
            out[rows, columns] = 0

    def _regions_of(self, part: Part) -> list[_Region]:
        """Split a part into regions, one above the other."""
        pose, first = self._cameras[part.camera], part.first
        map_x, map_y = part.maps
        start, end, last = part.columns.start, part.columns.stop, first + map_x.shape[1]
        scratch = {id(blend.strip): blend.scratch for blend in self._blends}
        regions = []
        for rows in part.tops(self._parts):
            # Of the strip to its left this camera is the right one, and vice versa.
            ends = []
            if part.left:
                ends.append((slice(0, start - first), scratch[id(part.left)][1][rows]))
            if part.right:
                ends.append((slice(end - first, last - first), scratch[id(part.right)][0][rows]))
            maps = map_x[rows], map_y[rows]
            warp = Warp(*maps, is_inside(pose, *maps))
            mark = part.mark[rows.start - part.rows.start : rows.stop - part.rows.start]
            regions.append(_Region(part.camera, rows, slice(start, end), slice(first, last), warp, tuple(ends), mark))
        return regions

    def _correct(self, exposure: Exposure, before: _Correction | None = None) -> _Correction:
        """Compute the corrections.

        Vignetting is corrected only if two lenses differ along a seam, because it costs a pass over all luma.
        """
        # ExposureControl keeps the same array while the lenses' coefficients stay: only the gains differ then.
        if before is not None and exposure.lens is before.exposure.lens:
            return _Correction(exposure, before.lens)
        if not self._layout.lenses_differ(exposure):
            return _Correction(exposure, (None,) * len(self._regions))
        return _Correction(exposure, tuple(self._lens(region, exposure) for region in self._regions))

    def _lens(self, region: _Region, exposure: Exposure) -> Image:
        """Return the factors of a region's pixels. They are smooth, so compute few and interpolate."""
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


def _fill(region: _Region, picture: Planes | None, made: Conversion | None, lens: Image | None, out: Image) -> None:
    target = out[region.rows, region.columns]
    if picture is None or made is None:
        np.copyto(target, region.mark)
        return
    offset = region.warped.start
    inner = slice(region.columns.start - offset, region.columns.stop - offset)
    targets = [(columns, image) for columns, image in ((inner, target), *region.ends) if image.size]
    region.warp.fill(picture, targets, made, lens)


def _blend(blend: _Blend, left: bool, right: bool, out: Image) -> None:
    target = out[:, blend.strip.columns]
    if not target.size:
        return
    if left and right:
        check_place(cv2.blendLinear(*blend.scratch, *blend.weights, dst=target), target)
    else:
        np.copyto(target, blend.scratch[0] if left else blend.scratch[1] if right else blend.strip.mark)
