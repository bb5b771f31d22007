"""Tracking: a number stays with its object."""

from __future__ import annotations

import numpy as np

from services.detector.boxes import Boxes
from services.detector.track import Tracker

SECOND = 1_000_000_000


def people(*lefts: float, label: int = 0) -> Boxes:
    """People of 60 x 150 pixels at these left edges."""
    corners = np.array([[left, 100, left + 60, 250] for left in lefts], np.float32).reshape(-1, 4)
    return Boxes(corners, np.full(len(lefts), 0.9, np.float32), np.full(len(lefts), label, np.intp))


def test_numbers_start_at_one_and_stay_in_any_order() -> None:
    tracker = Tracker(-0.4, 1.0)
    assert tracker.update(people(0, 500), 0) == [1, 2]
    assert tracker.update(people(505, 5), SECOND // 5) == [2, 1]


def test_a_newcomer_gets_a_new_number() -> None:
    tracker = Tracker(-0.4, 1.0)
    tracker.update(people(0), 0)
    assert tracker.update(people(600, 0), SECOND // 5) == [2, 1]


def test_who_is_hidden_for_a_moment_keeps_the_number() -> None:
    tracker = Tracker(-0.4, 1.0)
    tracker.update(people(0), 0)
    assert tracker.update(people(), SECOND // 2) == []
    assert tracker.update(people(5), SECOND) == [1]


def test_who_is_hidden_for_long_is_forgotten() -> None:
    tracker = Tracker(-0.4, 1.0)
    tracker.update(people(0), 0)
    assert tracker.update(people(0), SECOND + 1) == [2]


def test_a_label_is_not_taken_for_another() -> None:
    tracker = Tracker(-0.4, 1.0)
    tracker.update(people(0), 0)
    assert tracker.update(people(0, label=1), SECOND // 5) == [2]


def test_two_who_cross_keep_their_numbers() -> None:
    """They meet at 150 px; the movement so far says who goes on to which side."""
    tracker = Tracker(-0.4, 1.0)
    seen = set()
    for step in range(13):
        first, second = tracker.update(people(step * 25, 300 - step * 25), step * SECOND // 5)
        seen.add((first, second))
    assert seen == {(1, 2)}


def test_the_nearest_wins_and_the_other_is_new() -> None:
    tracker = Tracker(-0.4, 1.0)
    tracker.update(people(100), 0)
    assert tracker.update(people(400, 104), SECOND // 5) == [2, 1]


def test_a_third_pair_is_still_matched() -> None:
    """A pair that is no longer free does not end the search."""
    tracker = Tracker(-0.4, 1.0)
    tracker.update(people(0, 20, 400), 0)
    assert tracker.update(people(1, 22, 430), SECOND // 5) == [1, 2, 3]


def test_a_clock_that_runs_back_starts_anew() -> None:
    tracker = Tracker(-0.4, 1.0)
    tracker.update(people(0), 10 * SECOND)
    assert tracker.update(people(0), SECOND) == [2]


def test_who_walks_is_followed_at_one_frame_a_second() -> None:
    """Boxes of one person, 120 px apart, do not even touch."""
    tracker = Tracker(-0.4, 2.0)
    assert [tracker.update(people(step * 120), step * SECOND) for step in range(5)] == [[1]] * 5


def test_who_is_far_from_where_anyone_is_expected_is_new() -> None:
    tracker = Tracker(-0.4, 2.0)
    tracker.update(people(0), 0)
    assert tracker.update(people(500), SECOND) == [2]


def test_two_frames_of_one_moment_do_no_harm() -> None:
    tracker = Tracker(-0.4, 2.0)
    assert tracker.update(people(0), SECOND) == tracker.update(people(4), SECOND) == [1]
    assert tracker.update(people(8), 2 * SECOND) == [1]
