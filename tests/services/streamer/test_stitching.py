"""What is read from a stitcher's status, whatever it contains."""

from __future__ import annotations

from typing import Any

import pytest

from services.streamer.stitching import CameraReport, cameras, coverage_deg, notices, pairs
from tests.services.streamer import stitcher


def test_every_field_of_a_stitchers_status_is_read() -> None:
    document = stitcher.document()
    assert cameras(document)[3] == CameraReport(
        "cam3", "refused: the camera wants another user or password", "refused", 0.012, True
    )
    assert [camera.placed for camera in cameras(document)] == [True] * 5 + [False]
    assert dict(pairs(document)) == {
        "cam0-cam1": {"residual_px": 0.31, "drift_px": 0.1, "parallax_px": 0.29},
        "cam1-cam2": {"residual_px": 7.42, "drift_px": 7.4, "parallax_px": 0.5},
        "cam2-cam3": {},
        "cam3-cam4": {},
    }
    assert coverage_deg(document) == {"shown": 157.2, "all": 193.4}
    assert notices(document) == [stitcher.WARNING, f"shown: {stitcher.SHOWN}"]


def test_a_panorama_that_shows_everything_causes_no_notice() -> None:
    document = stitcher.document(warning="")
    document["details"]["calibration"]["coverage"]["outside"] = []
    assert notices(document) == []


@pytest.mark.parametrize(
    "details",
    [
        None,
        3,
        {"cameras": [1], "calibration": "x"},
        {"calibration": {"quality": 3, "coverage": [], "cameras": 4, "unplaced": "cam0"}},
        {"calibration": {"quality": {"pairs": 3, "warning": 7}, "coverage": {"sentence": 3, "outside": ["cam0"]}}},
        {"calibration": {"quality": {"pairs": [3, {}, {"cameras": "ab"}, {"cameras": [1, 2]}, {"cameras": ["a"]}]}}},
        {"calibration": {"coverage": {"shown_deg": "x", "all_deg": float("nan")}}},
    ],
)
def test_invalid_fields_are_left_out(details: Any) -> None:
    document = {"details": details}
    assert cameras(document) == []
    assert list(pairs(document)) == []
    assert coverage_deg(document) == {}
    assert notices(document) == []


def test_a_repeated_pair_counts_once_and_only_numbers_count() -> None:
    told = [
        {"cameras": ["a", "b"], "residual_px": 1.0, "drift_px": True, "parallax_px": float("inf")},
        {"cameras": ["a", "b"], "residual_px": 2.0},
    ]
    assert list(pairs({"details": {"calibration": {"quality": {"pairs": told}}}})) == [("a-b", {"residual_px": 1.0})]


def test_an_oversized_document_is_truncated() -> None:
    many = {f"cam{i}": {"state": "connected"} for i in range(1000)}
    document = {"details": {"cameras": many, "calibration": {"quality": {"warning": "x" * 10_000}}}}
    assert len(cameras(document)) < 100
    assert [len(text) for text in notices(document)] == [300]
