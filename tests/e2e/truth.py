"""The places of the simulator's people in the demo's panorama, and whether a box of the page is on a person."""

from __future__ import annotations

import json
from typing import Any

from services.common.status import read_statuses
from services.simulator.config import SimulatorSection
from services.simulator.render import render
from tests.support import ROOT

Box = tuple[float, float, float, float]
"""Left, upper, right and lower edge."""


class Truth:
    """The places of the simulator's people in the panorama."""

    def __init__(self, stream: str) -> None:
        content = (render(SimulatorSection(cache_dir=ROOT / ".cache/simulator")) / "truth.json").read_text()
        self._frames: list[list[dict[str, Any]]] = json.loads(content)["frames_objects"]
        statuses = read_statuses(stream)
        self._timeline = statuses["simulator"]["details"]
        self._panorama = statuses["stitcher"]["details"]["calibration"]["panorama"]

    def people(self, captured_ms: float) -> dict[Any, Box]:
        """Return the box of each person at a time, in pixels."""
        frame = round((captured_ms / 1e3 - self._timeline["t0_s"]) * self._timeline["fps"]) % self._timeline["frames"]
        scale, left, top = (self._panorama[name] for name in ("scale_px", "yaw_min_rad", "v_min"))
        return {
            one["id"]: (
                (one["yaw_min_rad"] - left) * scale,
                (one["v_min"] - top) * scale,
                (one["yaw_max_rad"] - left) * scale,
                (one["v_max"] - top) * scale,
            )
            for one in self._frames[frame]
            if one["label"] == "person"
        }


def overlap(one: Box, other: Box) -> float:
    """Return the intersection over union."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / (sum(areas) - width * height)


def box_of(found: dict[str, Any]) -> Box:
    """Return the corners of an object in the page's format."""
    return found["x"], found["y"], found["x"] + found["width"], found["y"] + found["height"]
