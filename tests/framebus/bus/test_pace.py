"""The futex: a wake is seen across processes, and no event between the look and the sleep is lost. The pace: foretold
when it is steady, and not when it is not."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterable

import hypothesis.strategies as st
from hypothesis import given

from framebus.bus.pace import Pace
from framebus.shm import segment as shm
from framebus.shm.futex import sleep_while, wake_all

MS = 1_000_000
BEGIN_NS = 10**15
STEADY = 40
"""Frames after which any pace is known, and one before it forgotten."""
NARROW_NS = 3 * MS
"""No window of an exact pace is wider: looking costs a core."""
PERIODS_NS = st.integers(2 * MS, 2000 * MS)

WAITER = """
import sys
from framebus.shm import segment as shm
from framebus.shm.futex import sleep_while
segment = shm.attach(sys.argv[1])
print("ready", flush=True)
while segment.words32[32] == 0:
    sleep_while(segment.address + 128, 0, 20_000_000_000)
print(segment.words32[32], flush=True)
"""


def test_a_wake_reaches_a_read_only_map_of_another_process(stream: str) -> None:
    segment = shm.create(f"framebus.{stream}.ring", 4096, 0o640)
    with subprocess.Popen([sys.executable, "-c", WAITER, segment.name], stdout=subprocess.PIPE) as waiter:
        assert waiter.stdout is not None
        assert waiter.stdout.readline() == b"ready\n"
        segment.words32[32] = 5
        wake_all(segment.address + 128)
        assert waiter.stdout.readline() == b"5\n"
    segment.unlink()


def test_a_word_that_has_changed_is_not_slept_on(stream: str) -> None:
    segment = shm.create(f"framebus.{stream}.ring", 4096, 0o640)
    segment.words32[32] = 1
    done = threading.Event()

    def wait() -> None:
        sleep_while(segment.address + 128, 0, 100_000_000_000)
        done.set()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    assert done.wait(10)
    thread.join()
    segment.unlink()


def paced(periods_ns: Iterable[int], skips: Iterable[int] = ()) -> tuple[Pace, int]:
    """A pace that has seen frames with those periods between them, some of them not itself; the last frame's time."""
    pace = Pace()
    skipped = iter(skips)
    sequence, published_ns = 1, BEGIN_NS
    pace.learn(sequence, published_ns)
    for period_ns in periods_ns:
        frames = 1 + next(skipped, 0)
        sequence += frames
        published_ns += frames * period_ns
        pace.learn(sequence, published_ns)
    return pace, published_ns


def assert_foretold(pace: Pace, due_ns: int) -> None:
    begin_ns, end_ns = pace.window()
    assert begin_ns < due_ns < end_ns <= begin_ns + NARROW_NS


def test_nobody_knows_the_pace_of_a_frame_or_two() -> None:
    assert Pace().window() == (0, 0)
    for frames in (0, 1):
        assert paced([20 * MS] * frames)[0].window() == (0, 0)


@given(period_ns=PERIODS_NS, skips=st.lists(st.integers(0, 3), max_size=STEADY))
def test_a_steady_pace_is_foretold_whatever_was_skipped(period_ns: int, skips: list[int]) -> None:
    pace, last_ns = paced([period_ns] * STEADY, skips)
    assert_foretold(pace, last_ns + period_ns)


@given(before_ns=PERIODS_NS, after_ns=PERIODS_NS)
def test_a_new_pace_takes_the_place_of_the_old(before_ns: int, after_ns: int) -> None:
    pace, last_ns = paced([before_ns] * STEADY + [after_ns] * STEADY)
    assert_foretold(pace, last_ns + after_ns)


@given(period_ns=PERIODS_NS, errors=st.lists(st.floats(-0.02, 0.02), min_size=STEADY, max_size=STEADY))
def test_a_pace_that_is_a_little_off_has_a_window_that_is_a_little_wider(period_ns: int, errors: list[float]) -> None:
    periods_ns = [int(period_ns * (1 + error)) for error in errors]
    pace, last_ns = paced(periods_ns)
    begin_ns, end_ns = pace.window()
    assert begin_ns < last_ns + sorted(periods_ns[-8:])[4] < end_ns
    assert end_ns - begin_ns <= NARROW_NS + period_ns // 10


@given(period_ns=st.integers(10 * MS, 2000 * MS), others=st.lists(st.integers(2, 9), min_size=STEADY, max_size=STEADY))
def test_what_is_not_steady_is_not_foretold(period_ns: int, others: list[int]) -> None:
    pace, _ = paced(factor * period_ns for other in others for factor in (1, other))
    assert pace.window() == (0, 0)


@given(period_ns=st.integers(2 * MS, 200 * MS), pause_ns=st.integers(1000 * MS, 10**14), frames=st.integers(0, 20))
def test_a_pause_is_not_taken_for_the_pace(period_ns: int, pause_ns: int, frames: int) -> None:
    pace, last_ns = paced([period_ns] * STEADY)
    assert pace.window()[1] < last_ns + pause_ns, "while it pauses, nothing is due any more"
    pace, last_ns = paced([period_ns] * STEADY + [pause_ns] + [period_ns] * frames)
    if pace.window() != (0, 0):
        assert_foretold(pace, last_ns + period_ns)


@given(st.lists(st.tuples(st.integers(0, 2**56), st.integers(0, 2**64 - 1)), max_size=STEADY))
def test_times_that_make_no_sense_are_harmless(frames: list[tuple[int, int]]) -> None:
    pace = Pace()
    for sequence, published_ns in frames:
        pace.learn(sequence, published_ns)
        begin_ns, end_ns = pace.window()
        assert begin_ns <= end_ns
