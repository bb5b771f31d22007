"""The thread that measures, from time to time, whether the cameras still fit."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from typing import Any, Final

import cv2
import numpy as np
import structlog

from services.stitcher.calibration.poses import Calibration
from services.stitcher.inspection.overlap import Image
from services.stitcher.inspection.quality import QualityMonitor
from services.stitcher.rendering.panorama import Panorama

NICE: Final = 10
"""Not lower: a service that ends waits for the pair that is being measured, also while other services are busy."""


class QualityThread:
    """Measures again and again, in a thread of low priority that asks for pictures when it wants them.

    Args:
        limit_px: As of :class:`QualityMonitor`.
        interval_s: Seconds between the beginnings of two measurements.
    """

    def __init__(self, limit_px: float, interval_s: float) -> None:
        self._limit_px = limit_px
        self._interval_s = interval_s
        self._changed = threading.Condition()
        self._set: tuple[Calibration, Panorama, Mapping[str, Image]] | None = None
        self._busy = False
        self._closing = False
        self._next_s = 0.0
        self._measured_s: float | None = None
        self._calibration: Calibration | None = None
        self._monitor: QualityMonitor | None = None
        self._log = structlog.get_logger()
        self._thread = threading.Thread(target=self._run, name="quality", daemon=True)
        self._thread.start()

    @property
    def wants_pictures(self) -> bool:
        """Whether it is time for a measurement and none is under way. Costs next to nothing to ask."""
        return not self._busy and time.monotonic() >= self._next_s

    def offer(self, calibration: Calibration, panorama: Panorama, planes: Mapping[str, Image]) -> None:
        """Hand over the pictures of one instant; they are let go of when they have been measured.

        Args:
            calibration: Another object than before makes a new monitor.
            panorama: Its panorama.
            planes: As of :meth:`QualityMonitor.measure`. Nobody may write to them any more.
        """
        with self._changed:
            if self._busy:
                return
            self._busy = True
            self._next_s = time.monotonic() + self._interval_s
            self._set = calibration, panorama, planes
            self._changed.notify()

    def describe(self) -> dict[str, Any]:
        """The last measurement, for the status: as of :meth:`QualityMonitor.describe`, with ``age_s``."""
        monitor, measured_s = self._monitor, self._measured_s
        if monitor is None or measured_s is None:
            return {"limit_px": self._limit_px, "pairs": [], "warning": "", "age_s": None}
        return monitor.describe() | {"age_s": round(time.monotonic() - measured_s, 1)}

    def close(self) -> None:
        """End the thread, after the pair that it measures now."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)  # on Linux, of this thread alone
        warned = ""
        while True:
            with self._changed:
                while self._set is None and not self._closing:
                    self._changed.wait()
                if self._closing or self._set is None:
                    return
                calibration, panorama, planes = self._set
                self._set = None
            try:
                warning = self._measure(calibration, panorama, planes)
            except (cv2.error, ValueError, np.linalg.LinAlgError) as error:
                self._log.warning("quality not measured", reason=str(error))
            else:
                if warning and warning != warned:
                    self._log.warning("cameras do not fit", reason=warning)
                warned = warning
            del planes
            self._busy = False

    def _measure(self, calibration: Calibration, panorama: Panorama, planes: Mapping[str, Image]) -> str:
        monitor = self._monitor
        if monitor is None or calibration is not self._calibration:
            monitor = QualityMonitor(calibration, panorama, self._limit_px, lambda: not self._closing)
        monitor.measure(planes)
        self._calibration, self._monitor, self._measured_s = calibration, monitor, time.monotonic()
        return str(monitor.describe()["warning"])
