"""Renders a panorama straight into the memory that it is published from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, wait
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
import numpy.typing as npt

from services.stitcher.calibration import Calibration, CameraPose
from services.stitcher.panorama import Map, Panorama, is_inside, plan, source_maps

Image = npt.NDArray[np.uint8]
Fixed = tuple[npt.NDArray[np.int16], npt.NDArray[np.uint16]]
"""Fixed-point maps, as cv2.convertMaps makes them."""

GREY, STRIPE, TEXT = 48, 64, 200
STRIPE_PX = 48
BAND_ROWS = 24
"""Rows that OpenCV renders in one call: its blocks then are as wide as a region, and a panorama of 4896x688 takes 15 ms
of one core instead of 19."""


class NotInPlace(RuntimeError):
    """OpenCV rendered into memory of its own instead of the slot."""


@dataclass(frozen=True, slots=True)
class _Region:
    """Columns that one camera fills."""

    camera: int
    columns: slice
    maps: Fixed
    mark: Image
    """What is shown while the camera is gone."""


@dataclass(frozen=True, slots=True)
class _Strip:
    """Columns in which the left camera fades into the right one."""

    cameras: tuple[int, int]
    columns: slice
    maps: tuple[Fixed, Fixed]
    weights: tuple[Map, Map]
    scratch: tuple[Image, Image]
    mark: Image


class Stitcher:
    """Renders panoramas of one calibration. Owned by one thread.

    Args:
        calibration: The placed cameras, from left to right.
        width_px: Width of the panorama, a multiple of 4.
        height_px: Height of the panorama, a multiple of 4.
        feather_px: Width of the strip at a seam in which one camera fades into the next; 0 cuts hard.
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
        self._rows = [slice(height_px * i // parts, height_px * (i + 1) // parts) for i in range(parts)]
        self.panorama: Panorama = plan(calibration, width_px, height_px)
        """The part of the world that is shown."""
        edges = self.panorama.edges_px
        halves = [self._half_strip(left, feather_px // 2) for left in range(len(calibration.cameras) - 1)]
        starts = [0, *(edges[i + 1] + half for i, half in enumerate(halves))]
        ends = [*(edges[i + 1] - half for i, half in enumerate(halves)), width_px]
        self._regions = [self._region(i, a, b) for i, (a, b) in enumerate(zip(starts, ends, strict=True)) if b > a]
        self._strips = [self._strip(i, edges[i + 1], half) for i, half in enumerate(halves) if half]

    def render(self, pictures: Sequence[Image | None], out: Image) -> None:
        """Fill ``out``, every pixel of it, without a copy between.

        Args:
            pictures: One a camera of the calibration, in its order: uint8 BGR of the size in the camera's pose, or
                ``None`` where the camera is gone, which is marked.
            out: uint8 of shape ``(height_px, width_px, 3)``: the pixels of a loaned slot.

        Raises:
            ValueError: A shape or type is wrong.
            NotInPlace: OpenCV did not write to ``out``; the frame must not be published.
        """
        self._check(pictures, out)
        tasks: list[Callable[[], None]] = [
            partial(_fill, region, pictures[region.camera], rows, out)
            for rows in self._rows
            for region in self._regions
        ]
        for strip in self._strips:
            tasks.append(partial(_blend, strip, pictures[strip.cameras[0]], pictures[strip.cameras[1]], out))
        if self._pool is None:
            for task in tasks:
                task()
        else:
            # All must have ended before an error leaves: the slot may be another frame's after that.
            futures = [self._pool.submit(task) for task in tasks]
            wait(futures)
            for future in futures:
                future.result()

    def _check(self, pictures: Sequence[Image | None], out: Image) -> None:
        wanted = (self.panorama.height_px, self.panorama.width_px, 3)
        if out.shape != wanted or out.dtype != np.uint8:
            raise ValueError(f"the panorama needs uint8 of shape {wanted}, not {out.dtype} of shape {out.shape}")
        cameras = self.calibration.cameras
        if len(pictures) != len(cameras):
            raise ValueError(f"{len(cameras)} pictures are needed, not {len(pictures)}")
        for camera, picture in zip(cameras, pictures, strict=True):
            if picture is not None and picture.shape != (camera.height_px, camera.width_px, 3):
                raise ValueError(f"{camera.name}: a picture of {camera.width_px}x{camera.height_px} is needed")

    def _half_strip(self, left: int, half: int) -> int:
        """Half the width of the strip at a seam, narrower where the two cameras do not both see it."""
        edges, cameras = self.panorama.edges_px, self.calibration.cameras
        edge = edges[left + 1]
        half = min(half, (edge - edges[left]) // 2, (edges[left + 2] - edge) // 2)
        while half > 0 and not all(
            is_inside(camera, *source_maps(self.panorama, camera, edge - half, edge + half))
            for camera in cameras[left : left + 2]
        ):
            half //= 2
        return half

    def _region(self, camera: int, start: int, end: int) -> _Region:
        pose = self.calibration.cameras[camera]
        mark = _hatch(self.panorama.height_px, start, end)
        _write(mark, (pose.name, "no signal"))
        return _Region(camera, slice(start, end), self._maps(pose, start, end), mark)

    def _strip(self, left: int, edge: int, half: int) -> _Strip:
        cameras, height_px = self.calibration.cameras, self.panorama.height_px
        start, end = edge - half, edge + half
        fade = ((np.arange(2 * half, dtype=np.float32) + 0.5) / (2 * half))[None, :].repeat(height_px, axis=0)
        scratch = (np.empty((height_px, 2 * half, 3), np.uint8), np.empty((height_px, 2 * half, 3), np.uint8))
        return _Strip(
            (left, left + 1),
            slice(start, end),
            (self._maps(cameras[left], start, end), self._maps(cameras[left + 1], start, end)),
            (np.ascontiguousarray(1 - fade), np.ascontiguousarray(fade)),
            scratch,
            _hatch(height_px, start, end),
        )

    def _maps(self, pose: CameraPose, start: int, end: int) -> Fixed:
        # Six bytes a pixel instead of eight: rendering waits for memory, and this takes 17.4 ms instead of 19.5.
        whole, fraction = cv2.convertMaps(*source_maps(self.panorama, pose, start, end), cv2.CV_16SC2)
        return np.asarray(whole, np.int16), np.asarray(fraction, np.uint16)


def _fill(region: _Region, picture: Image | None, rows: slice, out: Image) -> None:
    target = out[rows, region.columns]
    if picture is None:
        np.copyto(target, region.mark[rows])
    else:
        _remap(picture, (region.maps[0][rows], region.maps[1][rows]), target)


def _blend(strip: _Strip, left: Image | None, right: Image | None, out: Image) -> None:
    target = out[:, strip.columns]
    if left is not None and right is not None:
        _remap(left, strip.maps[0], strip.scratch[0])
        _remap(right, strip.maps[1], strip.scratch[1])
        _check_place(cv2.blendLinear(*strip.scratch, *strip.weights, dst=target), target)
    elif left is not None:
        _remap(left, strip.maps[0], target)
    elif right is not None:
        _remap(right, strip.maps[1], target)
    else:
        np.copyto(target, strip.mark)


def _remap(picture: Image, maps: Fixed, target: Image) -> None:
    for top in range(0, target.shape[0], BAND_ROWS):
        whole, fraction, band = (rows[top : top + BAND_ROWS] for rows in (*maps, target))
        # Replicated, because half a pixel at the edge must not fade to black.
        warped = cv2.remap(picture, whole, fraction, cv2.INTER_LINEAR, dst=band, borderMode=cv2.BORDER_REPLICATE)
        _check_place(warped, band)


def _check_place(result: npt.NDArray[np.generic], target: npt.NDArray[np.generic]) -> None:
    """OpenCV silently makes a new array when ``dst`` does not fit."""
    if result.__array_interface__["data"][0] != target.__array_interface__["data"][0]:
        raise NotInPlace(f"OpenCV made an array of shape {result.shape} instead of filling {target.shape} in the slot")


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
