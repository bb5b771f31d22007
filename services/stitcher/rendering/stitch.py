"""Render a panorama directly into the slot that it is published from."""

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
            to a multiple of 4; 0 for a hard cut.
        pool: Renders in the pool's threads. If it is None, the calling thread renders alone.
        parts: Number of horizontal slices into which each camera's region is split for the pool.
        evens_exposure: Whether :meth:`adapt` follows the cameras' exposure.
        view: ``crop`` fills the panorama; ``fit`` shows everything that the cameras see, with black bars.
        renderer: Kind of the renderer. If it is None, :func:`choose` decides.

    Raises:
        CalibrationError: There are gaps between the cameras, or nothing can be shown in this shape.
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
        """Geometry of the panorama, and which camera shows which columns."""
        self.geometry: dict[str, Any] = self.panorama.geometry.to_metadata()
        """The geometry in the form of each frame's metadata."""
        self._renderer: Renderer = make_renderer(renderer or choose("auto").kind, pool, parts)
        self._renderer.prepare(calibration.cameras, self.panorama, feather_px)
        self._control = ExposureControl(calibration) if evens_exposure else None

    @property
    def coverage(self) -> Coverage:
        """How much the panorama shows of the cameras' pictures."""
        return self.panorama.coverage

    @property
    def exposure(self) -> Exposure:
        """The exposure found by :meth:`adapt`."""
        if self._control is None:
            return Exposure.neutral(len(self.calibration.cameras))
        return self._control.exposure

    def adapt(self, pictures: Sequence[Planes | None], now_s: float) -> None:
        """Follow the cameras' exposure, to hide the seams. Measures every other second, for some milliseconds.

        Args:
            pictures: As for :meth:`render`.
            now_s: A monotonic clock.
        """
        if self._control is not None:
            self._renderer.set_exposure(self._control.update(pictures, now_s))

    def set_exposure(self, exposure: Exposure) -> None:
        """Use the given gains from the next frame on. Thread-safe."""
        self._renderer.set_exposure(exposure)

    def render(self, pictures: Sequence[Planes | None], out: Image) -> None:
        """Fill every pixel of ``out``, without an intermediate copy.

        Args:
            pictures: One for each camera of the calibration, in its order: of the size in the camera's pose, or
                ``None`` if the camera is gone, which is marked.
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
