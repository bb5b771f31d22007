"""The page in a real browser, and counts of its pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Page, WebSocket, expect, sync_playwright

from tests.support import CHROMIUM, CHROMIUM_ARGUMENTS

LEAST_SHOWN = 1 / 3
"""A browser that draws in software, on two slow cores beside the whole pipeline, passes over many pictures."""
WINDOW_S = 3
WINDOWS = 10

# Counts pictures that differ from the previous one, in the pixels of the band in which people walk.
COUNT_PICTURES = """seconds => new Promise(resolve => {
    const canvas = document.getElementById("picture");
    const context = canvas.getContext("2d");
    const top = Math.floor(canvas.height * 0.45), rows = 24;
    let before = null, distinct = 0;
    const end = performance.now() + 1000 * seconds;
    const look = () => {
        const words = new Uint32Array(context.getImageData(0, top, canvas.width, rows).data.buffer);
        let hash = 2166136261;
        for (let index = 0; index < words.length; index++) hash = Math.imul(hash ^ words[index], 16777619);
        if (hash !== before) distinct += 1;
        before = hash;
        if (performance.now() < end) requestAnimationFrame(look); else resolve(distinct);
    };
    look();
})"""


@contextmanager
def open_page(url: str) -> Iterator[Page]:
    """Open the page at ``url``, and wait until it is live."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGUMENTS)
        opened = browser.new_page(viewport={"width": 1280, "height": 500})
        opened.goto(url)
        wait_until_live(opened)
        yield opened
        browser.close()


def wait_until_live(page: Page) -> None:
    """Wait until the page says that the picture is live."""
    expect(page.locator("#state")).to_have_text("live", timeout=60_000)


def part_shown(page: Page, encoded: Callable[[], int]) -> float:
    """Return the number of distinct panoramas that the page shows, as a share of those encoded meanwhile.

    Other work on the machine may take some windows of time, so several are looked at until one has
    :data:`LEAST_SHOWN`.

    Args:
        page: The page, live.
        encoded: Returns how many pictures the streamer has encoded so far.

    Returns:
        The share in the last window.
    """
    shown = 0.0
    for _ in range(WINDOWS):
        before = encoded()
        distinct = page.evaluate(COUNT_PICTURES, WINDOW_S)
        shown = distinct / max(1, encoded() - before)
        if shown >= LEAST_SHOWN and distinct > WINDOW_S:
            break
    return shown


def collect_detections(page: Page) -> dict[int, list[dict[str, Any]]]:
    """Collect the objects that reach the page from now on, by the frame's sequence, while the page waits."""
    at_page: dict[int, list[dict[str, Any]]] = {}

    def listen(websocket: WebSocket) -> None:
        def receive(payload: str | bytes) -> None:
            content = json.loads(payload) if isinstance(payload, str) else {}
            if content.get("type") == "detections":
                at_page[content["sequence"]] = content["objects"]

        websocket.on("framereceived", receive)

    page.on("websocket", listen)
    page.reload()
    return at_page
