"""Shows the page in a browser, as the work to watch: ``python -m bench.image_usage.view URL SECONDS``."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Final

CHROMIUM: Final = Path("/usr/bin/chromium")
LIVE_S: Final = 120.0


def view(url: str, lasts_s: float) -> None:
    """Open the page in a browser, wait until its picture is live, and leave it open for a while."""
    from playwright.sync_api import Error, expect, sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1280, "height": 500})
        deadline_s = time.monotonic() + LIVE_S
        while True:
            try:
                page.goto(url)
                break
            except Error:  # a container without a health check is not awaited: its server may not listen yet
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(1)
        expect(page.locator("#state")).to_have_text("live", timeout=LIVE_S * 1e3)
        page.wait_for_timeout(lasts_s * 1e3)
        # Monitoring reads these, so their code counts as used.
        for path in ("/api/status", "/metrics"):
            page.request.get(f"{url}{path}")
        browser.close()


if __name__ == "__main__":
    view(sys.argv[1], float(sys.argv[2]))
