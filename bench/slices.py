"""Compares tiles with detection on the whole frame, and with SAHI: ``python -m bench.slices [--sahi PYTHON]``.

All use the same model and the same tiles, on the simulator's panoramas with their truth. Panoramas and tiles are taken
at full size, and then smaller. The ways take turns in random order, and a line compares the times of neighbouring turns
of tiles and SAHI. PYTHON is that of another environment, because SAHI installs another OpenCV: ``pip
install sahi onnxruntime``, and what ``framebus-services[detector]`` needs, except OpenCV.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np

from bench.detect import MATCH, OVERLAP_PX, ROOT, TILE_PX, find, panoramas
from bench.results import Ratio
from services.common.config import LogSection
from services.common.logs import set_up_logs
from services.detector.boxes import Floats, intersection_over_union
from services.detector.config import DetectorSection
from services.detector.models.model import Model, load_model
from services.detector.tiles import Pixels

SCALES: Final = (1.0, 0.5)
ROUNDS: Final = 20
WHOLE, TILES, SAHI = "whole frame", "tiles", "SAHI, the same tiles"


@dataclass(frozen=True, slots=True)
class Look:
    """The boxes found in a picture, and the time that it took."""

    boxes: Floats
    cpu_s: float
    wall_s: float


class SahiWorker:
    """A process of SAHI's environment that finds people in its slices, with one thread as the detector has."""

    def __init__(self, python: str, tile_px: int, overlap_px: int) -> None:
        command = [python, "-m", "bench.sahi_worker", str(tile_px), str(overlap_px)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> SahiWorker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def look(self, path: Path) -> Look:
        """Return what is found in a picture, a ``.npy`` file."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):  # it has ended: its output ends too
            print(path, file=self._process.stdin, flush=True)
        # SAHI and its libraries may print other lines.
        for line in self._process.stdout:
            if line.startswith("{"):
                one: dict[str, Any] = json.loads(line)
                return Look(np.array(one["boxes"], np.float32).reshape(-1, 4), one["cpu_s"], one["wall_s"])
        raise SystemExit(f"SAHI's process ended with status {self._process.wait()}: see its lines above")


def timed(find_people: Callable[[], Floats]) -> Look:
    """Find people, and measure the time."""
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    boxes = find_people()
    return Look(boxes, time.process_time() - cpu_s, time.perf_counter() - wall_s)


def in_turns(ways: Mapping[str, Callable[[int], Look]], pictures: int, rounds: int) -> dict[str, list[Look]]:
    """Look at each picture in each way, in random order, so that other load meets all ways alike.

    Args:
        ways: Functions of the picture's number, by name.
        pictures: Number of pictures.
        rounds: Number of passes over the pictures, after one that only warms the caches.

    Returns:
        The looks by way, in the order of rounds and pictures.
    """
    looks: dict[str, list[Look]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for number in range(pictures):
            for name in random.sample(list(ways), len(ways)):
                look = ways[name](number)
                if turn:
                    looks[name].append(look)
    return looks


def compared(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Return the geometric mean of the ratios of times, with its 95 % interval."""
    return "{:.3f} ({:.3f} to {:.3f})".format(*Ratio.of(ours, theirs))


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
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"turns with each picture; default {ROUNDS}")
    options = parser.parse_args()
    if options.rounds < 1:  # the caches are warmed before the first
        parser.error("at least 1 round is needed")
    cv2.setNumThreads(1)
    set_up_logs("bench", LogSection(level="error"))
    model, views = load_model(DetectorSection()), panoramas()
    ratios: list[str] = []
    print("| | people | recall | precision | CPU-ms a panorama | ms |")
    print("| --- | --- | --- | --- | --- | --- |")
    for scale in SCALES:
        pictures = [
            cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA).astype(np.uint8)
            for pixels, _ in views
        ]
        truth = [people * np.float32(scale) for _, people in views]
        with ExitStack() as stack:
            looks = in_turns(_ways(stack, model, pictures, scale, options.sahi), len(pictures), options.rounds)
        for name, several in looks.items():
            print(f"| {name} | 1/{round(1 / scale)} | {row(several, truth * options.rounds)} |", flush=True)
        if options.sahi:
            ours, theirs = looks[TILES], looks[SAHI]
            cpu = compared([look.cpu_s for look in ours], [look.cpu_s for look in theirs])
            wall = compared([look.wall_s for look in ours], [look.wall_s for look in theirs])
            ratios.append(f"1/{round(1 / scale)}: tiles by SAHI, in {len(ours)} turns: CPU {cpu}, clock {wall}")
    print("", *ratios, sep="\n")


def _ways(
    stack: ExitStack, model: Model, pictures: Sequence[Pixels], scale: float, sahi: str | None
) -> dict[str, Callable[[int], Look]]:
    """Return the ways to find people in a picture, by name."""
    tile_px, overlap_px = round(TILE_PX * scale), round(OVERLAP_PX * scale)
    ways: dict[str, Callable[[int], Look]] = {
        WHOLE: lambda number: timed(lambda: whole(model, pictures[number])),
        TILES: lambda number: timed(lambda: find(model, pictures[number], tile_px, overlap_px)),
    }
    if sahi:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for number, pixels in enumerate(pictures):
            np.save(folder / f"{number}.npy", pixels)
        worker = stack.enter_context(SahiWorker(sahi, tile_px, overlap_px))
        ways[SAHI] = lambda number: worker.look(folder / f"{number}.npy")
    return ways


if __name__ == "__main__":
    main()
