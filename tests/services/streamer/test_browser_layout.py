"""The page on several screens, and what axe finds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from services.common.detections import Detection
from tests.services.streamer.browser import HALF, Detecting, Served, axe_findings
from tests.support import needs_browser, wait_until

pytestmark = [pytest.mark.slow, needs_browser]

SIZES = [(1600, 900), (1280, 720), (390, 844), (360, 640)]


@pytest.fixture(scope="module")
def url(served: Served) -> Iterator[str]:
    """Return the URL of a page with boxes of two kinds."""
    people = [Detection("person", 0.8, 150.0 * i, 150.0, 40.0, 80.0, i + 1) for i in range(12)]
    with Detecting(served.stream, served.publisher, *people, Detection("car", 0.9, 2000.0, 150.0, 150.0, 75.0, 99)):
        yield served.url


def open_at(browser: Browser, url: str, width: int, height: int, scheme: str = "dark") -> Page:
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
    page.goto(url)
    expect(page.locator("#state")).to_have_text("live")
    return page


@pytest.mark.parametrize("scheme", ["dark", pytest.param("light", marks=pytest.mark.long)])
@pytest.mark.parametrize(
    ("width", "height"), [*SIZES[1:3], *(pytest.param(*size, marks=pytest.mark.long) for size in (SIZES[0], SIZES[3]))]
)
def test_axe_finds_nothing_and_nothing_overflows(
    url: str, browser: Browser, width: int, height: int, scheme: str
) -> None:
    page = open_at(browser, url, width, height, scheme)
    expect(page.locator("#found button")).to_have_count(2)
    assert axe_findings(page) == []
    scrolls = "[document.documentElement.scrollWidth, document.documentElement.scrollHeight]"
    assert page.evaluate(scrolls) == [width, height]
    page.close()


@pytest.mark.parametrize(
    ("width", "height"),
    [(390, 844), *(pytest.param(*size, marks=pytest.mark.long) for size in ((360, 640), (700, 1000)))],
)
def test_a_tall_window_shows_the_full_height_and_a_strip_of_the_whole(
    url: str, browser: Browser, width: int, height: int
) -> None:
    page = open_at(browser, url, width, height)
    stage, picture, overview = (page.locator(f"#{name}") for name in ("stage", "picture", "overview"))

    def fills() -> bool:
        box, room = picture.bounding_box(), stage.bounding_box()
        assert box is not None
        assert room is not None
        return abs(box["height"] - room["height"]) < 2

    wait_until(fills, "the picture is as high as the stage")
    strip = overview.bounding_box()
    assert strip is not None
    assert strip["width"] / strip["height"] == pytest.approx(HALF.width / HALF.height, rel=0.05)

    def goes_to_the_left_end_and_follows_a_drag() -> bool:
        """Return whether it did, on a stage of unchanged size: a line that appears above it scales the picture."""
        before = stage.bounding_box()
        # A touch on the strip's left end shows the panorama's left end.
        place = overview.bounding_box()
        assert place is not None
        page.mouse.click(place["x"] + 2, place["y"] + place["height"] / 2)
        box = picture.bounding_box()
        page.mouse.move(width / 2, height / 2)
        page.mouse.down()
        page.mouse.move(width / 2 - 100, height / 2, steps=3)
        page.mouse.up()
        moved = picture.bounding_box()
        if stage.bounding_box() != before:
            return False
        assert box is not None
        assert moved is not None
        assert box["x"] == pytest.approx(0, abs=1)
        assert moved["x"] == pytest.approx(box["x"] - 100, abs=1)
        return True

    wait_until(goes_to_the_left_end_and_follows_a_drag, "a look while nothing else moves")
    page.get_by_role("button", name="Fit").click()
    fitted = picture.bounding_box()
    assert fitted is not None
    assert fitted["width"] == pytest.approx(width, abs=1)
    expect(overview).to_be_hidden()
    page.get_by_role("button", name="Fill").click()
    wait_until(fills, "it fills the height again")
    expect(overview).to_be_visible()
    page.close()


@pytest.mark.long
def test_full_screen_hides_the_bars_until_the_pointer_moves(url: str, browser: Browser) -> None:
    page = open_at(browser, url, 1280, 720)
    page.get_by_role("button", name="Full screen").click()
    wait_until(lambda: page.evaluate("document.fullscreenElement !== null"), "full screen")
    expect(page.locator("header")).to_be_hidden()
    expect(page.locator("footer")).to_be_hidden()
    page.mouse.move(300, 300)
    expect(page.locator("header")).to_be_visible()
    expect(page.locator("footer")).to_be_visible()
    page.close()


def test_the_snapshot_is_the_picture(url: str, browser: Browser, tmp_path: Path) -> None:
    page = open_at(browser, url, 1280, 720)
    with page.expect_download() as download:
        page.get_by_role("link", name="Snapshot").click()
    saved = tmp_path / "snapshot.jpg"
    download.value.save_as(saved)
    assert saved.read_bytes()[:2] == b"\xff\xd8"
    page.close()
