"""Render panoramas with a compiled warp: interpolation, colours, gains, vignetting and blending in one pass.

Importing this module raises ImportError if the warp was not built.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from services.stitcher.calibration.poses import CameraPose
from services.stitcher.rendering._warp_c import HAS_AVX2, warp
from services.stitcher.rendering.blocks import Blocks, Brightness, brightness, to_blocks
from services.stitcher.rendering.colour import to_bgr
from services.stitcher.rendering.convert import Image, Planes
from services.stitcher.rendering.exposure import Exposure
from services.stitcher.rendering.layout import Layout, Strip, divide
from services.stitcher.rendering.panorama import Panorama, source_maps
from services.stitcher.rendering.tasks import run_all

IS_FAST = HAS_AVX2
"""Whether the compiled warp is faster than OpenCV on this processor."""
FACTOR = 4096
"""Fixed-point 1 of a factor from planes to BGR."""
WHOLE_SHARE = 256
NOT_PADDED = 2
"""Least rows and columns of a plane, for interpolation; a smaller plane is padded by repetition."""

Factors = npt.NDArray[np.int16]
Shares = npt.NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class _Rectangle:
    """A rectangle that one camera fills in one pass."""

    camera: int
    rows: slice
    columns: slice
    blocks: Blocks
    shares: Shares | None = None
    """The camera's weight of each pixel in 1/256, over the existing content."""


@dataclass(frozen=True, slots=True)
class _Region:
    """A camera's rectangle between the strips."""

    whole: _Rectangle
    mark: Image
    """Pixels to show while the camera is gone."""


@dataclass(frozen=True, slots=True)
class _Blend:
    """A strip: its left camera's rectangle, the right one's alone, and the right one's over the left one's."""

    strip: Strip
    left: _Rectangle
    right: _Rectangle
    over: _Rectangle


@dataclass(frozen=True, slots=True)
class _Correction:
    """An exposure, and the factors of the regions and blends where the lenses' vignetting would show."""

    exposure: Exposure
    regions: tuple[Brightness | None, ...]
    blends: tuple[tuple[Brightness | None, Brightness | None], ...]


@dataclass(frozen=True, slots=True)
class _Source:
    """A camera's picture, in the form that the warp requires."""

    planes: tuple[Image, Image, Image]
    chroma_step: tuple[int, int]
    black: int
    factors: Factors

    @staticmethod
    def of(picture: Planes, gains: npt.NDArray[np.float64]) -> _Source:
        factors = np.rint(to_bgr(picture.matrix, picture.is_full_range, gains)[:, :3] * FACTOR)
        u, v = _at_least(picture.u), _at_least(picture.v)
        # The warp computes the offset of a sample once, for both planes.
        if u.strides != v.strides:
            u, v = np.ascontiguousarray(u), np.ascontiguousarray(v)
        return _Source(
            (_at_least(picture.y), u, v),
            picture.chroma_step,
            0 if picture.is_full_range else 16,
            np.asarray(factors.clip(-(2**15), 2**15 - 1), np.int16),
        )


class CompiledRenderer:
    """Renders with the compiled warp. Owned by one thread, except for :meth:`set_exposure`.

    Args:
        pool: Renders in the pool's threads. If it is None, the calling thread renders alone.
        parts: Number of horizontal slices into which each camera's region is split for the pool.
        may_use_avx2: Whether to use AVX2 if the processor has it. The result is identical.
    """

    def __init__(self, pool: Executor | None = None, parts: int = 1, *, may_use_avx2: bool = True) -> None:
        self._pool = pool
        self._parts = parts
        self._may_use_avx2 = may_use_avx2
        self._cameras: Sequence[CameraPose] = ()
        self._layout = Layout((), (), ())
        self._regions: list[_Region] = []
        self._blends: list[_Blend] = []

    def prepare(self, cameras: Sequence[CameraPose], panorama: Panorama, feather_px: int) -> None:
        """Precompute blocks and marks."""
        self._cameras = cameras
        self._layout = divide(cameras, panorama, feather_px)
        self._regions = []
        for part in self._layout.parts:
            if part.columns.start == part.columns.stop:
                continue
            own = slice(part.columns.start - part.first, part.columns.stop - part.first)
            blocks = to_blocks(cameras[part.camera], *(one[:, own] for one in part.maps))
            for rows in part.tops(self._parts):
                mark = part.mark[rows.start - part.rows.start : rows.stop - part.rows.start]
                self._regions.append(_Region(_Rectangle(part.camera, rows, part.columns, blocks.rows(rows)), mark))
        self._blends = [self._blend(panorama, strip) for strip in self._layout.strips if strip.mark.size]
        self._correction = self._correct(Exposure.neutral(len(cameras)))

    def set_exposure(self, exposure: Exposure) -> None:
        """Use these gains from the next frame on. Thread-safe."""
        if exposure is not self._correction.exposure:
            self._correction = self._correct(exposure, self._correction)

    def render(self, pictures: Sequence[Planes | None], out: Image) -> None:
        """Fill ``out``."""
        correction = self._correction  # read once: another thread may replace it
        sources = [
            None if picture is None else _Source.of(picture, gains)
            for picture, gains in zip(pictures, correction.exposure.gains, strict=True)
        ]
        tasks: list[Callable[[], None]] = [
            partial(self._fill_region, region, sources, lens, out)
            for region, lens in zip(self._regions, correction.regions, strict=True)
        ]
        tasks += [
            partial(self._fill_strip, blend, sources, lenses, out)
            for blend, lenses in zip(self._blends, correction.blends, strict=True)
        ]
        run_all(self._pool, tasks)
        for rows, columns in self._layout.bars:
            out[rows, columns] = 0

    def _blend(self, panorama: Panorama, strip: Strip) -> _Blend:
        start, stop = strip.columns.start, strip.columns.stop
        rows = slice(0, panorama.height_px)
        left, right = (
            _Rectangle(
                camera,
                rows,
                strip.columns,
                to_blocks(self._cameras[camera], *source_maps(panorama, self._cameras[camera], start, stop)),
            )
            for camera in strip.cameras
        )
        sees_left, sees_right = strip.seen
        # Where only one of the two sees a pixel, its share is the whole.
        share = np.where(sees_left & sees_right, strip.fade, sees_right)
        shares = np.asarray(np.rint(share * WHOLE_SHARE), np.uint16)
        over = _Rectangle(right.camera, rows, strip.columns, right.blocks, shares)
        return _Blend(strip, left, right, over)

    def _correct(self, exposure: Exposure, before: _Correction | None = None) -> _Correction:
        """Compute the corrections. Vignetting is corrected only if two lenses differ along a seam."""
        # ExposureControl keeps the same array while the lenses' coefficients stay: only the gains differ then.
        if before is not None and exposure.lens is before.exposure.lens:
            return _Correction(exposure, before.regions, before.blends)
        if not self._layout.lenses_differ(exposure):
            return _Correction(exposure, (None,) * len(self._regions), ((None, None),) * len(self._blends))

        def lens(rectangle: _Rectangle) -> Brightness:
            camera = rectangle.camera
            return brightness(self._cameras[camera], rectangle.blocks, exposure.lens[camera])

        return _Correction(
            exposure,
            tuple(lens(region.whole) for region in self._regions),
            tuple((lens(blend.left), lens(blend.right)) for blend in self._blends),
        )

    def _fill_region(
        self, region: _Region, sources: Sequence[_Source | None], lens: Brightness | None, out: Image
    ) -> None:
        source = sources[region.whole.camera]
        if source is None:
            np.copyto(out[region.whole.rows, region.whole.columns], region.mark)
        else:
            self._warp(region.whole, source, lens, out)

    def _fill_strip(
        self,
        blend: _Blend,
        sources: Sequence[_Source | None],
        lenses: tuple[Brightness | None, Brightness | None],
        out: Image,
    ) -> None:
        left, right = (sources[camera] for camera in blend.strip.cameras)
        if left is None and right is None:
            np.copyto(out[:, blend.strip.columns], blend.strip.mark)
        # In this order: the right camera's warp blends over what the left one's has written.
        if left is not None:
            self._warp(blend.left, left, lenses[0], out)
        if right is not None:
            self._warp(blend.right if left is None else blend.over, right, lenses[1], out)

    def _warp(self, rectangle: _Rectangle, source: _Source, lens: Brightness | None, out: Image) -> None:
        blocks = rectangle.blocks
        warp(
            out,
            rectangle.rows.start,
            rectangle.columns.start,
            blocks.width_px,
            blocks.places,
            blocks.seen,
            *source.planes,
            source.chroma_step,
            source.black,
            source.factors,
            lens,
            rectangle.shares,
            self._may_use_avx2,
        )


def _at_least(plane: Image) -> Image:
    """Return the plane, padded to at least two rows and columns, which interpolation requires."""
    height, width = plane.shape
    if height >= NOT_PADDED and width >= NOT_PADDED:
        return plane
    return np.pad(plane, ((0, max(NOT_PADDED - height, 0)), (0, max(NOT_PADDED - width, 0))), mode="edge")
