"""A result of ``framebus doctor``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

MIB: Final = 1 << 20

Level = Literal["ok", "note", "unknown", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """A result of a check of ``framebus doctor``."""

    level: Level
    """``note`` requires no action, ``unknown`` cannot be judged by this user, ``problem`` requires action."""
    what: str
    """What was found."""
    remedy: str = ""
    """What to do."""
