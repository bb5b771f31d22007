"""Measures how soon people in view are found, by the CPU that the detector may take: ``python -m bench.first_found``.

It runs rounds of the simulator's panorama at five frames a second, each with other people, with the model that comes
with the detector. A look costs the median of what it takes on this machine. The clocks are simulated, so that other
load changes only that median. *Needed* is what looking at every tile of every frame takes.

An appearance begins when a person becomes visible after a second or more out of sight, and counts if the person then
stays visible for a second. It is found in time if a box has an intersection over union of at least a half with the
person within that second. The model does not find every visible person, so compare the budgets with the row of the
full share.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import cv2

from bench.detect import HEIGHT_PX, WIDTH_PX, panorama
from bench.track import FPS, MATCH, VISIBLE, Looked, Own
from services.common.config import LogSection
from services.common.logs import set_up_logs
from services.detector.boxes import Floats, intersection_over_union
from services.detector.config import DetectorSection
from services.detector.models.model import load_model
from services.detector.tiles import plan_tiles, tile_size
from services.simulator.config import SimulatorSection
from services.simulator.scene import scene

WITHIN_S: Final = 1.0
SETTLED_S: Final = 3.0
"""How long a round runs before it is judged, because all its people appear at once."""
ROUND_S: Final = 1000.0
"""Time between the beginnings of rounds, so long that no appearance continues into the next."""
PARTS: Final = (1.0, 0.5, 0.2, 0.1)
"""The budgets, as parts of the CPU that is needed."""


@dataclass(slots=True)
class Appearances:
    """Counts the appearances of people, and those that were found in time."""

    judged: int = 0
    found: int = 0
    _seen_s: dict[Any, float] = field(default_factory=dict)
    """When each person was visible last."""
    _open: dict[Any, tuple[float, bool]] = field(default_factory=dict)
    """Appearances that are not judged yet: when each began, and whether the person has been found since."""

    def add(self, at_s: float, people: Sequence[Any], truth: Floats, boxes: Floats) -> None:
        """Add a frame.

        Args:
            at_s: Time of the frame.
            people: Names of the people who are visible.
            truth: Their corners, ``(n, 4)``.
            boxes: Corners of the reported boxes, ``(m, 4)``.
        """
        overlap = intersection_over_union(truth, boxes)
        hit = {name for name, row in zip(people, overlap, strict=True) if (row >= MATCH).any()}
        for name in list(self._open):
            if name not in people:
                del self._open[name]  # too short to count
        for name in people:
            if at_s - self._seen_s.get(name, -WITHIN_S) >= WITHIN_S:
                self._open[name] = (at_s, False)
            self._seen_s[name] = at_s
            if name in self._open:
                began_s, found = self._open[name]
                found |= name in hit
                self._open[name] = (began_s, found)
                # Times are multiples of a frame's period, so allow for their rounding.
                if at_s - began_s >= WITHIN_S - 1e-6:
                    self.judged += 1
                    self.found += found
                    del self._open[name]

    def skip(self, at_s: float, people: Sequence[Any]) -> None:
        """Add a frame whose people count as seen before, such as one of a round's beginning."""
        self._seen_s.update(dict.fromkeys(people, at_s))

    @property
    def share(self) -> float:
        """Share of the appearances that were found in time."""
        return self.found / max(1, self.judged)


def main() -> None:
    """Compare budgets."""
    parser = argparse.ArgumentParser(prog="python -m bench.first_found", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=4, help="rounds of 14 s with other people; default 4")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    set_up_logs("bench", LogSection(level="error"))
    section = DetectorSection()
    model = load_model(section)
    tile_px, overlap_px = tile_size(section.tile_px, section.overlap_px, model.input_px)
    tiles = plan_tiles(HEIGHT_PX, WIDTH_PX, tile_px, overlap_px)
    counts = {part: Appearances() for part in PARTS}
    longest_s = dict.fromkeys(PARTS, 0.0)
    late = dict.fromkeys(PARTS, 0)
    tile_s = 0.0
    for seed in range(options.rounds):
        simulator = SimulatorSection(seed=SimulatorSection().seed + seed)
        stage = scene(simulator)
        looked = Looked(model.name, model.version, model.labels, model.input_px, tile_s)
        own: dict[float, Own] = {}
        for place, index in enumerate(range(0, simulator.frames, 25 // FPS)):
            pixels, people, truth = panorama(simulator, stage, index, VISIBLE)
            # Run the model once for each tile; all budgets share the boxes and only count the time.
            median_s = looked.look(model, tiles, pixels)
            # Keep the first median for all rounds, so that later load does not change the budgets.
            tile_s = looked.tile_s = tile_s or median_s
            own = own or {part: Own(None if part == 1 else part * tile_s * len(tiles) * FPS, looked) for part in PARTS}
            # The simulator numbers people from the beginning in each round: the seed tells them apart.
            names = [(seed, name) for name in people]
            for part, one in own.items():
                boxes, _ = one.update(place, pixels)
                if place / FPS < SETTLED_S:
                    counts[part].skip(place / FPS + seed * ROUND_S, names)
                else:
                    counts[part].add(place / FPS + seed * ROUND_S, names, truth, boxes)
                    longest_s[part] = max(longest_s[part], one.longest_age_s)
        for part, one in own.items():
            late[part] += one.late
    print(f"Looking at a tile takes {tile_s * 1e3:.1f} ms of CPU; {len(tiles)} tiles, {FPS} frames a second.\n")
    print("| CPU, of what is needed | appearances | found within 1 s | longest without a look, s | late frames |")
    print("| --- | --- | --- | --- | --- |")
    for part, one_count in counts.items():
        cells = (one_count.judged, f"{one_count.share:.0%}", f"{longest_s[part]:.2f}", late[part])
        print(f"| {part:.0%} | {' | '.join(map(str, cells))} |")


if __name__ == "__main__":
    main()
