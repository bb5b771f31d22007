"""How many people the defaults find in a panorama whose truth is known."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest

from services.detector.boxes import Flags, intersection_over_union
from services.detector.config import DetectorSection
from services.detector.detector import Detector
from services.detector.models.model import load_model
from services.simulator.config import SimulatorSection
from services.simulator.scene import ground_truth, scene

pytestmark = pytest.mark.long

WIDTH_PX, HEIGHT_PX = 4896, 688
YAW_RAD = math.radians(97)
"""Half of what the five cameras see."""
V = YAW_RAD * HEIGHT_PX / WIDTH_PX
PX_PER_RAD = WIDTH_PX / (2 * YAW_RAD)
EASILY_VISIBLE = 0.5
"""Share of a person that is visible, at least, if the person must be found."""
MATCH = 0.5
"""Intersection over union of a box with the truth, to be right."""


@pytest.mark.timeout(240)
def test_most_people_of_the_scene_are_found_and_few_that_are_not_there() -> None:
    section = SimulatorSection()
    section_of_detector = DetectorSection(cpu_share=None, target_fps=None)
    detector = Detector(section_of_detector, load_model(section_of_detector), threading.Event())
    stage = scene(section)
    hits = people = right = boxes = 0
    for index in (0, section.frames // 3, section.frames * 2 // 3):
        pixels = ground_truth(section, index, WIDTH_PX, HEIGHT_PX, -YAW_RAD, YAW_RAD, -V, V)
        truth = [one for one in stage.truth(stage.compose(index, stage.still.copy())) if one["label"] == "person"]
        xyxy = np.array(
            [
                [
                    PX_PER_RAD * (one["yaw_min_rad"] + YAW_RAD),
                    PX_PER_RAD * (one["v_min"] + V),
                    PX_PER_RAD * (one["yaw_max_rad"] + YAW_RAD),
                    PX_PER_RAD * (one["v_max"] + V),
                ]
                for one in truth
            ],
            np.float32,
        )
        found = detector.detect(pixels, index, epoch=index).known.boxes
        found = found.take(found.labels == 0)
        overlap = intersection_over_union(xyxy, found.xyxy) > MATCH
        visible: Flags = np.array([one["visible"] >= EASILY_VISIBLE for one in truth])
        hits += int((overlap.any(axis=1) & visible).sum())
        people += int(visible.sum())
        right += int(overlap.any(axis=0).sum())
        boxes += len(found)
    assert people > 20
    assert hits / people > 0.75
    assert right / boxes > 0.85
