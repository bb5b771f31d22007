from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from itertools import accumulate, pairwise

import pytest

from services.stitcher.capture.synchronizer import FIRST_PERIOD_NS, FrameSet, FrameSynchronizer, Timed

MS = 1_000_000
PERIOD = 40 * MS
START = 1_000_000_000_000
Frames = list[tuple[int, int]]
"""Capture and arrival of a camera's frames."""


def steady(
    count: int, *, phase_ms: float = 0, period_ns: int = PERIOD, delay: Callable[[int], float] = lambda _: 5
) -> Frames:
    captures = [START + int(phase_ms * MS) + i * period_ns for i in range(count)]
    arrivals = [captured + int(delay(i) * MS) for i, captured in enumerate(captures)]
    return list(zip(captures, accumulate(arrivals, max), strict=True))  # a late frame delays the following ones


def play(
    cameras: list[Frames], *, step_ms: int = 2, wait_ms: int = 120, render_ms: int = 0
) -> list[tuple[int, FrameSet[tuple[int, int]]]]:
    """Deliver the frames as they arrive and ask every ``step_ms``, after a frame set ``render_ms`` later.

    Returns the time of each frame set.
    """
    synchronizer: FrameSynchronizer[tuple[int, int]] = FrameSynchronizer(
        len(cameras), tolerance_ns=PERIOD, max_wait_ns=wait_ms * MS, gone_after_ns=2000 * MS
    )
    arrivals = [(arrival, camera, captured) for camera, frames in enumerate(cameras) for captured, arrival in frames]
    heapq.heapify(arrivals)
    now, end, free = START, max(arrivals)[0] + 300 * MS, START
    pairs = []
    while now < end:
        while arrivals and arrivals[0][0] <= now:
            arrival, camera, captured = heapq.heappop(arrivals)
            synchronizer.add(camera, Timed(captured, arrival, (camera, captured)))
        if now >= free and (pair := synchronizer.next(now)) is not None:
            pairs.append((now, pair))
            free = now + render_ms * MS
        now += step_ms * MS
    return pairs


def instants(pair: FrameSet[tuple[int, int]]) -> list[int]:
    return [picture[1] for picture in pair.pictures if picture is not None]


def test_cameras_in_step_give_one_frame_set_for_each_frame() -> None:
    pairs = play([steady(100) for _ in range(5)])
    assert len(pairs) == 100
    assert all(len(set(instants(pair))) == 1 and all(pair.fresh) for _, pair in pairs)
    assert [pair.captured_ns for _, pair in pairs] == [START + i * PERIOD for i in range(100)]


def test_cameras_out_of_step_are_matched_to_the_nearest_frame() -> None:
    pairs = play([steady(100, phase_ms=phase) for phase in (0, 9, 18, 27, 39)])
    assert 98 <= len(pairs) <= 101
    for _, pair in pairs[2:-2]:
        assert max(abs(instant - pair.pictures[0][1]) for instant in instants(pair)) <= PERIOD / 2  # type: ignore[index]
        assert pair.captured_ns == min(instants(pair))


def test_with_jitter_there_is_neither_drift_nor_burst_over_minutes() -> None:
    jitter = random.Random(3)
    cameras = [
        steady(25 * 120, phase_ms=phase, period_ns=period, delay=lambda _: jitter.uniform(2, 60))
        for phase, period in ((0, PERIOD), (13, PERIOD + 4000), (30, PERIOD - 4000))
    ]
    pairs = play(cameras)
    assert 25 * 120 * 0.97 <= len(pairs) <= 25 * 120 + 1
    times = [now for now, _ in pairs]
    assert min(later - earlier for earlier, later in pairwise(times)) >= 0.35 * PERIOD
    assert max(now - pair.captured_ns for now, pair in pairs) <= (120 + 60 + 40 + 4) * MS


def test_a_late_camera_delays_by_no_more_than_the_limit() -> None:
    late = steady(100, delay=lambda i: 700 if 40 <= i < 60 else 5)
    pairs = play([steady(100), late, steady(100)])
    assert 98 <= len(pairs) <= 100
    assert max(now - pair.captured_ns for now, pair in pairs if all(pair.fresh)) <= (5 + 120 + 40 + 4) * MS
    without = [pair for _, pair in pairs if not pair.fresh[1]]
    assert without
    assert all(pair.pictures[1] is not None for pair in without), "a late camera shows its previous picture"


def test_a_lost_camera_is_left_out_and_the_rate_stays() -> None:
    pairs = play([steady(250), steady(50), steady(250)])
    assert 246 <= len(pairs) <= 250, "when it is left out, the frames that waited for it are replaced by the newest"
    assert pairs[-1][1].pictures[1] is None
    assert pairs[-1][1].fresh == (True, False, True)
    # The others wait for its frames until it counts as gone.
    assert pairs[-1][0] - pairs[-1][1].captured_ns <= 10 * MS


def test_the_pacing_camera_may_die_and_come_back() -> None:
    returned = [(captured + 200 * PERIOD, arrival + 200 * PERIOD) for captured, arrival in steady(50)]
    pairs = play([steady(50) + returned, steady(250), steady(250)])
    assert 244 <= len(pairs) <= 250
    times = [now for now, _ in pairs]
    assert max(later - earlier for earlier, later in pairwise(times)) <= 300 * MS
    assert pairs[100][1].pictures[0] is None or not pairs[100][1].fresh[0]
    assert all(pairs[-2][1].fresh)


def test_a_slow_camera_does_not_slow_the_others() -> None:
    pairs = play([steady(20, period_ns=5 * PERIOD), steady(100), steady(100)])
    assert 96 <= len(pairs) <= 101
    assert all(pair.pictures[0] is not None for _, pair in pairs[:95])


def test_a_lost_frame_shows_its_neighbour() -> None:
    holed = [times for i, times in enumerate(steady(60)) if i not in (20, 21, 40)]
    pairs = play([steady(60), holed])
    assert len(pairs) == 60
    assert sum(not pair.fresh[1] for _, pair in pairs) <= 2


def test_a_late_consumer_gets_the_newest_frames_and_a_count_of_dropped_ones() -> None:
    synchronizer: FrameSynchronizer[int] = FrameSynchronizer(
        2, tolerance_ns=PERIOD, max_wait_ns=120 * MS, gone_after_ns=2000 * MS
    )
    for i in range(12):
        for camera in range(2):
            synchronizer.add(camera, Timed(START + i * PERIOD, START + i * PERIOD, i))
    now = START + 11 * PERIOD
    first, at_once, second = synchronizer.next(now), synchronizer.next(now + MS), synchronizer.next(now + PERIOD // 2)
    assert first is not None
    assert first.pictures == (11, 11)
    assert first.skipped == 11
    assert at_once is second is None
    assert synchronizer.skipped == 11


def test_frames_that_the_network_delayed_come_without_a_burst() -> None:
    synchronizer: FrameSynchronizer[int] = FrameSynchronizer(
        2, tolerance_ns=PERIOD, max_wait_ns=120 * MS, gone_after_ns=2000 * MS
    )
    now = START + 11 * PERIOD
    for i in range(12):
        for camera in range(2):
            synchronizer.add(camera, Timed(START + i * PERIOD, now, i))
    pairs = [synchronizer.next(now + wait) for wait in (0, MS, PERIOD // 2, PERIOD - MS)]
    assert [pair and pair.pictures for pair in pairs] == [(9, 9), None, (10, 10), (11, 11)]
    assert synchronizer.skipped == 9


@pytest.mark.parametrize("render_ms", [30, 45, 60, 150])
@pytest.mark.parametrize("cameras", [1, 5])
def test_a_slow_renderer_gets_the_newest_and_does_not_fall_behind(cameras: int, render_ms: int) -> None:
    pairs = play([steady(500, delay=lambda _: 5) for _ in range(cameras)], render_ms=render_ms)
    ages_ms = [(now - pair.captured_ns) / MS for now, pair in pairs[:-1]]  # no newer frame follows the last one
    assert max(ages_ms) <= 5 + 40 + 2, "what arrived no more than a period ago"
    assert len(pairs) + sum(pair.skipped for _, pair in pairs) == 500, "every dropped frame is counted"
    assert len(pairs) >= 500 * min(1, 40 / (render_ms + 2)) - 5, "no frame is dropped without need"


def test_capture_times_that_fall_back_do_not_stop_the_pairs() -> None:
    """A camera whose clock starts again may place its next frames a little earlier."""
    frames = steady(50)
    frames += [(captured - 30 * MS, arrival) for captured, arrival in steady(100)[50:]]
    pairs = play([frames, steady(100)])
    assert len(pairs) >= 98


def test_without_cameras_there_is_no_frame_set() -> None:
    synchronizer: FrameSynchronizer[int] = FrameSynchronizer(
        2, tolerance_ns=PERIOD, max_wait_ns=120 * MS, gone_after_ns=2000 * MS
    )
    assert synchronizer.next(START) is None
    synchronizer.add(0, Timed(START, START, 0))
    assert synchronizer.next(START + 3000 * MS) is None
    assert synchronizer.live(START + FIRST_PERIOD_NS) == [0]


def test_a_camera_with_seconds_between_frames_does_not_delay_the_others() -> None:
    alone = play([steady(250), steady(250)])
    slow = play([steady(250), steady(250), steady(4, period_ns=2500 * MS)])
    ages = [now - pair.captured_ns for now, pair in slow if pair.captured_ns > START + 100 * MS and not pair.fresh[2]]
    assert max(ages) <= max(now - pair.captured_ns for now, pair in alone) + 2 * MS
    assert len(slow) >= len(alone) - 1
    # It stays in the panorama between two of its frames, and is fresh only where its frame is of that instant.
    assert all(pair.pictures[2] is not None for _, pair in slow if pair.captured_ns > START + 2600 * MS)
    assert sum(pair.fresh[2] for _, pair in slow) <= 4 * 3


def test_the_skew_of_each_camera_is_reported() -> None:
    pairs = play([steady(100), steady(100, phase_ms=13), steady(30)])
    for _, pair in pairs[20:-20]:
        assert pair.instant_ns + (pair.skew_ns[0] or 0) == pair.pictures[0][1]  # type: ignore[index]
        assert sorted(abs(skew) for skew in pair.skew_ns[:2] if skew is not None) == [0, 13 * MS]
    _, last = pairs[-1]
    assert (last.pictures[2], last.skew_ns[2]) == (None, None)


def test_a_permanently_late_camera_is_neither_fresh_nor_waited_for() -> None:
    pairs = play([steady(200), steady(200, delay=lambda _: 405), steady(200)])
    later = [(now, pair) for now, pair in pairs if pair.captured_ns > START + 1500 * MS][:-10]
    assert not any(pair.fresh[1] for _, pair in later)
    assert all(pair.skew_ns[1] is not None and pair.skew_ns[1] <= -360 * MS for _, pair in later)
    assert max(now - pair.captured_ns for now, pair in later) <= (5 + 4) * MS, "the others do not wait for it"


def test_a_late_camera_is_in_step_where_the_wait_is_long_enough() -> None:
    pairs = play([steady(200), steady(200, delay=lambda _: 405), steady(200)], wait_ms=520)
    later = [pair for _, pair in pairs if pair.captured_ns > START + 1500 * MS][:-15]
    assert len(later) > 100
    assert all(all(pair.fresh) and set(pair.skew_ns) == {0} for pair in later)


def test_the_mark_of_damage_is_passed_on() -> None:
    synchronizer: FrameSynchronizer[int] = FrameSynchronizer(
        2, tolerance_ns=PERIOD, max_wait_ns=120 * MS, gone_after_ns=2000 * MS
    )
    for camera in range(2):
        synchronizer.add(camera, Timed(START, START, camera, damaged=camera == 1))
    pair = synchronizer.next(START)
    assert pair is not None
    assert pair.damaged == (False, True)
