"""Measures how well boxes and track numbers match the people: ``python -m bench.track``.

It runs one round of the simulator's panorama at five frames a second, with the model that comes with the detector. The
model processes each tile once, for all trackers; the time of a tile is the median on this machine. The detector's own
tracker runs on the whole frame and on shares of a core. Other trackers run on the whole frame, if they are installed:
pyxtrackers and edgefirst-tracker.

A box and a truth belong together from an intersection over union of half. IDF1 pairs each person with the number that
was given to them most often, the commonest pairs first.

Source: E. Ristani et al., "Performance Measures and a Data Set for Multi-Target, Multi-Camera Tracking", 2016.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import cv2
import numpy as np

from bench.detect import HEIGHT_PX, WIDTH_PX, panorama
from services.common.config import LogSection
from services.common.logs import set_up_logs
from services.detector.boxes import Boxes, Floats, intersection_over_union
from services.detector.config import DetectorSection
from services.detector.detector import Clocks, Detector, Model
from services.detector.merge import Rules, group_labels, merge
from services.detector.models.model import load_model
from services.detector.tiles import Pixels, Tile, plan_tiles, tile_size
from services.simulator.config import SimulatorSection
from services.simulator.scene import scene

FPS: Final = 5
MATCH: Final = 0.5
ASTRAY: Final = 0.1
"""A box is astray if its overlap with every person is smaller."""
VISIBLE: Final = 0.3
SETTLED: Final = 15
"""The first frames do not count: with a small share, not every tile has been processed by then."""
SHARES: Final = (None, 0.5, 0.2, 0.1)


@dataclass(slots=True)
class Tally:
    """Counts of reported people, compared with the people in the picture."""

    told: int = 0
    right: int = 0
    astray: int = 0
    there: int = 0
    switches: int = 0
    numbers: set[int] = field(default_factory=set)
    _together: Counter[tuple[Any, int]] = field(default_factory=Counter)
    _last: dict[Any, int] = field(default_factory=dict)

    def add(self, people: Sequence[Any], truth: Floats, boxes: Floats, numbers: Sequence[int]) -> None:
        """Count a frame.

        Args:
            people: Names of the people in the frame.
            truth: Their corners, ``(n, 4)``.
            boxes: Corners of the reported boxes, ``(m, 4)``.
            numbers: Track numbers of these boxes.
        """
        overlap = intersection_over_union(truth, boxes)
        best = overlap.max(axis=0, initial=0)
        self.told += len(boxes)
        self.there += len(truth)
        self.astray += int((best < ASTRAY).sum())
        self.numbers |= set(numbers)
        taken_people: set[int] = set()
        taken_boxes: set[int] = set()
        # Pair the best overlaps first; each person and each box has at most one partner.
        for flat in np.argsort(-overlap, axis=None):
            person, box = divmod(int(flat), len(boxes))
            if overlap[person, box] < MATCH:
                break
            if person in taken_people or box in taken_boxes:
                continue
            taken_people.add(person)
            taken_boxes.add(box)
            self.right += 1
            name, number = people[person], numbers[box]
            self.switches += self._last.get(name, number) != number
            self._last[name] = number
            self._together[name, number] += 1

    @property
    def idf1(self) -> float:
        """Share of boxes and of people's appearances that are paired by the one number of their person."""
        paired = 0
        names: set[Any] = set()
        numbers: set[int] = set()
        for (name, number), count in self._together.most_common():
            if name not in names and number not in numbers:
                names.add(name)
                numbers.add(number)
                paired += count
        return 2 * paired / max(1, self.told + self.there)

    def row(self) -> str:
        """Return the counts as cells of a table."""
        return (
            f"{self.right / max(1, self.told):.2f} | {self.right / max(1, self.there):.2f} | "
            f"{self.astray / max(1, self.told):.2f} | {self.idf1:.2f} | {self.switches} | {len(self.numbers)}"
        )


@dataclass(slots=True)
class Looked:
    """A model with stored results: it returns the boxes of a tile, and counts the time that computing them takes."""

    name: str
    version: str
    labels: tuple[str, ...]
    input_px: tuple[int, int]
    tile_s: float
    batch: int = 1
    rejected_boxes: int = 0
    frame: Pixels | None = None
    boxes: dict[int, Boxes] = field(default_factory=dict)
    """Boxes by the left edge of their tile."""
    spent_s: float = 0.0

    def look(self, model: Model, tiles: Sequence[Tile], pixels: Pixels) -> float:
        """Run a model on every tile of the next frame; return the median CPU time of a tile, in seconds."""
        times_s = []
        for tile in tiles:
            started_s = time.thread_time()
            (self.boxes[tile.xyxy[0]],) = model.detect([tile.view(pixels)])
            times_s.append(time.thread_time() - started_s)
        self.frame = pixels
        return statistics.median(times_s)

    def detect(self, tiles: Sequence[Pixels]) -> list[Boxes]:
        """Return the boxes of tiles of :attr:`frame`."""
        assert self.frame is not None
        # A tile is a view of the frame, so its address tells its left edge. A pixel has three bytes.
        begin = self.frame.__array_interface__["data"][0]
        # The simulated clocks advance by this, so that other load on the machine changes nothing.
        self.spent_s += self.tile_s * len(tiles)
        return [self.boxes[(tile.__array_interface__["data"][0] - begin) // 3] for tile in tiles]


class Own:
    """The detector with its tracker, on a share of a core."""

    def __init__(self, share: float | None, model: Looked) -> None:
        self.name = "all tiles" if share is None else f"{share:g} of a core"
        self._model = model
        self._frame_s = 0.0
        self._spent_before_s = 0.0
        section = DetectorSection(cpu_share=share, target_fps=None if share is None else FPS)
        self._detector = Detector(section, model, threading.Event(), Clocks(self._wall_s, self._cpu_s))

    def _cpu_s(self) -> float:
        return self._model.spent_s

    def _wall_s(self) -> float:
        return self._frame_s + self._model.spent_s - self._spent_before_s

    @property
    def longest_age_s(self) -> float:
        """The longest time that a tile has waited to be processed."""
        return self._detector.longest_age_s

    @property
    def late(self) -> int:
        """Frames in which a tile had waited longer than promised."""
        return self._detector.late

    def update(self, index: int, pixels: Pixels) -> tuple[Floats, list[int]]:
        """Return the people of a frame and their numbers."""
        self._frame_s, self._spent_before_s = index / FPS, self._model.spent_s
        known = self._detector.detect(pixels, round(self._frame_s * 1e9) + 1).known
        people = np.flatnonzero(known.boxes.labels == self._model.labels.index("person"))
        return known.boxes.xyxy[people], [known.tracks[index] for index in people]


Peer = Callable[[Floats, Floats], tuple[Floats, list[int]]]
"""Takes corners and scores of the people of a frame; returns the reported corners and their numbers."""


def peers() -> Iterator[tuple[str, Peer]]:
    """Yield the other trackers that are installed, with the best of the settings that were tried."""
    try:
        library = importlib.import_module("pyxtrackers")
    except ImportError:
        print("pyxtrackers is not installed: run 'pip install pyxtrackers' to compare with it")
    else:
        made = {
            "pyxtrackers OC-SORT": library.OCSort(0.35, max_age=10, min_hits=1, iou_threshold=0.1),
            "pyxtrackers ByteTrack": library.BYTETracker(
                frame_rate=30, track_thresh=0.35, match_thresh=0.95, track_buffer=10
            ),
            "pyxtrackers SORT": library.Sort(max_age=10, min_hits=1, iou_threshold=0.1),
        }
        for name, tracker in made.items():
            yield name, _of_rows(tracker)
    try:
        edgefirst = importlib.import_module("edgefirst.tracker")
    except ImportError:
        print("edgefirst-tracker is not installed: run 'pip install edgefirst-tracker' to compare with it")
    else:
        yield "edgefirst ByteTrack", _of_edgefirst(edgefirst.ByteTrack(high_conf=0.35, iou=0.1, lifespan_ns=10**9))


def _of_rows(tracker: Any) -> Peer:
    def update(xyxy: Floats, scores: Floats) -> tuple[Floats, list[int]]:
        rows = np.asarray(tracker.update(np.concatenate([xyxy, scores[:, None]], axis=1).astype(np.float64)))
        rows = rows.reshape(-1, rows.shape[-1] if rows.size else 5)
        return rows[:, :4].astype(np.float32), rows[:, 4].astype(int).tolist()

    return update


def _of_edgefirst(tracker: Any) -> Peer:
    numbers: dict[Any, int] = {}
    frames = iter(range(10**9))

    def update(xyxy: Floats, scores: Floats) -> tuple[Floats, list[int]]:
        # This tracker takes corners as parts of the picture.
        size = np.array([WIDTH_PX, HEIGHT_PX] * 2, np.float32)
        at_ns = next(frames) * 10**9 // FPS + 1
        found = tracker.update(xyxy / size, scores, np.zeros(len(xyxy), np.uint64), at_ns)
        kept = [index for index, one in enumerate(found) if one is not None]
        return xyxy[kept], [numbers.setdefault(found[index].uuid, len(numbers) + 1) for index in kept]

    return update


def main() -> None:
    """Compare budgets and trackers."""
    parser = argparse.ArgumentParser(prog="python -m bench.track", description=(__doc__ or "").splitlines()[0])
    parser.parse_args()
    cv2.setNumThreads(1)
    set_up_logs("bench", LogSection(level="error"))
    section, simulator = DetectorSection(), SimulatorSection()
    model, stage = load_model(section), scene(simulator)
    tile_px, overlap_px = tile_size(section.tile_px, section.overlap_px, model.input_px)
    tiles = plan_tiles(HEIGHT_PX, WIDTH_PX, tile_px, overlap_px)
    rules = Rules(section.iou_threshold, section.inside_threshold, group_labels(model.labels, section.rivals))
    person = model.labels.index("person")
    looked = Looked(model.name, model.version, model.labels, model.input_px, 0.0)
    rivals = dict(peers())
    own: list[Own] = []
    tallies: dict[str, Tally] = {}
    for place, index in enumerate(range(0, simulator.frames, 25 // FPS)):
        pixels, people, truth = panorama(simulator, stage, index, VISIBLE)
        tile_s = looked.look(model, tiles, pixels)
        if not own:
            looked.tile_s = tile_s
            own = [Own(share, looked) for share in SHARES]
            tallies = {name: Tally() for name in (*(one.name for one in own), *rivals)}
        told = {one.name: one.update(place, pixels) for one in own}
        # The other trackers get the merged boxes of all tiles.
        whole = merge(tiles, [looked.boxes[tile.xyxy[0]] for tile in tiles], rules, lambda: None).boxes
        persons = whole.take(whole.labels == person)
        told |= {name: update(persons.xyxy, persons.scores) for name, update in rivals.items()}
        if place >= SETTLED:
            for name, (boxes, numbers) in told.items():
                tallies[name].add(people, truth, boxes, numbers)
    print(f"Looking at a tile takes {looked.tile_s * 1e3:.1f} ms of CPU; {len(tiles)} tiles, {FPS} frames a second.\n")
    print("| tracker | right | found | astray | IDF1 | switches | numbers |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, tally in tallies.items():
        print(f"| {f'own, {name}' if name not in rivals else name} | {tally.row()} |")


if __name__ == "__main__":
    main()
