"""The second stage: a classifier adds a class to the objects found, such as whether a person wears a helmet.

It runs on crops of the boxes that the model found in this frame: first on objects that it has never classified, then on
the least recently classified ones. An object's class is the mean of its probabilities over the object's track, so a
track requires a few runs, not one in each frame.

Its CPU time is part of the detector's budget. Up to ``SHARE`` of ``cpu_share`` is reserved for it, to prevent tiles
from using all of it, and its cost is charged to the tiles' budget as well. It pauses while the budget is deep in debt.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import structlog

from services.detector.boxes import Floats
from services.detector.models.errors import ModelError
from services.detector.tiles import Pixels
from services.detector.tracker import Known

MOST_CROPS = 4
"""Largest number of crops per frame."""
SHARE = 0.25
"""Reserved share of the detector's CPU share."""
SAVED_S = 1.0
"""Capacity of the bucket: the budget of this time can be saved."""
SMOOTHING = 0.2
"""Weight of the newest frame in the average cost of a crop."""
FIRST_LOOKS = 3
"""The classifier runs this many times on a new object, ..."""
SOON_S = 0.5
"""... at this interval, ..."""
AGAIN_S = 5.0
"""... and then again after each of these intervals."""
NEWEST_WEIGHT = 0.2
"""Least weight of the newest run in the mean, so that a few consecutive runs can change an object's class."""
LEAST_PX = 24
"""Least length of a box's longer side; smaller boxes show too little."""
KEPT_NS = 150_000_000_000
"""Time after which the classification of a lost track is discarded; no tracker remembers a track for longer."""

log = structlog.get_logger()


class Network(Protocol):
    """Classifies crops."""

    name: str
    classes: tuple[str, ...]
    told: tuple[str, ...]
    thresholds: tuple[float, ...]
    applies_to: tuple[str, ...] | None
    batch: int

    def classify(self, crops: list[Pixels]) -> Floats:
        """Return the probability of each class for each crop; a row of NaN if the network gave none."""


@dataclass(slots=True)
class _Opinion:
    """The classification of a track."""

    known_ns: int
    looked_ns: int
    looks: int = 0
    weighed: int = 0
    """Runs that gave probabilities."""
    mean: Floats | None = None
    """Mean probability of each class."""

    def add(self, row: Floats, captured_ns: int) -> None:
        self.looks += 1
        self.looked_ns = captured_ns
        if not np.isfinite(row).all():
            return  # the run counts all the same, so that the next one is not due at once
        self.weighed += 1
        # A plain mean at first; later a moving one, so that the object's class can still change.
        weight = np.float32(max(1 / self.weighed, NEWEST_WEIGHT))
        self.mean = row if self.mean is None else self.mean + weight * (row - self.mean)


class SecondStage:
    """Classifies the objects of frames. Owned by one thread."""

    def __init__(
        self,
        network: Network,
        labels: tuple[str, ...],
        cpu_share: float | None,
        *,
        every: bool,
        wall_s: Callable[[], float],
        cpu_s: Callable[[], float],
    ) -> None:
        """Start without any object.

        Args:
            network: The classifier.
            labels: The detector's labels; boxes hold an index into these.
            cpu_share: The detector's share of a core; None for no limit.
            every: Whether to classify each object in each frame, regardless of the cost.
            wall_s: The clock by which the budget grows.
            cpu_s: CPU time of the calling thread.
        """
        self.crops = 0
        """Number of classified crops."""
        self.crop_ms: deque[float] = deque(maxlen=500)
        """Milliseconds of the latest crops, including resizing."""
        self.fault: str | None = None
        """Why the stage has failed; None while it works."""
        self._network = network
        applies = labels if network.applies_to is None else network.applies_to
        self._applies = np.array([label in applies for label in labels], np.bool_)
        self._told = frozenset(network.told)
        self._share = None if cpu_share is None else SHARE * cpu_share
        self._every = every
        self._wall_s, self._cpu_s = wall_s, cpu_s
        self._opinions: dict[int, _Opinion] = {}
        self._saved_s = 0.0
        self._filled_at_s: float | None = None
        self._crop_cpu_s = 0.0

    def forget(self) -> None:
        """Forget all objects, because the track numbers restart."""
        self._opinions.clear()

    def refine(
        self, pixels: Pixels, known: Known, captured_ns: int, *, in_debt: bool = False
    ) -> list[tuple[str, float] | None]:
        """Classify some objects of a frame.

        Args:
            pixels: uint8 BGR of shape ``(height, width, 3)``; read only, crop by crop.
            known: The objects, with boxes within the frame.
            captured_ns: When the frame was captured.
            in_debt: Whether the detector has spent far more than its budget.

        Returns:
            The class and mean probability of each object, or None if it is not certain enough.
        """
        self._fill()
        applies = np.flatnonzero(self._applies[known.boxes.labels]).tolist()
        for index in applies:
            opinion = self._opinions.setdefault(known.tracks[index], _Opinion(captured_ns, captured_ns))
            opinion.known_ns = captured_ns
        # The tiles' promise comes first: in debt, the second stage pauses, and objects keep their last class.
        if self.fault is None and not (in_debt and not self._every):
            self._look(pixels, known, self._choose(known, applies, captured_ns), captured_ns)
        said = self.recall(known)
        self._opinions = {
            track: one for track, one in self._opinions.items() if 0 <= captured_ns - one.known_ns <= KEPT_NS
        }
        return said

    def recall(self, known: Known) -> list[tuple[str, float] | None]:
        """Return what :meth:`refine` would, without classifying anything."""
        applies = self._applies[known.boxes.labels].tolist()
        opinions = [
            self._opinions.get(track) if fits else None for track, fits in zip(known.tracks, applies, strict=True)
        ]
        return [None if opinion is None else self._say(opinion) for opinion in opinions]

    def _choose(self, known: Known, applies: list[int], captured_ns: int) -> list[int]:
        """Return the objects to classify, the most urgent first."""
        xyxy = known.boxes.xyxy
        large = (xyxy[:, 2:] - xyxy[:, :2]).max(axis=1, initial=0) >= LEAST_PX
        # Skip boxes that were only extrapolated along their track: they may be off the object.
        fit = [index for index in applies if large[index] and known.ages_ns[index] == 0]
        if self._every:
            return fit
        waits: list[tuple[float, int]] = []
        for index in fit:
            opinion = self._opinions[known.tracks[index]]
            waited_s = (captured_ns - opinion.looked_ns) * 1e-9
            if not opinion.looks:
                waits.append((-np.inf, index))  # before all others; the sort is ascending
            elif waited_s >= (SOON_S if opinion.looks < FIRST_LOOKS else AGAIN_S):
                waits.append((-waited_s, index))
        return [index for _, index in sorted(waits)][: self._affordable()]

    def _look(self, pixels: Pixels, known: Known, chosen: list[int], captured_ns: int) -> None:
        if not chosen:
            return
        crops = [_crop(pixels, known.boxes.xyxy[index]) for index in chosen]
        began_s, began_cpu_s = self._wall_s(), self._cpu_s()
        try:
            rows = self._network.classify(crops)
        except ModelError as error:
            # It failed although it ran when it was loaded, so do not try again with each frame.
            self.fault = str(error)
            log.warning("second stage failed", reason=self.fault)
            return
        cpu_s = self._cpu_s() - began_cpu_s
        self.crop_ms.extend([(self._wall_s() - began_s) / len(crops) * 1e3] * len(crops))
        self.crops += len(crops)
        self._crop_cpu_s += (SMOOTHING if self._crop_cpu_s else 1.0) * (cpu_s / len(crops) - self._crop_cpu_s)
        self._saved_s -= cpu_s
        for index, row in zip(chosen, rows, strict=True):
            self._opinions[known.tracks[index]].add(row, captured_ns)

    def _say(self, opinion: _Opinion) -> tuple[str, float] | None:
        if opinion.mean is None:
            return None
        best = int(opinion.mean.argmax())
        name, probability = self._network.classes[best], float(opinion.mean[best])
        if name not in self._told or probability < self._network.thresholds[best]:
            return None
        return name, probability

    def _fill(self) -> None:
        now_s = self._wall_s()
        if self._share is not None:
            # Begin with a full bucket, so that the first objects are classified at once.
            passed_s = SAVED_S if self._filled_at_s is None else now_s - self._filled_at_s
            # Extend the capacity if a single crop costs more than could otherwise be saved.
            most_s = max(self._share * SAVED_S, self._crop_cpu_s)
            self._saved_s = min(self._saved_s + self._share * passed_s, most_s)
        self._filled_at_s = now_s

    def _affordable(self) -> int:
        """Return how many crops the budget permits. The first crop measures the cost."""
        if self._share is None:
            return MOST_CROPS
        if not self._crop_cpu_s:
            return 1
        return max(0, min(MOST_CROPS, int(self._saved_s / self._crop_cpu_s + 1e-6)))


def _crop(pixels: Pixels, xyxy: Floats) -> npt.NDArray[np.uint8]:
    """Return a view of the frame inside a box, at least one pixel in each direction."""
    height_px, width_px = pixels.shape[:2]
    left, top = (min(int(start), size - 1) for start, size in zip(xyxy[:2], (width_px, height_px), strict=True))
    right, bottom = (max(start + 1, round(float(end))) for start, end in zip((left, top), xyxy[2:], strict=True))
    return pixels[top:bottom, left:right]
