"""Of each detector, only detections of a newer frame than all before are accepted."""

from __future__ import annotations

import time
from dataclasses import replace

from services.common.detections import Detections
from services.streamer.order import MAX_INSTANCES, DetectionOrder, Place

NOW_NS = time.monotonic_ns()
FIRST = Detections("stream", "one", 1, 1, NOW_NS - 10**9, NOW_NS, 64, 512, ())


def at(offset_ns: int, instance: str = "one") -> Detections:
    return replace(FIRST, captured_ns=FIRST.captured_ns + offset_ns, instance=instance)


def test_only_frames_newer_than_all_before_are_accepted() -> None:
    order = DetectionOrder()
    offsets = (0, 0, 20, 10, 20, 30, 10**18, 40)
    assert [order.place(at(offset)) for offset in offsets] == [
        Place.NEWEST,
        Place.REPEATED,
        Place.NEWEST,
        Place.LATE,
        Place.REPEATED,
        Place.NEWEST,
        Place.FUTURE,
        Place.NEWEST,
    ]


def test_each_detector_has_its_own_order() -> None:
    order = DetectionOrder()
    assert order.place(at(10)) is Place.NEWEST
    assert order.place(at(0, "two")) is Place.NEWEST
    assert order.place(at(5)) is Place.LATE


def test_the_oldest_of_too_many_detector_names_is_forgotten() -> None:
    order = DetectionOrder()
    for number in range(MAX_INSTANCES + 1):
        assert order.place(at(0, f"detector{number}")) is Place.NEWEST
    assert order.place(at(0, f"detector{MAX_INSTANCES}")) is Place.REPEATED
    assert order.place(at(0, "detector0")) is Place.NEWEST
