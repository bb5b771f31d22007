"""Track objects from frame to frame, including those in tiles that the model did not process.

Each tracked object is expected to continue its movement. The boxes of a new frame are matched to the nearest objects
with the same or a rival label. Nearness is measured by distance-IoU, because at low frame rates a box no longer
overlaps its predecessor.

The model does not process every part of a frame. An object that is expected in a processed part and was not found is
missing. An object that is expected elsewhere is followed by its appearance, and stays known, with its age, while this
succeeds. An object on the edge of a processed part shows only a piece: its cut edge is taken from the object's expected
position.
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
from services.detector.sight import look_at
from services.detector.tiles import Pixels
from services.detector.track import Track, expected_boxes, move

PIECE_INSIDE = 0.6
"""Least share of a piece inside the box of the object that it belongs to."""
FOLLOWED = 100
"""Largest number of objects followed by appearance; a hundred take 10 ms of CPU per frame."""
LOOKED_SHARE = 0.5
"""Share of an expected box in a processed tile from which an object that was not found counts as missing."""


@dataclass(frozen=True, slots=True)
class Known:
    """All objects known to be in a frame."""

    boxes: Boxes
    """Boxes, by descending score."""
    tracks: list[int]
    """The number of each."""
    ages_ns: list[int]
    """Time since each was last seen; 0 for those found in this frame."""


@dataclass(slots=True)
class Tracker:
    """Tracks objects by their expected position. Owned by one thread."""

    threshold: float
    """Least distance-IoU of a box and an object's expected position for a match."""
    memory_s: float
    """Time after which a missing object is forgotten. Its number is not reused."""
    groups: Integers
    """For each label, the number of its group of rivals."""
    unseen_s: float = 4.0
    """Time after which an object is forgotten that the model had no chance to find."""
    epoch: int = field(default_factory=lambda: secrets.randbits(63))
    """Namespace of the track numbers."""
    _tracks: list[Track] = field(default_factory=list)
    _last_number: int = 0
    _updated_ns: int | None = None

    def update(self, found: Merged, captured_ns: int, looked: Floats | None = None) -> Known:
        """Assign each object of a frame its number, from 1.

        Args:
            found: Objects found in the frame.
            captured_ns: When the frame was captured. If the clock runs back, all tracks are discarded.
            looked: Boxes of the processed tiles, ``(n, 4)``; ``None`` for the whole frame.
        """
        self._forget(captured_ns)
        boxes = found.boxes
        numbers = [0] * len(boxes)
        xyxy = boxes.xyxy.copy()
        labels = boxes.labels.copy()
        before = list(self._tracks)
        indices, matched, completed = self._pairs(found, captured_ns)
        if matched:
            open_edges = found.open_edges[indices]
            # An edge cut by a tile, in the previous or this sighting, carries no information about the movement.
            measured = ~open_edges & ~np.stack([track.open_edges for track in matched])
            move(matched, completed, measured, captured_ns)
            xyxy[indices] = completed
            for index, track in zip(indices, matched, strict=True):
                track.see(found.open_edges[index], float(boxes.scores[index]), int(boxes.labels[index]), captured_ns)
                numbers[index], labels[index] = track.number, track.label
        # After the matching, a further piece of a matched object must not begin a track of its own.
        told = self._without_further_pieces(found, xyxy, numbers)
        for index in told:
            numbers[index] = numbers[index] or self._begin(found, index, captured_ns)
        unseen = [track for track in before if track.seen_ns != captured_ns]
        known = self._unlooked(unseen, captured_ns, looked)
        self._updated_ns = captured_ns
        together = Boxes(xyxy, boxes.scores, labels).take(np.array(told, np.intp))
        numbers = [numbers[index] for index in told]
        if not known:
            return Known(together, numbers, [0] * len(numbers))
        moved_on = _expected(known, captured_ns)
        return _sorted(together, moved_on.boxes, numbers + moved_on.tracks, [0] * len(numbers) + moved_on.ages_ns)

    def known(self, captured_ns: int) -> Known:
        """Return the objects known to be in a frame to which :meth:`follow` has moved them."""
        tracks = [
            track
            for track in self._tracks
            # Those found in the last update are told at least once, even if their appearance was lost at once.
            if not track.missing and (track.is_placed(captured_ns) or track.seen_ns == self._updated_ns)
        ]
        known = _expected(tracks, captured_ns)
        return _sorted(known.boxes, no_boxes(), known.tracks, known.ages_ns)

    def follow(self, pixels: Pixels, captured_ns: int) -> None:
        """Move the tracked objects to where they appear in a frame, before the model runs on a part of it."""
        self._forget(captured_ns)
        # Follow the most certain objects only, to bound the time of a crowded frame.
        tracks = sorted(self._tracks, key=lambda track: -track.score)[:FOLLOWED]
        found: list[Track] = []
        places: list[Floats] = []
        for track, place in zip(tracks, expected_boxes(tracks, captured_ns), strict=True):
            if track.sight is None:
                continue
            now_at = track.sight.find(pixels, place, (captured_ns - track.at_ns) * 1e-9)
            if now_at is not None:
                found.append(track)
                places.append(now_at)
        if found:
            move(found, np.stack(places), np.ones((len(found), 4), np.bool_), captured_ns)

    def remember(self, pixels: Pixels, captured_ns: int) -> None:
        """Save the appearance of the objects found or followed in a frame. Call it after the update."""
        for track in self._tracks:
            # An object that was followed may be found too, so its appearance is taken once, here.
            if track.at_ns == captured_ns:
                track.sight = look_at(pixels, track.xyxy)

    def expected(self, captured_ns: int) -> tuple[Floats, Flags]:
        """Return the expected boxes of all tracked objects, ``(n, 4)``, and which of their edges are unknown."""
        if not self._tracks:
            return no_boxes().xyxy, np.zeros((0, 4), np.bool_)
        return expected_boxes(self._tracks, captured_ns), np.stack([track.open_edges for track in self._tracks])

    def to_state(self) -> dict[str, Any]:
        """Return the state from which a successor resumes the same numbers, as plain values."""
        return {
            "epoch": self.epoch,
            "last_number": self._last_number,
            "tracks": [track.to_state() for track in self._tracks],
        }

    def resume(self, state: dict[str, Any]) -> None:
        """Resume from the state of another tracker with the same labels.

        Raises:
            ValueError, TypeError, KeyError: ``state`` is not a return value of :meth:`to_state`.
        """
        tracks = [Track.from_state(one, self.groups) for one in state["tracks"]]
        # Assign at the end, so that a malformed state changes nothing.
        self.epoch, self._last_number, self._tracks = int(state["epoch"]), int(state["last_number"]), tracks

    def _without_further_pieces(self, found: Merged, xyxy: Floats, numbers: list[int]) -> list[int]:
        """Return the indices of the boxes, without further pieces of objects that another piece was matched with.

        An object across three tiles of which only the outer two were processed shows two pieces that do not touch.
        """
        matched = np.flatnonzero(numbers)
        common = intersections(found.boxes.xyxy, xyxy[matched])
        inside = common > PIECE_INSIDE * areas(found.boxes.xyxy)[:, None]
        groups = self.groups[found.boxes.labels]
        inside &= groups[:, None] == groups[None, matched]
        further = np.asarray(found.open_edges.any(axis=1) & inside.any(axis=1))
        return [index for index, number in enumerate(numbers) if number or not further[index]]

    def _begin(self, found: Merged, index: int, captured_ns: int) -> int:
        self._last_number += 1
        boxes = found.boxes
        label, score = int(boxes.labels[index]), float(boxes.scores[index])
        self._tracks.append(
            Track(
                number=self._last_number,
                group=int(self.groups[label]),
                xyxy=boxes.xyxy[index],
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
        def remembered(track: Track) -> bool:
            limit_s = self.memory_s if track.missing else max(self.memory_s, self.unseen_s)
            # An age below 0 means that the clock ran back: the time since the sighting is then unknown.
            return 0 <= captured_ns - track.seen_ns <= limit_s * 1e9

        self._tracks = [track for track in self._tracks if remembered(track)]

    def _unlooked(self, unseen: list[Track], captured_ns: int, looked: Floats | None) -> list[Track]:
        """Mark the objects that were searched for as missing. Return the others whose expected position is trusted."""
        if not unseen:
            return []
        if looked is None:
            shares = np.ones(len(unseen))
        else:
            places = expected_boxes(unseen, captured_ns)
            # Tiles overlap, so use the largest share inside a single tile.
            common = intersections(places, looked).max(axis=1, initial=0)
            shares = common / np.maximum(areas(places), np.float32(1e-6))
        for track, share in zip(unseen, shares, strict=True):
            track.missing = track.missing or bool(share >= LOOKED_SHARE)
        return [track for track in unseen if not track.missing and track.is_placed(captured_ns)]

    def _pairs(self, found: Merged, captured_ns: int) -> tuple[list[int], list[Track], Floats]:
        """Match boxes and objects, the nearest first. Return index, track and completed box of each match."""
        boxes = found.boxes
        if not self._tracks or not len(boxes):
            return [], [], no_boxes().xyxy
        places, open_edges = self.expected(captured_ns)
        # Compare each box and object as if neither were cut: an open edge of one takes the other's position.
        completed = _complete(boxes.xyxy[:, None], found.open_edges[:, None], places[None])
        awaited = _complete(places[None], open_edges[None], boxes.xyxy[:, None])
        nearness = distance_of_pairs(completed, awaited)
        groups = np.array([track.group for track in self._tracks])
        # Rivals may match, because the model confuses their labels; all others never do.
        near = (nearness >= self.threshold) & (self.groups[boxes.labels][:, None] == groups[None, :])
        indices, rows = np.nonzero(near)
        # Match greedily, the nearest pair first.
        order = np.argsort(-nearness[indices, rows], kind="stable")
        taken: dict[int, int] = {}
        taken_rows: set[int] = set()
        for index, row in zip(indices[order].tolist(), rows[order].tolist(), strict=True):
            if index not in taken and row not in taken_rows:
                taken[index] = row
                taken_rows.add(row)
        matched = list(taken.values())
        return list(taken), [self._tracks[row] for row in matched], completed[list(taken), matched]


def _complete(xyxy: Floats, open_edges: Flags, others: Floats) -> Floats:
    """Extend the open edges of boxes to those of the other box of each pair: ``(boxes, tracks, 4)``."""
    outer = np.concatenate(
        [np.minimum(xyxy[..., :2], others[..., :2]), np.maximum(xyxy[..., 2:], others[..., 2:])], axis=-1
    )
    completed: Floats = np.where(open_edges, outer, xyxy).astype(np.float32)
    return completed


def _expected(tracks: list[Track], captured_ns: int) -> Known:
    """Return where tracked objects are expected."""
    boxes = Boxes(
        expected_boxes(tracks, captured_ns),
        np.array([track.score for track in tracks], np.float32),
        np.array([track.label for track in tracks], np.intp),
    )
    return Known(boxes, [track.number for track in tracks], [captured_ns - track.seen_ns for track in tracks])


def _sorted(first: Boxes, second: Boxes, tracks: list[int], ages_ns: list[int]) -> Known:
    boxes = Boxes(
        np.concatenate([first.xyxy, second.xyxy]),
        np.concatenate([first.scores, second.scores]),
        np.concatenate([first.labels, second.labels]),
    )
    order = np.argsort(-boxes.scores, kind="stable")
    return Known(boxes.take(order), [tracks[index] for index in order], [ages_ns[index] for index in order])
