"""Render the scene once, as five clips and their ground truth, into a cache.

A complete render is a folder named by a hash of everything that it depends on. It is written under another name and
renamed once it is complete, to prevent an interrupted render from being used. A lock ensures that one process renders
at a time; the others wait and use the result.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import functools
import hashlib
import json
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from services.common.config import LogSection
from services.common.service import ServiceError
from services.simulator import child, footage
from services.simulator.clip import Clip
from services.simulator.config import (
    FRAMES_PER_SECOND,
    HFOV_DEG,
    YAWS_DEG,
    SimulatorSection,
)
from services.simulator.footage import Picture
from services.simulator.scene import Drawn, Scene

FORMAT_VERSION = 1
"""Version of the renderer. Increase it whenever the same parameters give different clips or a different truth."""
TRUTH = "truth.json"
PROGRESS = "progress"
"""First word of a line of progress on standard output."""

log = structlog.get_logger()


class RenderStopped(ServiceError):
    """The service was told to stop before the clips were complete."""


Progress = Callable[[str, int, int], None]
"""Callback with a key of :data:`STEPS`, the completed amount, and the total."""
STEPS = {"prepare": ("painting the cameras' scene", "parts"), "render": ("rendering the cameras' clips", "frames")}
"""Description and unit of each step, for display."""


def render(
    section: SimulatorSection,
    stop: threading.Event | None = None,
    progress: Progress = lambda _step, _done, _total: None,
) -> Path:
    """Return the folder with the clips, rendering them first if it is missing.

    Args:
        section: The scene's and the clips' parameters.
        stop: If it is set, the render is aborted at the next frame.
        progress: Called after each part of the preparation and each frame.

    Returns:
        Folder with ``cam0.ts`` to ``cam4.ts`` (MPEG-TS, H.264) and ``truth.json``.

    Raises:
        RenderStopped: ``stop`` was set.
        ServiceError: The cache cannot be written.
    """
    folder = clips_folder(section)
    if folder.is_dir():
        return folder
    try:
        section.cache_dir.mkdir(parents=True, exist_ok=True)
        with _only_one(section.cache_dir / f"{folder.name}.lock", stop):
            # Look again under the lock: the process that held it may have rendered these clips.
            if not folder.is_dir():
                _render_into(section, folder, stop, progress)
    except OSError as error:
        raise ServiceError(
            f"The clips cannot be rendered into {section.cache_dir}: {error.strerror or error}. "
            "Set simulator.cache_dir to a folder that can be written."
        ) from error
    return folder


def clips_folder(section: SimulatorSection) -> Path:
    """Return the folder of a section's clips, which exists once they are complete.

    Its name is a hash of everything that affects the clips.
    """
    parameters = section.model_dump(mode="json", exclude={"cache_dir", "host", "first_port"})
    told = json.dumps(
        [FORMAT_VERSION, FRAMES_PER_SECOND, YAWS_DEG, HFOV_DEG, parameters, _footage_hash()], sort_keys=True
    )
    return section.cache_dir / hashlib.sha256(told.encode()).hexdigest()[:16]


@functools.cache
def _footage_hash() -> str:
    return hashlib.sha256(footage.PATH.read_bytes()).hexdigest()


@contextmanager
def _only_one(path: Path, stop: threading.Event | None) -> Iterator[None]:
    """Hold a lock that the kernel releases with the process. Wait while another process holds it."""
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                _check(stop)
                (stop or threading.Event()).wait(0.1)  # poll: a blocking flock(2) would not notice the stop
        yield


def remove_interrupted(section: SimulatorSection) -> None:
    """Remove the leftovers of a killed render, unless another process renders the same clips."""
    folder = clips_folder(section)
    # Without the lock, another process's unfinished render would be removed.
    with contextlib.suppress(OSError), (section.cache_dir / f"{folder.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove_parts(folder)


def _remove_parts(folder: Path) -> None:
    for left_over in folder.parent.glob(f"{folder.name}.part-*"):
        shutil.rmtree(left_over, ignore_errors=True)


def _render_into(section: SimulatorSection, folder: Path, stop: threading.Event | None, progress: Progress) -> None:
    _remove_parts(folder)
    part = Path(tempfile.mkdtemp(prefix=f"{folder.name}.part-", dir=folder.parent))
    try:
        log.info("rendering", folder=str(folder), frames=section.frames)
        part.chmod(0o755)  # mkdtemp() makes the folder private, but other users may read the clips
        _write(section, part, stop, progress)
        part.rename(folder)
        log.info("rendered", folder=str(folder))
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write(section: SimulatorSection, folder: Path, stop: threading.Event | None, progress: Progress) -> None:
    parts = 1 + len(section.cameras)
    progress("prepare", 0, parts)
    scene = Scene(section)
    frames_objects: list[list[dict[str, Any]]] = []
    with ExitStack() as stack:
        clips = []
        for number, camera in enumerate(scene.cameras, 1):
            _check(stop)
            progress("prepare", number, parts)
            clips.append(
                stack.enter_context(closing(Clip(folder / f"{camera.name}.ts", camera, scene, section.quality)))
            )
        # Each clip has one thread, which keeps its frames in order; the clips may be a few frames apart.
        threads = [stack.enter_context(ThreadPoolExecutor(1, f"render-{camera.name}")) for camera in scene.cameras]
        # Three canvases: while the clips still read one or two of them, the next frame is composed on another.
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
            progress("render", index + 1, section.frames)
        # Wait for the last frames, and raise what their threads raised.
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
    """A canvas, the actors drawn on it, and the tasks that still read it."""

    canvas: Picture
    drawn: list[Drawn] = field(default_factory=list)
    busy: list[Future[None]] = field(default_factory=list)

    def clear(self, scene: Scene) -> None:
        """Wait for the readers, raise their exceptions, and erase the actors."""
        for reader in self.busy:
            reader.result()
        scene.erase(self.drawn, self.canvas)


def main(arguments: list[str] | None = None) -> int:
    """Render, and print the folder or the error. Return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m services.simulator.render", description="Render the simulator's clips into the cache."
    )
    parser.add_argument("--section", type=SimulatorSection.model_validate_json, default=SimulatorSection(), help="JSON")
    parser.add_argument(
        "--log", type=LogSection.model_validate_json, default=LogSection(), help="the log section, JSON"
    )
    parser.add_argument("--progress", action="store_true", help="print 'progress STEP DONE TOTAL' as it goes")
    options = parser.parse_args(arguments)
    child.set_up(options.log)

    def progress(step: str, done: int, total: int) -> None:
        if options.progress:
            sys.stdout.write(f"{PROGRESS} {step} {done} {total}\n")
            sys.stdout.flush()

    try:
        folder = render(options.section, progress=progress)
    except ServiceError as error:
        sys.stdout.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{folder}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
