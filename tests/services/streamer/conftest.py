"""The browser of the streamer's tests, and what it opens."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.services.streamer.browser import HALF, PATIENCE_MS, Served
from tests.services.streamer.support import RunningPublisher, StreamerProcess
from tests.support import CHROMIUM, CHROMIUM_ARGUMENTS, own_stream


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGUMENTS)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Run a streamer with pictures, for the tests of a module that leave it running."""
    with (
        own_stream() as stream,
        RunningPublisher(stream, HALF, 10) as publisher,
        StreamerProcess(stream, tmp_path_factory.mktemp("served") / "log", silent_after_s=1) as streamer,
    ):
        yield Served(streamer.url, stream, publisher)


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page; errors of its scripts and refusals by its policy fail the test."""
    faults: list[str] = []
    opened = browser.new_page(viewport={"width": 1280, "height": 720})
    opened.set_default_timeout(PATIENCE_MS)
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.on(
        "console",
        lambda message: faults.append(message.text) if "Content Security Policy" in message.text else None,
    )
    yield opened
    opened.close()
    assert faults == []
