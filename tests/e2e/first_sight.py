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
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil
from playwright.sync_api import Page, Route, sync_playwright

from framebus import remove_leftovers
from tests.e2e.demo import LIVE, Demo
from tests.e2e.page import wait_until_live
from tests.e2e.truth import Truth, box_of, overlap
from tests.support import CHROMIUM, CHROMIUM_ARGUMENTS, family, wait_until

RIGHT_IOU: Final = 0.5
"""A box is right in its own frame from here on."""
KEPT_IOU: Final = 0.4
"""It still is when it is painted, from here on."""
FOREIGN_CORES: Final = 0.1
"""Other programs disturb a second in which they take more."""
SETTLE_S: Final = 15
# Runs in the page: records the messages, and each picture with the boxes over it.
NOTED: Final = {
    "motion.add(message)": "((window.told ??= []).push({ at_ms: Date.now(), message }), motion.add(message))",
    "    overview.redraw(false);": """    const { objects } = marked;
    (window.painted ??= []).push({ at_ms: Date.now(), captured: head.captured_ms, objects });
    overview.redraw(false);""",
}


@dataclass(slots=True)
class Load:
    """A second of the machine."""

    from_ms: float
    """Since 1970, as the page counts."""
    to_ms: float
    foreign_cores: float
    """Cores that other programs used in it."""

    @property
    def is_quiet(self) -> bool:
        """Whether no other program disturbed it."""
        return self.foreign_cores <= FOREIGN_CORES


def told(rates: Sequence[float]) -> str:
    """Return median and tenth percentile of the panoramas shown in each second."""
    if not rates:
        return "none"
    low = sorted(rates)[len(rates) // 10]
    return f"{len(rates)} s, median {statistics.median(rates):.1f}, a tenth of them at most {low:.1f}"


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


@contextmanager
def chromium() -> Iterator[str]:
    """Start a browser of its own; yield the address of its DevTools protocol."""
    with tempfile.TemporaryDirectory() as profile:
        arguments = [
            "--headless=new",
            f"--user-data-dir={profile}",
            "--remote-debugging-port=0",
            "--window-size=1280,588",
        ]
        browser = subprocess.Popen(
            [CHROMIUM, *arguments, *CHROMIUM_ARGUMENTS, "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            port = Path(profile, "DevToolsActivePort")
            wait_until(lambda: port.exists() and port.read_text().count("\n"), "the browser has started", timeout_s=60)
            yield f"http://127.0.0.1:{port.read_text().splitlines()[0]}"
        finally:
            browser.terminate()
            browser.wait()


@contextmanager
def attached(endpoint: str) -> Iterator[Page]:
    """Attach to the browser's page.

    While Playwright is attached, the browser sends it each message of a WebSocket, and so each picture, which takes a
    seventh of a core.
    """
    with sync_playwright() as playwright:
        browser = playwright.chromium.connect_over_cdp(endpoint)
        yield browser.contexts[0].pages[0]
        browser.close()  # only detaches


def open_noting(page: Page, url: str) -> None:
    """Open the demo's page so that it records its messages and what it paints."""

    def serve(route: Route) -> None:
        answer = route.fetch()
        script = answer.text()
        for line, noted in NOTED.items():
            assert script.count(line) == 1, f"the page has no single {line!r} any more"
            script = script.replace(line, noted)
        route.fulfill(response=answer, body=script)

    page.route("**/page/main.js*", serve)
    page.goto(url)
    wait_until_live(page)
    page.wait_for_timeout(SETTLE_S * 1e3)
    page.evaluate("() => { window.painted = []; window.told = []; }")


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


def watch(demo: Demo, duration_s: float) -> tuple[list[Load], list[float]]:
    """Watch the machine for a time; return its load and the ages of detections, in ms."""
    load: list[Load] = []
    ages_ms: list[float] = []
    end_s = time.monotonic() + duration_s
    while time.monotonic() < end_s:
        processes = family(os.getpid())  # the demo's and the browser's too
        begun_s, before = time.time(), busy_s(processes)
        time.sleep(1)
        ended_s, after = time.time(), busy_s(processes)
        everything, own = (now - then for now, then in zip(after, before, strict=True))
        load.append(Load(begun_s * 1e3, ended_s * 1e3, max(0.0, everything - own) / (ended_s - begun_s)))
        ages_ms.append(demo.status()["services"]["streamer"]["stages"]["detections"]["latency_p50_ms"] or float("nan"))
    return load, ages_ms


def rate(second: Load, painted: Sequence[dict[str, Any]]) -> float:
    """Return the panoramas that the page showed in a second."""
    shown = {one["captured"] for one in painted if second.from_ms <= one["at_ms"] < second.to_ms}
    return len(shown) / (second.to_ms - second.from_ms) * 1e3


def count(noted: dict[str, list[dict[str, Any]]], truth: Truth) -> Boxes:
    """Count the boxes that the page has recorded."""
    boxes = Boxes()
    # A track is on the person of its newest message, so count in the order of the page.
    events: list[tuple[float, Callable[[dict[str, Any], Truth], None], dict[str, Any]]]
    events = [(one["at_ms"], boxes.tell, one["message"]) for one in noted["told"]]
    events += [(one["at_ms"], boxes.paint, one) for one in noted["painted"]]
    for _, add, one in sorted(events, key=lambda event: event[0]):
        add(one, truth)
    return boxes


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
            with chromium() as endpoint:
                with attached(endpoint) as page:
                    open_noting(page, demo.url)
                load, ages_ms = watch(demo, options.minutes * 60)
                with attached(endpoint) as page:
                    noted = page.evaluate("({ told: window.told, painted: window.painted })")
            boxes = count(noted, Truth(demo.stream))
        finally:
            demo.kill()
            remove_leftovers(stream)
    quiet, disturbed = (
        [rate(second, noted["painted"]) for second in load if second.is_quiet is wanted] for wanted in (True, False)
    )
    print(f"panoramas a second at the page, undisturbed: {told(quiet)}")
    print(f"the same while other programs took {FOREIGN_CORES:g} of a core or more: {told(disturbed)}")
    print(f"age of detections at the streamer, median of the medians: {statistics.median(ages_ms):.0f} ms")
    print(
        f"boxes on people: {boxes.told} told, {boxes.right / max(1, boxes.told):.0%} right in their own frame (IoU 0.5)"
    )
    print(f"of those, painted {boxes.painted} times, {boxes.kept / max(1, boxes.painted):.0%} still right (IoU 0.4)")


if __name__ == "__main__":
    main()
