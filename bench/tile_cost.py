"""Measures what the detector costs in addition to its network: ``python -m bench.tile_cost``.

The detector processes every tile of panoramas of the simulator in a row, in this thread: activity, following, resizing,
network, boxes, merging, tracking. Each run of the network is timed where the detector calls it. The rest of the
detector's CPU time is the cost beside the network, so both are measured in the same milliseconds.

In turns with the detector, the network runs as often by itself on the last tile. If it is much cheaper then, the other
work slows the network down, for example by displacing its data from the caches.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import cv2

from bench.detect import panorama
from services.common.config import LogSection
from services.common.logs import set_up_logs
from services.detector.config import DetectorSection
from services.detector.detector import Detector
from services.detector.models.model import Model, load_model
from services.detector.tiles import Pixels
from services.simulator.config import SimulatorSection
from services.simulator.scene import scene

FRAMES: Final = 10
ROUNDS: Final = 5
FPS: Final = 5
VISIBLE: Final = 0.3


class TimedSession:
    """An ``onnxruntime.InferenceSession`` that adds up the CPU time of its runs."""

    def __init__(self, session: Any) -> None:
        self.cpu_ns = 0
        self.last: tuple[Any, ...] = ()
        """Arguments of the last run."""
        self._session = session

    def run(self, *arguments: Any) -> Any:
        self.last = arguments
        started_ns = time.thread_time_ns()
        outputs = self._session.run(*arguments)
        self.cpu_ns += time.thread_time_ns() - started_ns
        return outputs


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU-ms of a tile."""

    network_ms: float
    beside_ms: float
    alone_ms: float
    """The network by itself."""

    @property
    def share(self) -> float:
        """The cost beside the network, as a share of the network's."""
        return self.beside_ms / self.network_ms


def measure(section: DetectorSection, model: Model, session: TimedSession, frames: Sequence[Pixels]) -> Cost:
    """Process the frames with a new detector. Return the median cost of a tile over all frames but the first.

    Args:
        section: The configuration.
        model: The model, which runs on ``session``.
        session: Its session.
        frames: The panoramas; the first one only begins the tracks.
    """
    detector = Detector(section, model, threading.Event())
    costs = []
    for number, pixels in enumerate(frames):
        session.cpu_ns = 0
        started_ns = time.thread_time_ns()
        tiles = detector.detect(pixels, number * 10**9 // FPS + 1).looked
        whole_ns, network_ns = time.thread_time_ns() - started_ns, session.cpu_ns
        session.cpu_ns = 0
        for _ in range(tiles):
            session.run(*session.last)
        costs.append([ns / tiles / 1e6 for ns in (network_ns, whole_ns - network_ns, session.cpu_ns)])
    return Cost(*(statistics.median(column) for column in zip(*costs[1:], strict=True)))


def main() -> None:
    """Measure, and print the medians."""
    parser = argparse.ArgumentParser(prog="python -m bench.tile_cost", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--frames", type=int, default=FRAMES, help=f"panoramas, at least 2; default {FRAMES}")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"passes over the panoramas; default {ROUNDS}")
    options = parser.parse_args()
    if options.frames < 2 or options.rounds < 1:  # the first panorama is not counted
        parser.error("at least 2 panoramas and 1 round are needed")
    cv2.setNumThreads(1)
    set_up_logs("bench", LogSection(level="error"))
    simulator = SimulatorSection()
    stage = scene(simulator)
    frames = [
        panorama(simulator, stage, number * 25 // FPS % simulator.frames, VISIBLE)[0]
        for number in range(options.frames)
    ]
    section = DetectorSection().without_budget()
    model = load_model(section)
    session = model._session = TimedSession(model._session)
    costs = [measure(section, model, session, frames) for _ in range(options.rounds)]
    print(f"{options.frames} panoramas, {options.rounds} rounds; CPU-ms a tile, median (range) of the rounds:")
    print(f"network {_told([cost.network_ms for cost in costs])}, alone {_told([cost.alone_ms for cost in costs])}")
    print(f"beside it {_told([cost.beside_ms for cost in costs])}")
    shares = [cost.share for cost in costs]
    print(f"share of the network {statistics.median(shares):.1%} ({min(shares):.1%} to {max(shares):.1%})")


def _told(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
