"""What the detector knows of each frame on a small budget, with a model of planted objects and simulated clocks."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cache

import msgpack
import numpy as np
import numpy.typing as npt
import pytest
from structlog.testing import capture_logs

from services.detector.boxes import Boxes, Floats
from services.detector.config import DetectorSection
from services.detector.detector import Clocks, Detector, Seen, Stopped
from services.detector.second_stage import Network
from services.detector.tiles import Pixels

WIDTH, HEIGHT = 4896, 688
FRAME_NS = 200_000_000
TILE_S = 0.02
"""All ten tiles of all five frames a second take a whole core."""


@cache
def coat(number: int) -> Pixels:
    """What the object of this number looks like, (480, 960), of one channel."""
    return np.random.default_rng(number).integers(100, 256, (40, 80), np.uint8).repeat(12, 0).repeat(12, 1)


class World:
    """People and cars that move at constant speeds. The pixels of a frame encode the place of a tile."""

    def __init__(self, *movers: tuple[float, float, float, float, float, int]) -> None:
        """Take the left and top edge, width, height, speed in pixels a second, and label of each object."""
        self._movers = movers
        columns = np.arange(WIDTH, dtype=np.uint32)
        self._still = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        self._still[0, :, 0], self._still[0, :, 2] = columns % 256, columns // 256

    def boxes(self, at_s: float) -> Floats:
        moved = [[x + speed * at_s, y, x + width + speed * at_s, y + height] for x, y, width, height, speed, _ in
                 self._movers]  # fmt: skip
        return np.array(moved, np.float32)

    @property
    def labels(self) -> npt.NDArray[np.intp]:
        return np.array([mover[5] for mover in self._movers], np.intp)

    def pixels(self, at_s: float) -> Pixels:
        drawn = self._still.copy()
        for number, (left, upper, right, lower) in enumerate(self.boxes(at_s).astype(int)):
            first, last = max(0, left), min(WIDTH, right)
            if first < last:
                drawn[upper:lower, first:last, 1] = coat(number)[: lower - upper, first - left : last - left]
        return drawn


class Planted:
    """A model that finds every object of the world, cut by each tile, in a given time for each tile."""

    name, version = "planted", "1"
    labels: tuple[str, ...] = ("person", "car", "truck")
    input_px, batch, rejected_boxes = (300, 300), 4, 0

    def __init__(self, world: World) -> None:
        self.world = world
        self.at_s = 0.0
        self.time_s = 0.0
        self.calls: list[int] = []

    def detect(self, tiles: Sequence[Pixels]) -> list[Boxes]:
        self.calls.append(len(tiles))
        self.time_s += TILE_S * len(tiles)
        return [self._seen(tile) for tile in tiles]

    def _seen(self, tile: Pixels) -> Boxes:
        left = int(tile[0, 0, 0]) + 256 * int(tile[0, 0, 2])
        xyxy = self.world.boxes(self.at_s) - np.array([left, 0, left, 0], np.float32)
        xyxy[:, 0::2] = xyxy[:, 0::2].clip(0, tile.shape[1])
        kept = xyxy[:, 2] - xyxy[:, 0] >= 8
        return Boxes(xyxy[kept], np.full(int(kept.sum()), 0.9, np.float32), self.world.labels[kept])


class Trial:
    """Frames of a world, and a detector whose clocks are those of the model."""

    def __init__(self, world: World, classifier: Network | None = None, **values: object) -> None:
        self.model = Planted(world)
        self.now_s = 0.0
        section = DetectorSection.model_validate({"labels": ("person", "car", "truck"), **values})
        self.stop = threading.Event()
        clocks = Clocks(lambda: self.now_s + self.model.time_s, lambda: self.model.time_s)
        self.detector = Detector(section, self.model, self.stop, clocks, classifier)

    def frame(self, index: int) -> Seen:
        self.now_s = index * FRAME_NS / 1e9 - self.model.time_s
        self.model.at_s = index * FRAME_NS / 1e9
        return self.detector.detect(self.model.world.pixels(self.model.at_s), index * FRAME_NS + 1)


PEOPLE = World(*((300.0 + 420 * place, 250.0, 60.0, 160.0, 15.0 * (-1) ** place, 0) for place in range(11)))


def test_at_a_tenth_of_the_cpu_every_person_is_known_in_every_frame() -> None:
    trial = Trial(PEOPLE, cpu_share=0.1, revisit_s=2.0)
    numbers: set[int] = set()
    for index in range(50):
        before_s = trial.model.time_s
        seen = trial.frame(index)
        if index < 10:
            continue
        assert trial.detector.longest_age_s <= 2.0
        assert all(age is not None for age in seen.ages_ns)
        truth = PEOPLE.boxes(index * FRAME_NS / 1e9)
        found = seen.known.boxes.xyxy[np.argsort(seen.known.boxes.xyxy[:, 0])]
        assert len(found) == len(truth), index
        assert np.abs(found - truth).max() < 45, "the distance after 2 s at 15 px a second"
        assert max(seen.known.ages_ns) <= 2_000_000_000
        assert trial.model.time_s - before_s <= 0.2
        numbers |= set(seen.known.tracks)
    assert len(numbers) == len(truth)
    assert trial.model.time_s / (50 * 0.2) < 0.14
    assert trial.detector.late == 0


@pytest.mark.parametrize("cpu_share", [None, 0.1])
def test_in_a_newer_frame_the_known_objects_are_where_they_appear(cpu_share: float | None) -> None:
    walkers = World(*((300.0 + 420 * place, 250.0, 60.0, 160.0, 120.0, 0) for place in range(10)))
    trial = Trial(walkers, cpu_share=cpu_share)
    for index in range(20):
        seen = trial.frame(index)
        # As while the model runs: two frames pass, and the speeds are not known at first.
        for later_ns in (80_000_000, 160_000_000):
            captured_ns = index * FRAME_NS + 1 + later_ns
            moved = trial.detector.follow(walkers.pixels(captured_ns / 1e9), captured_ns, epoch=0)
            assert moved is not None
            assert sorted(moved.known.tracks) == sorted(seen.known.tracks)
            truth = walkers.boxes(captured_ns / 1e9)
            off = np.abs(moved.known.boxes.xyxy[:, None] - truth[None]).max(axis=2).min(axis=1)
            assert off.max(initial=0) < 8, index
            ages_ns = dict(zip(seen.known.tracks, seen.known.ages_ns, strict=True))
            assert all(
                age_ns == ages_ns[track] + later_ns
                for track, age_ns in zip(moved.known.tracks, moved.known.ages_ns, strict=True)
            )
            assert moved.ages_ns == [None if age_ns is None else age_ns + later_ns for age_ns in seen.ages_ns]
            assert moved.looked == seen.looked
    assert len(seen.known.boxes) == 10


def test_what_the_model_has_just_found_is_known_even_if_it_cannot_be_followed() -> None:
    trial = Trial(PEOPLE, cpu_share=None)
    seen = trial.frame(0)
    dark = np.zeros_like(PEOPLE.pixels(0.0))
    for captured_ns in (FRAME_NS, 10 * FRAME_NS):
        moved = trial.detector.follow(dark, captured_ns, epoch=0)
        assert moved is not None
        assert moved.known.tracks == seen.known.tracks


def test_objects_do_not_move_to_a_frame_of_another_size_or_epoch() -> None:
    trial = Trial(PEOPLE, cpu_share=None)
    pixels = PEOPLE.pixels(0.1)
    assert trial.detector.follow(pixels, 1, epoch=0) is None, "no frame was processed yet"
    trial.frame(0)
    assert trial.detector.follow(pixels, FRAME_NS, epoch=0) is not None
    assert trial.detector.follow(pixels, FRAME_NS, epoch=1) is None
    assert trial.detector.follow(pixels[:, :-2], FRAME_NS, epoch=0) is None


def test_a_van_across_the_edges_of_tiles_remains_one_object() -> None:
    """It is larger than the tiles' overlap, and its tiles are seldom all processed in one frame."""
    world = World((500.0, 100.0, 900.0, 400.0, 40.0, 2), (3900.0, 300.0, 500.0, 250.0, -60.0, 1))
    trial = Trial(world, cpu_share=0.15)
    numbers = set()
    for index in range(60):
        seen = trial.frame(index)
        if index >= 10:
            assert len(seen.known.boxes) == 2, (index, seen.known)
            numbers |= set(seen.known.tracks)
            found = seen.known.boxes.xyxy[np.argsort(seen.known.boxes.xyxy[:, 0])]
            assert np.abs(found - world.boxes(index * FRAME_NS / 1e9)).max() < 130, index
    assert len(numbers) == 2


def test_a_broken_promise_is_logged_once_and_so_is_its_return() -> None:
    trial = Trial(PEOPLE, cpu_share=0.5)
    with capture_logs() as logs:
        for index in (0, 1, 2, 3, 30, 31, 32, 60, *range(61, 220), 250, 251):
            trial.frame(index)
    events = [entry["event"] for entry in logs if "in time" in entry["event"]]
    assert events == [
        "tiles not looked at in time",
        "tiles are looked at in time again",
        "tiles not looked at in time",
    ]
    assert trial.detector.late == 3


def test_with_a_full_budget_the_whole_frame_is_looked_at_in_batches() -> None:
    trial = Trial(PEOPLE, cpu_share=None, target_fps=None)
    seen = trial.frame(0)
    assert (seen.looked, trial.model.calls) == (10, [4, 4, 2])
    assert len(seen.known.boxes) == 11


def test_the_log_names_the_tiles_and_the_height_of_people_that_are_found() -> None:
    trial = Trial(PEOPLE)
    with capture_logs() as logs:
        trial.frame(0)
    (told,) = [entry for entry in logs if entry["event"] == "tiles planned"]
    assert (told["tiles"], told["tile"], told["overlap_px"], told["people_from_px"]) == (10, "688x688", 220, 60)


def test_a_stop_is_seen_between_batches() -> None:
    trial = Trial(PEOPLE, cpu_share=None, target_fps=None)
    trial.frame(0)
    trial.stop.set()
    with pytest.raises(Stopped):
        trial.frame(1)
    assert len(trial.model.calls) == 3


def test_another_epoch_starts_with_new_tracks() -> None:
    trial = Trial(PEOPLE)
    trial.frame(0)
    first = trial.detector.tracker.epoch
    trial.detector.detect(PEOPLE.pixels(0), 10, epoch=2)
    assert trial.detector.tracker.epoch != first


def test_a_successor_continues_the_tracks() -> None:
    first = Trial(PEOPLE, cpu_share=None)
    before = first.frame(0)
    second = Trial(PEOPLE, cpu_share=None)
    second.detector.succeed(msgpack.unpackb(msgpack.packb(first.detector.to_state())))
    after = second.frame(5)
    assert second.detector.tracker.epoch == first.detector.tracker.epoch
    assert by_place(after) == by_place(before)


def by_place(seen: Seen) -> list[int]:
    """Numbers of the tracks from left to right."""
    return [seen.known.tracks[index] for index in np.argsort(seen.known.boxes.xyxy[:, 0])]


@pytest.mark.parametrize("change", [{"labels": ["car"]}, {"frame": [688, 4896, 1]}, {"frame": None}, {"tracker": {}}])
def test_the_state_of_another_frame_size_or_model_is_not_restored(change: dict[str, object]) -> None:
    first, second = Trial(PEOPLE), Trial(PEOPLE)
    first.frame(0)
    second.detector.succeed(first.detector.to_state() | change)
    second.frame(1)
    assert second.detector.tracker.epoch != first.detector.tracker.epoch
