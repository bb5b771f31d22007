"""What the page shows of cameras, their places and how well they fit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from framebus import FrameFormat
from services.common.status import StatusServer
from tests.services.streamer import stitcher
from tests.services.streamer.browser import axe_findings
from tests.services.streamer.support import RunningPublisher, StreamerProcess
from tests.support import needs_browser, wait_until

NONE = "\u2013"

pytestmark = [pytest.mark.slow, needs_browser]


@pytest.fixture(scope="module")
def documents() -> list[dict[str, Any]]:
    """Return the stitcher's status documents, of which the last one is served."""
    return [stitcher.document()]


@pytest.fixture(scope="module")
def url(documents: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    stream = f"calibration-{os.getpid()}"
    with (
        RunningPublisher(stream, FrameFormat(64, 512), 5),
        StatusServer(stream, "stitcher", lambda: documents[-1]),
        StreamerProcess(stream, tmp_path_factory.mktemp("calibration") / "log") as streamer,
    ):
        yield streamer.url


def test_the_page_names_causes_places_and_drift(url: str, page: Page) -> None:
    page.goto(url)
    expect(page.locator("#state")).to_have_text("live")
    expect(page.locator("#missing")).to_have_text(
        "camera cam3: refused: the camera wants another user or password · camera cam5: not placed"
        f" · {stitcher.WARNING} · shown: {stitcher.SHOWN}"
    )


@pytest.mark.long
def test_the_calibration_has_a_page_of_its_own(url: str, page: Page) -> None:
    page.goto(url)
    page.locator("#calibration").click()
    expect(page).to_have_title("Calibration")
    expect(page.locator("#summary")).to_have_text("calibrated without some cameras")
    expect(page.locator("#warning")).to_have_text(stitcher.WARNING)
    expect(page.locator("#caption")).to_have_text(stitcher.SHOWN)
    rows = page.locator("#cameras tr")
    expect(rows).to_have_count(6)
    expect(rows.nth(1)).to_have_text("cam1connectedplacedsender4 ms-36.00°0.00°0.00°686.2 px-0.0500.60 px")
    expect(rows.nth(3)).to_contain_text("refused: the camera wants another user or password")
    expect(rows.nth(5)).to_contain_text(f"not placed: {stitcher.REASON}")
    pairs = page.locator("#pairs tr")
    expect(pairs.nth(1)).to_have_text("cam1 and cam2410.70 px7.42 px7.40 px0.50 px98")
    expect(pairs.nth(3)).to_have_text(f"cam3 and cam4434.10 pxno texture{NONE}{NONE}0")
    expect(page.locator("#drawing polygon")).to_have_count(5)
    expect(page.locator("#drawing .seam")).to_have_count(4)
    expect(page.locator("#drawing circle.match")).to_have_count(12)
    # The live residual if there is one, else that of the calibration.
    expect(page.locator("#drawing text.good, #drawing text.warn, #drawing text.bad")).to_have_text(
        ["0.3 px", "7.4 px", "2.0 px", "4.1 px"]
    )
    loaded = "document.querySelector('#drawing image')?.getAttribute('href')?.includes('snapshot.jpg')"
    page.wait_for_function(loaded)
    # axe finds nothing, and nothing is cut off.
    for width, scheme in ((1280, "dark"), (390, "light")):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        page.set_viewport_size({"width": width, "height": 800})
        assert axe_findings(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") == width
    page.set_viewport_size({"width": 1280, "height": 720})
    page.locator("header a").click()
    expect(page.locator("#state")).to_have_text("live")


def test_the_fields_that_an_earlier_stitcher_reports_are_shown(
    url: str, documents: list[dict[str, Any]], page: Page
) -> None:
    def cameras() -> int:
        services = page.request.get(f"{url}api/status").json()["services"]
        return len(services["stitcher"]["details"]["cameras"])

    documents.append(stitcher.of_an_earlier_version())
    try:
        wait_until(lambda: cameras() == 2, "the streamer has the other document", interval_s=0.05)
        page.goto(f"{url}calibration")
        expect(page.locator("#cameras tr").nth(0)).to_have_text(
            f"cam0connectedplaced{2 * NONE}1.50°{2 * NONE}800.0 px{2 * NONE}"
        )
        expect(page.locator("#cameras tr").nth(1)).to_contain_text("lost: no data in time")
        expect(page.locator("#cameras tr").nth(1)).to_contain_text("not placed")
        expect(page.locator("#figure")).to_be_hidden()
        expect(page.locator("#warning")).to_be_empty()
    finally:
        documents.pop()
