"""Reads of the page in a browser, and a detector with planted boxes."""

from __future__ import annotations

import importlib.resources
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from playwright.sync_api import Page

from framebus import FrameFormat
from services.common.detections import Detection, DetectionPublisher, Detections
from tests.services.streamer.support import BITS, RunningPublisher

PATIENCE_MS = 20_000
HEIGHT, WIDTH = 688, 4896
HALF = FrameFormat(HEIGHT // 2, WIDTH // 2)
"""Frames for the tests that need no large ones: each costs the publisher, the streamer and the browser less."""
AXE = importlib.resources.files("axe_playwright_python").joinpath("axe.min.js")
RUN_AXE = """() => axe.run().then(({ violations }) => violations.map(
    ({ id, nodes }) => `${id}: ${nodes.map((node) => node.target.join(" ")).join(", ")}`))"""

READ_NUMBER = f"""() => {{
    const canvas = document.getElementById("picture");
    if (!canvas.width) return 0;
    const step = canvas.width / {BITS};
    const row = canvas.getContext("2d").getImageData(0, canvas.height >> 2, canvas.width, 1).data;
    let number = 0;
    for (let bit = 0; bit < {BITS}; bit++) number += row[4 * Math.floor((bit + 0.5) * step)] > 127 ? 1 << bit : 0;
    return number;
}}"""

# The picture's number, and where in the frame the leftmost line of the boxes is in some row; null without a line.
READ_NUMBER_AND_LEFT = f"""([y, width, height]) => {{
    const picture = document.getElementById("picture").getBoundingClientRect();
    const overlay = document.getElementById("overlay");
    const lies = overlay.getBoundingClientRect();
    const ratio = overlay.width / lies.width;
    const row = Math.round((picture.top + picture.height * y / height - lies.top) * ratio);
    const line = overlay.getContext("2d").getImageData(0, row, overlay.width, 1).data;
    const column = line.findIndex((value, index) => index % 4 === 3 && value > 128);
    const left = column < 0 ? null : ((column >> 2) / ratio + lies.left - picture.left) / picture.width * width;
    return [({READ_NUMBER})(), left];
}}"""

# The colours of the overlay at a point of the frame, and whether a line is near it.
MARKED = """([x, y, width, height]) => {
    const picture = document.getElementById("picture").getBoundingClientRect();
    const overlay = document.getElementById("overlay");
    if (overlay.hidden) return false;
    const lies = overlay.getBoundingClientRect();
    const ratio = overlay.width / lies.width;
    const left = (picture.left + picture.width * x / width - lies.left) * ratio;
    const top = (picture.top + picture.height * y / height - lies.top) * ratio;
    const near = overlay.getContext("2d").getImageData(Math.round(left) - 2, Math.round(top) - 2, 5, 5).data;
    return near.some((value, index) => index % 4 === 3 && value > 128);
}"""


class Served(NamedTuple):
    """A streamer with pictures."""

    url: str
    stream: str
    publisher: RunningPublisher


class Detecting:
    """Sends the boxes of the newest frame repeatedly, until its ``with`` block ends.

    Args:
        stream: Name of the stream.
        publisher: Publisher of its frames.
        objects: The objects in each frame; none with ``find``.
        instance: Name of the detector.
        find: Gives the objects by the frame's sequence.
    """

    def __init__(
        self,
        stream: str,
        publisher: RunningPublisher,
        *objects: Detection,
        instance: str = "test",
        find: Callable[[int], Detection] | None = None,
    ) -> None:
        self._stream, self._publisher, self._instance = stream, publisher, instance
        self._objects, self._find = objects, find
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        detector = DetectionPublisher(self._stream, self._instance)
        frame_format = self._publisher.frame_format
        while not self._stop.wait(0.1):
            epoch, sequence, captured_ns = self._publisher.newest
            detector.publish(
                Detections(
                    self._stream,
                    self._instance,
                    epoch,
                    sequence,
                    captured_ns,
                    time.monotonic_ns(),
                    frame_format.height,
                    frame_format.width,
                    (self._find(sequence),) if self._find else self._objects,
                )
            )
        detector.close()

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_exception: object) -> None:
        self._stop.set()
        self._thread.join()


def axe_findings(page: Page) -> Any:
    """Return the rules of axe that the page violates now, a line for each."""
    page.evaluate(AXE.read_text())
    return page.evaluate(RUN_AXE)


def figure(page: Page, name: str) -> float:
    text = page.locator(f"#{name}").text_content() or ""
    return float(text.split()[0]) if text[:1].isdigit() else 0.0


def marked(page: Page, x: float, y: float) -> Any:
    """Return whether the line of a box is near this point of a frame of half the size."""
    return page.evaluate(MARKED, [x, y, HALF.width, HALF.height])
