"""The page in a real browser: moving pictures, boxes in the right place, zoom, and notices when something is lost."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, WebSocketRoute, expect

from framebus import Publisher
from services.common.detections import Detection
from services.common.status import StatusServer
from tests.services.streamer.browser import (
    HALF,
    PATIENCE_MS,
    READ_NUMBER,
    Detecting,
    Served,
    axe_findings,
    figure,
    marked,
)
from tests.services.streamer.support import RunningPublisher, StreamerProcess, publish
from tests.support import needs_browser, wait_until

TIMES, NONE = "\u00d7", "\u2013"

pytestmark = [pytest.mark.slow, needs_browser]


def test_the_page_shows_moving_pictures_and_boxes(served: Served, page: Page) -> None:
    publisher = served.publisher
    car = Detection("car", 0.91, 500.0, 200.0, 300.0, 100.0, 12)
    person = Detection("person", 0.55, 1500.0, 150.0, 150.0, 150.0)
    page.goto(served.url)
    expect(page.locator("#state")).to_have_text("live")
    expect(page.locator("#notice")).to_be_hidden()
    size = '[document.getElementById("picture").width, document.getElementById("picture").height]'
    # The first picture is a smaller one.
    wait_until(lambda: page.evaluate(size) == [HALF.width // 2, HALF.height // 2], "a picture of half the size")
    before = publisher.sequence
    numbers: set[int] = set()
    while len(numbers) < 10:
        number = page.evaluate(READ_NUMBER)
        assert number <= publisher.sequence + 1
        numbers.add(number)
        page.wait_for_timeout(20)
    assert max(numbers) >= before + 5
    wait_until(lambda: figure(page, "fps") > 0, "a rate")
    expect(page.locator("#latency")).to_have_text(re.compile(r"^\d+ ms$"))
    assert figure(page, "skipped") >= 0

    with Detecting(served.stream, publisher, car, person):
        expect(page.locator("#objects")).to_have_text("2")
        expect(page.locator("#found")).to_have_text("1 car1 person")
        wait_until(lambda: marked(page, 500, 250), "the box")
        for x, y in ((800, 250), (650, 300), (1500, 225), (1650, 225)):
            assert marked(page, x, y)
        assert not marked(page, 650, 250)  # within the box the picture is free
        assert not marked(page, 1150, 250)
        page.locator("#boxes").click()
        expect(page.locator("#overlay")).to_be_hidden()
        expect(page.locator("#boxes")).to_have_attribute("aria-pressed", "false")
        page.keyboard.press("b")
        wait_until(lambda: marked(page, 500, 250), "the box")
    # Without new detections the boxes disappear.
    expect(page.locator("#objects")).to_have_text(NONE)
    expect(page.locator("#overlay")).to_be_hidden()
    expect(page.locator("#found")).to_be_empty()


def test_the_view_zooms_by_wheel_keys_and_drag(served: Served, page: Page) -> None:
    with Detecting(served.stream, served.publisher, Detection("bus", 0.8, 1100.0, 150.0, 200.0, 100.0)):
        page.goto(served.url)
        expect(page.locator("#state")).to_have_text("live")
        # The list of what is found, and that of what is missing, take room from the picture.
        expect(page.locator("#found")).to_have_text("1 bus")
        expect(page.locator("#missing")).to_be_hidden()
        picture = page.locator("#picture")
        fitted = picture.bounding_box()
        assert fitted is not None
        assert fitted["width"] == pytest.approx(1280, abs=1)
        assert fitted["height"] == pytest.approx(1280 * HALF.height / HALF.width, abs=1)
        middle = fitted["y"] + fitted["height"] / 2
        page.mouse.move(640, middle)
        page.mouse.wheel(0, -600)
        expect(page.locator("#zoom")).not_to_have_text(f"1.0{TIMES}")
        near = picture.bounding_box()
        assert near is not None
        assert near["width"] > 1.5 * fitted["width"]
        # The point under the pointer stays there.
        assert (640 - near["x"]) / near["width"] == pytest.approx(640 / 1280, abs=0.005)
        wait_until(lambda: marked(page, 1100, 200), "the box")
        page.mouse.down()
        page.mouse.move(740, middle, steps=3)
        page.mouse.up()
        moved = picture.bounding_box()
        assert moved is not None
        assert moved["x"] == pytest.approx(near["x"] + 100, abs=1)
        page.mouse.dblclick(640, middle)
        assert picture.bounding_box() == fitted
        page.keyboard.press("+")
        page.keyboard.press("ArrowRight")
        expect(page.locator("#zoom")).to_have_text(f"1.3{TIMES}")
        page.keyboard.press("0")
        assert picture.bounding_box() == fitted


@pytest.mark.long
def test_the_page_shows_the_age_of_its_picture_and_waits_for_what_is_missing(
    stream: str, page: Page, tmp_path: Path
) -> None:
    state, notice = page.locator("#state"), page.locator("#notice")
    with StreamerProcess(stream, tmp_path / "log", delayed_after_s=1, stale_after_s=3) as streamer:
        page.goto(streamer.url)
        expect(notice).to_have_text(f"waiting for the stream: stream {stream} has not started")
        with Publisher(stream, HALF, slots=8) as publisher:
            expect(notice).to_contain_text("has no frame yet")
            publish(publisher)
            expect(state).to_have_text("live")
            expect(notice).to_be_hidden()
            expect(page.locator("#time")).to_have_text(re.compile(r"^\d\d:\d\d:\d\d$"))
            expect(state).to_have_text(re.compile(r"^delayed [12]\.\d s$"))
            expect(notice).to_be_hidden()
            assert axe_findings(page) == []
            expect(state).to_have_attribute("data-state", "stale")
            expect(notice).to_have_text(re.compile(rf"^no picture for \d+ s: stream {stream} has no new frame$"))
            expect(page.locator("#stage")).to_have_class(re.compile("stale"))
            assert page.evaluate(READ_NUMBER) == 1
            assert axe_findings(page) == []
            publish(publisher)
            expect(state).to_have_text("live")
            expect(notice).to_be_hidden()
            assert page.evaluate(READ_NUMBER) == 2
        expect(notice).to_have_text(f"waiting for the stream: stream {stream} has ended")
        port = streamer.url.rstrip("/").rpartition(":")[2]
    expect(notice).to_have_text("connection lost, trying again")
    expect(state).to_have_attribute("data-state", "lost")
    with StreamerProcess(stream, tmp_path / "again", port=port), RunningPublisher(stream, HALF, 10):
        expect(state).to_have_text("live")
        wait_until(lambda: page.evaluate(READ_NUMBER) > 2, "frames")


def test_a_service_that_falls_silent_is_named(served: Served, page: Page) -> None:
    def stitcher() -> dict[str, object]:
        return {
            "healthy": True,
            "stages": {"cam0": {"age_s": 0.1}, "cam1": {"age_s": 9.0}},
            "details": {"cameras": {"cam0": {"state": "connected"}, "cam1": {"state": "lost: no data in time"}}},
        }

    page.goto(served.url)
    with StatusServer(served.stream, "stitcher", stitcher):
        expect(page.locator("#missing")).to_contain_text("camera cam1 silent for 9 s (lost: no data in time)")
        expect(page.locator("#missing")).not_to_contain_text("stitcher")
    expect(page.locator("#missing")).to_contain_text(re.compile(r"stitcher silent for \d s"))
    expect(page.locator("#missing")).not_to_contain_text("cam1")
    expect(page.locator("#state")).to_have_text("live")


@pytest.mark.long
def test_a_hidden_page_is_sent_nothing_until_it_is_seen(served: Served, page: Page) -> None:
    """A page that does not draw acknowledges nothing. Here its callbacks are held back, as those of a hidden tab."""
    page.add_init_script(
        "window.held = []; window.hold = false; const real = window.requestAnimationFrame.bind(window);"
        "window.requestAnimationFrame = (callback) => window.hold ? window.held.push(callback) : real(callback);"
    )

    def encoded_in(wait_ms: int) -> int:
        """Return how many frames are encoded during this time, in which the publisher publishes some."""
        encode = 'fetch("/api/status").then(r => r.json()).then(s => s.services.streamer.stages.encode.frames)'
        before, sequence = page.evaluate(encode), served.publisher.sequence
        page.wait_for_timeout(wait_ms)
        wait_until(lambda: served.publisher.sequence > sequence, "a frame")
        return int(page.evaluate(encode) - before)

    page.goto(served.url)
    expect(page.locator("#state")).to_have_text("live")
    assert encoded_in(500) > 0
    page.evaluate("window.hold = true")
    page.wait_for_timeout(1300)  # longer than a viewer without an acknowledgement counts as watching
    assert encoded_in(500) == 0
    resumed_at = served.publisher.sequence
    page.evaluate("window.hold = false; window.held.splice(0).forEach((callback) => callback(0))")
    wait_until(lambda: page.evaluate(READ_NUMBER) > resumed_at, "newer frames")


def test_without_javascript_the_pictures_come_as_mjpeg(served: Served, browser: Browser) -> None:
    context = browser.new_context(java_script_enabled=False)
    try:
        page = context.new_page()
        page.goto(served.url, wait_until="commit")
        image = page.locator("img.fallback")
        expect(image).to_be_visible(timeout=PATIENCE_MS)
        box = image.bounding_box()
        assert box is not None
        assert box["width"] / box["height"] == pytest.approx(HALF.width / HALF.height, rel=0.05)
    finally:
        context.close()


@pytest.mark.long
def test_the_page_reloads_itself_if_the_server_has_other_files(served: Served, page: Page) -> None:
    versions = ["one", "two", "two"]  # of the first connection, after it was lost, and of the page loaded anew

    def relay(browser_side: WebSocketRoute) -> None:
        version = versions.pop(0) if versions else "two"
        server_side = browser_side.connect_to_server()

        def pass_on(message: str | bytes) -> None:
            if isinstance(message, str) and (content := json.loads(message))["type"] == "state":
                message = json.dumps({**content, "page_version": version})
            browser_side.send(message)

        server_side.on_message(pass_on)
        routes.append(browser_side)

    routes: list[WebSocketRoute] = []
    loads: list[str] = []
    page.route_web_socket(re.compile("/ws$"), relay)
    page.on("load", lambda loaded: loads.append(loaded.url))
    page.goto(served.url)
    expect(page.locator("#state")).to_have_text("live")
    assert len(loads) == 1
    with page.expect_event("load"):
        routes[0].close()
    expect(page.locator("#state")).to_have_text("live")
    page.wait_for_timeout(500)  # it does not keep loading
    assert len(loads) == 2
    assert len(routes) == 3
