"""A short soak: every part dies in turn, and no frame is lost or reported twice."""

from __future__ import annotations

import pytest

from tests.services.relay import soak

pytestmark = [pytest.mark.long, pytest.mark.timeout(400)]


def test_no_frame_is_lost_or_doubled_while_every_part_dies_in_turn() -> None:
    report = soak.run(1000, fps=25.0)
    assert report.good, report
    assert report.kills["relay"] == 3
    assert report.kills["broker"] == 2
    assert report.kills["detector"] >= 5
    assert report.accepted > 700
