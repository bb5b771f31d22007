"""Describe a calibration and its panorama, for status and command line."""

from __future__ import annotations

import math
from typing import Any

from services.stitcher.calibration.poses import Calibration
from services.stitcher.rendering.panorama import Panorama


def describe(calibration: Calibration, panorama: Panorama) -> dict[str, Any]:
    """Return a description of a calibration and a panorama, ready for JSON."""
    placed = [
        {
            "name": pose.name,
            "placed": True,
            "yaw_deg": round(math.degrees(pose.yaw_rad), 3),
            "pitch_deg": round(math.degrees(pose.pitch_rad), 3),
            "roll_deg": round(math.degrees(pose.roll_rad), 3),
            "focal_px": round(pose.focal_px, 2),
            "k1": round(pose.k1, 5),
            "k2": round(pose.k2, 5),
            "rms_px": None if pose.rms_px is None else round(pose.rms_px, 3),
        }
        for pose in calibration.cameras
    ]
    order = [pose.name for pose in calibration.cameras]
    unplaced = [
        {"name": name, "placed": False, "reason": calibration.reasons.get(name, "")} for name in calibration.unplaced
    ]
    coverage = panorama.coverage
    return {
        "cameras": placed + unplaced,
        "pairs": [
            {"cameras": sorted(pair.cameras, key=order.index), "matches": pair.matches, "rms_px": round(pair.rms_px, 3)}
            for pair in calibration.pairs
        ],
        "shown_deg": round(coverage.shown_deg, 2),
        "all_deg": round(coverage.all_deg, 2),
        "outside": list(coverage.outside),
        "shown": coverage.sentence(),
    }
