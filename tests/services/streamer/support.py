"""Helpers of the streamer's tests: the real service in a process of its own, and frames that show their number."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from framebus import FrameFormat, NoFreeSlot, Publisher
from tests.support import PATIENCE_S, ROOT, complaints, wait_until

HEIGHT, WIDTH = 64, 512
"""A panorama in small: 8:1, and blocks that survive JPEG at half the size."""
BITS = 16


def draw_number(pixels: NDArray[np.uint8], number: int) -> None:
    """Fill a frame with its number, a black or white block for each bit."""
    blocks = [255 * (number >> bit & 1) for bit in range(BITS)]
    pixels[:] = np.repeat(np.array(blocks, np.uint8), pixels.shape[1] // BITS)[None, :, None]


def read_number(jpeg: bytes) -> int:
    """Return the number that a picture shows."""
    pixels = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert pixels is not None
    width = pixels.shape[1] // BITS
    middle = pixels[pixels.shape[0] // 4, width // 2 :: width]
    return sum(int(value > 127) << bit for bit, value in enumerate(middle))


class StreamerProcess:
    """``python -m services.streamer`` on a free port.

    Args:
        stream: Name of the stream.
        log: File for its standard error.
        sections: Settings of other sections.
        **settings: Those of the streamer's.
    """

    # Any: else a caller's **settings could not be of other types.
    def __init__(self, stream: str, log: Path, *, sections: Any = None, **settings: object) -> None:
        self.stream, self.log = stream, log
        overrides = {
            f"FRAMEBUS_{section.upper()}__{name.upper()}": str(value)
            for section, values in {**(sections or {}), "streamer": settings}.items()
            for name, value in values.items()
        }
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "services.streamer"],
                stderr=output,
                cwd=ROOT,
                env={name: os.environ[name] for name in ("PATH", "PYTHONWARNINGS")}
                | {"FRAMEBUS_STREAM__NAME": stream, "FRAMEBUS_STREAMER__PORT": "0"}
                | overrides,
            )

    def events(self, event: str) -> list[dict[str, Any]]:
        """Return the events with this name in its log."""
        lines = self.log.read_text().splitlines()
        found = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
        return [entry for entry in found if entry["event"] == event]

    @property
    def url(self) -> str:
        """Return its URL, with a slash at the end."""
        return str(wait_until(lambda: self.events("listening"), "the streamer listens")[0]["url"])

    def stop(self) -> int:
        """Terminate it with SIGTERM and return its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)

    def __enter__(self) -> StreamerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        status = self.stop() if self.process.poll() is None else None
        if kind is None and status is not None:
            assert status == 0, self.log.read_text()
            assert complaints(self.log.read_text()) == [], self.log.read_text()


class RunningPublisher:
    """Publishes numbered frames from a thread until its ``with`` block ends; ``noisy`` ones make large files."""

    def __init__(self, stream: str, frame_format: FrameFormat, fps: float, *, noisy: bool = False) -> None:
        self.frame_format = frame_format
        self.newest = 0, 0, 0
        """Epoch, sequence and time of capture of the newest frame; of one and the same."""
        half = (frame_format.height // 2, *frame_format.shape[1:])
        self._noise = np.random.default_rng(1).integers(0, 256, half).astype(np.uint8) if noisy else None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(stream, frame_format, fps))

    def _run(self, stream: str, frame_format: FrameFormat, fps: float) -> None:
        with Publisher(stream, frame_format, slots=8) as publisher:
            while not self._stop.wait(1 / fps):
                try:
                    with publisher.loan() as loan:
                        draw_number(loan.pixels, publisher.statistics.sequence + 1)
                        if self._noise is not None:
                            loan.pixels[-len(self._noise) :] = self._noise
                except NoFreeSlot:
                    continue
                self.newest = publisher.statistics.epoch, loan.sequence or 0, loan.captured_ns

    @property
    def sequence(self) -> int:
        """Sequence of the newest frame; 0 before the first."""
        return self.newest[1]

    def __enter__(self) -> RunningPublisher:
        self._thread.start()
        wait_until(lambda: self.sequence, "a first frame")
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stop.set()
        self._thread.join()


def publish(publisher: Publisher, count: int = 1) -> int:
    """Publish numbered frames one after another; return the sequence of the last."""
    sequence = 0
    for _ in range(count):
        with publisher.loan() as loan:
            draw_number(loan.pixels, publisher.statistics.sequence + 1)
        sequence = loan.sequence or 0
    return sequence
