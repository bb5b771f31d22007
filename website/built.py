"""The built site: whether its links lead somewhere, read from the HTML."""

from __future__ import annotations

from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

_TARGETS: Final = ("href", "src")


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.ids.add(value)
            elif name in _TARGETS and value and tag != "base":
                self.links.append(value)


def faults_of_site(site: Path) -> Iterator[str]:
    """Yield a sentence for each link within the site that leads nowhere."""
    pages = {file: _Page(file.read_text(encoding="utf-8")) for file in sorted(site.rglob("*.html"))}
    for file, page in pages.items():
        for link in dict.fromkeys(page.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            path = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            anchor = unquote(parts.fragment)
            place = file.relative_to(site)
            if not path.exists():
                yield f"{place}: {link} leads nowhere"
            elif anchor and path in pages and anchor not in pages[path].ids:
                yield f"{place}: {link}: that page has no such anchor"
