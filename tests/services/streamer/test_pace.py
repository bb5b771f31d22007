"""Which pictures a connection gets: the real choice, on simulated connections and in simulated time."""

from __future__ import annotations

import itertools
from collections import deque

import pytest

from services.streamer.encode import SMALLEST
from services.streamer.pace import BYTES, MAX_IN_FLIGHT, Pace

LARGEST_BYTES = 190_000
FRAME_S = 0.04


class Line:
    """A viewer behind a connection of a given rate and delay, which draws each picture on arrival."""

    def __init__(self, bytes_per_s: float, delay_s: float = 0.01) -> None:
        self.pace = Pace()
        self.bytes_per_s = bytes_per_s
        self.now_s = 0.0
        self.ages_s: list[float] = []
        """Age of each picture when the next one replaced it: the oldest that was ever seen."""
        self.levels: list[int] = []
        self._delay_s = delay_s
        self._free_s = 0.0
        self._in_flight: deque[tuple[float, float, int]] = deque()
        self._shown_captured_s = 0.0

    def run(self, seconds: float) -> None:
        """Offer a frame every 40 ms."""
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            self.now_s += FRAME_S
            while self._in_flight and self._in_flight[0][0] <= self.now_s:
                arrived_s, sent_s, level = self._in_flight.popleft()
                self.pace.acknowledge(level, sent_s, arrived_s, 0.0)
                self.ages_s.append(arrived_s - self._shown_captured_s)
                self._shown_captured_s = sent_s
            if len(self._in_flight) < self.pace.in_flight:
                level = self.pace.level
                self.levels.append(level)
                begins_s = max(self.now_s, self._free_s)
                self._free_s = begins_s + LARGEST_BYTES * BYTES[level] / self.bytes_per_s
                self._in_flight.append((self._free_s + 2 * self._delay_s, self.now_s, level))


@pytest.mark.parametrize(
    ("megabits_per_s", "levels", "oldest_s"),
    [(100, {0}, 0.3), (20, {0, 1}, 0.4), (2, {1, 2}, 1.0), (0.48, {3}, 1.0), (0.24, {3}, 2.0), (0.12, {3}, 2.9)],
)
def test_a_connection_gets_the_largest_pictures_that_it_can_carry(
    megabits_per_s: float, levels: set[int], oldest_s: float
) -> None:
    line = Line(megabits_per_s * 1e6 / 8)
    line.run(20)
    line.ages_s.clear()
    line.levels.clear()
    line.run(60)
    assert len(line.ages_s) > 30
    assert max(line.ages_s) <= oldest_s
    usual = [level for level in sorted(set(line.levels)) if line.levels.count(level) > len(line.levels) / 5]
    assert set(usual) <= levels


@pytest.mark.parametrize("megabits_per_s", [0.12, 1, 100])
def test_the_first_picture_is_small_and_arrives_soon(megabits_per_s: float) -> None:
    line = Line(megabits_per_s * 1e6 / 8)
    line.run(4)
    assert line.levels[0] == SMALLEST
    assert line.ages_s


def test_the_size_of_pictures_follows_the_quality_of_the_connection() -> None:
    line = Line(20e6 / 8)
    line.run(5)
    assert line.pace.level == 0
    line.bytes_per_s = 0.3e6 / 8
    line.run(10)
    assert (line.pace.level, line.pace.in_flight) == (SMALLEST, 1)
    line.bytes_per_s = 20e6 / 8
    line.run(140)
    assert (line.pace.level, line.pace.in_flight) == (0, MAX_IN_FLIGHT)


def test_failed_attempts_at_larger_pictures_become_rare() -> None:
    # By the rough sizes level 0 would take 0.24 s; it takes 0.5 s.
    pace = Pace(first=1)
    now_s, tries = 0.0, []
    while now_s < 300:
        took_s = 0.5 if pace.level == 0 else 0.13
        pace.acknowledge(pace.level, now_s, now_s + took_s, 0.0)
        now_s += took_s
        if pace.level == 0:
            tries.append(now_s)
    pauses = [round(later - earlier, 3) for earlier, later in itertools.pairwise(tries)]
    assert 3 <= len(tries) <= 10
    assert pauses == sorted(pauses)


def test_a_hidden_page_is_not_taken_for_a_slow_connection() -> None:
    pace = Pace(first=0)
    pace.acknowledge(0, 0.0, 0.05, 0.01)
    pace.acknowledge(0, 0.1, 60.0, 59.88)
    assert (pace.level, pace.in_flight) == (0, MAX_IN_FLIGHT)


def test_a_viewer_that_reports_no_holding_time_has_two_pictures_in_flight() -> None:
    pace = Pace(first=0)
    pace.acknowledge(0, 0.0, 1.0)
    pace.acknowledge(0, 1.0, 2.0)
    assert pace.level > 0
    assert pace.in_flight == MAX_IN_FLIGHT


def test_the_largest_pictures_that_a_viewer_wants_are_not_exceeded() -> None:
    pace = Pace(first=2, largest=2)
    for second in range(60):
        pace.acknowledge(2, second, second + 0.001, 0.0)
    assert pace.level == 2
