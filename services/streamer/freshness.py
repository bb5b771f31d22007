"""Judge a picture's age, by one rule for the page, the health checks and every picture.

The age counts from the capture, so a frame does not become younger if a publisher that adopts a ring, or a viewer that
joins late, delivers it again.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """State of the picture, as sent to viewers."""

    LIVE = "live"
    DELAYED = "delayed"
    """Shown, with its age."""
    STALE = "stale"
    """No longer served; a page that shows it dims it."""
    ABSENT = "absent"
    """No picture: no stream, no frame yet, or an unsupported frame."""


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
    """The state of the stream's newest frame at one instant."""

    state: State
    reason: str
    """Why the state is stale or absent, in one sentence; empty otherwise."""
    age_s: float | None
    """Seconds since the newest frame was captured; ``None`` without a frame."""

    @property
    def served(self) -> bool:
        """Whether the picture may be served."""
        return self.state in (State.LIVE, State.DELAYED)
