"""The thread that periodically measures whether the cameras still fit their calibration."""

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
"""Nice value. It is not higher because the shutdown waits for the current pair, even while other services are busy."""


class QualityThread:
    """Measures periodically, in a thread of low priority that requests pictures when it needs them.

    Args:
        limit_px: See :class:`QualityMonitor`.
        interval_s: Seconds between the starts of two measurements.
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
        """Return whether a measurement is due and none is running. This check is cheap, without a lock."""
        return not self._busy and time.monotonic() >= self._next_s

    def offer(self, calibration: Calibration, panorama: Panorama, planes: Mapping[str, Image]) -> None:
        """Hand over the pictures of one instant. They are released after the measurement.

        Args:
            calibration: If it is another object than before, start a new monitor.
            panorama: Its panorama.
            planes: See :meth:`QualityMonitor.measure`. The caller must not write to them any more.
        """
        with self._changed:
            if self._busy:
                return
            self._busy = True
            self._next_s = time.monotonic() + self._interval_s
            self._set = calibration, panorama, planes
            self._changed.notify()

    def describe(self) -> dict[str, Any]:
        """Return the last measurement, for the status: :meth:`QualityMonitor.describe` with ``age_s``."""
        monitor, measured_s = self._monitor, self._measured_s
        if monitor is None or measured_s is None:
            return {"limit_px": self._limit_px, "pairs": [], "warning": "", "age_s": None}
        return monitor.describe() | {"age_s": round(time.monotonic() - measured_s, 1)}

    def close(self) -> None:
        """End the thread, after the pair that it is measuring."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        # If the interpreter ends while a daemon thread is inside OpenCV, C++ terminates the process.
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
            # Pictures take megabytes, and this thread sleeps for a minute.
            del planes
            self._busy = False

    def _measure(self, calibration: Calibration, panorama: Panorama, planes: Mapping[str, Image]) -> str:
        monitor = self._monitor
        if monitor is None or calibration is not self._calibration:
            monitor = QualityMonitor(calibration, panorama, self._limit_px, lambda: not self._closing)
        monitor.measure(planes)
        self._calibration, self._monitor, self._measured_s = calibration, monitor, time.monotonic()
        return str(monitor.describe()["warning"])
