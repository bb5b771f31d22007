"""The cost of a tile beside its network is measured where the network runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest

from bench.tile_cost import TimedSession, measure
from services.detector.boxes import Boxes, no_boxes
from services.detector.config import DetectorSection
from services.detector.models.model import Model
from services.detector.tiles import Pixels

NETWORK_MS, BESIDE_MS = 10, 4


def work(ms: float) -> None:
    """Use the processor for this time."""
    until_s = time.thread_time() + ms / 1e3
    while time.thread_time() < until_s:
        pass


class Session:
    """A network that takes a known time."""

    runs = 0

    def run(self, names: list[str], feeds: dict[str, Any]) -> list[Any]:
        assert names
        assert feeds
        self.runs += 1
        work(NETWORK_MS)
        return []


class Busy:
    """A model that works for a known time beside its network."""

    name, version = "busy", "1"
    labels = ("person",)
    input_px, batch, rejected_boxes = (480, 480), 1, 0

    def __init__(self, session: TimedSession) -> None:
        self._session = session

    def detect(self, tiles: Sequence[Pixels]) -> list[Boxes]:
        work(BESIDE_MS)
        self._session.run(["boxes"], {"image": tiles[0]})
        return [no_boxes() for _ in tiles]


def test_the_network_is_told_from_the_work_beside_it() -> None:
    network = Session()
    session = TimedSession(network)
    frames = [np.zeros((688, 1152, 3), np.uint8)] * 3
    cost = measure(DetectorSection().without_budget(), cast(Model, Busy(session)), session, frames)
    assert cost.network_ms == pytest.approx(NETWORK_MS, rel=0.5)
    assert cost.alone_ms == pytest.approx(NETWORK_MS, rel=0.5)
    # The detector itself takes a part of a millisecond too.
    assert BESIDE_MS <= cost.beside_ms < NETWORK_MS
    assert cost.share == cost.beside_ms / cost.network_ms
    assert network.runs == 2 * 2 * len(frames), "two tiles of each frame, in the detector and alone"
