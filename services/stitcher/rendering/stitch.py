"""Renders a panorama straight into the memory that it is published from."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np

from services.stitcher.calibration.poses import Calibration
from services.stitcher.rendering.choice import Kind, choose, make_renderer
from services.stitcher.rendering.convert import Image, Planes
from services.stitcher.rendering.coverage import Coverage
from services.stitcher.rendering.exposure import Exposure, ExposureControl
from services.stitcher.rendering.panorama import Panorama, View, plan
from services.stitcher.rendering.renderer import Renderer


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
        evens_exposure: Whether :meth:`adapt` follows the cameras' exposure.
        view: ``crop`` shows what fills the panorama, ``fit`` all that the cameras see, with black bars.
        renderer: What fills the panoramas; without it, what :func:`choose` takes by itself.

    Raises:
        CalibrationError: The cameras leave gaps between them, or nothing can be shown in this shape.
        ImportError: The renderer was not built.
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
        evens_exposure: bool = True,
        view: View = "crop",
        renderer: Kind | None = None,
    ) -> None:
        self.calibration = calibration
        self.panorama: Panorama = plan(calibration, width_px, height_px, view)
        """The part of the world that is shown."""
        self.geometry: dict[str, Any] = self.panorama.geometry.to_metadata()
        """The same for each frame's metadata."""
        self._renderer: Renderer = make_renderer(renderer or choose("auto").kind, pool, parts)
        self._renderer.prepare(calibration.cameras, self.panorama, feather_px)
        self._control = ExposureControl(calibration) if evens_exposure else None

    @property
    def coverage(self) -> Coverage:
        """What is shown of what the cameras see."""
        return self.panorama.coverage

    @property
    def exposure(self) -> Exposure:
        """What :meth:`adapt` found."""
        if self._control is None:
            return Exposure.neutral(len(self.calibration.cameras))
        return self._control.exposure

    def adapt(self, pictures: Sequence[Planes | None], now_s: float) -> None:
        """Follow the cameras' exposure, so that no seam shows: every other second, some milliseconds' work.

        Args:
            pictures: As for :meth:`render`.
            now_s: A monotonic clock.
        """
        if self._control is not None:
            self._renderer.set_exposure(self._control.update(pictures, now_s))

    def set_exposure(self, exposure: Exposure) -> None:
        """Render with gains found elsewhere, from the next frame on; from any thread."""
        self._renderer.set_exposure(exposure)

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
        self._renderer.render(pictures, out)

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
