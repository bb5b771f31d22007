"""Which pictures are damaged: those that were decoded from damaged data, and those that are built upon them."""

from __future__ import annotations

from enum import Enum

NS = 1_000_000_000


class Verdict(Enum):
    """What becomes of a picture."""

    WHOLE = "whole"
    DAMAGED = "damaged"
    """It is handed on, and says that it is damaged."""
    HELD = "held"
    """It is not handed on."""


class DamageFilter:
    """Follows the damage through one camera's pictures. Owned by one thread.

    A decoder flags only the picture whose data was damaged. The next ones refer to it, so the damage stays until a key
    frame that is whole.

    Args:
        hold: Whether damaged pictures are held back.
        longest_s: How long at most; a stream that refreshes itself by parts has no key frames.
    """

    def __init__(self, *, hold: bool, longest_s: float) -> None:
        self.frames = 0
        """Damaged pictures, those built upon damaged ones included."""
        self.since_ns: int | None = None
        """When the damage began; ``None`` while the pictures are whole."""
        self._hold = hold
        self._longest_ns = round(longest_s * NS)

    def reset(self) -> None:
        """Forget the damage: another connection begins."""
        self.since_ns = None

    def lose(self, now_ns: int) -> None:
        """Take note of a packet that could not be decoded: pictures refer to what was in it."""
        if self.since_ns is None:
            self.since_ns = now_ns

    def judge(self, *, corrupt: bool, key_frame: bool, now_ns: int) -> Verdict:
        """Judge the next picture.

        Args:
            corrupt: Whether the decoder or the demultiplexer flags it.
            key_frame: Whether it refers to no other.
            now_ns: CLOCK_MONOTONIC.
        """
        if not corrupt and (key_frame or self.since_ns is None):
            self.since_ns = None
            return Verdict.WHOLE
        self.lose(now_ns)
        assert self.since_ns is not None
        self.frames += 1
        return Verdict.HELD if self._hold and now_ns - self.since_ns < self._longest_ns else Verdict.DAMAGED
