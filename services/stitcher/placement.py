"""Load or find a calibration, and retry until every camera is placed.

Finding a calibration takes seconds, so it runs in the background while the panorama continues.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any

import numpy as np
import structlog
from av.video.frame import VideoFrame

from services.stitcher.calibration.calibrate import steps_for
from services.stitcher.calibration.poses import Calibration, CalibrationError, load, save
from services.stitcher.calibration.priors import point_pairs, priors_of
from services.stitcher.calibration.worker import calibrate_apart
from services.stitcher.config import CalibrationSection, StitcherSection
from services.stitcher.inspection import outline
from services.stitcher.inspection.describe import describe
from services.stitcher.rendering.choice import Kind
from services.stitcher.rendering.convert import Image
from services.stitcher.rendering.panorama import Panorama
from services.stitcher.rendering.stitch import Stitcher

MAX_RETRY_FACTOR = 32
"""Limit of the exponential backoff, in multiples of ``retry_s``: each attempt costs seconds of work."""
ANGLES_AND_LENS = ("yaw_deg", "pitch_deg", "roll_deg", "focal_px", "k1", "k2", "rms_px")
FRAME_SETS, FRAME_SET_INTERVAL_S = 3, 0.5
"""Frame sets used by one attempt, and the time between them. Several sets reveal what moves: of six mixes of pictures
up to two seconds apart, one set placed all five cameras in none, and three sets in all six."""


class Placement:
    """Provides the stitcher for the best calibration so far.

    Args:
        section: The stitcher's configuration.
        names: Names of the configured cameras.
        pool: Thread pool of the renderer.
        renderer: Kind of the renderer.
    """

    def __init__(
        self, section: StitcherSection, names: Sequence[str], pool: Executor, renderer: Kind = "opencv"
    ) -> None:
        self._section = section
        self._pool = pool
        self.renderer: Kind = renderer
        """Kind of the renderer."""
        self._settings: CalibrationSection = section.calibration
        self._names = tuple(names)
        self._log = structlog.get_logger()
        self._lock = threading.Lock()
        self._current: Stitcher | None = None
        self._state = "waiting for pictures"
        self._source = ""
        self._found: dict[str, Any] | None = None
        """Result of the current calibration, for the status."""
        self._worker: threading.Thread | None = None
        self._closing = threading.Event()
        self._retry_s = self._settings.retry_s
        self._next_try_s = 0.0
        self._first_pictures_s: float | None = None
        self._next_set_s = 0.0
        self._sets_wanted = FRAME_SETS
        self._frame_sets: deque[Mapping[str, Image]] = deque(maxlen=FRAME_SETS)
        self.progress: tuple[int, int] | None = None
        """Completed and total steps of the running calibration; ``None`` while none runs."""
        if self._settings.file is not None:
            self._load()

    def stitcher(
        self,
        pictures: Mapping[str, VideoFrame | None],
        fresh: Collection[str],
        aspects: Mapping[str, float] | None = None,
    ) -> Stitcher | None:
        """Return the stitcher to render with, or ``None`` while there is no calibration.

        Args:
            pictures: The newest undamaged pictures, by camera. They are used to calibrate while cameras are not placed.
            fresh: The cameras whose picture is of the same instant. Moving things are in two places in pictures of
                different instants, so such pictures are used only if no others arrive within ``wait_s``.
            aspects: Width of a pixel over its height, by camera, for streams that declare it.
        """
        with self._lock:
            current = self._current
            unplaced = set(self._names) if current is None else set(current.calibration.unplaced)
        if unplaced and self._is_time_to_look(pictures, fresh, unplaced):
            self._frame_sets.append(
                {
                    name: np.asarray(picture.to_ndarray(format="bgr24"), np.uint8)
                    for name, picture in pictures.items()
                    if picture is not None
                }
            )
            self._next_set_s = time.monotonic() + FRAME_SET_INTERVAL_S
            self._sets_wanted -= 1
            self._count(0, steps_for(len(self._frame_sets[-1])))
            if self._sets_wanted == 0:
                self._begin(dict(aspects or {}))
        return current

    def close(self) -> None:
        """Stop a running calibration."""
        # The worker kills the calibration's process, so it ends soon.
        self._closing.set()
        if self._worker is not None:
            self._worker.join()

    @property
    def is_placed(self) -> bool:
        """Return whether there is a calibration to render with."""
        return self._current is not None

    def describe(self) -> dict[str, Any]:
        """Return the state, for the status."""
        with self._lock:
            described = {"state": self._state, "source": self._source}
            if self._current is None or self._found is None:
                return described | {"unplaced": [], "cameras": {}, "panorama": {}}
            return described | self._found | {"exposure": _exposure(self._current)}

    def _is_time_to_look(
        self, pictures: Mapping[str, VideoFrame | None], fresh: Collection[str], unplaced: set[str]
    ) -> bool:
        now_s = time.monotonic()
        if self._worker is not None and self._worker.is_alive():
            return False
        there = {name for name, picture in pictures.items() if picture is not None}
        if self._first_pictures_s is None:
            self._first_pictures_s = now_s
        # Use pictures of one instant of all cameras. After the wait, use what there is if it may place another camera.
        if there & set(fresh) != set(self._names) and (
            now_s - self._first_pictures_s < self._settings.wait_s or len(there) < 2 or not there & unplaced
        ):
            return False
        return now_s >= max(self._next_try_s, self._next_set_s)

    def _begin(self, aspects: Mapping[str, float]) -> None:
        """Start to calibrate from the last frame sets, in a thread."""
        self._sets_wanted = FRAME_SETS
        # Cameras that cannot be placed, as at night, must not cost seconds of work again and again.
        self._next_try_s = time.monotonic() + self._retry_s
        self._retry_s = min(2 * self._retry_s, MAX_RETRY_FACTOR * self._settings.retry_s)
        self._worker = threading.Thread(target=self._find, args=(tuple(self._frame_sets), aspects), name="calibrate")
        self._worker.start()

    def _load(self) -> None:
        file = self._settings.file
        assert file is not None
        try:
            self._use(load(file, self._names), f"file {file}")
        except FileNotFoundError:
            self._log.info("no saved calibration yet", file=str(file))
        except CalibrationError as error:
            self._log.warning("saved calibration not used", reason=str(error))

    def _find(self, frame_sets: Sequence[Mapping[str, Image]], aspects: Mapping[str, float]) -> None:
        """Calibrate. Runs in the worker thread."""
        if self._current is None:
            self._state = "calibrating"
        # A camera may have changed its resolution between two sets.
        images = frame_sets[-1]
        pictures = {
            name: [one[name] for one in frame_sets if name in one and one[name].shape == newest.shape]
            for name, newest in images.items()
        }
        try:
            found = calibrate_apart(
                pictures,
                self._closing,
                priors=priors_of(self._section, {name: image.shape[:2] for name, image in images.items()}, aspects),
                points=point_pairs(self._section),
                min_confidence=self._settings.min_confidence,
                progress=self._count,
            )
            if found is None:
                return
            missing = tuple(name for name in self._names if name not in images)
            found = replace(
                found,
                unplaced=found.unplaced + missing,
                reasons={**found.reasons, **dict.fromkeys(missing, "it sends no picture")},
            )
            with self._lock:
                before = self._current
            # Without a camera more, a new calibration would only change the geometry of the panorama.
            if before is not None and len(found.cameras) <= len(before.calibration.cameras):
                self._log.warning("cameras still not placed", reasons=dict(found.reasons))
                return
            self._use(found, "pictures")
        except CalibrationError as error:
            if self._current is None:
                self._state = f"failed: {error}"
            next_try_s = round(max(0.0, self._next_try_s - time.monotonic()), 1)
            self._log.error("calibration failed", reason=str(error), next_try_s=next_try_s)
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
            view=section.view,
            pool=self._pool,
            parts=section.threads,
            evens_exposure=section.exposure == "auto",
            renderer=self.renderer,
        )
        found = _describe(calibration, stitcher.panorama)
        # Prepare first, which takes about a second, then exchange: the panorama goes on meanwhile.
        with self._lock:
            self._current = stitcher
            self._found = found
            self._source = source
            self._state = "calibrated" if not calibration.unplaced else "calibrated without some cameras"
        self._log.info(
            "calibrated",
            source=source,
            yaw_deg={pose.name: round(math.degrees(pose.yaw_rad), 2) for pose in calibration.cameras},
            focal_px={pose.name: round(pose.focal_px, 1) for pose in calibration.cameras},
            k1={pose.name: round(pose.k1, 3) for pose in calibration.cameras},
            residual_px={"-".join(pair.cameras): round(pair.rms_px, 2) for pair in calibration.pairs},
        )
        coverage = stitcher.panorama.coverage
        log = self._log.warning if coverage.outside else self._log.info
        log("panorama", shows=coverage.sentence(), view=section.view)
        if calibration.unplaced:
            self._log.warning(
                "cameras not placed, they are left out",
                cameras=list(calibration.unplaced),
                reasons=dict(calibration.reasons),
                remedy="check that they run and overlap their neighbours; later pictures are tried as well",
            )

    def _save(self, calibration: Calibration) -> None:
        if self._settings.file is None:
            return
        try:
            save(calibration, self._settings.file)
        except OSError as error:
            self._log.warning("calibration not saved", file=str(self._settings.file), reason=error.strerror)


def _exposure(stitcher: Stitcher) -> dict[str, Any]:
    """Return the correction of each camera's colours: gains of blue, green and red, and the factor in a corner."""
    exposure = stitcher.exposure
    return {
        pose.name: {"gains": np.round(gains, 3).tolist(), "corner": round(math.exp(lens.sum()), 3)}
        for pose, gains, lens in zip(stitcher.calibration.cameras, exposure.gains, exposure.lens, strict=True)
    }


def _describe(calibration: Calibration, panorama: Panorama) -> dict[str, Any]:
    found = describe(calibration, panorama)
    placed = {camera["name"]: camera for camera in found["cameras"] if camera["placed"]}
    return {
        "unplaced": list(calibration.unplaced),
        "reasons": dict(calibration.reasons),
        "cameras": {
            pose.name: {
                **{key: placed[pose.name][key] for key in ANGLES_AND_LENS},
                "confidence": round(pose.confidence, 2),
            }
            for pose in calibration.cameras
        },
        "pairs": found["pairs"],
        "coverage": {
            "shown_deg": found["shown_deg"],
            "all_deg": found["all_deg"],
            "outside": found["outside"],
            "sentence": found["shown"],
        },
        "panorama": {
            "yaw_min_rad": panorama.yaw_min_rad,
            "v_min": panorama.v_min,
            "scale_px": panorama.scale_px,
        },
        "drawing": outline.describe(calibration, panorama),
    }
