from __future__ import annotations

import random

from services.stitcher.clock import JUMP_NS, WINDOW_NS, CaptureClock

MS = 1_000_000
PERIOD = 40 * MS
START = 5_000_000_000_000


def test_jitter_is_filtered_out() -> None:
    clock, jitter = CaptureClock(), random.Random(1)
    for frame in range(100):
        arrival = START + frame * PERIOD + (0 if frame == 3 else jitter.randrange(1, 90) * MS)
        captured = clock.captured_ns(frame * PERIOD + 1400 * MS, arrival)
        if frame > 4:
            assert captured == START + frame * PERIOD


def test_a_first_burst_of_old_frames_ends_at_the_present() -> None:
    clock = CaptureClock()
    for frame in range(25):
        clock.captured_ns(frame * PERIOD, START + frame * MS)
    assert clock.captured_ns(25 * PERIOD, START + 24 * MS + PERIOD) == START + 24 * MS + PERIOD
    assert clock.resets == 0


def test_captured_increases_and_is_never_after_arrival() -> None:
    clock, jitter = CaptureClock(), random.Random(2)
    newest = 0
    for frame in range(400):
        arrival = START + frame * PERIOD + jitter.randrange(200) * MS
        captured = clock.captured_ns(frame * PERIOD, arrival)
        assert newest < captured
        assert captured <= max(arrival, newest + 1)
        newest = captured


def test_a_camera_that_runs_slow_is_followed() -> None:
    clock = CaptureClock()
    for frame in range(25 * 120):
        arrival = START + frame * PERIOD
        captured = clock.captured_ns(int(frame * PERIOD * (1 - 200e-6)), arrival)
        assert arrival - captured <= 2 * (WINDOW_NS + PERIOD) * 200e-6


def test_a_delay_that_grew_for_good_is_forgotten_after_two_windows() -> None:
    clock = CaptureClock()
    for frame in range(25 * 10):
        clock.captured_ns(frame * PERIOD, START + frame * PERIOD)
    ages = []
    for frame in range(25 * 10, 25 * 25):
        arrival = START + frame * PERIOD + 300 * MS
        ages.append(arrival - clock.captured_ns(frame * PERIOD, arrival))
    assert ages[0] == 300 * MS
    assert ages[-1] == 0


def test_presentation_times_that_begin_anew_reset_the_clock() -> None:
    clock = CaptureClock()
    for frame in range(50):
        clock.captured_ns(90_000 * MS + frame * PERIOD, START + frame * PERIOD)
    arrival = START + 50 * PERIOD
    assert clock.captured_ns(0, arrival) == arrival
    assert clock.resets == 1


def test_a_leap_ahead_resets_the_clock() -> None:
    clock = CaptureClock()
    clock.captured_ns(0, START)
    arrival = START + PERIOD
    assert clock.captured_ns(PERIOD + 2 * JUMP_NS, arrival) == arrival
    assert clock.resets == 1


def test_a_stall_of_the_network_is_no_leap() -> None:
    clock = CaptureClock()
    for frame in range(10):
        clock.captured_ns(frame * PERIOD, START + frame * PERIOD)
    late = START + 10 * PERIOD + 3000 * MS
    assert clock.captured_ns(10 * PERIOD, late) == START + 10 * PERIOD
    assert clock.captured_ns(11 * PERIOD, late + MS) == START + 11 * PERIOD
    assert clock.resets == 0
