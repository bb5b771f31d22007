"""The arrival of the next frame is predicted at a steady rate, and not at an irregular one."""

from __future__ import annotations

from collections.abc import Iterable

import hypothesis.strategies as st
from hypothesis import given

from framebus.bus.arrivals import ArrivalPredictor

MS = 1_000_000
BEGIN_NS = 10**15
STEADY = 40
"""Frames after which a rate is known, and an earlier one no longer has an effect."""
NARROW_NS = 3 * MS
"""Widest window at an exact rate, because spinning takes a core."""
PERIODS_NS = st.integers(2 * MS, 2000 * MS)


def predictor_after(periods_ns: Iterable[int], skips: Iterable[int] = ()) -> tuple[ArrivalPredictor, int]:
    """Return a predictor that has observed frames at these intervals, and the time of the last one."""
    predictor = ArrivalPredictor()
    skipped = iter(skips)
    sequence, published_ns = 1, BEGIN_NS
    predictor.observe(sequence, published_ns)
    for period_ns in periods_ns:
        frames = 1 + next(skipped, 0)
        sequence += frames
        published_ns += frames * period_ns
        predictor.observe(sequence, published_ns)
    return predictor, published_ns


def assert_predicted(predictor: ArrivalPredictor, due_ns: int) -> None:
    begin_ns, end_ns = predictor.window()
    assert begin_ns < due_ns < end_ns <= begin_ns + NARROW_NS


def test_one_or_two_frames_are_not_enough_to_predict() -> None:
    assert ArrivalPredictor().window() == (0, 0)
    for frames in (0, 1):
        assert predictor_after([20 * MS] * frames)[0].window() == (0, 0)


@given(period_ns=PERIODS_NS, skips=st.lists(st.integers(0, 3), max_size=STEADY))
def test_a_steady_rate_is_predicted_despite_skipped_frames(period_ns: int, skips: list[int]) -> None:
    predictor, last_ns = predictor_after([period_ns] * STEADY, skips)
    assert_predicted(predictor, last_ns + period_ns)


@given(before_ns=PERIODS_NS, after_ns=PERIODS_NS)
def test_a_new_rate_replaces_the_old_one(before_ns: int, after_ns: int) -> None:
    predictor, last_ns = predictor_after([before_ns] * STEADY + [after_ns] * STEADY)
    assert_predicted(predictor, last_ns + after_ns)


@given(period_ns=PERIODS_NS, errors=st.lists(st.floats(-0.02, 0.02), min_size=STEADY, max_size=STEADY))
def test_a_small_jitter_widens_the_window_a_little(period_ns: int, errors: list[float]) -> None:
    periods_ns = [int(period_ns * (1 + error)) for error in errors]
    predictor, last_ns = predictor_after(periods_ns)
    begin_ns, end_ns = predictor.window()
    assert begin_ns < last_ns + sorted(periods_ns[-8:])[4] < end_ns
    assert end_ns - begin_ns <= NARROW_NS + period_ns // 10


@given(period_ns=st.integers(10 * MS, 2000 * MS), others=st.lists(st.integers(2, 9), min_size=STEADY, max_size=STEADY))
def test_irregular_frames_are_not_predicted(period_ns: int, others: list[int]) -> None:
    predictor, _ = predictor_after(factor * period_ns for other in others for factor in (1, other))
    assert predictor.window() == (0, 0)


@given(period_ns=st.integers(2 * MS, 200 * MS), pause_ns=st.integers(1000 * MS, 10**14), frames=st.integers(0, 20))
def test_a_pause_does_not_change_the_predicted_rate(period_ns: int, pause_ns: int, frames: int) -> None:
    predictor, last_ns = predictor_after([period_ns] * STEADY)
    assert predictor.window()[1] < last_ns + pause_ns, "during the pause, no frame is expected any more"
    predictor, last_ns = predictor_after([period_ns] * STEADY + [pause_ns] + [period_ns] * frames)
    if predictor.window() != (0, 0):
        assert_predicted(predictor, last_ns + period_ns)


@given(st.lists(st.tuples(st.integers(0, 2**56), st.integers(0, 2**64 - 1)), max_size=STEADY))
def test_arbitrary_times_never_give_a_reversed_window(frames: list[tuple[int, int]]) -> None:
    predictor = ArrivalPredictor()
    for sequence, published_ns in frames:
        predictor.observe(sequence, published_ns)
        begin_ns, end_ns = predictor.window()
        assert begin_ns <= end_ns
