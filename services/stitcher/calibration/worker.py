"""Run the calibration in a separate process.

It spends seconds inside OpenCV and NumPy, which cannot be interrupted. A process can be killed at any time, releases
the calibration's memory at its end, and does not block the cameras' threads.
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
    """Run :func:`services.stitcher.calibration.calibrate.calibrate`. Return ``None`` if ``stop`` was set meanwhile.

    Raises:
        CalibrationError: The cameras could not be placed, or the process died.
    """
    # Not a fork: other threads of the parent may hold locks at that moment, which nothing would release in the child.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs,), name="calibrate", daemon=True)
    process.start()
    theirs.close()  # so that recv() raises EOFError when the child dies
    try:
        ours.send((dict(pictures), dict(priors or {}), tuple(points), min_confidence))
        result: object = None
        # The child sends tuples of progress, and then a calibration or the message of an error.
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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to both processes; the parent handles it
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
