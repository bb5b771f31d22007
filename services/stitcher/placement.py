"""From the first pictures to a stitcher: a calibration is loaded or found, until every camera has a place.

Finding a calibration takes seconds, so it runs beside the panorama, which goes on meanwhile.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any

import numpy as np
import structlog
from av.video.frame import VideoFrame

from services.stitcher.calibrate import steps_for
from services.stitcher.calibration import Calibration, CalibrationError, CameraPrior, load, save
from services.stitcher.config import CalibrationSection, StitcherSection
from services.stitcher.convert import Image
from services.stitcher.stitch import Stitcher
from services.stitcher.worker import calibrate_apart

MAX_RETRY_FACTOR = 32
"""Each try costs seconds of work, so the wait doubles, up to this many times ``retry_s``."""


class Placement:
    """Gives the stitcher of the best calibration so far.

    Args:
        section: The stitcher's configuration.
        names: The cameras, as configured.
        pool: What the stitcher renders with.
    """

    def __init__(self, section: StitcherSection, names: Sequence[str], pool: Executor) -> None:
        self._section = section
        self._pool = pool
        self._settings: CalibrationSection = section.calibration
        self._names = tuple(names)
        self._log = structlog.get_logger()
        self._lock = threading.Lock()
        self._current: Stitcher | None = None
        self._state = "waiting for pictures"
        self._source = ""
        self._worker: threading.Thread | None = None
        self._closing = threading.Event()
        self._retry_s = self._settings.retry_s
        self._next_try_s = 0.0
        self._first_pictures_s: float | None = None
        self.progress: tuple[int, int] | None = None
        """Steps of the calibration under way that are done, and their number; ``None`` while there is none."""
        if self._settings.file is not None:
            self._load()

    def stitcher(self, pictures: Mapping[str, VideoFrame | None]) -> Stitcher | None:
        """The stitcher to render with, or ``None`` as long as there is no calibration.

        Args:
            pictures: The newest ones, by camera. They are used to calibrate where cameras are still to be placed.
        """
        with self._lock:
            current = self._current
            unplaced = set(self._names) if current is None else set(current.calibration.unplaced)
        if unplaced and self._is_time_to_try(pictures, unplaced):
            images = {
                name: np.asarray(picture.to_ndarray(format="bgr24"), np.uint8)
                for name, picture in pictures.items()
                if picture is not None
            }
            self._count(0, steps_for(len(images)))
            self._worker = threading.Thread(target=self._find, args=(images,), name="calibrate")
            self._worker.start()
        return current

    def close(self) -> None:
        """End a calibration that is under way."""
        self._closing.set()
        if self._worker is not None:
            self._worker.join()

    @property
    def is_placed(self) -> bool:
        """Whether there is a calibration to render with."""
        return self._current is not None

    def describe(self) -> dict[str, Any]:
        """The state, for the status."""
        with self._lock:
            current = self._current
            return {
                "state": self._state,
                "source": self._source,
                "unplaced": [] if current is None else list(current.calibration.unplaced),
                "cameras": {}
                if current is None
                else {
                    pose.name: {
                        "yaw_deg": round(math.degrees(pose.yaw_rad), 2),
                        "focal_px": round(pose.focal_px, 1),
                        "confidence": round(pose.confidence, 2),
                    }
                    for pose in current.calibration.cameras
                },
                "panorama": {}
                if current is None
                else {
                    "yaw_min_rad": current.panorama.yaw_min_rad,
                    "v_min": current.panorama.v_min,
                    "scale_px": current.panorama.scale_px,
                },
            }

    def _is_time_to_try(self, pictures: Mapping[str, VideoFrame | None], unplaced: set[str]) -> bool:
        now_s = time.monotonic()
        if self._worker is not None and self._worker.is_alive():
            return False
        there = {name for name, picture in pictures.items() if picture is not None}
        if self._first_pictures_s is None:
            self._first_pictures_s = now_s
        if there != set(self._names) and (
            now_s - self._first_pictures_s < self._settings.wait_s or len(there) < 2 or not there & unplaced
        ):
            return False
        if now_s < self._next_try_s:
            return False
        self._next_try_s = now_s + self._retry_s
        self._retry_s = min(2 * self._retry_s, MAX_RETRY_FACTOR * self._settings.retry_s)
        return True

    def _load(self) -> None:
        file = self._settings.file
        assert file is not None
        try:
            self._use(load(file, self._names), f"file {file}")
        except FileNotFoundError:
            self._log.info("no saved calibration yet", file=str(file))
        except CalibrationError as error:
            self._log.warning("saved calibration not used", reason=str(error))

    def _find(self, images: Mapping[str, Image]) -> None:
        """Calibrate; runs in the worker's thread."""
        if self._current is None:
            self._state = "calibrating"
        try:
            found = calibrate_apart(
                images,
                self._closing,
                priors=self._priors(images),
                min_confidence=self._settings.min_confidence,
                progress=self._count,
            )
            if found is None:
                return
            missing = tuple(name for name in self._names if name not in images)
            found = replace(found, unplaced=found.unplaced + missing)
            with self._lock:
                before = self._current
            if before is not None and len(found.cameras) <= len(before.calibration.cameras):
                self._log.warning("cameras still not placed", cameras=list(before.calibration.unplaced))
                return
            self._use(found, "pictures")
        except CalibrationError as error:
            if self._current is None:
                self._state = f"failed: {error}"
            self._log.error("calibration failed", reason=str(error), next_try_s=self._retry_s / 2)
            return
        finally:
            self.progress = None
        if not found.unplaced:
            self._save(found)

    def _count(self, done: int, total: int) -> None:
        self.progress = done, total

    def _use(self, calibration: Calibration, source: str) -> None:
        section = self._section
        stitcher = Stitcher(
            calibration,
            section.width_px,
            section.height_px,
            section.feather_px,
            pool=self._pool,
            parts=section.threads,
        )
        with self._lock:
            self._current = stitcher
            self._source = source
            self._state = "calibrated" if not calibration.unplaced else "calibrated without some cameras"
        self._log.info(
            "calibrated",
            source=source,
            yaw_deg={pose.name: round(math.degrees(pose.yaw_rad), 2) for pose in calibration.cameras},
            focal_px={pose.name: round(pose.focal_px, 1) for pose in calibration.cameras},
        )
        if calibration.unplaced:
            self._log.warning(
                "cameras not placed, they are left out",
                cameras=list(calibration.unplaced),
                remedy="check that they run and overlap their neighbours; it is tried again with later pictures",
            )

    def _save(self, calibration: Calibration) -> None:
        if self._settings.file is None:
            return
        try:
            save(calibration, self._settings.file)
        except OSError as error:
            self._log.warning("calibration not saved", file=str(self._settings.file), reason=error.strerror)

    def _priors(self, images: Mapping[str, Image]) -> dict[str, CameraPrior]:
        """What the configuration says of the lenses."""
        settings = self._settings
        priors = {}
        for name, image in images.items():
            hfov_deg = settings.hfov_deg
            if hfov_deg is None and settings.focal_px is not None:
                hfov_deg = math.degrees(2 * math.atan(image.shape[1] / 2 / settings.focal_px))
            priors[name] = CameraPrior(hfov_deg=hfov_deg)
        return priors
