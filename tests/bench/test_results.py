"""The results of a run: figures of its rounds, the saved file, and clear errors for other files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.harness import Candidate, Outcome, RoundResult, Scenario
from bench.peers import all_peers
from bench.results import Figure, copy_us, describe_peer, figure, find, load, machine, save, scenario_results
from bench.worker import Memory, Received, Sent
from tests.bench import made_up

GOOD, SILENT, BROKEN = (Candidate(name, "0.1 MB") for name in ("framebus-futex", "floor-futex", "floor-zmq"))
PLAN = Scenario("a question", (GOOD, SILENT, BROKEN), fps=25, rounds=2, frames=100)
MS = 1_000_000


def received(latencies_us: list[int], **others: int | float) -> Received:
    return Received([value * 1000 for value in latencies_us], frames=len(latencies_us), **others)  # type: ignore[arg-type]


def outcomes() -> dict[str, Outcome]:
    """Return outcomes: two receivers of a good peer, a peer whose frames never arrive, and a peer that failed."""
    sent = Sent(seconds=4.0, cpu_ns=12 * MS, frames=120)
    first = RoundResult(
        sent,
        [
            received(list(range(1, 101)), cpu_ns=20 * MS, seconds=3.96),
            received([50] * 75, skipped=25, torn=2, disordered=1, cpu_ns=30 * MS, seconds=2.96),
        ],
    )
    second = RoundResult(sent, [received([10, 20, 30], seconds=0.08, cpu_ns=3000)])
    return {
        GOOD.key: Outcome([first, second], [Memory(100, 40, 10), Memory(90, 30, 20), Memory(70, 10, 30)]),
        SILENT.key: Outcome([RoundResult(sent, [Received()])]),
        BROKEN.key: Outcome(failure="Traceback ...\nRuntimeError: no"),
    }


def test_rounds_become_figures() -> None:
    results = scenario_results(PLAN, outcomes(), "2030-01-02 03:05 UTC")
    assert results["started"] == "2030-01-02 03:05 UTC"
    good, silent, broken = results["candidates"].values()
    first, second = good["rounds"]
    assert first["p50_us"] == 50
    assert first["p99_us"] == pytest.approx(98.26)
    assert first["delivered"] == 175 / 200
    assert (first["torn"], first["disordered"]) == (2, 1)
    assert first["sender_cpu_us"] == 100
    assert first["receiver_cpu_us"] == pytest.approx((200 + 400) / 2)
    assert first["fps"] == pytest.approx(25)
    assert (second["p50_us"], second["delivered"], second["receiver_cpu_us"]) == (20, 1, 1)
    assert good["memory"] == {
        "sender_rss": 100,
        "receiver_rss": 80,
        "sender_private": 40,
        "receiver_private": 20,
        "shared": 60,
    }
    assert good["frame_bytes"] == 176 * 192 * 3
    assert silent["rounds"] == [{"delivered": 0, "torn": 0, "disordered": 0, "sender_cpu_us": 100}]
    assert (broken["rounds"], broken["memory"]) == ([], None)
    assert broken["failure"].endswith("no")


def test_a_figure_is_the_median_of_the_rounds_that_have_it() -> None:
    rounds = [made_up.row(value) for value in (30.0, 10.0, 20.0)]
    assert figure([*rounds, {"torn": 0.0}], "p50_us") == Figure(20, 10, 30)
    assert figure([{"torn": 0.0}], "p50_us") is None


def test_a_candidate_is_found_by_its_conditions() -> None:
    results = made_up.results([scenario_results(PLAN, outcomes(), "2030-01-02 03:05 UTC")])
    assert len(find(results, "a question", "framebus-futex", size="0.1 MB")) == 2
    assert find(results, "a question", "framebus-futex") == []
    assert find(results, "a question", "framebus-futex", size="0.1 MB", receivers=2) == []
    assert find(results, "another", "framebus-futex", size="0.1 MB") == []


def test_saved_results_can_be_loaded(tmp_path: Path) -> None:
    results = made_up.results([scenario_results(PLAN, outcomes(), "2030-01-02 03:05 UTC")], machine=machine())
    path = tmp_path / "deeper/run.json"
    save(results, path)
    assert load(path) == results


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 0}', "{}", "\x00"])
def test_a_file_without_results_is_reported(tmp_path: Path, content: str) -> None:
    path = tmp_path / "run.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"run\.json holds no results of this version of the benchmarks"):
        load(path)


def test_the_descriptions_of_machine_and_peers_are_json() -> None:
    told = [machine(), *(describe_peer(peer) for peer in all_peers().values() if peer.missing() is None)]
    assert json.loads(json.dumps(told)) == told
    assert told[0]["cores"] >= 1


def test_a_copy_is_measured() -> None:
    taken = copy_us("0.1 MB", times=3)
    assert len(taken) == 3
    assert min(taken) > 0
