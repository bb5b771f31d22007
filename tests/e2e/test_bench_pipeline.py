"""The benchmark of the whole pipeline: real services, and a viewer of the page."""

from __future__ import annotations

import pytest

from bench import pipeline
from tests.support import SHM

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]


def test_the_pipeline_is_measured_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "WARM_UP_S", 1.0)
    told = pipeline.measure(3.0)
    assert told["panoramas_per_s"] > 0
    assert 0 < told["pictures_per_s"] <= told["panoramas_per_s"] + 1
    ages = told["stages_ms"]
    assert 0 < ages[pipeline.HAND_OVER][0] < ages[pipeline.AT_THE_PAGE][0]
    assert ages["captured to published"][0] < ages[pipeline.AT_THE_PAGE][0]
    assert set(told["cores"]) == {"simulator", "stitcher", "detector", "streamer"}
    assert told["cores"]["stitcher"] > 0
    assert [path.name for path in SHM.glob("framebus.bench-*")] == []
