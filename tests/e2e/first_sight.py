"""What a user sees after ``make demo`` when the page opens: ``python -m tests.e2e.first_sight [--minutes 10]``.

It runs the demo and a browser on the cores that there are, and prints panoramas a second at the page, the age of
detections, and how true the boxes are: of the people's boxes that were right in their own frame, those that still are
on the same person when they are painted, over the picture that is shown then. Seconds in which other programs used the
processor are counted separately.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil
from playwright.sync_api import Page, Route

from framebus import remove_leftovers
from tests.e2e.demo import LIVE, Demo
from tests.e2e.page import open_page, wait_until_live
from tests.e2e.truth import Truth, box_of, overlap
from tests.support import wait_until

RIGHT_IOU: Final = 0.5
"""A box is right in its own frame from here on."""
KEPT_IOU: Final = 0.4
"""It still is when it is painted, from here on."""
FOREIGN_CORES: Final = 0.1
"""Other programs disturb a second in which they take more."""
SETTLE_S: Final = 15
# Runs in the page: records the messages, and each picture with the boxes over it. Listening to the WebSocket from
# outside would also transfer every picture to this process.
NOTED: Final = {
    "motion.add(message)": "((window.told ??= []).push(message), motion.add(message))",
    "    overview.redraw(false);": """    const { objects } = marked;
    (window.painted ??= []).push({ captured: head.captured_ms, objects });
    overview.redraw(false);""",
}


@dataclass(slots=True)
class Seconds:
    """Panoramas shown in each second, and the cores that other programs used in it."""

    shown: list[float] = field(default_factory=list)
    foreign: list[float] = field(default_factory=list)

    def told(self, *, quiet: bool) -> str:
        """Return median and tenth percentile of the seconds with or without foreign load."""
        chosen = [n for n, cores in zip(self.shown, self.foreign, strict=True) if (cores <= FOREIGN_CORES) == quiet]
        if not chosen:
            return "none"
        low = sorted(chosen)[len(chosen) // 10]
        return f"{len(chosen)} s, median {statistics.median(chosen):.1f}, a tenth of them at most {low:.1f}"


@dataclass(slots=True)
class Boxes:
    """Counts boxes that were right in their own frame, and those that still were when they were painted."""

    told: int = 0
    right: int = 0
    painted: int = 0
    kept: int = 0
    _on: dict[tuple[str, int], Any] = field(default_factory=dict)
    """Whom each track was on in its newest message, where it was right."""

    def tell(self, message: dict[str, Any], truth: Truth) -> None:
        """Count a message of the detector."""
        people = truth.people(message["captured_ms"])
        for found in message["objects"]:
            if found["label"] != "person":
                continue
            self.told += 1
            best = max(people, key=lambda name: overlap(people[name], box_of(found)), default=None)
            key = message["instance"], found["track"]
            self._on.pop(key, None)
            if best is not None and overlap(people[best], box_of(found)) >= RIGHT_IOU:
                self.right += 1
                self._on[key] = best

    def paint(self, painted: dict[str, Any], truth: Truth) -> None:
        """Count the boxes that were painted over a picture."""
        people = truth.people(painted["captured"])
        for found in painted["objects"]:
            person = self._on.get((found["instance"], found["track"]))
            if found["label"] == "person" and person in people:
                self.painted += 1
                self.kept += overlap(people[person], box_of(found)) >= KEPT_IOU


def note_boxes(page: Page) -> None:
    """Load the page again, so that it records its messages and what it paints."""

    def serve(route: Route) -> None:
        answer = route.fetch()
        script = answer.text()
        for line, noted in NOTED.items():
            assert script.count(line) == 1, f"the page has no single {line!r} any more"
            script = script.replace(line, noted)
        route.fulfill(response=answer, body=script)

    page.route("**/page/main.js*", serve)
    page.reload()
    wait_until_live(page)


def busy_s(processes: Sequence[psutil.Process]) -> tuple[float, float]:
    """Return the seconds of CPU of the whole machine, and of these processes."""
    times = psutil.cpu_times()
    own = 0.0
    for process in processes:
        try:
            own += sum(process.cpu_times()[:2])
        except psutil.Error:
            continue
    return sum(times) - times.idle - times.iowait, own


def watch(demo: Demo, page: Page, duration_s: float) -> tuple[Seconds, Boxes, list[float]]:
    """Watch the page for a time."""
    note_boxes(page)
    truth, seconds, boxes = Truth(demo.stream), Seconds(), Boxes()
    ages_ms: list[float] = []
    page.wait_for_timeout(SETTLE_S * 1e3)
    page.evaluate("() => { window.painted = []; window.told = []; }")
    end_s = time.monotonic() + duration_s
    while time.monotonic() < end_s:
        processes = [*demo.processes(), psutil.Process(), *psutil.Process().children(recursive=True)]
        begun_s, before = time.monotonic(), busy_s(processes)
        page.wait_for_timeout(1000)
        told, painted = page.evaluate("[window.told.splice(0), window.painted.splice(0)]")
        elapsed_s, after = time.monotonic() - begun_s, busy_s(processes)
        seconds.shown.append(len({one["captured"] for one in painted}) / elapsed_s)
        everything, own = (now - then for now, then in zip(after, before, strict=True))
        seconds.foreign.append(max(0.0, everything - own) / elapsed_s)
        for message in told:
            boxes.tell(message, truth)
        for one in painted:
            boxes.paint(one, truth)
        ages_ms.append(demo.status()["services"]["streamer"]["stages"]["detections"]["latency_p50_ms"] or float("nan"))
    return seconds, boxes, ages_ms


def main() -> None:
    """Run the demo, watch the page, and print the results."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.e2e.first_sight", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--minutes", type=float, default=10.0)
    options = parser.parse_args()
    stream = f"sight-{os.urandom(4).hex()}"
    with tempfile.TemporaryDirectory() as folder:
        demo = Demo(stream, Path(folder) / "log")
        try:
            wait_until(lambda: LIVE in demo.output(), "the panorama is live", timeout_s=300, detail=demo.output)
            with open_page(demo.url) as page:
                seconds, boxes, ages_ms = watch(demo, page, options.minutes * 60)
        finally:
            demo.kill()
            remove_leftovers(stream)
    print(f"panoramas a second at the page, undisturbed: {seconds.told(quiet=True)}")
    print(f"the same while other programs took {FOREIGN_CORES:g} of a core or more: {seconds.told(quiet=False)}")
    print(f"age of detections at the streamer, median of the medians: {statistics.median(ages_ms):.0f} ms")
    print(
        f"boxes on people: {boxes.told} told, {boxes.right / max(1, boxes.told):.0%} right in their own frame (IoU 0.5)"
    )
    print(f"of those, painted {boxes.painted} times, {boxes.kept / max(1, boxes.painted):.0%} still right (IoU 0.4)")


if __name__ == "__main__":
    main()
