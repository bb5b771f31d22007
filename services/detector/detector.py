"""Detect objects in a frame: choose tiles within the budget, run the model, merge the boxes, update the tracks."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import structlog

from services.common.detections import MAX_DETECTIONS
from services.detector.activity import Activity
from services.detector.boxes import Boxes
from services.detector.config import DetectorSection
from services.detector.merge import Rules, group_labels, merge
from services.detector.schedule import Budget, Schedule
from services.detector.second_stage import Network, SecondStage
from services.detector.tiles import Pixels, Tile, plan_tiles, tile_size
from services.detector.tracker import Known, Tracker

TRACK_WEIGHT = 2.0
"""Activity of a tracked object in each frame, in changed samples: one that stands still may start to move."""
PIECE_WEIGHT = 50.0
"""The same for an object that is cut by a tile's edge: much more, because the tile beyond the edge shows the rest."""
IN_TIME_S = 30.0
"""Time without a late tile after which the promise holds again. It avoids filling the log if the promise breaks now and
then."""
PERSON_PX = 26
"""Height of a person in the network's input, in pixels, from which most people are found."""

log = structlog.get_logger()


class Model(Protocol):
    """Detects objects in pictures. Owned by one thread."""

    name: str
    version: str
    labels: tuple[str, ...]
    """Labels that it detects; boxes hold an index into these."""
    input_px: tuple[int, int]
    """Height and width in pixels of its input, to which it scales each picture."""
    batch: int
    """Largest number of pictures in one run."""
    rejected_boxes: int
    """Invalid boxes, such as one with NaN, that were dropped."""

    def detect(self, tiles: Sequence[Pixels]) -> list[Boxes]:
        """Detect objects in at most :attr:`batch` pictures.

        Args:
            tiles: uint8 BGR of shape ``(height, width, 3)``, with any row stride; read only.

        Returns:
            The boxes of each, in pixels of the picture.
        """


class Stopped(Exception):
    """The service was told to stop while it processed a frame."""


@dataclass(frozen=True, slots=True)
class Clocks:
    """The clocks of the budget, in seconds."""

    wall_s: Callable[[], float] = time.monotonic
    cpu_s: Callable[[], float] = time.thread_time
    """CPU time of the calling thread, in which the model runs."""


@dataclass(frozen=True, slots=True)
class Seen:
    """The result for a frame."""

    known: Known
    """Its objects, at most ``MAX_DETECTIONS``."""
    tiles: tuple[Tile, ...]
    ages_ns: list[int | None]
    """Age of each tile: the time from the model's last run on it to the frame; ``None`` if it never ran."""
    looked: int
    """Number of tiles that were processed for this result."""
    said: list[tuple[str, float] | None]
    """Class and probability of each object by the second stage."""


class Detector:
    """Detects objects in frames of any size. Owned by one thread."""

    def __init__(
        self,
        section: DetectorSection,
        model: Model,
        stop: threading.Event,
        clocks: Clocks | None = None,
        classifier: Network | None = None,
    ) -> None:
        self.model = model
        self.tiles: tuple[Tile, ...] = ()
        self.tile_ms: deque[float] = deque(maxlen=500)
        """Milliseconds of the latest tiles, including resizing."""
        self.late = 0
        """Frames in which a tile was older than ``revisit_s``."""
        self.longest_age_s = 0.0
        """Age of the oldest tile after the newest frame."""
        self.looked = 0
        """Number of tiles that were processed in the newest frame."""
        self._section = section
        self._stop = stop
        self._clocks = clocks or Clocks()
        self.second_stage: SecondStage | None = None
        """The second stage, if a classifier is given."""
        if classifier is not None:
            self.second_stage = SecondStage(
                classifier,
                model.labels,
                section.cpu_share,
                every=section.is_without_budget,
                wall_s=self._clocks.wall_s,
                cpu_s=self._clocks.cpu_s,
            )
        self._late_at_s: float | None = None
        self._frame: tuple[int, int, int] | None = None
        self._followed_ns: int | None = None
        self._predecessor: Mapping[str, Any] | None = None
        self._rules = Rules(section.iou_threshold, section.inside_threshold, group_labels(model.labels, section.rivals))
        self._budget = Budget(
            section.cpu_share, 1 / section.target_fps if section.target_fps else None, section.revisit_s
        )
        self.tracker = self._new_tracker()

    def detect(self, pixels: Pixels, captured_ns: int = 0, epoch: int = 0) -> Seen:
        """Process part of a frame, and return all objects known to be in it.

        Args:
            pixels: uint8 BGR of shape ``(height, width, 3)``; read only, tile by tile, never copied as a whole.
            captured_ns: When it was captured.
            epoch: Epoch of its publisher. If the epoch or the size of the frames changes, all state is discarded.

        Raises:
            Stopped: The service was told to stop.
        """
        height_px, width_px = pixels.shape[:2]
        if (height_px, width_px, epoch) != self._frame:
            self._begin(height_px, width_px, epoch)
        begun_s = self._clocks.cpu_s()
        self._activity.update(pixels)
        # Follow before the tiles are chosen, because tracked objects count as activity where they are now.
        if captured_ns != self._followed_ns:
            self.tracker.follow(pixels, captured_ns)
        chosen = self._schedule.choose(captured_ns, self._clocks.wall_s(), self._interest(captured_ns))
        found = self._look(pixels, chosen, captured_ns)
        merged = merge([self.tiles[index] for index in chosen], found, self._rules, self._check)
        # The tracker must know which area was searched: an object outside of it is not missing.
        looked = None
        if len(chosen) < len(self.tiles):
            looked = np.array([self.tiles[index].xyxy for index in chosen], np.float32).reshape(-1, 4)
        known = self.tracker.update(merged, captured_ns, looked)
        # Take the appearance from this frame, in which the model has just confirmed the boxes.
        self.tracker.remember(pixels, captured_ns)
        self._activity.looked_at(chosen)
        known = _in_frame(known, width_px, height_px)
        said = self._refine(pixels, known, captured_ns)
        # Charge everything since the start of the frame, so that the second stage and the tracking are paid too.
        self._schedule.spend(self._clocks.cpu_s() - begun_s)
        self.looked = len(chosen)
        return Seen(known, self.tiles, self._schedule.ages_ns(captured_ns), self.looked, said)

    def follow(self, pixels: Pixels, captured_ns: int, epoch: int) -> Seen | None:
        """Return where the objects of the last processed frame are in a newer one.

        The model takes much longer than the search for the appearance of the objects that it found.

        Args:
            pixels: As for :meth:`detect`.
            captured_ns: When it was captured.
            epoch: Epoch of its publisher.

        Returns:
            The objects; ``None`` if they cannot be in this frame, because its size or its epoch is another.
        """
        height_px, width_px = pixels.shape[:2]
        if (height_px, width_px, epoch) != self._frame:
            return None
        begun_s = self._clocks.cpu_s()
        self.tracker.follow(pixels, captured_ns)
        self._followed_ns = captured_ns
        known = _in_frame(self.tracker.known(captured_ns), width_px, height_px)
        said: list[tuple[str, float] | None] = [None] * len(known.boxes)
        if self.second_stage is not None:
            said = self.second_stage.recall(known)
        self._schedule.spend(self._clocks.cpu_s() - begun_s)
        return Seen(known, self.tiles, self._schedule.ages_ns(captured_ns), self.looked, said)

    def forget(self) -> None:
        """Discard the state of all previous frames."""
        self.tracker = self._new_tracker()
        if self.second_stage is not None:
            self.second_stage.forget()

    def to_state(self) -> dict[str, Any]:
        """Return the state from which a successor resumes the tracks, as plain values."""
        return {"labels": self.model.labels, "frame": self._frame, "tracker": self.tracker.to_state()}

    def succeed(self, state: Mapping[str, Any]) -> None:
        """Resume the tracks of a predecessor, if the first frame has the same epoch and size as its last.

        Args:
            state: Return value of its :meth:`to_state`.
        """
        self._predecessor = state

    def _begin(self, height_px: int, width_px: int, epoch: int) -> None:
        if self._frame is not None:
            self.forget()
        self._frame = (height_px, width_px, epoch)
        self._followed_ns = None
        self._resume()
        tile_px, overlap_px = tile_size(self._section.tile_px, self._section.overlap_px, self.model.input_px)
        self.tiles = plan_tiles(height_px, width_px, tile_px, overlap_px)
        self._activity = Activity(self.tiles)
        self._schedule = Schedule(len(self.tiles), self._budget)
        tile = self.tiles[0]
        log.info(
            "tiles planned",
            frame=f"{width_px}x{height_px}",
            tiles=len(self.tiles),
            tile=f"{tile.width_px}x{tile.height_px}",
            overlap_px=overlap_px,
            people_from_px=round(PERSON_PX * tile.height_px / self.model.input_px[0]),
        )

    def _refine(self, pixels: Pixels, known: Known, captured_ns: int) -> list[tuple[str, float] | None]:
        """Run the second stage, if there is one."""
        if self.second_stage is None:
            return [None] * len(known.boxes)
        self._check()
        return self.second_stage.refine(pixels, known, captured_ns, in_debt=self._schedule.is_in_debt)

    def _resume(self) -> None:
        # Only the first frame may resume: a later one of another epoch or size begins anew.
        state, self._predecessor = self._predecessor, None
        if state is None:
            return
        try:
            # A track's label is an index into the labels, so the labels must be the same.
            if (tuple(state["labels"]), tuple(state["frame"])) == (self.model.labels, self._frame):
                self.tracker.resume(state["tracker"])
        except (LookupError, TypeError, ValueError) as error:
            log.warning("tracks not taken over", reason=f"the state of the last detector is not usable: {error!r}")

    def _new_tracker(self) -> Tracker:
        section = self._section
        # The promise ensures that every tile is processed within that time, so that an object is searched for before it
        # is forgotten.
        return Tracker(
            section.track_threshold, section.track_memory_s, self._rules.groups, unseen_s=2 * section.revisit_s
        )

    def _interest(self, captured_ns: int) -> npt.NDArray[np.float64]:
        """Return the activity in each tile."""
        interest = self._activity.changes.astype(np.float64)
        expected, open_edges = self.tracker.expected(captured_ns)
        if len(expected):
            weights = np.where(open_edges.any(axis=1), PIECE_WEIGHT, TRACK_WEIGHT)
            xyxy = np.array([tile.xyxy for tile in self.tiles])
            inside = (np.maximum(expected[:, None, :2], xyxy[None, :, :2])
                      < np.minimum(expected[:, None, 2:], xyxy[None, :, 2:])).all(axis=2)  # fmt: skip
            interest += weights @ inside
        return interest

    def _look(self, pixels: Pixels, chosen: list[int], captured_ns: int) -> list[Boxes]:
        """Run the model on the chosen tiles. Return the boxes of each, in its pixels."""
        found: list[Boxes] = []
        batch = max(1, self.model.batch)
        began_s, began_cpu_s = self._clocks.wall_s(), self._clocks.cpu_s()
        for start in range(0, len(chosen), batch):
            self._check()  # a frame may have many tiles, and a stop must not wait for all of them
            indices = chosen[start : start + batch]
            started_s = self._clocks.wall_s()
            found += self.model.detect([self.tiles[index].view(pixels) for index in indices])
            self.tile_ms.extend([(self._clocks.wall_s() - started_s) / len(indices) * 1e3] * len(indices))
        self._keep_promise_in_view()
        self._schedule.looked_at(
            chosen,
            captured_ns,
            cpu_s=self._clocks.cpu_s() - began_cpu_s,
            wall_s=self._clocks.wall_s() - began_s,
        )
        return found

    def _keep_promise_in_view(self) -> None:
        """Count and log late tiles, before those of this frame are recorded as processed."""
        self.longest_age_s = self._schedule.longest_age_s
        now_s = self._clocks.wall_s()
        if self.longest_age_s > self._section.revisit_s:
            self.late += 1
            if self._late_at_s is None:
                log.warning(
                    "tiles not looked at in time",
                    longest_age_s=round(self.longest_age_s, 2),
                    revisit_s=self._section.revisit_s,
                    reason="too little CPU or too few frames: take larger tiles, a lighter model or a longer revisit_s",
                )
            self._late_at_s = now_s
        elif self._late_at_s is not None and now_s - self._late_at_s > IN_TIME_S:
            self._late_at_s = None
            log.info("tiles are looked at in time again", longest_age_s=round(self.longest_age_s, 2))

    def _check(self) -> None:
        if self._stop.is_set():
            raise Stopped


def find_all(section: DetectorSection, model: Model, pixels: Pixels) -> Boxes:
    """Detect the objects of one picture on all its tiles, regardless of the cost."""
    return see_all(section, model, pixels).known.boxes


def see_all(section: DetectorSection, model: Model, pixels: Pixels, classifier: Network | None = None) -> Seen:
    """Detect the objects of one picture on all its tiles, and classify them if a classifier is given."""
    return Detector(section.without_budget(), model, threading.Event(), classifier=classifier).detect(pixels)


def _in_frame(known: Known, width_px: int, height_px: int) -> Known:
    """Clip the objects to the frame, drop those that have left it since they were seen, and limit their number."""
    xyxy = np.clip(known.boxes.xyxy, 0, np.array([width_px, height_px] * 2, np.float32))
    inside = np.flatnonzero((xyxy[:, 2:] > xyxy[:, :2]).all(axis=1))[:MAX_DETECTIONS]
    boxes = Boxes(xyxy[inside], known.boxes.scores[inside], known.boxes.labels[inside])
    return Known(boxes, [known.tracks[index] for index in inside], [known.ages_ns[index] for index in inside])
