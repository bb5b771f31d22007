"""How old a picture is, and what that makes of it: one rule for the page, the health checks and every picture.

The age counts from the capture. A frame that is handed out again, by a publisher that adopts a ring or to a viewer that
comes late, is as old as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """What a viewer is told of the picture."""

    LIVE = "live"
    DELAYED = "delayed"
    """Shown, with its age."""
    STALE = "stale"
    """Not served any more; a page that shows it dims it."""
    ABSENT = "absent"
    """There is no picture: no stream, no frame yet, or one that cannot be shown."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Ages at which the state changes, in seconds."""

    delayed_s: float
    stale_s: float

    def judge(self, age_s: float) -> State:
        """Return the state of a picture that was captured ``age_s`` seconds ago."""
        if age_s < self.delayed_s:
            return State.LIVE
        return State.DELAYED if age_s < self.stale_s else State.STALE


@dataclass(frozen=True, slots=True)
class Freshness:
    """The state of the stream's newest frame at one moment."""

    state: State
    reason: str
    """Why the state is stale or absent, in one sentence; empty otherwise."""
    age_s: float | None
    """Seconds since the newest frame was captured; ``None`` without a frame."""

    @property
    def served(self) -> bool:
        """Whether the picture may be handed out."""
        return self.state in (State.LIVE, State.DELAYED)
