"""Numbers that stay with an object from frame to frame.

Each tracked object is expected to move on as it did; the boxes of a new frame go to those they lie nearest to, of the
same label. Nearness is measured by distance-IoU: where frames are few, a box no longer overlaps the one before it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from services.detector.boxes import Boxes, Floats, distance_intersection_over_union

SMOOTHING = 0.5
"""Weight of the newest movement in the velocity: a box trembles by a few pixels even where nothing moves."""


@dataclass(slots=True)
class _Track:
    number: int
    label: int
    corners: Floats
    velocity: Floats
    """Of the centre, in pixels a second."""
    seen_ns: int
    seen: int = 1
    """Times it was seen."""

    def expected(self, now_ns: int) -> Floats:
        shift = self.velocity * np.float32((now_ns - self.seen_ns) * 1e-9)
        moved: Floats = self.corners + np.concatenate([shift, shift])
        return moved

    def follow(self, corners: Floats, now_ns: int) -> None:
        elapsed_s = (now_ns - self.seen_ns) * 1e-9
        if elapsed_s > 0:
            moved = (corners[:2] + corners[2:] - self.corners[:2] - self.corners[2:]) / 2
            weight = SMOOTHING if self.seen > 1 else 1.0
            self.velocity = ((1 - weight) * self.velocity + weight * moved / elapsed_s).astype(np.float32)
        self.seen += 1
        self.corners = corners
        self.seen_ns = now_ns


class Tracker:
    """Follows objects by where they are expected. Owned by one thread."""

    def __init__(self, threshold: float, memory_s: float) -> None:
        """Start without any object.

        Args:
            threshold: A box belongs to an object when its distance-IoU with where the object is expected is at least
                this, -1 to 1.
            memory_s: An object that is not seen for longer is forgotten; its number does not return.
        """
        self._threshold = threshold
        self._memory_ns = int(memory_s * 1e9)
        self._tracks: list[_Track] = []
        self._last_number = 0

    def update(self, boxes: Boxes, captured_ns: int) -> list[int]:
        """Give each box of a frame its object's number, from 1.

        Args:
            boxes: What a frame shows.
            captured_ns: When it was captured; a clock that runs back starts anew.

        Returns:
            The number of each box, in order.
        """
        self._tracks = [track for track in self._tracks if 0 <= captured_ns - track.seen_ns <= self._memory_ns]
        numbers = [0] * len(boxes)
        for index, track in self._pairs(boxes, captured_ns):
            track.follow(boxes.corners[index], captured_ns)
            numbers[index] = track.number
        for index, number in enumerate(numbers):
            if not number:
                self._last_number += 1
                numbers[index] = self._last_number
                self._tracks.append(
                    _Track(
                        number=self._last_number,
                        label=int(boxes.labels[index]),
                        corners=boxes.corners[index],
                        velocity=np.zeros(2, np.float32),
                        seen_ns=captured_ns,
                    )
                )
        return numbers

    def _pairs(self, boxes: Boxes, captured_ns: int) -> list[tuple[int, _Track]]:
        """Boxes and the objects they belong to, the nearest first, each at most once."""
        if not self._tracks or not len(boxes):
            return []
        expected = np.stack([track.expected(captured_ns) for track in self._tracks])
        nearness = distance_intersection_over_union(boxes.corners, expected)
        nearness[boxes.labels[:, None] != np.array([track.label for track in self._tracks])[None, :]] = -np.inf
        pairs: list[tuple[int, _Track]] = []
        taken_boxes: set[int] = set()
        taken_tracks: set[int] = set()
        for flat in np.argsort(-nearness, axis=None, kind="stable"):
            index, row = divmod(int(flat), len(self._tracks))
            if nearness[index, row] < self._threshold:
                break
            if index not in taken_boxes and row not in taken_tracks:
                taken_boxes.add(index)
                taken_tracks.add(row)
                pairs.append((index, self._tracks[row]))
        return pairs
