"""Status documents of a stitcher for the streamer's tests."""

from __future__ import annotations

import math
from typing import Any

from services.common.status import Stage, status_document
from services.stitcher.calibration.poses import Calibration, PairResidual
from services.stitcher.inspection.outline import describe
from services.stitcher.rendering.panorama import plan
from tests.services.stitcher.scene import rig

WIDTH, HEIGHT = 4896, 688
WARNING = "cam1 and cam2 no longer fit by 7.4 px: cam2 was moved? calibrate again"
SHOWN = "157 of 193 degrees, cam4 outside; 6032x1104 would show all"
MATCHES = tuple((600.0, y, 97.0, y) for y in (80.0, 180.0, 280.0))
REASON = "it matches none of the others: its best pair is cam4 with 6 inliers of 40"


def document(*, warning: str = WARNING) -> dict[str, Any]:
    """Return the status of five placed cameras and one without a place; cam3 is refused, and cam5 has pictures."""
    pairs = tuple(
        PairResidual(cameras=(f"cam{i}", f"cam{i + 1}"), matches=40 + i, rms_px=rms_px, points_px=MATCHES)
        for i, rms_px in enumerate((0.4, 0.7, 2.0, 4.1))
    )
    calibration = Calibration(rig().cameras, ("cam5",), {"cam5": REASON}, pairs)
    cameras: dict[str, dict[str, Any]] = {
        f"cam{i}": {"state": "connected", "cause": None, "clock": "sender", "skew_ms": 4 * i, "connections": 1}
        for i in range(6)
    }
    cameras["cam3"] |= {"state": "refused: the camera wants another user or password", "cause": "refused"}
    del cameras["cam5"]["skew_ms"]
    quality = [
        {"cameras": ["cam0", "cam1"], "state": "measured", "patches": 120, "residual_px": 0.31, "drift_px": 0.1}
        | {"parallax_px": 0.29},
        {"cameras": ["cam1", "cam2"], "state": "measured", "patches": 98, "residual_px": 7.42, "drift_px": 7.4}
        | {"parallax_px": 0.5},
        {"cameras": ["cam2", "cam3"], "state": "no picture", "patches": 0, "residual_px": None, "drift_px": None}
        | {"parallax_px": None},
        {"cameras": ["cam3", "cam4"], "state": "no texture", "patches": 0, "residual_px": None},
    ]
    details = {
        "calibration": {
            "state": "calibrated without some cameras",
            "source": "pictures",
            "unplaced": ["cam5"],
            "reasons": calibration.reasons,
            "cameras": {
                pose.name: {
                    "yaw_deg": round(math.degrees(pose.yaw_rad), 2),
                    "pitch_deg": 0.0,
                    "roll_deg": 0.0,
                    "focal_px": round(pose.focal_px, 1),
                    "k1": -0.05,
                    "rms_px": 0.6,
                }
                for pose in calibration.cameras
            },
            "pairs": [pair.model_dump() for pair in pairs],
            "coverage": {"shown_deg": 157.2, "all_deg": 193.4, "outside": ["cam4"], "sentence": SHOWN},
            "drawing": describe(calibration, plan(calibration, WIDTH, HEIGHT)),
            "quality": {"limit_px": 3.0, "pairs": quality, "warning": warning, "age_s": 12.0},
        },
        "cameras": cameras,
    }
    # At the end, because on a loaded machine the drawing takes longer than a camera may be silent in some tests.
    stages = {name: Stage() for name in (*(f"cam{i}" for i in range(6)), "publish")}
    for name, stage in stages.items():
        if name != "cam3":
            stage.record(0.01)
    return status_document("stitcher", stages, stale_after_s=math.inf, optional=("cam3",), details=details)


def of_an_earlier_version() -> dict[str, Any]:
    """Return the status of an earlier stitcher, which has neither causes nor qualities nor drawings."""
    stage = Stage()
    stage.record(0.01)
    details = {
        "calibration": {
            "state": "calibrated without some cameras",
            "unplaced": ["cam1"],
            "cameras": {"cam0": {"yaw_deg": 1.5, "focal_px": 800.0, "confidence": 1.4}},
        },
        "cameras": {"cam0": {"state": "connected", "connections": 1}, "cam1": {"state": "lost: no data in time"}},
    }
    return status_document("stitcher", {"cam0": stage}, stale_after_s=math.inf, details=details)
