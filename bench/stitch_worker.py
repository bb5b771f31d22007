"""Renders panoramas when told to, with the stitcher of whatever source tree is on PYTHONPATH.

It reads a line of JSON a request from its standard input, and answers with one.
"""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from av.video.frame import VideoFrame

from services.stitcher.calibration.poses import Calibration, CameraPose
from services.stitcher.rendering.convert import Converter
from services.stitcher.rendering.stitch import Stitcher

THREADS = 2


class Worker:
    """The frames of all cameras, decoded, and a stitcher for them."""

    def __init__(self, task: dict[str, Any]) -> None:
        cv2.setNumThreads(1)  # as the service does
        poses = tuple(CameraPose(**pose) for pose in task["cameras"])
        self._pool = ThreadPoolExecutor(THREADS)
        self._size_px = task["width_px"], task["height_px"]
        self._poses = poses
        self._stitcher = Stitcher(Calibration(poses), *self._size_px, pool=self._pool, parts=THREADS)
        self._converters = [Converter() for _ in poses]
        self._out = np.zeros((task["height_px"], task["width_px"], 3), np.uint8)
        clips = [decode(Path(task["folder"]) / f"{pose.name}.ts", task["sets"]) for pose in poses]
        self._sets = list(zip(*clips, strict=True))

    def can(self, gains: list[list[float]] | None) -> bool:
        """Whether this tree's stitcher has what is asked for."""
        return gains is None or hasattr(self._stitcher, "set_exposure")

    def render(self, matrix: int, color_range: int, gains: list[list[float]] | None) -> tuple[float, float]:
        """Seconds of CPU and of the clock for a panorama, from decoded frames with these tags."""
        if hasattr(self._stitcher, "set_exposure"):
            from services.stitcher.rendering.exposure import Exposure  # which not every tree has

            count = len(self._poses)
            exposure = Exposure.neutral(count)
            if gains is not None:
                exposure = Exposure(np.array(gains), np.zeros((count, 2)))
            self._stitcher.set_exposure(exposure)
        for frames in self._sets:
            for frame in frames:
                frame.colorspace, frame.color_range = matrix, color_range
        start_s, start_cpu_s = time.perf_counter(), time.process_time()
        for frames in self._sets:
            jobs = list(zip(self._converters, frames, self._poses, strict=True))
            pictures = list(self._pool.map(lambda job: job[0].planes(job[1], job[2].width_px, job[2].height_px), jobs))
            self._stitcher.render(pictures, self._out)
        count = len(self._sets)
        return (time.process_time() - start_cpu_s) / count, (time.perf_counter() - start_s) / count


def decode(path: Path, count: int) -> list[VideoFrame]:
    """The first frames of a clip."""
    with av.open(str(path)) as container:
        return [frame for _, frame in zip(range(count), container.decode(video=0), strict=False)]


def main() -> None:
    """Answer until the input ends."""
    worker = Worker(json.loads(sys.stdin.readline()))
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answer = None
        if worker.can(request["gains"]):
            answer = worker.render(request["matrix"], request["range"], request["gains"])
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
