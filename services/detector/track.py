"""Tracked objects: where they are expected to be, and which label each has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from services.detector.boxes import Flags, Floats, Integers
from services.detector.sight import Sight

SMOOTHING_S = 0.4
"""Time constant of the velocity's smoothing: the model's boxes jitter even around an object that stands still."""
VOTES_KEPT = 0.8
"""Weight of the earlier sightings in an object's label, so that a few consecutive sightings can change it."""
PLACED_S = 0.5
"""Time for which the expected position of a moving object is trusted without a sighting."""
STILL = 0.25
"""Expected movement, as a share of the width, below which the position is trusted for longer."""


@dataclass(slots=True)
class Track:
    """A tracked object: its movement, its label, and when it was seen. Owned by a tracker."""

    number: int
    group: int
    xyxy: Floats
    velocity: Floats
    """Velocity of the centre, in pixels per second."""
    seen_ns: int
    score: float
    votes: dict[int, float]
    """Score of each label that it had, decayed by :data:`VOTES_KEPT` at each sighting."""
    open_edges: Flags
    """Which of its edges are a tile's."""
    at_ns: int
    """When it was at ``xyxy``, by a sighting of the model or by its appearance."""
    missing: bool = False
    """Whether the model ran on its position and did not find it since the last sighting."""
    seen: int = 1
    sight: Sight | None = None

    @property
    def label(self) -> int:
        """The label with the largest accumulated score."""
        return max(self.votes, key=self.votes.__getitem__)

    def see(self, open_edges: Flags, score: float, label: int, now_ns: int) -> None:
        """Record a sighting by the model, to which :func:`move` has moved it."""
        self.seen += 1
        self.score = score
        self.open_edges = open_edges & self.open_edges
        self.seen_ns = now_ns
        self.missing = False
        # The labels of one object change between rivals, so the label with the largest decayed score counts.
        self.votes = {known: votes * VOTES_KEPT for known, votes in self.votes.items()}
        self.votes[label] = self.votes.get(label, 0.0) + (1 - VOTES_KEPT) * score

    def is_placed(self, now_ns: int) -> bool:
        """Return whether its expected position is trustworthy."""
        elapsed_s = (now_ns - self.at_ns) * 1e-9
        moved_px = float(np.hypot(*self.velocity)) * elapsed_s
        # A slow object is still near its expected position after a longer time: it has moved by a part of its width
        # only.
        return elapsed_s <= PLACED_S or moved_px <= STILL * float(self.xyxy[2] - self.xyxy[0])

    def to_state(self) -> dict[str, Any]:
        """Return its state as plain values."""
        return {
            "number": self.number,
            "corners": self.xyxy.tolist(),
            "velocity": self.velocity.tolist(),
            "seen_ns": self.seen_ns,
            "at_ns": self.at_ns,
            "score": self.score,
            "votes": [[label, votes] for label, votes in self.votes.items()],
            "seen": self.seen,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any], groups: Integers) -> Track:
        """Return the track of a state.

        Args:
            state: Return value of :meth:`to_state`.
            groups: For each label, the number of its group of rivals.

        Raises:
            ValueError, TypeError, KeyError, IndexError: ``state`` is not a return value of :meth:`to_state`.
        """
        return cls(
            number=int(state["number"]),
            group=int(groups[max(state["votes"], key=lambda vote: vote[1])[0]]),
            xyxy=np.array(state["corners"], np.float32).reshape(4),
            velocity=np.array(state["velocity"], np.float32).reshape(2),
            seen_ns=int(state["seen_ns"]),
            at_ns=int(state["at_ns"]),
            score=float(state["score"]),
            votes={int(label): float(votes) for label, votes in state["votes"]},
            # The state does not hold the open edges, so take the box as complete.
            open_edges=np.zeros(4, np.bool_),
            seen=int(state["seen"]),
        )


def expected_boxes(tracks: Sequence[Track], now_ns: int) -> Floats:
    """Return the boxes of tracks at an instant, ``(n, 4)``, if they continue their movement."""
    if not tracks:
        return np.zeros((0, 4), np.float32)
    elapsed_s = np.array([(now_ns - track.at_ns) * 1e-9 for track in tracks], np.float32)
    shift = np.concatenate([track.velocity for track in tracks]).reshape(-1, 2) * elapsed_s[:, None]
    moved: Floats = np.concatenate([track.xyxy for track in tracks]).reshape(-1, 4) + np.tile(shift, 2)
    return moved


def move(tracks: Sequence[Track], xyxy: Floats, measured: Flags, now_ns: int) -> None:
    """Move tracks to where they are now, and update their velocities.

    All tracks together, because each step of NumPy costs as much for one track as for all.

    Args:
        tracks: The tracks, each once.
        xyxy: Box of each: ``(n, 4)``.
        measured: Which edges of each box are the object's own: ``(n, 4)``.
        now_ns: The instant.
    """
    if not tracks:
        return
    elapsed_s = np.array([(now_ns - track.at_ns) * 1e-9 for track in tracks])[:, None]
    # Of each box, rows are the top left and the bottom right corner. The shift of an axis is the mean over its measured
    # edges; an axis without one keeps its velocity.
    sides = measured.reshape(-1, 2, 2)
    error = np.where(sides, (xyxy - expected_boxes(tracks, now_ns)).reshape(-1, 2, 2), 0).sum(axis=1)
    error /= np.maximum(sides.sum(axis=1), 1)
    # A track that is already there, or a clock that runs back, tells nothing about the velocity.
    forward = elapsed_s > 0
    weight = 1 - np.exp(-elapsed_s / SMOOTHING_S, where=forward, out=np.ones_like(elapsed_s))
    before = np.concatenate([track.velocity for track in tracks]).reshape(-1, 2)
    after = (before + weight * error / np.where(forward, elapsed_s, 1)).astype(np.float32)
    velocity = np.where(forward, after, before)
    for index, track in enumerate(tracks):
        track.velocity, track.xyxy, track.at_ns = velocity[index], xyxy[index], now_ns
