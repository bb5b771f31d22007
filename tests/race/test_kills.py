"""Two hundred kills, at every step; ``make soak`` does more."""

from __future__ import annotations

import pytest

from tests.race.points import POINTS
from tests.race.upkeep import KINDS
from tests.support import report_of

pytestmark = pytest.mark.slow


def test_dead_processes_affect_no_other() -> None:
    report = report_of("tests.race.kills", "--kills", "200")
    assert report["kills"] >= 200
    assert all(resident["received"] > 10 and resident["torn"] == 0 for resident in report["residents"])
    assert len(report["leftovers named by the doctor"]) == len(KINDS)
    known = {f"{role}: {point}" for role, points in POINTS.items() for point in points}
    missed = known - set(report["by point"])
    assert set(report["by point"]) <= known
    assert len(missed) <= len(known) // 10, f"no process died at {missed}"
