"""An open page while parts are killed and stopped at random: no picture is older than its label says."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from playwright.sync_api import Page, sync_playwright

from framebus import remove_leftovers
from tests.programs.clocked import TICKS_PER_S
from tests.relay import Relay
from tests.services.streamer.support import BITS
from tests.support import CHROMIUM, CHROMIUM_ARGUMENTS, ROOT, free_ports, needs_browser, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.timeout(900), needs_browser]

SEED = 20
SLACK_S = 0.5
"""The label is made anew a few times a second, and the pixels count hundredths."""

LOOK = f"""() => {{
    const canvas = document.getElementById("picture");
    let number = -1;
    if (canvas.width) {{
        const step = canvas.width / {BITS};
        const row = canvas.getContext("2d").getImageData(0, canvas.height >> 2, canvas.width, 1).data;
        number = 0;
        for (let bit = 0; bit < {BITS}; bit++)
            number += row[4 * Math.floor((bit + 0.5) * step)] > 127 ? 2 ** bit : 0;
    }}
    const state = document.getElementById("state");
    return {{number, now_ms: Date.now(), state: state.dataset.state, text: state.textContent,
             notice: document.getElementById("notice").textContent}};
}}"""


class Site:
    """A publisher that draws the time, and the supervisor with detector and streamer."""

    def __init__(self, stream: str, folder: Path) -> None:
        self.port = free_ports(1)
        self._log = (folder / "log").open("ab")
        self._environment = os.environ | {
            "FRAMEBUS_STREAM__NAME": stream,
            "FRAMEBUS_STREAMER__PORT": str(self.port),
            "FRAMEBUS_SUPERVISOR__SERVICES": json.dumps(["detector", "streamer"]),
            "FRAMEBUS_SUPERVISOR__RESTARTS": "1000",
            "FRAMEBUS_DETECTOR__MAX_RATE_FPS": "5",
        }
        self._stream = stream
        self.publisher = self._start(str(ROOT / "tests/programs/clocked.py"), stream)
        self.supervisor = self._start("-m", "services", "supervisor")

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        environment = self._environment | {"PYTHONPATH": str(ROOT)}
        return subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, env=environment, stdout=self._log, stderr=self._log
        )

    def restart_publisher(self) -> None:
        self.publisher.wait()
        self.publisher = self._start(str(ROOT / "tests/programs/clocked.py"), self._stream)

    def restart_supervisor(self) -> None:
        self.supervisor.wait()
        # Wait until its services have ended, or those of the next supervisor would find them running.
        wait_until(lambda: not self.serves(), "the services have ended")
        self.supervisor = self._start("-m", "services", "supervisor")

    def service(self, name: str) -> psutil.Process | None:
        for process in psutil.Process(self.supervisor.pid).children():
            if process.cmdline()[1:4] == ["-m", "services", name]:
                return process
        return None

    def serves(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/healthz", timeout=1) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def end(self) -> None:
        for process in (self.publisher, self.supervisor):
            process.send_signal(signal.SIGCONT)
        self.supervisor.terminate()
        self.supervisor.wait(20)
        self.publisher.kill()
        self.publisher.wait()
        self._log.close()


@contextmanager
def open_site(stream: str, folder: Path) -> Iterator[Site]:
    site = Site(stream, folder)
    try:
        yield site
    finally:
        site.end()
        remove_leftovers(stream)


class Watch:
    """Compares the label with the time in the pixels repeatedly."""

    def __init__(self, page: Page) -> None:
        self.looks = 0
        self.states: dict[str, int] = {}
        self.faults: list[str] = []
        self._page = page

    def look(self) -> dict[str, Any]:
        seen: dict[str, Any] = self._page.evaluate(LOOK)
        self.looks += 1
        self.states[seen["state"]] = self.states.get(seen["state"], 0) + 1
        if seen["number"] >= 0:
            ticks = (round(seen["now_ms"] / 1000 * TICKS_PER_S) - seen["number"]) % (1 << BITS)
            age_s = ticks / TICKS_PER_S
            # A picture that is drawn at this moment may be a hundredth of a second ahead.
            age_s = 0.0 if ticks > (1 << BITS) - 10 else age_s
            if age_s > self._allowed_s(seen) + SLACK_S:
                self.faults.append(f"{age_s:.2f} s old, and the page says {seen}")
        return seen

    @staticmethod
    def _allowed_s(seen: dict[str, Any]) -> float:
        """Return the greatest age that the label allows."""
        if seen["state"] == "live":
            return 1.0
        if seen["state"] == "delayed":
            told = re.search(r"([\d.]+) s", seen["text"])
            assert told is not None, seen
            # The label has one decimal, and none from ten seconds on.
            return float(told[1]) + (0.1 if "." in told[1] else 1.0)
        return float("inf")

    def for_s(self, seconds: float) -> None:
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            self.look()
            self._page.wait_for_timeout(30)

    def until_live(self, site: Site) -> float:
        """Wait until the page is live again; return how long it was not after the server reported that it is."""
        end_s = time.monotonic() + 60
        served_s = None
        while self.look()["state"] != "live":
            assert time.monotonic() < end_s, (self.look(), site.serves())
            if served_s is None and site.serves():
                served_s = time.monotonic()
            self._page.wait_for_timeout(30)
        return 0.0 if served_s is None else time.monotonic() - served_s


def test_no_picture_is_older_than_its_label_says(stream: str, tmp_path: Path) -> None:
    choose = random.Random(SEED)
    with open_site(stream, tmp_path) as site, Relay(site.port) as relay, sync_playwright() as playwright:

        def kill(process: Callable[[], Any], again: Callable[[], None] | None = None) -> Callable[[float], None]:
            def fault(seconds: float) -> None:
                if (found := process()) is not None:
                    found.send_signal(signal.SIGKILL)
                watch.for_s(seconds)
                if again is not None:
                    again()

            return fault

        def stop(process: Callable[[], Any]) -> Callable[[float], None]:
            def fault(seconds: float) -> None:
                if (found := process()) is not None:
                    found.send_signal(signal.SIGSTOP)
                    watch.for_s(seconds)
                    found.send_signal(signal.SIGCONT)

            return fault

        def lose(how: Callable[[], None]) -> Callable[[float], None]:
            def fault(seconds: float) -> None:
                how()
                watch.for_s(seconds)
                relay.flow()

            return fault

        faults = {
            "publisher killed": kill(lambda: site.publisher, site.restart_publisher),
            "publisher stopped": stop(lambda: site.publisher),
            "streamer killed": kill(lambda: site.service("streamer")),
            "streamer stopped": stop(lambda: site.service("streamer")),
            "detector killed": kill(lambda: site.service("detector")),
            "detector stopped": stop(lambda: site.service("detector")),
            "supervisor killed": kill(lambda: site.supervisor, site.restart_supervisor),
            "supervisor stopped": stop(lambda: site.supervisor),
            "network cut": lose(relay.cut),
            "network stalled": lose(relay.stall),
        }
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGUMENTS)
        page = browser.new_page(viewport={"width": 1280, "height": 500})
        wait_until(site.serves, "the page is served")
        page.goto(f"http://127.0.0.1:{relay.port}/")
        watch = Watch(page)
        watch.until_live(site)
        late_s: list[tuple[float, str]] = []
        names = 2 * list(faults)
        for name in choose.sample(names, len(names)):
            seconds = choose.choice([0.4, 1.5, 4.0])
            faults[name](seconds)
            late_s.append((round(watch.until_live(site), 2), f"{name} for {seconds} s"))
            watch.for_s(0.5)
        print(f"{watch.looks} looks, {watch.states}; live after the server: {sorted(late_s)[-5:]}")
        browser.close()
    assert watch.faults == []
    assert {"live", "delayed"} <= watch.states.keys()
    assert len(watch.states) >= 3
