"""Measures what the detector costs in addition to its network: ``python -m bench.tile_cost``.

The detector processes every tile of the simulator's panoramas one after another, in this thread: activity, following,
resizing, network, boxes, merging, tracking. In turns with it, the network alone runs as often, on a prepared tensor.
The difference is divided by the number of tiles.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from typing import Any, Final

import cv2
import numpy as np

from bench.detect import GREY, ROOT, panorama
from services.common.config import LogSection
from services.common.logs import set_up_logs
from services.detector.config import DetectorSection
from services.detector.detector import Detector
from services.detector.models.inputs import read_inputs
from services.detector.models.model import load_model
from services.detector.models.onnx_file import inspect_file
from services.detector.models.session import open_session
from services.simulator.config import SimulatorSection
from services.simulator.scene import scene

FRAMES: Final = 30
FPS: Final = 5
VISIBLE: Final = 0.3


def main() -> None:
    """Measure, and print the medians."""
    parser = argparse.ArgumentParser(prog="python -m bench.tile_cost", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--frames", type=int, default=FRAMES, help=f"panoramas; default {FRAMES}")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    set_up_logs("bench", LogSection(level="error"))
    # Without a budget, so that every tile of every frame is processed.
    section = DetectorSection().without_budget()
    detector = Detector(section, load_model(section), threading.Event())
    folder = ROOT / "models/default"
    path = next(path for pattern in ("*.onnx", "*.ort") for path in sorted(folder.glob(pattern)))
    session = open_session(path, inspect_file(path), ())
    image, _others = read_inputs(path, session, None, {})
    dtype = np.uint8 if "uint8" in session.get_inputs()[0].type else np.float32
    feeds: dict[str, Any] = {image.name: np.full(image.shape, GREY, dtype)}
    simulator = SimulatorSection()
    stage = scene(simulator)
    whole_ms, network_ms = [], []
    for number in range(options.frames):
        pixels, _, _ = panorama(simulator, stage, number * 25 // FPS % simulator.frames, VISIBLE)
        started_s = time.thread_time()
        seen = detector.detect(pixels, number * 10**9 // FPS + 1)
        middle_s = time.thread_time()
        for _ in range(seen.looked):
            session.run(None, feeds)
        whole_ms.append((middle_s - started_s) * 1e3 / seen.looked)
        network_ms.append((time.thread_time() - middle_s) * 1e3 / seen.looked)
    # Leave out the first panorama: it fills the caches and the allocators.
    whole, network = statistics.median(whole_ms[1:]), statistics.median(network_ms[1:])
    print(f"{len(detector.tiles)} tiles, {options.frames} panoramas; medians of CPU-ms a tile:")
    print(f"all {whole:.2f}, network {network:.2f}, the rest {whole - network:.2f}: {whole / network - 1:.1%}")


if __name__ == "__main__":
    main()
