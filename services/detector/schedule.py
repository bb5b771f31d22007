"""Which tiles are looked at in a frame: as many as the budget allows, and each in time.

Two claims share a frame:

- **The promise.** Every tile is looked at at least every ``revisit_s``. So that they do not fall due together, the
  least recently seen ones take turns, at an even pace. This is not limited by the budget, but counted against it.
- **The budget.** What is left of the CPU share, and of the frame's time, goes to tiles where something moves or where
  an object is tracked, and then to the least recently seen ones.

The budget is a bucket of CPU seconds, filled at ``cpu_share`` of a core: what one frame takes too much, the next ones
lack.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BUCKET_S = 1.0
"""The budget of so long can be saved."""
DEBT_S = 5.0
"""The budget of so long can be owed: the start, or a busy host, is forgotten after that."""
SMOOTHING = 0.2
"""Weight of the newest frame in what a tile takes."""
SPARE = 0.85
"""Turns are so much shorter than ``revisit_s``, for frames that come late, as long as that takes less than..."""
SPARE_LOAD = 0.5
"""... this share of a core."""
ROUNDING = 0.05
"""A turn that has come but for this is taken: an empty frame would lose more."""
HELD_UP = 0.25
"""Share of ``revisit_s`` that the turns may take of one frame."""
DUE_INTERVALS = 1.01
"""A tile is due when it would be late in the next frame."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be spent, and what is promised."""

    cpu_share: float | None
    """Share of one core; ``None`` for no limit."""
    frame_s: float | None
    """Seconds that a frame may take; ``None`` for no limit."""
    revisit_s: float
    """Every tile is looked at at least so often."""


class Schedule:
    """Chooses tiles. Owned by one thread."""

    def __init__(self, tiles: int, budget: Budget) -> None:
        """Start without having seen any of ``tiles`` tiles."""
        self.tile_cpu_s = 0.0
        """What a tile takes, smoothed; 0 before the first."""
        self.tile_wall_s = 0.0
        """How long a tile takes."""
        self._budget = budget
        self._seen_ns: list[int | None] = [None] * tiles
        self._first_ns: int | None = None
        self._newest_ns = 0
        self._interval_s = 0.0
        self._turn = 0.0
        """Tiles whose turn has come, less those that were taken."""
        self._bucket_s = 0.0
        self._filled_at_s: float | None = None

    def choose(self, captured_ns: int, now_s: float, activity: npt.NDArray[np.float64]) -> list[int]:
        """Choose the tiles of a frame, the most urgent first.

        Args:
            captured_ns: Capture of the frame, from which ages count.
            now_s: The clock by which the budget grows.
            activity: For each tile, how much there is to see; 0 for nothing.
        """
        self._advance(captured_ns, now_s)
        waits_s = np.array([self._wait_s(index) for index in range(len(self._seen_ns))])
        oldest_first: list[int] = np.argsort(-waits_s, kind="stable").tolist()
        due = int(np.count_nonzero(waits_s + DUE_INTERVALS * self._interval_s > self._budget.revisit_s))
        wanted = min(max(due, int(self._turn + ROUNDING)), len(waits_s), self._most_at_once())
        self._turn -= min(wanted, self._turn)
        chosen = oldest_first[:wanted]
        # Where nothing moves, the least recently seen ones follow: a sort that keeps their order.
        others = sorted(oldest_first[wanted:], key=lambda index: -activity[index])
        return chosen + others[: self._affordable(wanted)]

    def looked_at(self, indices: Sequence[int], captured_ns: int, *, cpu_s: float, wall_s: float) -> None:
        """Count what was done: the tiles, and what all of them took."""
        for index in indices:
            self._seen_ns[index] = captured_ns
        if indices:
            weight = SMOOTHING if self.tile_cpu_s else 1.0
            self.tile_cpu_s += weight * (cpu_s / len(indices) - self.tile_cpu_s)
            self.tile_wall_s += weight * (wall_s / len(indices) - self.tile_wall_s)

    def spend(self, cpu_s: float) -> None:
        """Count what a frame took in all against the budget."""
        self._bucket_s = max(self._bucket_s - cpu_s, -(self._budget.cpu_share or 0.0) * DEBT_S)

    @property
    def is_in_debt(self) -> bool:
        """Whether more is owed than the budget of a second: the promise alone takes more than the share."""
        return self._budget.cpu_share is not None and self._bucket_s < -self._budget.cpu_share * BUCKET_S

    def ages_ns(self) -> list[int | None]:
        """How old the newest sight of each tile was at the newest frame; ``None``: never seen."""
        return [None if seen_ns is None else self._newest_ns - seen_ns for seen_ns in self._seen_ns]

    @property
    def longest_age_s(self) -> float:
        """How long the tile that waits longest has not been seen, at the newest frame."""
        return max((self._wait_s(index) for index in range(len(self._seen_ns))), default=0.0)

    def _advance(self, captured_ns: int, now_s: float) -> None:
        if self._first_ns is None:
            self._first_ns = self._newest_ns = captured_ns
            self._turn = 1.0
            self._bucket_s = BUCKET_S * (self._budget.cpu_share or 0.0)
        passed_s = max(0.0, (captured_ns - self._newest_ns) * 1e-9)
        self._interval_s = passed_s if not self._interval_s else self._interval_s + 0.3 * (passed_s - self._interval_s)
        self._newest_ns = max(self._newest_ns, captured_ns)
        tiles = len(self._seen_ns)
        rate = tiles / (SPARE * self._budget.revisit_s)
        if rate * self.tile_wall_s > SPARE_LOAD:
            rate = tiles / self._budget.revisit_s
        self._turn = min(self._turn + rate * passed_s, float(tiles))
        if self._filled_at_s is not None and self._budget.cpu_share is not None:
            filled_s = self._bucket_s + self._budget.cpu_share * (now_s - self._filled_at_s)
            self._bucket_s = min(filled_s, self._budget.cpu_share * BUCKET_S)
        self._filled_at_s = now_s

    def _most_at_once(self) -> int:
        """On a slow processor, tiles that were looked at together would fall due together, and hold up a frame."""
        if not self.tile_wall_s:
            return 1  # the first one tells how long a tile takes
        return max(1, int(HELD_UP * self._budget.revisit_s / self.tile_wall_s))

    def _wait_s(self, index: int) -> float:
        seen_ns = self._seen_ns[index]
        since_ns = self._first_ns if seen_ns is None else seen_ns
        return 0.0 if since_ns is None else (self._newest_ns - since_ns) * 1e-9

    def _affordable(self, taken: int) -> int:
        """How many more tiles the budget pays for."""
        most = math.inf
        if self._budget.cpu_share is not None:
            most = (self._bucket_s / self.tile_cpu_s if self.tile_cpu_s else 0) - taken
        if self._budget.frame_s is not None:
            most = min(most, (self._budget.frame_s / self.tile_wall_s if self.tile_wall_s else 0) - taken)
        return len(self._seen_ns) if most == math.inf else max(0, int(most + ROUNDING))
