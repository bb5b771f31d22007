"""The comparison of two runs: changes beyond those of the machine, and the output of the command."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import __main__ as command
from bench.compare import Change, compare
from bench.harness import Candidate, Scenario
from bench.results import Results, save
from tests.bench import made_up

PEERS = ("framebus-futex", "iceoryx2-listener", "floor-futex")
PLAN = Scenario("steady", tuple(Candidate(peer) for peer in PEERS), fps=25, rounds=3, frames=1)
SPREAD = (0.98, 1.0, 1.02)


def a_run(*times_us: float, spread: tuple[float, ...] = SPREAD, plan: Scenario = PLAN) -> Results:
    """Return a run with this time for each of the peers."""
    times = dict(zip(PEERS, times_us, strict=True))
    return made_up.results([made_up.scenario(plan, lambda one, number: made_up.row(times[one.peer] * spread[number]))])


def changes(before: Results, after: Results) -> dict[str, Change]:
    return {change.candidate.partition(",")[0]: change for change in compare(before, after)}


def test_a_slower_machine_is_no_change() -> None:
    seen = changes(a_run(100, 200, 50), a_run(200, 400, 100))
    assert set(seen) == set(PEERS)
    for change in seen.values():
        assert change.ratio == pytest.approx(1)
        assert not change.is_clear
    assert (seen["framebus-futex"].before_us, seen["framebus-futex"].after_us) == (100, 200)


def test_a_large_change_is_clear() -> None:
    seen = changes(a_run(100, 200, 50), a_run(150, 100, 50))
    assert [seen[peer].ratio for peer in PEERS] == pytest.approx([1.5, 0.5, 1])
    assert [seen[peer].is_clear for peer in PEERS] == [True, True, False]


def test_a_small_change_or_one_within_the_spread_is_not_clear() -> None:
    assert not changes(a_run(100, 200, 50), a_run(110, 200, 50))["framebus-futex"].is_clear
    wide = (0.6, 1.0, 1.6)
    before, after = a_run(100, 200, 50, spread=wide), a_run(150, 200, 50, spread=wide)
    assert not changes(before, after)["framebus-futex"].is_clear


def test_only_candidates_that_both_runs_measured_are_compared() -> None:
    other = Scenario("another", PLAN.candidates, fps=25, rounds=3, frames=1)
    assert changes(a_run(1, 1, 1), a_run(1, 1, 1, plan=other)) == {}
    failed = made_up.results([made_up.scenario(PLAN, lambda _one, _number: None)])
    assert changes(a_run(1, 1, 1), failed) == changes(failed, a_run(1, 1, 1)) == {}


class TestCommand:
    """``python -m bench compare`` with saved runs."""

    def compared(self, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
        monkeypatch.setattr("sys.argv", ["bench", "compare", *map(str, arguments)])
        return command.main()

    @pytest.mark.parametrize(
        ("now_us", "status", "word"), [(150.0, 1, "slower"), (100.0, 0, "same"), (50.0, 0, "faster")]
    )
    def test_its_status_is_1_when_framebus_is_slower(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        now_us: float,
        status: int,
        word: str,
    ) -> None:
        save(a_run(100, 200, 50), tmp_path / "before.json")
        save(a_run(now_us, 200, 50), tmp_path / "after.json")
        arguments = ("--before", tmp_path / "before.json", "--after", tmp_path / "after.json")
        assert self.compared(monkeypatch, *arguments) == status
        lines = capsys.readouterr().out.splitlines()
        (line,) = (line for line in lines if "framebus-futex" in line)
        assert line.split()[0] == word
        assert lines[-1].startswith("compared with the run of 2030-01-02")

    def test_without_a_saved_run_it_says_which_command_saves_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(command, "SAVED", tmp_path)
        monkeypatch.setattr(command, "PUBLISHED", tmp_path)
        assert self.compared(monkeypatch) == 2
        assert capsys.readouterr().err == "no saved run to compare with: make bench saves one\n"

    @pytest.mark.parametrize(
        ("saved", "published", "before"),
        [
            (["1-short", "3-short", "4-short-part", "5-full"], ["2-short"], "saved/3-short"),
            (["1-short"], ["2-short"], "published/2-short"),
            ([], ["2-full"], "published/2-full"),
            (["5-full"], ["2-full"], "published/2-full"),
        ],
    )
    def test_it_compares_with_the_last_run_of_its_form(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        saved: list[str],
        published: list[str],
        before: str,
    ) -> None:
        for folder, names in (("saved", saved), ("published", published)):
            monkeypatch.setattr(command, folder.upper(), tmp_path / folder)
            for name in names:
                run = a_run(100, 200, 50) | {"started": f"{folder}/{name}"}
                save(run, tmp_path / folder / f"{name}.json")
        save(a_run(100, 200, 50), tmp_path / "after.json")
        assert self.compared(monkeypatch, "--after", tmp_path / "after.json") == 0
        assert f"compared with the run of {before};" in capsys.readouterr().out

    def test_a_file_without_results_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.compared(monkeypatch, "--before", tmp_path / "none.json") == 2
        assert "none.json" in capsys.readouterr().err
