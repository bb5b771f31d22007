"""Cameras that fail like real ones, with the real stitcher, streamer and page: the other cameras keep their rate."""

from __future__ import annotations

import secrets
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Page, sync_playwright

from framebus import Subscriber
from services.simulator.config import SimulatorSection
from services.stitcher.calibration.poses import save
from tests.services.simulator.clips import SMALL, rendered
from tests.services.stitcher.faulty import rtsp_cameras
from tests.services.stitcher.process import NAMES, StitcherProcess, http_camera, http_urls, is_marked
from tests.services.stitcher.scene import rig
from tests.services.streamer.support import StreamerProcess
from tests.support import CHROMIUM, CHROMIUM_ARGUMENTS, PATIENCE_S, free_ports, lacks, needs_browser, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.timeout(300), needs_browser]

HALF = SMALL.model_copy(update={"width_px": 320, "height_px": 180})


@contextmanager
def open_page(url: str) -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGUMENTS)
        page = browser.new_page()
        page.goto(url)
        yield page
        browser.close()


class Watched:
    """A stitcher with five cameras, a streamer, and its page."""

    def __init__(self, stack: ExitStack, stream: str, folder: Path, urls: Sequence[str], *prefix: str) -> None:
        file = folder / "calibration.json"
        self.calibration = rig()
        save(self.calibration, file)
        process = StitcherProcess(stream, folder, urls, calibration={"file": str(file)}, read_timeout_s=1.5)
        process.command = [*prefix, *process.command]
        self.stitcher = stack.enter_context(process)
        self.subscriber = stack.enter_context(Subscriber(stream, name="test", attach_timeout_s=PATIENCE_S))
        streamer = stack.enter_context(StreamerProcess(stream, folder / "streamer.log"))
        self.page = stack.enter_context(open_page(streamer.url))

    def wait_for_cameras(self, names: Sequence[str]) -> None:
        self.stitcher.wait_for(self.subscriber, lambda frame: set(names) <= set(frame.metadata["cameras"]))

    def wait_for_page(self, *phrases: str) -> str:
        """Wait until the page's line of missing parts has all phrases; return the line."""

        def told() -> str:
            line = self.page.locator("#missing").inner_text()
            return line if all(phrase in line for phrase in phrases) else ""

        return wait_until(told, f"the page says {phrases}", interval_s=0.1, detail=self.stitcher.log.read_text)


class Site:
    """The simulator's cameras, each in a process of its own."""

    def __init__(self, stack: ExitStack) -> None:
        self._first_port = free_ports(5)
        self._stack = stack
        self.cameras: dict[int, subprocess.Popen[bytes]] = {}
        self.urls = http_urls(self._first_port)

    def start(self, number: int, section: SimulatorSection = SMALL) -> None:
        self.cameras[number] = self._stack.enter_context(http_camera(number, self._first_port + number, section))

    def end(self, number: int) -> None:
        self.cameras[number].kill()
        self.cameras[number].wait()


def test_a_camera_that_is_off_frozen_or_of_another_size_is_named_and_disturbs_no_other(
    stream: str, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        site = Site(stack)
        for number in (0, 1, 2, 4):
            site.start(number)
        watched = Watched(stack, stream, tmp_path, site.urls)

        watched.wait_for_cameras(["cam0", "cam1", "cam2", "cam4"])
        watched.wait_for_page("camera cam3", "Connection refused")
        watched.stitcher.check_rate()
        site.start(3)
        watched.wait_for_cameras(NAMES)
        wait_until(lambda: "cam3" not in watched.page.locator("#missing").inner_text(), "the page is content")

        site.cameras[1].send_signal(signal.SIGSTOP)
        watched.wait_for_page("camera cam1")
        watched.stitcher.wait_for(watched.subscriber, lambda frame: is_marked(frame, watched.calibration, "cam1"))
        wait_until(
            lambda: watched.stitcher.status()["details"]["cameras"]["cam1"]["cause"] is not None,
            "the cause is told",
            interval_s=0.1,
        )
        watched.stitcher.check_rate()
        site.cameras[1].send_signal(signal.SIGCONT)
        watched.wait_for_cameras(NAMES)

        site.end(2)
        watched.wait_for_page("camera cam2")
        site.start(2, HALF)
        watched.wait_for_cameras(NAMES)
        with watched.subscriber.receive(PATIENCE_S) as frame:
            assert not is_marked(frame, watched.calibration, "cam2")
        watched.stitcher.check_rate()
        assert watched.stitcher.process.poll() is None


class LossyNetwork:
    """A network namespace that loses a share of the packets by UDP, and by TCP from 127.0.0.2."""

    def __init__(self) -> None:
        self.name = f"fbt-{secrets.token_hex(4)}"
        self.prefix = ("ip", "netns", "exec", self.name)

    def __enter__(self) -> LossyNetwork:
        if not (shutil.which("ip") and shutil.which("iptables")):
            lacks("no ip or iptables here: run 'make system-packages' as root")
        subprocess.run(["ip", "netns", "add", self.name], check=True)
        self.run("ip", "link", "set", "lo", "up")
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["ip", "netns", "delete", self.name], check=True)

    def run(self, *command: str) -> None:
        subprocess.run([*self.prefix, *command], check=True)

    def lose(self, share: float) -> None:
        self.run("iptables", "-F", "INPUT")
        chance = ["-m", "statistic", "--mode", "random", "--probability", str(share)]
        for packets in (["-p", "udp"], ["-p", "tcp", "-s", "127.0.0.2"]):
            self.run("iptables", "-A", "INPUT", *packets, *chance, "-j", "DROP")


@pytest.mark.root
def test_lost_packets_affect_only_their_camera(stream: str, tmp_path: Path) -> None:
    clip = rendered() / "cam0.ts"
    with ExitStack() as stack:
        network = stack.enter_context(LossyNetwork())
        well = stack.enter_context(rtsp_cameras(clip, prefix=network.prefix, late_ms=[0] * 3))
        by_udp = stack.enter_context(rtsp_cameras(clip, prefix=network.prefix, address="127.0.0.2", udp_only=True))
        by_tcp = stack.enter_context(rtsp_cameras(clip, prefix=network.prefix, address="127.0.0.2"))
        urls = [f"rtsp://{well}/cam{number}" for number in range(3)]
        urls += [f"rtsp://{by_udp}/cam0", f"rtsp://{by_tcp}/cam0"]
        watched = Watched(stack, stream, tmp_path, urls, *network.prefix)
        watched.wait_for_cameras(NAMES)
        for share in (0.05, 0.2):
            network.lose(share)
            before = watched.stitcher.status()
            watched.stitcher.check_rate(frames=150)
            after = watched.stitcher.status()
            seen, was = (status["details"]["cameras"]["cam3"]["damaged_frames"] for status in (after, before))
            assert seen > was, "damaged pictures are counted"
            if share > 0.1:
                assert "damaged" in watched.wait_for_page("camera cam3")
            came = after["stages"]["cam4"]["frames"] - before["stages"]["cam4"]["frames"]
            assert came > 0 or "cam4" in watched.wait_for_page("camera cam4")
        network.lose(0.0)
        watched.wait_for_cameras(NAMES)
        wait_until(lambda: "cam3" not in watched.page.locator("#missing").inner_text(), "the page is content")
