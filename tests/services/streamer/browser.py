"""What a test reads from the page in a browser, and a detector whose boxes it knows."""

from __future__ import annotations

import threading
import time
from typing import Any

from playwright.sync_api import Page

from services.common.detections import Detection, DetectionPublisher, Detections
from tests.services.streamer.support import BITS, RunningPublisher

PATIENCE_MS = 20_000
HEIGHT, WIDTH = 688, 4896

READ_NUMBER = f"""() => {{
    const canvas = document.getElementById("picture");
    if (!canvas.width) return 0;
    const step = canvas.width / {BITS};
    const row = canvas.getContext("2d").getImageData(0, canvas.height >> 2, canvas.width, 1).data;
    let number = 0;
    for (let bit = 0; bit < {BITS}; bit++) number += row[4 * Math.floor((bit + 0.5) * step)] > 127 ? 1 << bit : 0;
    return number;
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


class Detecting:
    """Sends the same boxes for the newest frame, again and again, until its ``with`` block ends."""

    def __init__(self, stream: str, publisher: RunningPublisher, *objects: Detection, instance: str = "test") -> None:
        self._arguments = stream, publisher, objects
        self._instance = instance
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        stream, publisher, objects = self._arguments
        detector = DetectionPublisher(stream, self._instance)
        while not self._stop.wait(0.1):
            detector.publish(
                Detections(
                    stream,
                    self._instance,
                    publisher.epoch,
                    publisher.sequence,
                    publisher.captured_ns,
                    time.monotonic_ns(),
                    HEIGHT,
                    WIDTH,
                    objects,
                )
            )
        detector.close()

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_exception: object) -> None:
        self._stop.set()
        self._thread.join()


def figure(page: Page, name: str) -> float:
    text = page.locator(f"#{name}").text_content() or ""
    return float(text.split()[0]) if text[:1].isdigit() else 0.0


def marked(page: Page, x: float, y: float) -> Any:
    return page.evaluate(MARKED, [x, y, WIDTH, HEIGHT])
