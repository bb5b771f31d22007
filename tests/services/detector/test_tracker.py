"""Tracking: a number stays with its object."""

from __future__ import annotations

from collections.abc import Sequence

import msgpack
import numpy as np
import pytest

from services.detector.boxes import Boxes
from services.detector.merge import Merged
from services.detector.tiles import Pixels
from services.detector.track import Track, move
from services.detector.tracker import Known
from services.detector.tracker import Tracker as Following

SECOND = 1_000_000_000


def people(*lefts: float, label: int = 0) -> Boxes:
    """People of 60 x 150 pixels at these left edges."""
    xyxy = np.array([[left, 100, left + 60, 250] for left in lefts], np.float32).reshape(-1, 4)
    return Boxes(xyxy, np.full(len(lefts), 0.9, np.float32), np.full(len(lefts), label, np.intp))


def merged(boxes: Boxes, open_edges: Sequence[Sequence[bool]] | None = None) -> Merged:
    return Merged(boxes, np.array(open_edges or [[False] * 4] * len(boxes), np.bool_).reshape(-1, 4))


class Tracker:
    """Follows objects in frames of which every tile was processed; it keeps the order of the given boxes."""

    def __init__(self, threshold: float, memory_s: float) -> None:
        self._tracker = Following(threshold, memory_s, np.arange(5), unseen_s=memory_s)

    def update(self, boxes: Boxes, captured_ns: int) -> list[int]:
        known = self._tracker.update(merged(boxes), captured_ns)
        return known.tracks


def test_numbers_start_at_1_and_do_not_depend_on_the_order_of_boxes() -> None:
    tracker = Tracker(-0.4, 1.0)
    assert tracker.update(people(0, 500), 0) == [1, 2]
    assert tracker.update(people(505, 5), SECOND // 5) == [2, 1]


def test_a_new_object_gets_a_new_number() -> None:
    tracker = Tracker(-0.4, 1.0)
    tracker.update(people(0), 0)
    assert tracker.update(people(600, 0), SECOND // 5) == [2, 1]


def test_a_person_hidden_for_a_moment_keeps_the_number() -> None:
    tracker = Tracker(-0.4, 1.0)
    tracker.update(people(0), 0)
    assert tracker.update(people(), SECOND // 2) == []
    assert tracker.update(people(5), SECOND) == [1]


def test_a_person_hidden_for_long_is_forgotten() -> None:
    tracker = Tracker(-0.4, 1.0)
    tracker.update(people(0), 0)
    assert tracker.update(people(0), SECOND + 1) == [2]


def test_objects_of_different_labels_are_not_matched() -> None:
    tracker = Tracker(-0.4, 1.0)
    tracker.update(people(0), 0)
    assert tracker.update(people(0, label=1), SECOND // 5) == [2]


def test_two_people_that_cross_keep_their_numbers() -> None:
    """They meet at 150 px. The movement before tells to which side each person continues."""
    tracker = Tracker(-0.4, 1.0)
    seen = set()
    for step in range(13):
        first, second = tracker.update(people(step * 25, 300 - step * 25), step * SECOND // 5)
        seen.add((first, second))
    assert seen == {(1, 2)}


def test_the_nearest_box_keeps_the_number_and_the_other_is_new() -> None:
    tracker = Tracker(-0.4, 1.0)
    tracker.update(people(100), 0)
    assert tracker.update(people(400, 104), SECOND // 5) == [2, 1]


def test_a_third_pair_is_still_matched() -> None:
    """A pair of which one is taken already does not end the search."""
    tracker = Tracker(-0.4, 1.0)
    tracker.update(people(0, 20, 400), 0)
    assert tracker.update(people(1, 22, 430), SECOND // 5) == [1, 2, 3]


def test_a_clock_that_runs_backwards_starts_new_tracks() -> None:
    tracker = Tracker(-0.4, 1.0)
    tracker.update(people(0), 10 * SECOND)
    assert tracker.update(people(0), SECOND) == [2]


def test_a_walking_person_is_followed_at_one_frame_a_second() -> None:
    """The boxes of the person are 120 px apart and do not touch."""
    tracker = Tracker(-0.4, 2.0)
    assert [tracker.update(people(step * 120), step * SECOND) for step in range(5)] == [[1]] * 5


def test_a_person_far_from_every_expected_place_is_new() -> None:
    tracker = Tracker(-0.4, 2.0)
    tracker.update(people(0), 0)
    assert tracker.update(people(500), SECOND) == [2]


def test_two_frames_with_the_same_time_are_accepted() -> None:
    tracker = Tracker(-0.4, 2.0)
    assert tracker.update(people(0), SECOND) == tracker.update(people(4), SECOND) == [1]
    assert tracker.update(people(8), 2 * SECOND) == [1]


LEFT, RIGHT = (np.array([[start, 0, start + 600, 700]], np.float32) for start in (0, 400))


def following(memory_s: float = 2.0) -> Following:
    return Following(-0.4, memory_s, np.array([0, 1, 2, 2, 2]))


def boxes_of(known: Known) -> list[list[int]]:
    return [[round(float(edge)) for edge in xyxy] for xyxy in known.boxes.xyxy]


def test_a_person_that_was_not_looked_at_is_predicted() -> None:
    tracker = following()
    for step in range(10):
        tracker.update(merged(people(700 + step * 10)), step * SECOND // 5)
    known = tracker.update(merged(people(50)), 10 * SECOND // 5, LEFT)
    assert sorted(known.tracks) == [1, 2]
    moved = known.boxes.xyxy[known.tracks.index(1), 0]
    assert moved == pytest.approx(800, abs=2)
    assert known.ages_ns[known.tracks.index(1)] == SECOND // 5
    assert known.ages_ns[known.tracks.index(2)] == 0


def test_a_moving_person_not_seen_for_long_is_reported_again_when_seen() -> None:
    tracker = following()
    for step in range(10):
        tracker.update(merged(people(700 + step * 10)), step * SECOND // 5)
    assert tracker.update(merged(people()), 13 * SECOND // 5, LEFT).tracks == [], "by now it may be anywhere"
    assert tracker.update(merged(people(840)), 14 * SECOND // 5, RIGHT).tracks == [1]


def test_a_person_that_stands_still_is_reported_without_a_look() -> None:
    tracker = following()
    for step in range(10):
        tracker.update(merged(people(700)), step * SECOND // 5)
    assert tracker.update(merged(people()), 14 * SECOND // 5, LEFT).tracks == [1]


def scene(left: float, *, dark: bool = False) -> Pixels:
    """A person in a coat of many colours, in front of a lawn."""
    random = np.random.default_rng(3)
    drawn = random.integers(90, 110, (300, 1600, 3)).astype(np.uint8)
    coat = random.integers(0, 256, (13, 6, 3)).astype(np.uint8).repeat(12, 0).repeat(10, 1)[:150]
    if not dark:
        drawn[100:250, round(left) : round(left) + 60] = coat
    return drawn


@pytest.mark.parametrize("speed_px", [0, 9, -23, 45])
def test_a_person_that_is_not_looked_at_is_followed_in_the_pixels(speed_px: int) -> None:
    """The person was seen only once, and its speed is unknown."""
    tracker = following()
    tracker.update(merged(people(800)), 0)
    tracker.remember(scene(800), 0)
    for step in range(1, 10):
        now_ns, left = step * SECOND // 5, 800 + step * speed_px
        tracker.follow(scene(left), now_ns)
        known = tracker.update(merged(people()), now_ns, LEFT)
        tracker.remember(scene(left), now_ns)
        assert known.tracks == [1]
        assert known.boxes.xyxy[0] == pytest.approx([left, 100, left + 60, 250], abs=3)
        assert known.ages_ns == [now_ns], "the sighting of the model counts"


def tracks_at(instants: Sequence[int]) -> list[Track]:
    random = np.random.default_rng(7)
    return [
        Track(
            number=number,
            group=0,
            xyxy=random.uniform(0, 900, 4).astype(np.float32),
            velocity=random.uniform(-90, 90, 2).astype(np.float32),
            seen_ns=at_ns,
            score=0.5,
            votes={0: 0.5},
            open_edges=np.zeros(4, np.bool_),
            at_ns=at_ns,
        )
        for number, at_ns in enumerate(instants)
    ]


def test_tracks_that_move_together_move_as_each_alone() -> None:
    """One of them is already there, and the clock of one runs back: they keep their velocity."""
    instants = [0, SECOND // 5, SECOND, 2 * SECOND]
    together, alone, before = tracks_at(instants), tracks_at(instants), tracks_at(instants)
    random = np.random.default_rng(8)
    xyxy = random.uniform(0, 900, (4, 4)).astype(np.float32)
    measured = np.array([[True] * 4, [False, True, True, False], [True] * 4, [True] * 4])
    move(together, xyxy, measured, SECOND)
    for index, one in enumerate(alone):
        move([one], xyxy[index : index + 1], measured[index : index + 1], SECOND)
        assert one.to_state() == together[index].to_state()
        assert one.at_ns == SECOND
        assert one.xyxy.tolist() == xyxy[index].tolist()
    changed = [(one.velocity != old.velocity).any() for one, old in zip(together, before, strict=True)]
    assert changed == [True, True, False, False]
    # Left and bottom of the second are hidden, so its right edge tells its movement in x, and its top edge that in y.
    second = before[1]
    error = (xyxy[1] - (second.xyxy + np.tile(second.velocity * np.float32(0.8), 2)))[[2, 1]]
    wanted = second.velocity + (1 - np.exp(-0.8 / 0.4)) * error / 0.8
    np.testing.assert_allclose(together[1].velocity, wanted, rtol=1e-5)


def test_the_appearance_is_that_of_the_last_frame() -> None:
    """One whose coat changes by and by is followed, though the first and the last coat have little in common."""
    random = np.random.default_rng(5)
    coats = random.integers(0, 256, (2, 13, 6, 3)).repeat(12, 1).repeat(10, 2)[:, :150]
    ground = random.integers(90, 110, (300, 1600, 3)).astype(np.uint8)
    tracker = following()
    tracker.update(merged(people(800)), 0)
    for step in range(11):
        now_ns, left = step * SECOND // 5, 800 + step * 8
        drawn = ground.copy()
        drawn[100:250, left : left + 60] = coats[0] + (coats[1] - coats[0]) * (step / 10)
        tracker.follow(drawn, now_ns)
        if step:
            known = tracker.update(merged(people()), now_ns, LEFT)
            assert boxes_of(known)[0] == pytest.approx([left, 100, left + 60, 250], abs=3)
        tracker.remember(drawn, now_ns)


def test_a_person_that_is_no_longer_seen_is_not_reported() -> None:
    tracker = following()
    tracker.update(merged(people(800)), 0)
    tracker.remember(scene(800), 0)
    for step in range(1, 4):
        tracker.follow(scene(800 + step * 20), step * SECOND // 5)
        tracker.update(merged(people()), step * SECOND // 5, LEFT)
        tracker.remember(scene(800 + step * 20), step * SECOND // 5)
    for step in range(4, 7):
        tracker.follow(scene(0, dark=True), step * SECOND // 5)
        known = tracker.update(merged(people()), step * SECOND // 5, LEFT)
    assert known.tracks == []


def test_a_missed_person_is_not_reported_and_returns_with_the_same_number() -> None:
    tracker = following()
    tracker.update(merged(people(100)), 0)
    assert tracker.update(merged(people()), SECOND // 5, LEFT).tracks == []
    assert tracker.update(merged(people()), 2 * SECOND // 5, RIGHT).tracks == [], "it is still missing"
    assert tracker.update(merged(people(102)), 3 * SECOND // 5, LEFT).tracks == [1]


def test_a_person_that_is_never_looked_for_is_forgotten() -> None:
    tracker = following()
    tracker.update(merged(people(1500)), 0)
    assert tracker.update(merged(people()), 4 * SECOND, LEFT).tracks == [1]
    assert tracker.update(merged(people()), 4 * SECOND + 1, LEFT).tracks == []


def test_a_piece_is_completed_by_its_track() -> None:
    """A car crosses the edge of two tiles, of which one is processed."""
    tracker = following()
    car = Boxes(np.array([[300, 100, 800, 300]], np.float32), np.ones(1, np.float32), np.array([2]))
    piece = Boxes(np.array([[302, 100, 600, 300]], np.float32), np.ones(1, np.float32), np.array([3]))
    tracker.update(merged(car), 0)
    known = tracker.update(merged(piece, [[False, False, True, False]]), SECOND // 5, LEFT)
    assert known.tracks == [1]
    assert boxes_of(known) == [[302, 100, 800, 300]]
    assert known.boxes.labels.tolist() == [2], "one sighting as a rival does not rename it"


def test_two_pieces_seen_one_after_another_are_one_object() -> None:
    tracker = following()
    first = Boxes(np.array([[300, 100, 600, 300]], np.float32), np.ones(1, np.float32), np.array([2]))
    second = Boxes(np.array([[400, 100, 800, 300]], np.float32), np.ones(1, np.float32), np.array([2]))
    tracker.update(merged(first, [[False, False, True, False]]), 0, LEFT)
    known = tracker.update(merged(second, [[True, False, False, False]]), SECOND // 5, RIGHT)
    assert known.tracks == [1]
    assert boxes_of(known) == [[300, 100, 800, 300]]


def test_a_successor_continues_the_numbers() -> None:
    tracker, successor = following(), following()
    tracker.update(merged(people(0, 500)), 0)
    successor.resume(msgpack.unpackb(msgpack.packb(tracker.to_state())))
    assert successor.epoch == tracker.epoch
    assert successor.update(merged(people(505, 900, 4)), SECOND).tracks == [2, 3, 1]


@pytest.mark.parametrize("state", [{}, {"epoch": 1, "last_number": 2, "tracks": [{"number": 1}]}, {"tracks": 3}])
def test_an_invalid_state_is_rejected_as_a_whole(state: dict[str, object]) -> None:
    tracker = following()
    epoch = tracker.epoch
    with pytest.raises((ValueError, TypeError, KeyError)):
        tracker.resume(state)
    assert tracker.epoch == epoch
    assert tracker.update(merged(people(0)), 0).tracks == [1]


def test_a_new_tracker_has_another_epoch() -> None:
    assert following().epoch != following().epoch
