"""The benchmark of the stitcher with small pictures: each candidate takes turns, from this tree and another."""

from __future__ import annotations

import pytest

from bench.stitch import BASELINE, EXPOSURES, SIGNALS, measure, table
from tests.services.simulator.clips import SMALL
from tests.support import ROOT

pytestmark = pytest.mark.slow


@pytest.mark.long
def test_all_candidates_take_turns() -> None:
    rows = measure(SMALL, (1632, 228), rounds=2, before=ROOT, with_opencv=False)
    renders = [f"render {signal}{suffix}" for signal in SIGNALS for suffix in EXPOSURES]
    names = [row.name for row in rows]
    prefixed = [f"{prefix}{name}" for prefix in ("", "OpenCV: ", "before: ") for name in renders]
    assert names == [*prefixed, "decode", "memcpy"]
    for row in rows:
        assert row.cpu_ms > 0
        assert row.wall_ms > 0
        assert row.ratio > 0
    assert next(row for row in rows if row.name == BASELINE).ratio == 1
    lines = table(rows).splitlines()
    assert len(lines) == 1 + len(rows)
    assert len({len(line) for line in lines}) == 1, "aligned"
