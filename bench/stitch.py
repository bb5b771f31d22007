"""Measures what a panorama costs: ``python -m bench.stitch``.

Decoding, rendering, a copy of the panorama's size, and OpenCV's calibrated stitcher take turns in one run, so that
other work of the machine affects all of them. Compare the ratios: the baseline is OpenCV rendering 4:2:0 of BT.601,
limited range, without gains. With ``--before PATH``, the stitcher of another source tree takes turns too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import av
import cv2
import numpy as np

from services.simulator.config import SimulatorSection
from services.simulator.render import render as render_clips

ROOT: Final = Path(__file__).resolve().parent.parent
WORKER: Final = Path(__file__).with_name("stitch_worker.py")
SIZE_PX: Final = (4896, 688)
SETS: Final = 6
"""Sets of frames that are rendered in a turn: more than the caches can hold."""
BT601, BT709, LIMITED, FULL = 6, 1, 1, 2
SIGNALS: Final = {
    "BT.601": ("yuv420p", BT601, LIMITED),
    "BT.709": ("yuv420p", BT709, LIMITED),
    "BT.601 full range": ("yuv420p", BT601, FULL),
    "BT.709 4:2:2": ("yuv422p", BT709, LIMITED),
}
GREY_GAINS: Final = np.array([1.0, 0.8, 1.2, 0.9, 1.15])
TINTS: Final = np.array([(1.0, 1.0, 1.0), (1.08, 1.0, 0.93), (0.95, 1.0, 1.04), (1.0, 0.97, 1.0), (0.94, 1.02, 1.06)])
LENSES: Final = [[0.1 * camera, 0.05 * camera] for camera in range(5)]
"""Vignetting that differs so much between neighbours that it is corrected."""
Exposure = dict[str, list[list[float]]]
EXPOSURES: Final[dict[str, Exposure | None]] = {
    "": None,
    ", gains": {"gains": (GREY_GAINS[:, None] * np.ones(3)).tolist()},
    ", gains by colour": {"gains": (GREY_GAINS[:, None] * TINTS).tolist()},
    ", gains by colour, vignetting": {"gains": (GREY_GAINS[:, None] * TINTS).tolist(), "lens": LENSES},
}
BASELINE: Final = "OpenCV: render BT.601"


@dataclass(frozen=True)
class Row:
    """Medians of one candidate."""

    name: str
    cpu_ms: float
    wall_ms: float
    ratio: float
    """Median of the CPU time divided by the baseline's in the same round."""


class Renderer:
    """A process that renders with the stitcher of one source tree."""

    def __init__(self, tree: Path, task: dict[str, Any]) -> None:
        environment = {**os.environ, "PYTHONPATH": str(tree)}
        self._process = subprocess.Popen(
            # With -P, the worker's folder is not on the path: only PYTHONPATH decides which source tree is imported.
            [sys.executable, "-P", str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self._ask(task)

    def render(self, signal: tuple[str, int, int], exposure: Exposure | None) -> tuple[float, float] | None:
        """Return the seconds of CPU and of the clock for a panorama; ``None`` if that source tree has no gains."""
        pixel_format, matrix, color_range = signal
        request = {"format": pixel_format, "matrix": matrix, "range": color_range, "exposure": exposure}
        answer = self._ask(request)
        return None if answer is None else (answer[0], answer[1])

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _ask(self, request: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the renderer ended with status {self._process.wait()}; its error is above")
        return json.loads(line)


Candidate = Callable[[], "tuple[float, float] | None"]


def measure(
    section: SimulatorSection, size_px: tuple[int, int], rounds: int, before: Path | None, *, with_opencv: bool = True
) -> list[Row]:
    """Measure all candidates in turns.

    Args:
        section: The cameras, whose clips are rendered if they are not there yet.
        size_px: Width and height of the panorama.
        rounds: Turns of each candidate.
        before: Another source tree whose stitcher takes turns.
        with_opencv: Whether ``cv2.Stitcher`` takes turns.
    """
    # Encoded clips, because decoding is one of the candidates.
    folder = render_clips(section)
    task = {
        "folder": str(folder),
        "sets": SETS,
        "width_px": size_px[0],
        "height_px": size_px[1],
        "cameras": [
            {
                "name": camera.name,
                "width_px": camera.width_px,
                "height_px": camera.height_px,
                "focal_px": camera.focal_px,
                "center_x_px": (camera.width_px - 1) / 2,
                "center_y_px": (camera.height_px - 1) / 2,
                "rotation": _turned(camera.yaw_rad),
                "confidence": 2.0,
            }
            for camera in section.cameras
        ],
    }
    clips = [folder / f"{camera.name}.ts" for camera in section.cameras]
    with ExitStack() as stack:
        candidates: dict[str, Candidate] = {}
        ways: list[tuple[str, Path, dict[str, str]]] = [("", ROOT, {}), ("OpenCV: ", ROOT, {"renderer": "opencv"})]
        if before is not None:
            ways.append(("before: ", before, {}))
        for prefix, tree, choice in ways:
            renderer = Renderer(tree, task | choice)
            stack.callback(renderer.close)
            for name, signal in SIGNALS.items():
                for suffix, exposure in EXPOSURES.items():
                    candidates[f"{prefix}render {name}{suffix}"] = _turn(renderer, signal, exposure)
        candidates["decode"] = lambda: _decode(clips)
        candidates["memcpy"] = _copying(size_px)
        if with_opencv:
            candidates["cv2.Stitcher.composePanorama"] = _composing(section)
        return _take_turns(candidates, rounds)


def _take_turns(candidates: dict[str, Candidate], rounds: int) -> list[Row]:
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in candidates}
    for turn in range(rounds + 1):  # the first turn only warms the caches and the allocators
        for name, candidate in candidates.items():
            taken = candidate()
            if turn and taken is not None:
                results[name].append(taken)
    baseline = [cpu_s for cpu_s, _ in results[BASELINE]]
    return [
        Row(
            name,
            1e3 * statistics.median(cpu_s for cpu_s, _ in taken),
            1e3 * statistics.median(wall_s for _, wall_s in taken),
            # Divide within a round, because other load on the machine changes from round to round.
            statistics.median(cpu_s / base_s for (cpu_s, _), base_s in zip(taken, baseline, strict=True)),
        )
        for name, taken in results.items()
        if taken
    ]


def _turn(renderer: Renderer, signal: tuple[str, int, int], exposure: Exposure | None) -> Candidate:
    return lambda: renderer.render(signal, exposure)


def _timed(work: Callable[[], object], count: int) -> tuple[float, float]:
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    work()
    return (time.process_time() - start_cpu_s) / count, (time.perf_counter() - start_s) / count


def _decode(clips: Sequence[Path]) -> tuple[float, float]:
    def decode() -> None:
        for clip in clips:
            with av.open(str(clip)) as container:
                # Stop after as many frames as are rendered, so that both figures are for the same work.
                for _ in zip(range(SETS), container.decode(video=0), strict=False):
                    pass

    return _timed(decode, SETS)


def _copying(size_px: tuple[int, int]) -> Candidate:
    width_px, height_px = size_px
    sources = [np.ones((height_px, width_px, 3), np.uint8) for _ in range(SETS)]
    target = np.zeros_like(sources[0])

    def copy() -> None:
        for source in sources:
            np.copyto(target, source)

    return lambda: _timed(copy, SETS)


def _composing(section: SimulatorSection) -> Candidate:
    """Return OpenCV's stitcher on pictures of noise, because it cannot place those of the simulator's street."""
    random = np.random.default_rng(1)
    scale_px, yaw_limit_rad, v_limit = section.cameras[0].focal_px, 2.0, 0.6
    width, height = round(2 * yaw_limit_rad * scale_px), round(2 * v_limit * scale_px)
    world = np.full((height, width, 3), 128, np.float32)
    for cell, strength in ((6, 10), (24, 25), (90, 30)):
        noise = random.standard_normal((height // cell + 2, width // cell + 2, 3)).astype(np.float32)
        world += strength * cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    pictures = []
    for camera in section.cameras:
        x, y = np.meshgrid(np.arange(camera.width_px), np.arange(camera.height_px))
        yaw, v = camera.direction(x.astype(np.float64), y.astype(np.float64))
        columns, rows = (yaw + yaw_limit_rad) * scale_px, (v + v_limit) * scale_px
        seen = cv2.remap(world, columns.astype(np.float32), rows.astype(np.float32), cv2.INTER_LINEAR)
        pictures.append(np.asarray(np.clip(seen, 0, 255), np.uint8))
    stitcher = cv2.Stitcher.create(cv2.Stitcher_PANORAMA)
    if stitcher.estimateTransform(pictures) != cv2.Stitcher_OK:
        raise RuntimeError("cv2.Stitcher cannot place the cameras")
    return lambda: _timed(lambda: stitcher.composePanorama(pictures), 1)


def _turned(yaw_rad: float) -> list[list[float]]:
    sine, cosine = float(np.sin(yaw_rad)), float(np.cos(yaw_rad))
    return [[cosine, 0.0, sine], [0.0, 1.0, 0.0], [-sine, 0.0, cosine]]


def table(rows: Sequence[Row]) -> str:
    """Return the rows as text."""
    width = max(len(row.name) for row in rows)
    lines = [f"{'':{width}}  CPU ms  wall ms  ratio"]
    lines += [f"{row.name:{width}}  {row.cpu_ms:6.2f}  {row.wall_ms:7.2f}  {row.ratio:5.2f}" for row in rows]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.stitch", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15, help="turns of each candidate")
    parser.add_argument("--before", type=Path, help="another source tree whose stitcher takes turns too")
    options = parser.parse_args(arguments)
    print(table(measure(SimulatorSection(duration_s=2), SIZE_PX, options.rounds, options.before)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
