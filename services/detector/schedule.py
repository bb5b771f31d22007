"""Choose the tiles to process in a frame: as many as the budget permits, and each in time.

Two claims share a frame:

- **The promise.** Every tile is processed at least every ``revisit_s``. To prevent tiles from falling due together, the
  least recently processed ones take turns at an even rate. The budget does not limit this, but pays for it.
- **The budget.** The rest of the CPU share, and of the frame's time, goes to tiles with motion or with tracked objects,
  and then to the least recently processed ones.

The budget is a token bucket of CPU seconds, filled at ``cpu_share`` of a core: a frame that exceeds it reduces the
budget of the next ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BUCKET_S = 1.0
"""Capacity of the bucket: the budget of this time can be saved."""
DEBT_S = 5.0
"""Largest debt: the budget of this time. It bounds the after-effects of the start or of a busy host."""
SMOOTHING = 0.2
"""Weight of the newest frame in the average cost of a tile."""
SPARE = 0.85
"""A round of turns takes this share of ``revisit_s``, to allow for late frames, as long as that takes less than..."""
SPARE_LOAD = 0.5
"""... this share of a core."""
ROUNDING = 0.05
"""A turn that is due but for this share, or a tile for which the budget lacks this share, is taken, because an idle
frame would waste more."""
HELD_UP = 0.25
"""Largest time for turns in one frame, as a share of ``revisit_s``."""
DUE_INTERVALS = 1.01
"""A tile is due if it would be late in the next frame."""


@dataclass(frozen=True, slots=True)
class Budget:
    """The budget and the promise."""

    cpu_share: float | None
    """Share of one core; ``None`` for no limit."""
    frame_s: float | None
    """Seconds that a frame may take; ``None`` for no limit."""
    revisit_s: float
    """Longest time between two runs of the model on a tile."""


class Schedule:
    """Chooses tiles. Owned by one thread."""

    def __init__(self, tiles: int, budget: Budget) -> None:
        """Start with ``tiles`` tiles, none of them processed."""
        self.tile_cpu_s = 0.0
        """CPU time of a tile, smoothed; 0 before the first."""
        self.tile_wall_s = 0.0
        """Wall time of a tile, smoothed."""
        self._budget = budget
        self._seen_ns: list[int | None] = [None] * tiles
        self._first_ns: int | None = None
        self._newest_ns = 0
        self._interval_s = 0.0
        self._turn = 0.0
        """Turns that are due and not taken."""
        self._bucket_s = 0.0
        self._filled_at_s: float | None = None

    def choose(self, captured_ns: int, now_s: float, activity: npt.NDArray[np.float64]) -> list[int]:
        """Choose the tiles of a frame: those whose turn it is, then those with the most activity.

        Args:
            captured_ns: Capture of the frame, the reference of the tiles' ages.
            now_s: Time of the clock by which the budget grows.
            activity: Activity of each tile; 0 for none.
        """
        self._advance(captured_ns, now_s)
        waits_s = np.array([self._wait_s(index) for index in range(len(self._seen_ns))])
        oldest_first: list[int] = np.argsort(-waits_s, kind="stable").tolist()
        due = int(np.count_nonzero(waits_s + DUE_INTERVALS * self._interval_s > self._budget.revisit_s))
        wanted = min(max(due, int(self._turn + ROUNDING)), len(waits_s), self._most_at_once())
        # Late tiles may be more than the turns that are due. Later turns do not pay for them.
        self._turn -= min(wanted, self._turn)
        chosen = oldest_first[:wanted]
        # A stable sort: tiles without activity stay in the order of the least recently processed ones.
        others = sorted(oldest_first[wanted:], key=lambda index: -activity[index])
        return chosen + others[: self._affordable(wanted)]

    def looked_at(self, indices: Sequence[int], captured_ns: int, *, cpu_s: float, wall_s: float) -> None:
        """Record the processed tiles, and their total cost."""
        for index in indices:
            self._seen_ns[index] = captured_ns
        if indices:
            # The first measurement counts as a whole: there is no average yet.
            weight = SMOOTHING if self.tile_cpu_s else 1.0
            self.tile_cpu_s += weight * (cpu_s / len(indices) - self.tile_cpu_s)
            self.tile_wall_s += weight * (wall_s / len(indices) - self.tile_wall_s)

    def spend(self, cpu_s: float) -> None:
        """Charge the total cost of a frame to the budget."""
        self._bucket_s = max(self._bucket_s - cpu_s, -(self._budget.cpu_share or 0.0) * DEBT_S)

    @property
    def is_in_debt(self) -> bool:
        """Whether the debt exceeds the budget of a second, which means that the promise alone exceeds the share."""
        return self._budget.cpu_share is not None and self._bucket_s < -self._budget.cpu_share * BUCKET_S

    def ages_ns(self, captured_ns: int) -> list[int | None]:
        """Return the age of each tile at a frame; ``None`` if it was never processed."""
        return [None if seen_ns is None else max(0, captured_ns - seen_ns) for seen_ns in self._seen_ns]

    @property
    def longest_age_s(self) -> float:
        """Age of the oldest tile at the newest frame."""
        return max((self._wait_s(index) for index in range(len(self._seen_ns))), default=0.0)

    def _advance(self, captured_ns: int, now_s: float) -> None:
        if self._first_ns is None:
            self._first_ns = self._newest_ns = captured_ns
            # The first frame processes one tile, which measures the cost, and the next ones begin with a full bucket.
            self._turn = 1.0
            self._bucket_s = BUCKET_S * (self._budget.cpu_share or 0.0)
        # Capture times are the publisher's, and may run back.
        passed_s = max(0.0, (captured_ns - self._newest_ns) * 1e-9)
        self._interval_s = passed_s if not self._interval_s else self._interval_s + 0.3 * (passed_s - self._interval_s)
        self._newest_ns = max(self._newest_ns, captured_ns)
        tiles = len(self._seen_ns)
        rate = tiles / (SPARE * self._budget.revisit_s)
        if rate * self.tile_wall_s > SPARE_LOAD:
            rate = tiles / self._budget.revisit_s
        self._turn = min(self._turn + rate * passed_s, float(tiles))
        if self._filled_at_s is not None and self._budget.cpu_share is not None:
            # Fill by the wall clock, not by the frames' times: the CPU share is one of real time.
            filled_s = self._bucket_s + self._budget.cpu_share * (now_s - self._filled_at_s)
            self._bucket_s = min(filled_s, self._budget.cpu_share * BUCKET_S)
        self._filled_at_s = now_s

    def _most_at_once(self) -> int:
        """Limit the turns in a frame: tiles processed together fall due together, which may delay a frame."""
        if not self.tile_wall_s:
            return 1  # the first tile measures how long a tile takes
        return max(1, int(HELD_UP * self._budget.revisit_s / self.tile_wall_s))

    def _wait_s(self, index: int) -> float:
        seen_ns = self._seen_ns[index]
        since_ns = self._first_ns if seen_ns is None else seen_ns
        return 0.0 if since_ns is None else (self._newest_ns - since_ns) * 1e-9

    def _affordable(self, taken: int) -> int:
        """Return how many more tiles the budget permits."""
        most = math.inf
        if self._budget.cpu_share is not None:
            # Before a first run nothing is known of the cost, so the budget permits no more than the turn.
            most = (self._bucket_s / self.tile_cpu_s if self.tile_cpu_s else 0) - taken
        if self._budget.frame_s is not None:
            most = min(most, (self._budget.frame_s / self.tile_wall_s if self.tile_wall_s else 0) - taken)
        return len(self._seen_ns) if most == math.inf else max(0, int(most + ROUNDING))
