"""What the doctor says of a thing that it looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

MIB: Final = 1 << 20

Level = Literal["ok", "note", "unknown", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that the doctor saw."""

    level: Level
    """``note`` needs nothing done, ``unknown`` cannot be judged by this user, ``problem`` needs something done."""
    what: str
    """What was seen."""
    remedy: str = ""
    """What to do."""
