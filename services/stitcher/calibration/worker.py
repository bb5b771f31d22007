"""Calibration in a process of its own.

It takes seconds inside OpenCV and NumPy, which nothing interrupts. A process can be ended at once, gives back the
memory that the calibration took, and leaves the processor to the cameras' threads.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection

from services.stitcher.calibration.calibrate import Image, Progress, calibrate, no_progress
from services.stitcher.calibration.poses import Calibration, CalibrationError, CameraPrior, PointPair

NICE = 10
POLL_S = 0.05


def calibrate_apart(
    pictures: Mapping[str, Image | Sequence[Image]],
    stop: threading.Event,
    *,
    priors: Mapping[str, CameraPrior] | None = None,
    points: Sequence[PointPair] = (),
    min_confidence: float = 1.0,
    progress: Progress = no_progress,
) -> Calibration | None:
    """Like :func:`services.stitcher.calibrate.calibrate`; ``None`` when ``stop`` was set meanwhile.

    Raises:
        CalibrationError: The cameras could not be placed, or the process died.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs,), name="calibrate", daemon=True)
    process.start()
    theirs.close()
    try:
        ours.send((dict(pictures), dict(priors or {}), tuple(points), min_confidence))
        result: object = None
        while result is None or isinstance(result, tuple):
            while not ours.poll(POLL_S):
                if stop.is_set():
                    return None
            result = ours.recv()
            if isinstance(result, tuple):
                progress(*result)
    except (EOFError, OSError):
        process.join()
        raise CalibrationError(f"the calibration's process died with status {process.exitcode}") from None
    finally:
        process.kill()
        process.join()
        process.close()
        ours.close()
    if isinstance(result, Calibration):
        return result
    raise CalibrationError(str(result))


def _work(connection: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the parent's to handle
    os.nice(NICE)
    pictures, priors, points, min_confidence = connection.recv()
    try:
        found = calibrate(
            pictures,
            priors=priors,
            points=points,
            min_confidence=min_confidence,
            progress=lambda done, total: connection.send((done, total)),
        )
        connection.send(found)
    except CalibrationError as error:
        connection.send(str(error))
