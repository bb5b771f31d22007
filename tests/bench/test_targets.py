"""The targets of framebus: the plan measures every claim, and each is judged by its limit."""

from __future__ import annotations

from bench import plan
from bench.harness import Candidate, Scenario
from bench.peers import all_peers
from bench.results import Results
from bench.targets import TARGETS, Verdict, ratio, verdicts
from tests.bench import made_up

ATTACH = {"first_frame_ms": 4.0, "first_lap_faults": 10.0, "second_lap_faults": 0.0, "touched_pages": 20_000.0}


def whole_run(ours_us: float, others_us: float) -> Results:
    """Return a run of the short form with one time for all peers of framebus and another for all others."""

    def figures(one: Candidate, number: int) -> made_up.Row:
        value = ours_us if one.peer.startswith("framebus") else others_us
        return made_up.row(value * (1 + number), sender_cpu_us=value)

    scenarios = [made_up.scenario(scenario, figures) for scenario in plan.short(list(all_peers()))]
    return made_up.results(scenarios, attach=ATTACH)


def test_the_short_form_measures_every_target() -> None:
    assert len({target.claim for target in TARGETS}) == len(TARGETS)
    assert [verdict.target.claim for verdict in verdicts(whole_run(1, 1)) if verdict.value is None] == []


def test_a_faster_framebus_meets_the_targets_and_a_slower_one_misses_them() -> None:
    assert {verdict.text for verdict in verdicts(whole_run(ours_us=1, others_us=10))} == {"met"}
    slower = {verdict.target.claim: verdict.text for verdict in verdicts(whole_run(ours_us=10, others_us=1))}
    versus_others = [text for claim, text in slower.items() if " to iceoryx2" in claim or " to floor" in claim]
    assert set(versus_others) == {"missed"}
    assert len(versus_others) > 10


def test_a_target_that_was_not_measured_is_not_judged() -> None:
    assert {verdict.text for verdict in verdicts(made_up.results([]))} == {"not measured"}


def test_a_value_at_the_limit_meets_the_target() -> None:
    target = TARGETS[0]
    assert Verdict(target, target.limit).text == "met"
    assert Verdict(target, target.limit * 1.001).text == "missed"


def test_a_ratio_is_the_median_of_the_ratios_of_each_round() -> None:
    scenario = Scenario("x", (Candidate("framebus-futex"), Candidate("floor-futex")), fps=25, rounds=3, frames=1)
    times = {"framebus-futex": (10.0, 400.0, 90.0), "floor-futex": (20.0, 100.0, 100.0)}
    results = made_up.results([made_up.scenario(scenario, lambda one, number: made_up.row(times[one.peer][number]))])
    assert ratio(results, "x", "framebus-futex", "floor-futex") == 0.9, "of 0.5, 4.0 and 0.9"
    assert ratio(results, "x", "framebus-futex", "floor-zmq") is None
    assert ratio(results, "another", "framebus-futex", "floor-futex") is None
