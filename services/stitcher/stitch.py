"""Renders a panorama straight into the memory that it is published from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, wait
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np

from services.stitcher.calibration import Calibration
from services.stitcher.convert import Image, Planes
from services.stitcher.panorama import Map, Panorama, is_inside, plan, source_maps
from services.stitcher.warp import Warp, check_place

GREY, STRIPE, TEXT = 48, 64, 200
STRIPE_PX = 48


@dataclass(frozen=True, slots=True)
class _Strip:
    """Columns in which the left camera fades into the right one."""

    cameras: tuple[int, int]
    columns: slice
    weights: tuple[Map, Map]
    scratch: tuple[Image, Image]
    """What each camera shows there, BGR."""
    mark: Image
    """What is shown while both cameras are gone."""


@dataclass(frozen=True, slots=True)
class _Region:
    """A rectangle that one camera fills, and its ends in the strips beside it."""

    camera: int
    rows: slice
    columns: slice
    warp: Warp
    inner: slice
    """``columns``, counted from where the warp begins."""
    ends: tuple[tuple[slice, Image], ...]
    """Columns of the warp, and the strip's scratch that they go to."""
    mark: Image
    """What is shown while the camera is gone."""


class Stitcher:
    """Renders panoramas of one calibration. Owned by one thread.

    Args:
        calibration: The placed cameras, from left to right.
        width_px: Width of the panorama, a multiple of 4.
        height_px: Height of the panorama, a multiple of 4.
        feather_px: Width of the strip at a seam in which one camera fades into the next, rounded down
            to a multiple of 4; 0 cuts hard.
        pool: Renders in its threads; without it the calling thread renders alone.
        parts: In how many parts, one above the other, each camera's region is given to the pool.

    Raises:
        CalibrationError: The cameras leave gaps between them.
    """

    def __init__(
        self,
        calibration: Calibration,
        width_px: int,
        height_px: int,
        feather_px: int = 16,
        *,
        pool: Executor | None = None,
        parts: int = 1,
    ) -> None:
        self.calibration = calibration
        self._pool = pool
        self.panorama: Panorama = plan(calibration, width_px, height_px)
        """The part of the world that is shown."""
        cameras = range(len(calibration.cameras))
        self._strips = [self._strip(left, self._half_strip(left, feather_px // 2)) for left in cameras[:-1]]
        self._regions = [region for camera in cameras for region in self._split_region(camera, parts)]

    def render(self, pictures: Sequence[Planes | None], out: Image) -> None:
        """Fill ``out``, every pixel of it, without a copy between.

        Args:
            pictures: One a camera of the calibration, in its order: of the size in the camera's pose, or
                ``None`` where the camera is gone, which is marked.
            out: uint8 of shape ``(height_px, width_px, 3)``: the pixels of a loaned slot.

        Raises:
            ValueError: A shape or type is wrong.
            NotInPlace: OpenCV did not write to ``out``; the frame must not be published.
        """
        self._check(pictures, out)
        tasks: list[Callable[[], None]] = [
            partial(_fill, region, pictures[region.camera], out) for region in self._regions
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

    def _check(self, pictures: Sequence[Planes | None], out: Image) -> None:
        wanted = (self.panorama.height_px, self.panorama.width_px, 3)
        if out.shape != wanted or out.dtype != np.uint8:
            raise ValueError(f"the panorama needs uint8 of shape {wanted}, not {out.dtype} of shape {out.shape}")
        cameras = self.calibration.cameras
        if len(pictures) != len(cameras):
            raise ValueError(f"{len(cameras)} pictures are needed, not {len(pictures)}")
        for camera, picture in zip(cameras, pictures, strict=True):
            if picture is not None and picture.y.shape != (camera.height_px, camera.width_px):
                raise ValueError(f"{camera.name}: a picture of {camera.width_px}x{camera.height_px} is needed")

    def _half_strip(self, left: int, half: int) -> int:
        """Half the width of the strip at a seam, narrower where the two cameras do not both see it."""
        edges, cameras = self.panorama.edges_px, self.calibration.cameras
        edge = edges[left + 1]
        half = min(half, (edge - edges[left]) // 2, (edges[left + 2] - edge) // 2) // 2 * 2
        while half > 0 and not all(
            is_inside(camera, *source_maps(self.panorama, camera, edge - half, edge + half))
            for camera in cameras[left : left + 2]
        ):
            half = half // 4 * 2
        return half

    def _strip(self, left: int, half: int) -> _Strip:
        edge, height_px = self.panorama.edges_px[left + 1], self.panorama.height_px
        fade = ((np.arange(2 * half, dtype=np.float32) + 0.5) / max(2 * half, 1))[None, :].repeat(height_px, axis=0)
        return _Strip(
            (left, left + 1),
            slice(edge - half, edge + half),
            (np.ascontiguousarray(1 - fade), np.ascontiguousarray(fade)),
            (np.empty((height_px, 2 * half, 3), np.uint8), np.empty((height_px, 2 * half, 3), np.uint8)),
            _hatch(height_px, edge - half, edge + half),
        )

    def _split_region(self, camera: int, parts: int) -> list[_Region]:
        """The camera's region in parts one above the other."""
        pose, height_px = self.calibration.cameras[camera], self.panorama.height_px
        left = self._strips[camera - 1] if camera else None
        right = self._strips[camera] if camera < len(self._strips) else None
        first, start = (left.columns.start, left.columns.stop) if left else (0, 0)
        end, last = (right.columns.start, right.columns.stop) if right else (self.panorama.width_px,) * 2
        if first == last:
            return []
        mark = _hatch(height_px, start, end)
        if mark.size:
            _write(mark, (pose.name, "no signal"))
        map_x, map_y = source_maps(self.panorama, pose, first, last)
        tops = [height_px // 4 * i // parts * 4 for i in range(parts + 1)]
        regions = []
        for rows in map(slice, tops, tops[1:]):
            ends = []
            if left:
                ends.append((slice(0, start - first), left.scratch[1][rows]))
            if right:
                ends.append((slice(end - first, last - first), right.scratch[0][rows]))
            warp = Warp(map_x[rows], map_y[rows])
            inner = slice(start - first, end - first)
            regions.append(_Region(camera, rows, slice(start, end), warp, inner, tuple(ends), mark[rows]))
        return regions


def _fill(region: _Region, picture: Planes | None, out: Image) -> None:
    target = out[region.rows, region.columns]
    if picture is None:
        np.copyto(target, region.mark)
    else:
        targets = [(region.inner, target), *region.ends]
        region.warp.fill(picture, [(columns, image) for columns, image in targets if image.size])


def _blend(strip: _Strip, left: bool, right: bool, out: Image) -> None:
    target = out[:, strip.columns]
    if not target.size:
        return
    if left and right:
        check_place(cv2.blendLinear(*strip.scratch, *strip.weights, dst=target), target)
    else:
        np.copyto(target, strip.scratch[0] if left else strip.scratch[1] if right else strip.mark)


def _hatch(height_px: int, start: int, end: int) -> Image:
    """Grey stripes, which go on from one region to the next."""
    diagonal = np.arange(start, end)[None, :] + np.arange(height_px)[:, None]
    grey = np.where(diagonal // STRIPE_PX % 2, STRIPE, GREY).astype(np.uint8)
    return np.ascontiguousarray(grey[:, :, None].repeat(3, axis=2))


def _write(mark: Image, lines: Sequence[str]) -> None:
    height_px, width_px = mark.shape[:2]
    for index, line in enumerate(lines):
        (natural_px, _), _ = cv2.getTextSize(line, cv2.FONT_HERSHEY_SIMPLEX, 1.0, 2)
        scale = min(2.0, height_px / 200, 0.8 * width_px / max(natural_px, 1))
        (text_px, text_height_px), _ = cv2.getTextSize(line, cv2.FONT_HERSHEY_SIMPLEX, scale, 2)
        place = ((width_px - text_px) // 2, height_px // 2 + round((index - 0.5) * 2 * text_height_px))
        cv2.putText(mark, line, place, cv2.FONT_HERSHEY_SIMPLEX, scale, (TEXT,) * 3, 2, cv2.LINE_AA)
