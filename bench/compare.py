"""Compares a run with one before: each candidate's latency, less what the machine itself has changed."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from bench.results import Results, figure

FLOOR: Final = "floor-futex"
FASTER_OR_SLOWER: Final = 1.15
"""A change by less is called none, whatever the spread."""


@dataclass(frozen=True)
class Change:
    """One candidate's median hand-over in two runs."""

    scenario: str
    candidate: str
    before_us: float
    after_us: float
    ratio: float
    """After to before, divided by the same of the scenario's bare futex where it has one."""
    is_clear: bool
    """Whether the rounds' ranges do not overlap, and the ratio is not near one."""


def compare(before: Results, after: Results) -> Iterator[Change]:
    """Every candidate that both runs measured under the same conditions."""
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
            ratio = second.median / first.median / machine
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
