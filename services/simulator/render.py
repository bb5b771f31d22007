"""Render the scene once: five clips and their truth, kept in a cache.

A finished render is a folder named by a hash of everything that it depends on. It is made under another name and
renamed when it is complete, so an interrupted render is never taken for a finished one; a lock lets one process at a
time render, and those that wait find the result.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import shutil
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import structlog

from services.common.service import ServiceError
from services.simulator import footage
from services.simulator.camera import Camera, Cylinder, lookup
from services.simulator.config import (
    FRAMES_PER_SECOND,
    HFOV_DEG,
    KEY_FRAME_INTERVAL,
    YAWS_DEG,
    SimulatorSection,
)
from services.simulator.footage import Picture
from services.simulator.scene import Drawn, Scene

FORMAT_VERSION = 1
"""Counted up when the same parameters give other clips or another truth than before."""
TRUTH = "truth.json"
BT601, LIMITED_RANGE = 6, 1
"""ISO/IEC 23091-2 colour matrix (SMPTE 170M) and range: what OpenCV's and FFmpeg's conversions take by default."""

log = structlog.get_logger()


class RenderStopped(ServiceError):
    """The service was told to stop before the clips were complete."""


def render(section: SimulatorSection, stop: threading.Event | None = None) -> Path:
    """Return the folder with the clips, rendering them first if it is missing.

    Args:
        section: The scene's and the clips' parameters.
        stop: When set, the render is given up at the next frame.

    Returns:
        Folder with ``cam0.ts`` to ``cam4.ts`` (MPEG-TS, H.264) and ``truth.json``.

    Raises:
        RenderStopped: ``stop`` was set.
        ServiceError: The cache cannot be written.
    """
    folder = section.cache_dir / cache_key(section)
    if folder.is_dir():
        return folder
    try:
        section.cache_dir.mkdir(parents=True, exist_ok=True)
        with _only_one(section.cache_dir / f"{folder.name}.lock", stop):
            if not folder.is_dir():
                _render_into(section, folder, stop)
    except OSError as error:
        raise ServiceError(
            f"The clips cannot be rendered into {section.cache_dir}: {error.strerror or error}. "
            "Set simulator.cache_dir to a folder that can be written."
        ) from error
    return folder


def cache_key(section: SimulatorSection) -> str:
    """Name of the folder: a hash of all that decides what the clips show."""
    parameters = section.model_dump(mode="json", exclude={"cache_dir", "host", "first_port"})
    told = json.dumps(
        [FORMAT_VERSION, FRAMES_PER_SECOND, YAWS_DEG, HFOV_DEG, parameters, _footage_hash()], sort_keys=True
    )
    return hashlib.sha256(told.encode()).hexdigest()[:16]


@functools.cache
def _footage_hash() -> str:
    return hashlib.sha256(footage.PATH.read_bytes()).hexdigest()


@contextmanager
def _only_one(path: Path, stop: threading.Event | None) -> Iterator[None]:
    """Hold a lock that the kernel drops with the process; wait for whoever holds it."""
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                _check(stop)
                (stop or threading.Event()).wait(0.1)
        yield


def _render_into(section: SimulatorSection, folder: Path, stop: threading.Event | None) -> None:
    for left_over in folder.parent.glob(f"{folder.name}.part-*"):
        shutil.rmtree(left_over, ignore_errors=True)
    part = Path(tempfile.mkdtemp(prefix=f"{folder.name}.part-", dir=folder.parent))
    try:
        log.info("rendering", folder=str(folder), frames=section.frames)
        part.chmod(0o755)
        _write(section, part, stop)
        part.rename(folder)
        log.info("rendered", folder=str(folder))
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write(section: SimulatorSection, folder: Path, stop: threading.Event | None) -> None:
    scene = Scene(section)
    frames_objects: list[list[dict[str, Any]]] = []
    with ExitStack() as stack:
        clips = [
            stack.enter_context(closing(Clip(folder / f"{camera.name}.ts", camera, scene, section.quality)))
            for camera in scene.cameras
        ]
        # A clip's frames come in order, as each has one thread; the clips themselves may be a few frames apart.
        threads = [stack.enter_context(ThreadPoolExecutor(1, f"render-{camera.name}")) for camera in scene.cameras]
        stages = [_Stage(scene.still.copy()) for _ in range(3)]
        for index in range(section.frames):
            _check(stop)
            stage = stages[index % len(stages)]
            stage.clear(scene)
            stage.drawn = scene.compose(index, stage.canvas)
            stage.busy = [
                thread.submit(clip.write, stage.canvas, stage.drawn)
                for clip, thread in zip(clips, threads, strict=True)
            ]
            frames_objects.append(scene.truth(stage.drawn))
        for stage in stages:
            stage.clear(scene)
    truth = {
        "fps": FRAMES_PER_SECOND,
        "frames": section.frames,
        "cameras": [
            {
                "name": camera.name,
                "yaw_deg": yaw,
                "hfov_deg": HFOV_DEG,
                "width_px": camera.width_px,
                "height_px": camera.height_px,
            }
            for camera, yaw in zip(scene.cameras, YAWS_DEG, strict=True)
        ],
        "frames_objects": frames_objects,
    }
    (folder / TRUTH).write_text(json.dumps(truth, separators=(",", ":")), encoding="utf-8")


def _check(stop: threading.Event | None) -> None:
    if stop is not None and stop.is_set():
        raise RenderStopped("The clips were not finished: the service was told to stop.")


@dataclass
class _Stage:
    """A canvas, what is drawn on it, and who still reads it."""

    canvas: Picture
    drawn: list[Drawn] = field(default_factory=list)
    busy: list[Future[None]] = field(default_factory=list)

    def clear(self, scene: Scene) -> None:
        """Wait for the readers, raise what they raised, and erase."""
        for reader in self.busy:
            reader.result()
        scene.erase(self.drawn, self.canvas)


class View:
    """What one camera sees of the canvas."""

    def __init__(self, camera: Camera, scene: Scene) -> None:
        self._cylinder: Cylinder = scene.cylinder
        self._camera = camera
        columns, rows = lookup(camera, scene.cylinder)
        self._maps = cv2.convertMaps(columns, rows, cv2.CV_16SC2)
        self._still = self._remap(scene.still, slice(0, camera.height_px), slice(0, camera.width_px))

    def picture(self, canvas: Picture, drawn: list[Drawn]) -> Picture:
        """The camera's picture, (height, width, 3) BGR; only where actors are is it computed anew."""
        picture = self._still.copy()
        for one in drawn:
            part = self._where(one.area)
            if part is not None:
                picture[part] = self._remap(canvas, *part)
        return picture

    def _remap(self, canvas: Picture, rows: slice, columns: slice) -> Picture:
        first, second = (np.ascontiguousarray(table[rows, columns]) for table in self._maps)
        return np.asarray(cv2.remap(canvas, first, second, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), np.uint8)

    def _where(self, area: tuple[slice, slice]) -> tuple[slice, slice] | None:
        """Rows and columns of the picture that hold an area of the canvas."""
        xs = np.linspace(area[1].start - 1, area[1].stop, 9)
        ys = np.array([area[0].start - 1, area[0].stop], np.float64)
        yaw, v = self._cylinder.direction(*np.meshgrid(xs, ys))
        if np.abs(yaw - self._camera.yaw_rad).max() > self._camera.hfov_rad:
            return None
        x, y = self._camera.project(yaw, v)
        left, right = max(0, int(x.min()) - 2), min(self._camera.width_px, int(x.max()) + 3)
        top, bottom = max(0, int(y.min()) - 2), min(self._camera.height_px, int(y.max()) + 3)
        if left >= right or top >= bottom:
            return None
        return slice(top, bottom), slice(left, right)


class Clip:
    """One camera's clip while it is written."""

    def __init__(self, path: Path, camera: Camera, scene: Scene, quality: int) -> None:
        self._view = View(camera, scene)
        self._container = av.open(str(path), "w", format="mpegts")
        self._stream = self._container.add_stream("libx264", rate=FRAMES_PER_SECOND)
        self._stream.width, self._stream.height, self._stream.pix_fmt = camera.width_px, camera.height_px, "yuv420p"
        self._stream.codec_context.colorspace = BT601
        self._stream.codec_context.color_range = LIMITED_RANGE
        self._stream.options = {
            "preset": "ultrafast",
            "tune": "fastdecode",
            "crf": str(quality),
            "x264-params": f"keyint={KEY_FRAME_INTERVAL}:min-keyint={KEY_FRAME_INTERVAL}:scenecut=0:bframes=0"
            ":open-gop=0:rc-lookahead=0:sync-lookahead=0:threads=1",
        }
        self._next = 0

    def write(self, canvas: Picture, drawn: list[Drawn]) -> None:
        """Encode the next frame."""
        picture = cv2.cvtColor(self._view.picture(canvas, drawn), cv2.COLOR_BGR2YUV_I420)
        frame = av.VideoFrame.from_ndarray(np.asarray(picture, np.uint8), format="yuv420p")
        frame.pts = self._next
        self._next += 1
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Write what the encoder still holds, and end the file."""
        self._container.mux(self._stream.encode(None))
        self._container.close()
