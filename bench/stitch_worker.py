"""Renders panoramas on request, with the stitcher of the source tree that is on PYTHONPATH.

Each request is a line of JSON on the standard input, and so is each answer on the standard output.
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
        choice = {"renderer": task["renderer"]} if "renderer" in task else {}  # not every source tree has this
        self._stitcher = Stitcher(Calibration(poses), *self._size_px, pool=self._pool, parts=THREADS, **choice)
        self._converters = [Converter() for _ in poses]
        self._out = np.zeros((task["height_px"], task["width_px"], 3), np.uint8)
        clips = [decode(Path(task["folder"]) / f"{pose.name}.ts", task["sets"]) for pose in poses]
        self._sets = {"yuv420p": list(zip(*clips, strict=True))}

    def can(self, request: dict[str, Any]) -> bool:
        """Return whether the stitcher of this source tree can do what is requested."""
        return request["exposure"] is None or hasattr(self._stitcher, "set_exposure")

    def render(self, request: dict[str, Any]) -> tuple[float, float]:
        """Return the seconds of CPU and of the clock for a panorama from frames with this format and these tags."""
        sets = self._frames(request["format"])
        if hasattr(self._stitcher, "set_exposure"):
            from services.stitcher.rendering.exposure import Exposure  # not every source tree has this

            count = len(self._poses)
            exposure, wanted = Exposure.neutral(count), request["exposure"]
            if wanted is not None:
                exposure = Exposure(np.array(wanted["gains"]), np.array(wanted.get("lens", exposure.lens)))
            self._stitcher.set_exposure(exposure)
        for frames in sets:
            for frame in frames:
                frame.colorspace, frame.color_range = request["matrix"], request["range"]
        # Measure only conversion and rendering. Decoding is a candidate of its own.
        start_s, start_cpu_s = time.perf_counter(), time.process_time()
        for frames in sets:
            jobs = list(zip(self._converters, frames, self._poses, strict=True))
            pictures = list(self._pool.map(lambda job: job[0].planes(job[1], job[2].width_px, job[2].height_px), jobs))
            self._stitcher.render(pictures, self._out)
        return (time.process_time() - start_cpu_s) / len(sets), (time.perf_counter() - start_s) / len(sets)

    def _frames(self, pixel_format: str) -> list[tuple[VideoFrame, ...]]:
        if pixel_format not in self._sets:
            decoded = self._sets["yuv420p"]
            # Converted once, outside the measurement, as a camera would send them.
            self._sets[pixel_format] = [
                tuple(one.reformat(format=pixel_format) for one in frames) for frames in decoded
            ]
        return self._sets[pixel_format]


def decode(path: Path, count: int) -> list[VideoFrame]:
    """Return the first frames of a clip."""
    with av.open(str(path)) as container:
        return [frame for _, frame in zip(range(count), container.decode(video=0), strict=False)]


def main() -> None:
    """Answer requests until the input ends."""
    worker = Worker(json.loads(sys.stdin.readline()))
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answer = None
        if worker.can(request):
            answer = worker.render(request)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
