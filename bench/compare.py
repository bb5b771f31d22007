"""Compares two runs: the change of each candidate's latency, after removing the change of the machine itself."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from bench.results import Results, figure

FLOOR: Final = "floor-futex"
FASTER_OR_SLOWER: Final = 1.15
"""A change by a smaller factor counts as none, whatever the spread of the rounds."""


@dataclass(frozen=True)
class Change:
    """One candidate's median hand-over in two runs."""

    scenario: str
    candidate: str
    before_us: float
    after_us: float
    ratio: float
    """The figure after, divided by that before and by the change of the scenario's bare futex, if it has one."""
    is_clear: bool
    """Whether the rounds' ranges do not overlap, and the ratio is not near one."""


def compare(before: Results, after: Results) -> Iterator[Change]:
    """Yield the change of every candidate that both runs measured under the same conditions."""
    scenarios = {one["name"]: one for one in before["scenarios"]}
    for scenario in after["scenarios"]:
        old = scenarios.get(scenario["name"])
        if old is None:
            continue
        machine = _machine(old, scenario)
        for key in scenario["candidates"].keys() & old["candidates"].keys():
            first = figure(old["candidates"][key]["rounds"], "p50_us")
            second = figure(scenario["candidates"][key]["rounds"], "p50_us")
            if first is None or second is None:
                continue
            # A bare futex wake contains no code of framebus, so its change is the machine's. Divide by it.
            ratio = second.median / first.median / machine
            # The rounds of a run vary by more than most changes, so the ranges of the two runs must not overlap.
            apart = second.least / machine > first.most or second.most / machine < first.least
            near = 1 / FASTER_OR_SLOWER < ratio < FASTER_OR_SLOWER
            yield Change(scenario["name"], key, first.median, second.median, ratio, apart and not near)


def _machine(old: dict[str, Any], new: dict[str, Any]) -> float:
    ratios = []
    for key in old["candidates"].keys() & new["candidates"].keys():
        if old["candidates"][key]["peer"] == FLOOR:
            first = figure(old["candidates"][key]["rounds"], "p50_us")
            second = figure(new["candidates"][key]["rounds"], "p50_us")
            if first and second:
                ratios.append(second.median / first.median)
    return statistics.median(ratios) if ratios else 1.0
