from __future__ import annotations

import random

import numpy as np
import pytest

from services.stitcher.capture.clock import JUMP_NS, UNPROVEN_LAG_NS, WINDOW_NS, CaptureClock, Source
from services.stitcher.capture.sender import MAX_DELAY_NS, SenderClocks

MS = 1_000_000
PERIOD = 40 * MS
START = 5_000_000_000_000


def place(
    clock: CaptureClock, pts_ns: int | None, arrival_ns: int, dts_ns: int | None = None, sender_ns: int | None = None
) -> int:
    """Observe a packet, and place the frame in it."""
    clock.observe(arrival_ns, pts_ns, dts_ns, sender_ns)
    return clock.captured_ns(pts_ns, arrival_ns)


def test_jitter_is_filtered_out() -> None:
    clock, jitter = CaptureClock(), random.Random(1)
    for frame in range(100):
        arrival = START + frame * PERIOD + (0 if frame == 3 else jitter.randrange(1, 90) * MS)
        captured = place(clock, frame * PERIOD + 1400 * MS, arrival)
        if frame > 4:
            assert captured == START + frame * PERIOD


def test_the_last_frame_of_a_first_burst_is_of_the_present() -> None:
    clock = CaptureClock()
    for frame in range(25):
        place(clock, frame * PERIOD, START + frame * MS)
    assert place(clock, 25 * PERIOD, START + 24 * MS + PERIOD) == START + 24 * MS + PERIOD
    assert clock.resets == 0


def test_captured_increases_and_is_never_after_arrival() -> None:
    clock, jitter = CaptureClock(), random.Random(2)
    newest = 0
    for frame in range(400):
        arrival = START + frame * PERIOD + jitter.randrange(200) * MS
        captured = place(clock, frame * PERIOD, arrival)
        assert newest < captured
        assert captured <= max(arrival, newest + 1)
        newest = captured


def test_a_camera_that_runs_slow_is_followed() -> None:
    clock = CaptureClock()
    for frame in range(25 * 120):
        arrival = START + frame * PERIOD
        captured = place(clock, int(frame * PERIOD * (1 - 200e-6)), arrival)
        assert arrival - captured <= 2 * (WINDOW_NS + PERIOD) * 200e-6


def test_a_delay_that_grew_for_good_is_forgotten_after_two_windows() -> None:
    clock = CaptureClock()
    for frame in range(25 * 10):
        place(clock, frame * PERIOD, START + frame * PERIOD)
    ages = []
    for frame in range(25 * 10, 25 * 25):
        arrival = START + frame * PERIOD + 300 * MS
        ages.append(arrival - place(clock, frame * PERIOD, arrival))
    assert ages[0] == 300 * MS
    assert ages[-1] == 0


def test_presentation_times_that_start_again_reset_the_clock() -> None:
    clock = CaptureClock()
    for frame in range(50):
        place(clock, 90_000 * MS + frame * PERIOD, START + frame * PERIOD)
    arrival = START + 50 * PERIOD
    assert place(clock, 0, arrival) == arrival
    assert clock.resets == 1


def test_a_leap_ahead_resets_the_clock() -> None:
    clock = CaptureClock()
    place(clock, 0, START)
    arrival = START + PERIOD
    assert place(clock, PERIOD + 2 * JUMP_NS, arrival) == arrival
    assert clock.resets == 1


def test_a_stall_of_the_network_is_not_a_leap() -> None:
    clock = CaptureClock()
    for frame in range(10):
        place(clock, frame * PERIOD, START + frame * PERIOD)
    for frame in range(10, 200):
        place(clock, frame * PERIOD, START + frame * PERIOD)
    late = START + 200 * PERIOD + 3000 * MS
    assert place(clock, 200 * PERIOD, late) == START + 200 * PERIOD
    assert place(clock, 201 * PERIOD, late + MS) == START + 201 * PERIOD
    assert clock.resets == 0


@pytest.mark.parametrize("fps", [0.4, 0.9, 5, 10, 15, 20, 24, 30, 60])
def test_pts_with_another_rate_than_the_wall_clock_are_not_used(fps: float) -> None:
    """FFmpeg numbers the pictures of MJPEG over HTTP at 25 a second, however many come."""
    clock, jitter = CaptureClock(), random.Random(4)
    sources: list[Source] = []
    for frame in range(round(30 * fps)):
        due = START + round(frame * 1e9 / fps)
        arrival = due + jitter.randrange(15) * MS
        captured = place(clock, frame * PERIOD, arrival)
        sources.append(clock.source)
        assert arrival - captured <= UNPROVEN_LAG_NS, "never seconds off, not even before the rate is known"
        assert captured <= arrival
    assert set(sources[len(sources) * 2 // 3 :]) == {"arrival"}


@pytest.mark.parametrize("fps", [0.4, 0.9, 5, 25, 60])
def test_pts_with_the_rate_of_the_wall_clock_are_used(fps: float) -> None:
    clock, jitter = CaptureClock(), random.Random(5)
    for frame in range(round(40 * fps)):
        due = START + round(frame * 1e9 / fps)
        captured = place(clock, round(frame * 1e9 / fps), due + jitter.randrange(15) * MS)
        assert clock.source == "pts"
        if frame > 10 * fps:
            assert captured - due <= 15 * MS


def test_pts_of_a_varying_rate_are_used() -> None:
    clock, jitter, due = CaptureClock(), random.Random(6), 0
    for _ in range(1000):
        due += jitter.choice([17, 40, 250]) * MS
        place(clock, due, START + due + jitter.randrange(30) * MS)
        assert clock.source == "pts"


def test_pts_that_are_right_again_are_used_again() -> None:
    clock, pts, arrival = CaptureClock(), 0, START
    for step in [100 * MS] * 150 + [PERIOD] * 500:
        pts, arrival = pts + PERIOD, arrival + step
        captured = place(clock, pts, arrival)
        assert arrival - captured <= UNPROVEN_LAG_NS
    assert clock.source == "pts"
    assert captured == arrival


def test_without_pts_arrivals_are_smoothed() -> None:
    clock, jitter = CaptureClock(), random.Random(7)
    errors = []
    for frame in range(500):
        due = START + frame * PERIOD
        errors.append(place(clock, None, due + jitter.randrange(30) * MS) - due)
        assert clock.source == "arrival"
    assert np.std(errors[100:]) <= np.std([delay * MS for delay in range(30)]) / 2


def test_frames_that_arrive_after_a_stall_are_placed_at_the_present() -> None:
    clock = CaptureClock()
    for frame in range(100):
        place(clock, None, START + frame * PERIOD)
    for frame in range(100, 200):
        arrival = START + frame * PERIOD + 2000 * MS
        assert arrival - place(clock, None, arrival) <= 100 * MS


def test_b_frames_do_not_delay_the_others() -> None:
    """The packet of a later frame arrives before the B-frames that refer to it."""
    clock, captured = CaptureClock(), {}
    for group in range(0, 120, 3):
        for order, frame in enumerate((group + 3, group + 1, group + 2)):
            arrival = START + (group + 3 + order) * PERIOD
            clock.observe(arrival, frame * PERIOD, (group + order) * PERIOD)
            captured[frame] = clock.captured_ns(frame * PERIOD, arrival) if order else 0
    assert clock.resets == 0
    assert captured[119] == START + 119 * PERIOD


def test_packets_that_the_demuxer_delays_count_as_earlier() -> None:
    clock = CaptureClock(held_packets=2)
    for frame in range(50):
        captured = place(clock, frame * PERIOD, START + (frame + 2) * PERIOD)
    assert captured == START + 49 * PERIOD


def test_a_configured_delay_places_frames_earlier() -> None:
    clock = CaptureClock(delay_ns=400 * MS)
    for frame in range(50):
        captured = place(clock, frame * PERIOD, START + frame * PERIOD + 400 * MS)
    assert captured == START + 49 * PERIOD


WALL = 1_700_000_000_000_000_000


def by_senders(*delays_ms: int, wall_errors_ms: tuple[int, ...] = (0, 0, 0)) -> list[tuple[Source, int]]:
    """Return the clock in use and the error in ms of cameras with these delays, after ten seconds of any pts."""
    senders = SenderClocks()
    found: list[tuple[Source, int]] = []
    clocks = [CaptureClock("sender", senders=(senders, f"cam{camera}")) for camera in range(len(delays_ms))]
    for frame in range(300):
        found = []
        for camera, (clock, delay_ms) in enumerate(zip(clocks, delays_ms, strict=True)):
            wall = WALL + frame * PERIOD + wall_errors_ms[camera] * MS
            arrival = START + frame * PERIOD + delay_ms * MS
            captured = place(clock, (frame + 1000 * camera) * PERIOD, arrival, sender_ns=wall)
            found.append((clock.source, (captured - START - frame * PERIOD) // MS))
    return found


def test_senders_that_agree_show_which_camera_is_late() -> None:
    assert by_senders(50, 450, 60) == [("sender", 50), ("sender", 50), ("sender", 50)]


def test_a_sender_whose_clock_is_set_otherwise_is_not_compared() -> None:
    off_ms = 2 * MAX_DELAY_NS // MS
    assert by_senders(50, 60, 450, wall_errors_ms=(0, off_ms, 0)) == [("sender", 50), ("sender", 60), ("sender", 50)]


def test_a_sender_clock_is_not_used_if_the_configuration_forbids_it() -> None:
    clock = CaptureClock("pts", senders=(SenderClocks(), "cam0"))
    for frame in range(300):
        place(clock, frame * PERIOD, START + frame * PERIOD, sender_ns=WALL + frame * PERIOD)
    assert clock.source == "pts"


def test_a_sender_clock_that_stands_still_is_not_used() -> None:
    clock = CaptureClock("sender", senders=(SenderClocks(), "cam0"))
    for frame in range(300):
        place(clock, frame * PERIOD, START + frame * PERIOD, sender_ns=WALL)
    assert clock.source == "pts"


def test_only_the_arrival_counts_if_the_configuration_says_so() -> None:
    clock = CaptureClock("arrival")
    for frame in range(100):
        captured = place(clock, frame * PERIOD, START + frame * PERIOD)
    assert (clock.source, captured) == ("arrival", START + 99 * PERIOD)
