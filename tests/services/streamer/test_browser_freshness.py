"""The age of the page's picture on a slow connection, and the clock by which it is computed."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from framebus import FrameFormat
from tests.relay import Relay
from tests.services.streamer.browser import HEIGHT, READ_NUMBER, WIDTH, Served
from tests.services.streamer.support import RunningPublisher, StreamerProcess
from tests.support import needs_browser, wait_until

pytestmark = [pytest.mark.slow, needs_browser]

SMALL = FrameFormat(64, 512)
AGES = """async ([openedAt, messages]) => {
    const { Clock } = await import("./page/clock.js");
    let now = 0;
    performance.now = () => now;
    const clock = new Clock();
    return messages.map(([at, message, captured, opened]) => {
        now = at;
        clock.hear(message, opened ?? openedAt);
        return clock.since(captured);
    });
}"""


def port_of(streamer: StreamerProcess) -> int:
    return int(streamer.url.rstrip("/").rpartition(":")[2])


@pytest.mark.long
def test_a_stopped_streamer_does_not_leave_a_live_label(stream: str, page: Page, tmp_path: Path) -> None:
    with (
        RunningPublisher(stream, SMALL, 20) as publisher,
        StreamerProcess(stream, tmp_path / "log") as streamer,
    ):
        page.goto(streamer.url)
        expect(page.locator("#state")).to_have_text("live")
        streamer.process.send_signal(signal.SIGSTOP)
        try:
            expect(page.locator("#state")).to_have_attribute("data-state", "delayed")
            expect(page.locator("#state")).to_have_attribute("data-state", "stale")
        finally:
            streamer.process.send_signal(signal.SIGCONT)
        seen = publisher.sequence
        expect(page.locator("#state")).to_have_text("live")
        wait_until(lambda: page.evaluate(READ_NUMBER) > seen, "newer pictures")


@pytest.mark.long
@pytest.mark.parametrize("bytes_per_s", [60_000, 15_000])
def test_a_slow_connection_gets_smaller_pictures_and_true_ages(
    stream: str, page: Page, tmp_path: Path, bytes_per_s: int
) -> None:
    with (
        RunningPublisher(stream, FrameFormat(HEIGHT, WIDTH), 25, noisy=True),
        StreamerProcess(stream, tmp_path / "log", jpeg_quality=60, stale_after_s=6) as streamer,
        Relay(port_of(streamer)) as relay,
    ):
        page.goto(f"http://127.0.0.1:{relay.port}/")
        relay.bytes_per_s = bytes_per_s
        page.reload()
        expect(page.locator("#level")).to_contain_text("slow line: quarter size", timeout=40_000)
        numbers: set[int] = set()
        while len(numbers) < 3:
            numbers.add(page.evaluate(READ_NUMBER))
            page.wait_for_timeout(100)
        expect(page.locator("#picture")).to_have_js_property("width", WIDTH // 4)


@pytest.mark.long
def test_a_picture_of_another_size_does_not_move_the_view(stream: str, page: Page, tmp_path: Path) -> None:
    with (
        RunningPublisher(stream, FrameFormat(HEIGHT, WIDTH), 25, noisy=True),
        StreamerProcess(stream, tmp_path / "log", jpeg_quality=60) as streamer,
        Relay(port_of(streamer)) as relay,
    ):
        page.goto(f"http://127.0.0.1:{relay.port}/")
        picture = page.locator("#picture")
        expect(picture).to_have_js_property("width", WIDTH // 2)
        page.keyboard.press("+")
        page.keyboard.press("ArrowRight")
        before = picture.bounding_box()
        relay.bytes_per_s = 200_000
        expect(picture).to_have_js_property("width", WIDTH // 4, timeout=40_000)
        after = picture.bounding_box()
        assert before is not None
        assert after is not None
        assert all(abs(before[side] - after[side]) < 1 for side in ("x", "y", "width", "height"))


@pytest.mark.parametrize(
    ("messages", "ages_ms"),
    [
        # The request left at 0 and came at 1005, so that the server is at least 1005 ms ahead.
        ([[200, {"sent_ms": 1100, "received_ms": 1005, "echo": None}, 1100]], [105]),
        # A picture of 1100 that was under way for 6 s is 6.1 s old by the request, and 6.05 by a quicker echo.
        (
            [
                [10, {"sent_ms": 1060, "received_ms": 1050, "echo": None}, 1060],
                [6200, {"sent_ms": 1200, "echo": None}, 1100],
                [6210, {"sent_ms": 1300, "echo": [20, 1025]}, 1100],
            ],
            [0, 6150, 6115],
        ),
        # The page's clock stood still, so the earlier estimate is void until a new echo arrives.
        (
            [
                [10, {"sent_ms": 1060, "received_ms": 1050, "echo": None}, 1060],
                [100, {"sent_ms": 9000, "echo": None}, 8900],
                [120, {"sent_ms": 9020, "echo": [110, 9011]}, 8900],
            ],
            [0, None, 121],
        ),
        # Another connection, to a server with another clock.
        (
            [
                [10, {"sent_ms": 1060, "received_ms": 1050, "echo": None}, 1060],
                [100, {"sent_ms": 55, "received_ms": 50, "echo": None}, 45, 90],
            ],
            [0, 15],
        ),
    ],
)
@pytest.mark.long
def test_the_clock_never_makes_a_picture_younger(
    served: Served, browser: Browser, messages: list[object], ages_ms: list[float | None]
) -> None:
    page = browser.new_page()
    page.goto(f"{served.url}healthz")
    found = page.evaluate(AGES.replace("./page", f"{served.url}page"), [0, messages])
    page.close()
    assert found == ages_ms
