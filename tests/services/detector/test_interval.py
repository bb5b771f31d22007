"""Whether a newer frame is due."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from services.detector.interval import FrameInterval

MS = 1_000_000


def frame(sequence: int, age_ms: float, epoch: int = 1) -> Any:
    """A frame that was published some time ago."""
    return SimpleNamespace(epoch=epoch, sequence=sequence, published_ns=time.monotonic_ns() - round(age_ms * MS))


def test_without_a_rate_no_frame_is_due() -> None:
    interval = FrameInterval()
    assert not interval.has_passed_since(frame(1, 10_000))
    interval.observe(frame(1, 10_000))
    assert not interval.has_passed_since(frame(1, 10_000))


@pytest.mark.parametrize(("age_ms", "is_due"), [(20_000, False), (80_000, True)])
def test_a_frame_is_due_after_the_interval_of_the_last_ones(age_ms: float, is_due: bool) -> None:
    interval = FrameInterval()
    interval.observe(frame(5, 400_000))
    interval.observe(frame(9, 200_000))  # of four frames, this is the last: one every 50 s
    assert interval.has_passed_since(frame(9, age_ms)) is is_due


@pytest.mark.parametrize("second", [frame(9, 1, epoch=2), frame(5, 1), frame(4, 1)], ids=["epoch", "same", "earlier"])
def test_frames_of_other_publishers_or_out_of_order_tell_no_rate(second: Any) -> None:
    interval = FrameInterval()
    interval.observe(frame(5, 100_000))
    interval.observe(second)
    assert not interval.has_passed_since(frame(10, 50_000))
