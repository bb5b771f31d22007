"""The benchmark of the whole pipeline: real services and a viewer of the page, and the figures that result."""

from __future__ import annotations

import pytest

from bench import pipeline
from bench.harness import PeerFailed
from bench.pipeline import AT_THE_PAGE, HAND_OVER, Panorama, Watched, summary

MS = 1_000_000


def panoramas(count: int) -> list[Panorama]:
    """Return a panorama each 40 ms, published 75 ms after its capture, received 1 ms later, with two missed before."""
    captured = [1 + 40 * MS * number for number in range(count)]
    return [
        Panorama(3 * number, 2, at_ns, at_ns + 75 * MS, at_ns + 76 * MS)
        for number, at_ns in enumerate(captured, start=1)
    ]


def test_each_stage_has_its_ages_and_all_have_rates() -> None:
    seen = panoramas(101)
    pictures = {one.sequence: one.captured_ns + (100 + one.sequence % 2) * MS for one in seen[::2]}
    watched = Watched(pictures | {999: 5}, {3: 400.0, 6: 500.0, 998: 1.0})
    told = summary(seen, watched, {"stitcher": 0.5})
    assert told["seconds"] == pytest.approx(4.0)
    assert told["panoramas_per_s"] == pytest.approx(25.0)
    assert told["skipped"] == 200
    assert told["pictures_per_s"] == pytest.approx(51 / 4)
    assert told["boxes_per_s"] == pytest.approx(2 / 4)
    assert told["hand_over_part"] == pytest.approx(1 / 101)
    assert told["cores"] == {"stitcher": 0.5}
    assert told["stages_ms"] == {
        "captured to published": [75.0, 75.0],
        HAND_OVER: [1.0, 1.0],
        AT_THE_PAGE: [101.0, 101.0],
        "captured to its boxes sent": [450.0, 499.0],
    }


def test_a_pipeline_that_shows_nothing_has_failed() -> None:
    with pytest.raises(PeerFailed, match="next to nothing"):
        summary(panoramas(1), Watched({3: 1}), {})
    with pytest.raises(PeerFailed, match="no picture came"):
        summary(panoramas(2), Watched({99: 1}), {})


def test_without_a_detector_there_are_no_boxes() -> None:
    told = summary(panoramas(2), Watched({3: 101 * MS}), {})
    assert told["boxes_per_s"] == 0
    assert list(told["stages_ms"]) == ["captured to published", HAND_OVER, AT_THE_PAGE]


@pytest.mark.long
@pytest.mark.timeout(400)
def test_the_pipeline_is_measured_and_leaves_nothing(stream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "WARM_UP_S", 1.0)
    told = pipeline.measure(stream, 3.0)
    assert told["panoramas_per_s"] > 0
    assert 0 < told["pictures_per_s"] <= told["panoramas_per_s"] + 1
    ages = told["stages_ms"]
    assert 0 < ages[HAND_OVER][0] < ages[AT_THE_PAGE][0]
    assert ages["captured to published"][0] < ages[AT_THE_PAGE][0]
    assert set(told["cores"]) == {"simulator", "stitcher", "detector", "streamer"}
    assert told["cores"]["stitcher"] > 0
