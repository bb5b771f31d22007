"""A real picture is rolled under the tiles: at every offset, each object has one box of the real model."""

from __future__ import annotations

import threading

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from services.detector.config import DetectorSection
from services.detector.detector import Detector
from services.detector.models.model import load_model
from tests.services.detector.pictures import film_frame

pytestmark = pytest.mark.slow

ENLARGED = 4.5
"""The van is then wider than the tiles' overlap."""
VEHICLES = ("car", "truck", "bus")
LABELS = ("person", *VEHICLES)


@pytest.fixture(scope="module")
def road() -> npt.NDArray[np.uint8]:
    """Return a van and a person on a lawn, in a panorama of 688 x 2000 pixels."""
    frame = film_frame()

    def enlarged(part: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        return np.asarray(cv2.resize(part, None, fx=ENLARGED, fy=ENLARGED, interpolation=cv2.INTER_CUBIC), np.uint8)

    picture = np.asarray(cv2.resize(frame[420:506, 180:320], (2000, 688), interpolation=cv2.INTER_CUBIC), np.uint8)
    picture[119:569, 300:750] = enlarged(np.asarray(frame[20:120, 625:725], np.uint8))
    picture[85:603, 1250:1610] = enlarged(np.asarray(frame[195:310, 480:560], np.uint8))
    return picture


def test_a_van_and_a_person_are_one_box_each(road: npt.NDArray[np.uint8]) -> None:
    section = DetectorSection(labels=LABELS, cpu_share=None, target_fps=None)
    detector = Detector(section, load_model(section), threading.Event())
    for offset in range(0, 456, 76):
        seen = detector.detect(np.ascontiguousarray(np.roll(road, offset, axis=1)), offset * 10**9, epoch=offset)
        boxes = seen.known.boxes
        labels = sorted(LABELS[label] in VEHICLES for label in boxes.labels)
        assert labels == [False, True], (offset, boxes)
