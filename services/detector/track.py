"""Numbers that stay with an object from frame to frame, and where the objects are that were not looked at.

Each tracked object is expected to move on as it did; the boxes of a new frame go to those they lie nearest to, of the
same label or a rival's. Nearness is measured by distance-IoU: where frames are few, a box no longer overlaps the one
before it.

Not every part of a frame is looked at by the model. An object that is expected where it looked, and was not found, is
missing; one expected elsewhere is followed by what it looks like, and known, with its age, as long as it is found so.
An object on the edge of what was looked at shows a piece: the edge that the tile cut is taken from where the object is
expected to end.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from services.detector.boxes import (
    Boxes,
    Flags,
    Floats,
    Integers,
    areas,
    distance_of_pairs,
    intersections,
    no_boxes,
)
from services.detector.merge import Merged
from services.detector.sight import Sight, look_at
from services.detector.tiles import Pixels

SMOOTHING_S = 0.4
"""Movements of so long ago count for a third in the velocity: a box trembles even where nothing moves."""
VOTES_KEPT = 0.8
"""Weight of the earlier sightings in an object's label: a few in a row rename it."""
PIECE_INSIDE = 0.6
"""Share of a piece that lies in the box of an object that it belongs to."""
PLACED_S = 0.5
"""How long the place of an object that moves is believed without a look at it."""
STILL = 0.25
"""Of its width: what is expected to have moved by less is believed for longer."""
FOLLOWED = 100
"""Most objects that are followed by what they look like; a hundred take 10 ms of CPU a frame."""
LOOKED_SHARE = 0.5
"""Share of an expected box that must be looked at for the object to be missing when it is not found."""


@dataclass(slots=True)
class _Track:
    number: int
    group: int
    corners: Floats
    velocity: Floats
    """Of the centre, in pixels a second."""
    seen_ns: int
    score: float
    votes: dict[int, float]
    """Certainty for each label that it was taken for."""
    open_edges: Flags
    """Which of its edges are a tile's."""
    at_ns: int
    """When it was at ``corners``: when it was seen by the model, or found again by what it looks like."""
    missing: bool = False
    """Looked for and not found since it was seen."""
    seen: int = 1
    sight: Sight | None = None

    @property
    def label(self) -> int:
        return max(self.votes, key=self.votes.__getitem__)

    def expected(self, now_ns: int) -> Floats:
        shift = self.velocity * np.float32((now_ns - self.at_ns) * 1e-9)
        moved: Floats = self.corners + np.concatenate([shift, shift])
        return moved

    def see(self, corners: Floats, open_edges: Flags, score: float, label: int, now_ns: int) -> None:
        """The model has found it."""
        # An edge that a tile cut says nothing of the movement, then or now.
        self._move(corners, ~open_edges & ~self.open_edges, now_ns)
        self.seen += 1
        self.score = score
        self.open_edges = open_edges & self.open_edges
        self.seen_ns = now_ns
        self.missing = False
        self.votes = {known: votes * VOTES_KEPT for known, votes in self.votes.items()}
        self.votes[label] = self.votes.get(label, 0.0) + (1 - VOTES_KEPT) * score

    def is_placed(self, now_ns: int) -> bool:
        """Whether it is truly where it is expected."""
        elapsed_s = (now_ns - self.at_ns) * 1e-9
        moved_px = float(np.hypot(*self.velocity)) * elapsed_s
        return elapsed_s <= PLACED_S or moved_px <= STILL * float(self.corners[2] - self.corners[0])

    def follow(self, pixels: Pixels, now_ns: int) -> None:
        """Look for it where it is expected."""
        if self.sight is None:
            return
        found = self.sight.find(pixels, self.expected(now_ns), (now_ns - self.at_ns) * 1e-9)
        if found is not None:
            self._move(found, np.ones(4, np.bool_), now_ns)
            self.sight = look_at(pixels, found)

    def _move(self, corners: Floats, measured: Flags, now_ns: int) -> None:
        elapsed_s = (now_ns - self.at_ns) * 1e-9
        if elapsed_s > 0:
            sides = measured.reshape(2, 2)
            error = np.where(sides, (corners - self.expected(now_ns)).reshape(2, 2), 0).sum(axis=0)
            error /= np.maximum(sides.sum(axis=0), 1)
            weight = 1 - np.exp(-elapsed_s / SMOOTHING_S)
            self.velocity = (self.velocity + weight * error / elapsed_s).astype(np.float32)
        self.corners, self.at_ns = corners, now_ns


@dataclass(frozen=True, slots=True)
class Known:
    """All objects that are known to be in a frame."""

    boxes: Boxes
    """The most certain first."""
    tracks: list[int]
    """The number of each."""
    ages_ns: list[int]
    """How long ago each was last seen: 0 for those found in this frame."""


@dataclass(slots=True)
class Tracker:
    """Follows objects by where they are expected. Owned by one thread."""

    threshold: float
    """A box belongs to an object when its distance-IoU with where the object is expected is at least this."""
    memory_s: float
    """An object that is missing for longer is forgotten; its number does not return."""
    groups: Integers
    """For each label, the number of its group of rivals."""
    unseen_s: float = 4.0
    """An object that was not looked for is forgotten after so long."""
    epoch: int = field(default_factory=lambda: secrets.randbits(63))
    """Numbers of tracks belong to it."""
    _tracks: list[_Track] = field(default_factory=list)
    _last_number: int = 0

    def update(self, found: Merged, captured_ns: int, looked: Floats | None = None) -> Known:
        """Give each object of a frame its number, from 1.

        Args:
            found: What was found in a frame.
            captured_ns: When it was captured; a clock that runs back starts anew.
            looked: Corners of the tiles that were looked at, ``(n, 4)``; ``None`` for the whole frame.
        """
        self._forget(captured_ns)
        boxes = found.boxes
        numbers = [0] * len(boxes)
        corners = boxes.corners.copy()
        labels = boxes.labels.copy()
        before = list(self._tracks)
        for index, track, completed in self._pairs(found, captured_ns):
            track.see(
                completed, found.open_edges[index], float(boxes.scores[index]), int(boxes.labels[index]), captured_ns
            )
            numbers[index], corners[index], labels[index] = track.number, completed, track.label
        told = self._without_further_pieces(found, corners, numbers)
        for index in told:
            numbers[index] = numbers[index] or self._begin(found, index, captured_ns)
        unseen = [track for track in before if track.seen_ns != captured_ns]
        known = self._unlooked(unseen, captured_ns, looked)
        together = Boxes(corners, boxes.scores, labels).take(np.array(told, np.intp))
        numbers = [numbers[index] for index in told]
        if not known:
            return Known(together, numbers, [0] * len(numbers))
        expected = Boxes(
            np.stack([track.expected(captured_ns) for track in known]),
            np.array([track.score for track in known], np.float32),
            np.array([track.label for track in known], np.intp),
        )
        return _sorted(
            together,
            expected,
            numbers + [track.number for track in known],
            [0] * len(numbers) + [captured_ns - track.seen_ns for track in known],
        )

    def follow(self, pixels: Pixels, captured_ns: int) -> None:
        """Move what is tracked to where it is in a frame, before the model looks at a part of it."""
        self._forget(captured_ns)
        for track in sorted(self._tracks, key=lambda track: -track.score)[:FOLLOWED]:
            track.follow(pixels, captured_ns)

    def remember(self, pixels: Pixels, captured_ns: int) -> None:
        """Take the sight of what was found in a frame, after the update with it."""
        for track in self._tracks:
            if track.seen_ns == captured_ns:
                track.sight = look_at(pixels, track.corners)

    def expected(self, captured_ns: int) -> tuple[Floats, Flags]:
        """Where all tracked objects are expected, ``(n, 4)``, and which of their edges are not known."""
        if not self._tracks:
            return no_boxes().corners, np.zeros((0, 4), np.bool_)
        return (
            np.stack([track.expected(captured_ns) for track in self._tracks]),
            np.stack([track.open_edges for track in self._tracks]),
        )

    def to_state(self) -> dict[str, Any]:
        """What a successor needs to go on with the same numbers; plain values."""
        return {
            "epoch": self.epoch,
            "last_number": self._last_number,
            "tracks": [
                {
                    "number": track.number,
                    "corners": track.corners.tolist(),
                    "velocity": track.velocity.tolist(),
                    "seen_ns": track.seen_ns,
                    "at_ns": track.at_ns,
                    "score": track.score,
                    "votes": [[label, votes] for label, votes in track.votes.items()],
                    "seen": track.seen,
                }
                for track in self._tracks
            ],
        }

    def resume(self, state: dict[str, Any]) -> None:
        """Go on where another tracker of the same labels was.

        Raises:
            ValueError, TypeError, KeyError: ``state`` is not what :meth:`to_state` returns.
        """
        tracks = [
            _Track(
                number=int(one["number"]),
                group=int(self.groups[max(one["votes"], key=lambda vote: vote[1])[0]]),
                corners=np.array(one["corners"], np.float32).reshape(4),
                velocity=np.array(one["velocity"], np.float32).reshape(2),
                seen_ns=int(one["seen_ns"]),
                at_ns=int(one["at_ns"]),
                score=float(one["score"]),
                votes={int(label): float(votes) for label, votes in one["votes"]},
                open_edges=np.zeros(4, np.bool_),
                seen=int(one["seen"]),
            )
            for one in state["tracks"]
        ]
        self.epoch, self._last_number, self._tracks = int(state["epoch"]), int(state["last_number"]), tracks

    def _without_further_pieces(self, found: Merged, corners: Floats, numbers: list[int]) -> list[int]:
        """Indices of the boxes without pieces of objects that another piece was matched with.

        An object over three tiles, of which the outer two were looked at, shows two pieces that do not touch.
        """
        matched = np.flatnonzero(numbers)
        common = intersections(found.boxes.corners, corners[matched])
        inside = common > PIECE_INSIDE * areas(found.boxes.corners)[:, None]
        groups = self.groups[found.boxes.labels]
        inside &= groups[:, None] == groups[None, matched]
        further = np.asarray(found.open_edges.any(axis=1) & inside.any(axis=1))
        return [index for index, number in enumerate(numbers) if number or not further[index]]

    def _begin(self, found: Merged, index: int, captured_ns: int) -> int:
        self._last_number += 1
        boxes = found.boxes
        label, score = int(boxes.labels[index]), float(boxes.scores[index])
        self._tracks.append(
            _Track(
                number=self._last_number,
                group=int(self.groups[label]),
                corners=boxes.corners[index],
                velocity=np.zeros(2, np.float32),
                seen_ns=captured_ns,
                at_ns=captured_ns,
                score=score,
                votes={label: score},
                open_edges=found.open_edges[index],
            )
        )
        return self._last_number

    def _forget(self, captured_ns: int) -> None:
        def remembered(track: _Track) -> bool:
            limit_s = self.memory_s if track.missing else max(self.memory_s, self.unseen_s)
            return 0 <= captured_ns - track.seen_ns <= limit_s * 1e9

        self._tracks = [track for track in self._tracks if remembered(track)]

    def _unlooked(self, unseen: list[_Track], captured_ns: int, looked: Floats | None) -> list[_Track]:
        """Mark as missing what was looked for, and return what was not and is known to be where it is expected."""
        if not unseen:
            return []
        if looked is None:
            shares = np.ones(len(unseen))
        else:
            expected = np.stack([track.expected(captured_ns) for track in unseen])
            # Tiles overlap, so the largest share of one tile counts.
            common = intersections(expected, looked).max(axis=1, initial=0)
            shares = common / np.maximum(areas(expected), np.float32(1e-6))
        for track, share in zip(unseen, shares, strict=True):
            track.missing = track.missing or bool(share >= LOOKED_SHARE)
        return [track for track in unseen if not track.missing and track.is_placed(captured_ns)]

    def _pairs(self, found: Merged, captured_ns: int) -> list[tuple[int, _Track, Floats]]:
        """Boxes, the objects they belong to, and the boxes with what their tiles cut off: the nearest first."""
        boxes = found.boxes
        if not self._tracks or not len(boxes):
            return []
        expected, open_edges = self.expected(captured_ns)
        completed = _complete(boxes.corners[:, None], found.open_edges[:, None], expected[None])
        awaited = _complete(expected[None], open_edges[None], boxes.corners[:, None])
        nearness = distance_of_pairs(completed, awaited)
        groups = np.array([track.group for track in self._tracks])
        nearness[self.groups[boxes.labels][:, None] != groups[None, :]] = -np.inf
        pairs: list[tuple[int, _Track, Floats]] = []
        taken_boxes: set[int] = set()
        taken_tracks: set[int] = set()
        for flat in np.argsort(-nearness, axis=None, kind="stable"):
            index, row = divmod(int(flat), len(self._tracks))
            if nearness[index, row] < self.threshold:
                break
            if index not in taken_boxes and row not in taken_tracks:
                taken_boxes.add(index)
                taken_tracks.add(row)
                pairs.append((index, self._tracks[row], completed[index, row]))
        return pairs


def _complete(corners: Floats, open_edges: Flags, others: Floats) -> Floats:
    """Boxes whose open edges are moved out to those of the other box of each pair: ``(boxes, tracks, 4)``."""
    outer = np.concatenate(
        [np.minimum(corners[..., :2], others[..., :2]), np.maximum(corners[..., 2:], others[..., 2:])], axis=-1
    )
    completed: Floats = np.where(open_edges, outer, corners).astype(np.float32)
    return completed


def _sorted(first: Boxes, second: Boxes, tracks: list[int], ages_ns: list[int]) -> Known:
    boxes = Boxes(
        np.concatenate([first.corners, second.corners]),
        np.concatenate([first.scores, second.scores]),
        np.concatenate([first.labels, second.labels]),
    )
    order = np.argsort(-boxes.scores, kind="stable")
    return Known(boxes.take(order), [tracks[index] for index in order], [ages_ns[index] for index in order])
