"""Compares tiles with detection on the whole frame, and with SAHI: ``python -m bench.slices [--sahi PYTHON]``.

All use the same model and the same tiles, on the simulator's panoramas with their truth. Panoramas and tiles are taken
at full size, and then smaller. PYTHON is that of another environment, because SAHI installs another OpenCV: ``pip
install sahi onnxruntime``, and what ``framebus-services[detector]`` needs, except OpenCV.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np

from bench.detect import MATCH, OVERLAP_PX, ROOT, TILE_PX, find, panoramas
from services.common.config import LogSection
from services.common.logs import set_up_logs
from services.detector.boxes import Floats, intersection_over_union
from services.detector.config import DetectorSection
from services.detector.models.model import Model, load_model
from services.detector.tiles import Pixels

SCALES: Final = (1.0, 0.5)


@dataclass(frozen=True, slots=True)
class Look:
    """The boxes found in a picture, and the time that it took."""

    boxes: Floats
    cpu_s: float
    wall_s: float


def timed(look: Callable[[], Floats]) -> Look:
    """Detect once without measuring, to warm the caches, and once with."""
    look()
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    boxes = look()
    return Look(boxes, time.process_time() - cpu_s, time.perf_counter() - wall_s)


def by_sahi(python: str, pictures: Sequence[Pixels], tile_px: int, overlap_px: int) -> list[Look]:
    """Return what SAHI finds, in a process of its environment."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder) / f"{number}.npy") for number in range(len(pictures))]
        for path, pixels in zip(paths, pictures, strict=True):
            np.save(path, pixels)
        command = [python, "-m", "bench.sahi_worker", *paths, str(tile_px), str(overlap_px)]
        # One thread, as the detector has, so that the CPU times can be compared.
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    # SAHI and its libraries may print other lines.
    told: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return [Look(np.array(one["boxes"], np.float32).reshape(-1, 4), one["cpu_s"], one["wall_s"]) for one in told]


def row(looks: Sequence[Look], truth: Sequence[Floats]) -> str:
    """Return recall, precision and the medians of the times, as cells of a table."""
    hits = right = found = 0
    for look, people in zip(looks, truth, strict=True):
        overlap = intersection_over_union(people, look.boxes) > MATCH
        hits += int(overlap.any(axis=1).sum())
        right += int(overlap.any(axis=0).sum())
        found += len(look.boxes)
    cpu_ms, wall_ms = (statistics.median(getattr(look, name) for look in looks) * 1e3 for name in ("cpu_s", "wall_s"))
    recall = hits / max(1, sum(len(people) for people in truth))
    return f"{recall:.2f} | {right / max(1, found):.2f} | {cpu_ms:.0f} | {wall_ms:.0f}"


def whole(model: Model, pixels: Pixels) -> Floats:
    """Return the people that the model finds in the whole frame at once."""
    (boxes,) = model.detect([pixels])
    return boxes.take(boxes.labels == model.labels.index("person")).xyxy


def main() -> None:
    """Compare the ways to detect people in a panorama."""
    parser = argparse.ArgumentParser(prog="python -m bench.slices", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sahi", metavar="PYTHON", help="the Python of an environment that has SAHI")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    set_up_logs("bench", LogSection(level="error"))
    model, views = load_model(DetectorSection()), panoramas()
    print("| | people | recall | precision | CPU-ms a panorama | ms |")
    print("| --- | --- | --- | --- | --- | --- |")
    for scale in SCALES:
        pictures = [
            cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA).astype(np.uint8)
            for pixels, _ in views
        ]
        truth = [people * np.float32(scale) for _, people in views]
        tile_px, overlap_px = round(TILE_PX * scale), round(OVERLAP_PX * scale)
        ways: dict[str, Callable[[Pixels], Floats]] = {
            "whole frame": lambda pixels: whole(model, pixels),
            "tiles": lambda pixels, tile_px=tile_px, overlap_px=overlap_px: find(  # type: ignore[misc]
                model, pixels, tile_px, overlap_px
            ),
        }
        for name, look in ways.items():
            looks = [timed(lambda pixels=pixels, look=look: look(pixels)) for pixels in pictures]  # type: ignore[misc]
            print(f"| {name} | 1/{round(1 / scale)} | {row(looks, truth)} |", flush=True)
        if options.sahi:
            looks = by_sahi(options.sahi, pictures, tile_px, overlap_px)
            print(f"| SAHI, the same tiles | 1/{round(1 / scale)} | {row(looks, truth)} |")


if __name__ == "__main__":
    main()
