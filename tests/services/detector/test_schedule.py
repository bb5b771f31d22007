"""The budget and its promise, with a simulated clock and processor."""

from __future__ import annotations

import numpy as np
import pytest

from services.detector.schedule import Budget, Schedule

TILES = 10
FRAME_S = 0.2


class Machine:
    """Processes the tiles that a schedule chooses, with a given CPU time for each tile, on a share of a core."""

    def __init__(self, budget: Budget, tile_cpu_s: float, *, core: float = 1.0, frame_cpu_s: float = 0.0) -> None:
        self.schedule = Schedule(TILES, budget)
        self.now_s = 100.0
        self.cpu_s = 0.0
        self.longest_s = 0.0
        self.looked: list[list[int]] = []
        self._tile_cpu_s, self._core, self._frame_cpu_s = tile_cpu_s, core, frame_cpu_s

    def run(self, seconds: float, activity: list[float] | None = None) -> None:
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            started_s = self.now_s
            captured_ns = int(self.now_s * 1e9)
            chosen = self.schedule.choose(captured_ns, self.now_s, np.array(activity or [0.0] * TILES))
            self.longest_s = max(self.longest_s, self.schedule.longest_age_s)
            cpu_s = self._tile_cpu_s * len(chosen)
            self.schedule.looked_at(chosen, captured_ns, cpu_s=cpu_s, wall_s=cpu_s / self._core)
            cpu_s += self._frame_cpu_s
            self.schedule.spend(cpu_s)
            self.cpu_s += cpu_s
            self.looked.append(chosen)
            self.now_s = max(started_s + FRAME_S, started_s + cpu_s / self._core)


def test_without_limits_every_frame_is_looked_at_whole() -> None:
    machine = Machine(Budget(None, None, 2.0), 0.001)
    machine.run(2)
    assert {tuple(sorted(chosen)) for chosen in machine.looked} == {tuple(range(TILES))}


def test_at_a_tenth_of_the_needed_cpu_every_tile_is_seen_in_time() -> None:
    """All tiles of all frames take a whole core; the budget is a tenth of one."""
    machine = Machine(Budget(0.1, FRAME_S, 2.0), FRAME_S / TILES)
    machine.run(60)
    assert machine.longest_s <= 2.0
    assert machine.cpu_s / 60 < 0.13


def test_on_a_processor_ten_times_too_slow_every_tile_is_seen_in_time() -> None:
    """The machine has only a tenth of a core left, whatever the budget says, and frames continue to arrive."""
    machine = Machine(Budget(None, FRAME_S, 2.0), FRAME_S / TILES, core=0.1)
    machine.run(60)
    assert machine.longest_s <= 2.0 + 1e-6
    assert len(machine.looked) > 60


def test_if_the_cpu_is_too_little_the_longest_age_shows_it() -> None:
    machine = Machine(Budget(0.1, FRAME_S, 2.0), FRAME_S / TILES, core=0.05)
    machine.run(60)
    assert 2.0 < machine.longest_s < 5.0


def test_the_budget_is_kept_if_it_is_larger_than_the_promise_needs() -> None:
    machine = Machine(Budget(0.3, FRAME_S, 2.0), FRAME_S / TILES, frame_cpu_s=0.004)
    machine.run(60)
    assert 0.25 < machine.cpu_s / 60 < 0.32
    assert machine.longest_s <= 2.0


def test_a_frame_looks_at_no_more_than_its_time_allows() -> None:
    machine = Machine(Budget(None, FRAME_S, 2.0), FRAME_S / 4)
    machine.run(20)
    assert max(map(len, machine.looked[1:])) <= 4
    assert len(machine.looked) >= 90


def test_tiles_with_something_to_see_come_first_and_the_others_in_turn() -> None:
    machine = Machine(Budget(0.3, FRAME_S, 2.0), FRAME_S / TILES)
    machine.run(20, activity=[0.0, 0, 0, 50, 0, 0, 0, 9, 0, 0])
    times = np.bincount([tile for chosen in machine.looked for tile in chosen], minlength=TILES)
    assert times[3] > 2 * times[0]
    assert times[7] > 1.5 * times[0]
    assert times.min() >= 10
    assert machine.longest_s <= 2.0


def test_if_nothing_moves_the_tile_that_waited_longest_is_first() -> None:
    schedule = Schedule(4, Budget(1.0, None, 100.0))
    nothing = np.zeros(4)
    schedule.choose(0, 0.0, nothing)
    for at_ns, index in ((1, 2), (2, 0), (3, 3), (4, 1)):
        schedule.looked_at([index], at_ns, cpu_s=0.1, wall_s=0.1)
    assert schedule.choose(5, 10.0, nothing) == [2, 0, 3, 1]
    assert schedule.choose(6, 10.0, np.array([0.0, 3.0, 0.0, 0.0]))[0] == 1


@pytest.mark.parametrize("gap_s", [3.0, 60.0])
def test_after_a_pause_all_tiles_are_due(gap_s: float) -> None:
    machine = Machine(Budget(0.05, FRAME_S, 2.0), FRAME_S / TILES)
    machine.run(4)
    machine.now_s += gap_s
    machine.run(FRAME_S)
    assert sorted(machine.looked[-1]) == list(range(TILES))
