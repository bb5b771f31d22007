"""Both forms of the benchmark: every question has its candidates, and the short one is short."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from bench import plan
from bench.harness import SHAPES, Scenario
from bench.peers import all_peers

FORMS = pytest.mark.parametrize("form", [plan.short, plan.full])
SHORT_S, FULL_S = 300.0, 3600.0
Form = Callable[[list[str]], list[Scenario]]


@FORMS
def test_every_scenario_has_a_name_of_its_own(form: Form) -> None:
    peers = all_peers()
    scenarios = form(list(peers))
    names = [scenario.name for scenario in scenarios]
    assert len(set(names)) == len(names)
    for scenario in scenarios:
        keys = [candidate.key for candidate in scenario.candidates]
        assert len(set(keys)) == len(keys) > 1
        assert min(scenario.rounds, scenario.frames, scenario.limit_s) > 0
        for candidate in scenario.candidates:
            assert candidate.peer in peers
            assert candidate.size in SHAPES
            assert candidate.placement in ("processes", "containers")


@FORMS
def test_every_peer_takes_part(form: Form) -> None:
    scenarios = form(["floor-futex", "a further one"])
    assert any(candidate.peer == "a further one" for one in scenarios for candidate in one.candidates)
    wanted = set(plan.FAST)
    assert wanted <= {candidate.peer for one in scenarios for candidate in one.candidates}


@pytest.mark.parametrize(("form", "most_s"), [(plan.short, SHORT_S), (plan.full, FULL_S)])
def test_the_frames_of_the_short_form_are_sent_in_the_promised_time(form: Form, most_s: float) -> None:
    frames_s = sum(
        len(scenario.candidates)
        * scenario.rounds
        * min((scenario.warm_up + scenario.frames) * scenario.round(1).period_s or math.inf, scenario.limit_s)
        for scenario in form(list(all_peers()))
    )
    assert frames_s < most_s


def test_a_round_has_the_conditions_of_its_scenario() -> None:
    scenario = Scenario("x", (), fps=50, rounds=2, frames=7, warm_up=3, jitter=0.1, limit_s=4.0)
    one = scenario.round(2)
    assert (one.run, one.frames, one.warm_up, one.period_s, one.jitter, one.limit_s) == (2, 7, 3, 0.02, 0.1, 4.0)
    assert Scenario("x", (), fps=0, rounds=1, frames=1).round(1).period_s == 0
