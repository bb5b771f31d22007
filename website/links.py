"""Links of Markdown pages: where they are, and whether they lead somewhere."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote

_FENCE: Final = re.compile(r"^(```|~~~).*?^\1\s*$", re.MULTILINE | re.DOTALL)
_TARGET: Final = r"(?P<target>[^)\s]+)(?P<end>[^)]*\))"
_IMAGE: Final = re.compile(r"(?P<head>!\[[^\]]*\]\()" + _TARGET)
_LINK: Final = re.compile(
    r"(?P<head>(?<!!)\[(?:[^\[\]]|!?\[[^\]]*\]\([^)]*\))*\]\()(?P<target>[^)\s]+)(?P<end>[^)]*\))"
)
_HEADING: Final = re.compile(r"^#+\s+(.*?)\s*#*$", re.MULTILINE)
_SCHEME: Final = re.compile(r"^[a-z][a-z0-9+.-]*:", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Link:
    """A relative link of a page."""

    page: Path
    line: int
    target: str
    """As it is written, with its anchor."""

    @property
    def path(self) -> Path:
        """The file or folder that it names; the page itself, if it is an anchor alone."""
        name = unquote(self.target.partition("#")[0])
        return (self.page.parent / name).resolve() if name else self.page.resolve()

    @property
    def anchor(self) -> str:
        """The heading that it names, as a code host writes it; empty if it names none."""
        return self.target.partition("#")[2]


def replace_links(text: str, replace: Callable[[str, int], str]) -> str:
    """Replace the targets of all relative links outside code blocks.

    Args:
        text: The page.
        replace: Called with the target and the line's number; returns the new target.
    """
    for form in (_IMAGE, _LINK):  # a link may have an image in the place of its text
        text = _replace(form, text, replace)
    return text


def links_of(page: Path) -> list[Link]:
    """Return the relative links of a page."""
    found: list[Link] = []

    def note(target: str, line: int) -> str:
        found.append(Link(page, line, target))
        return target

    replace_links(page.read_text(encoding="utf-8"), note)
    return found


def anchors_of(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as code hosts make them."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    anchors: set[str] = set()
    for heading in _HEADING.findall(text):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.replace("\\", "")).lower()
        anchor = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        number = 1
        unique = anchor
        while unique in anchors:
            unique = f"{anchor}-{number}"
            number += 1
        anchors.add(unique)
    return anchors


def faults_of(page: Path, root: Path) -> Iterator[str]:
    """Yield a sentence for each link of the page that leads nowhere, or out of ``root``."""
    for link in links_of(page):
        place = f"{page}:{link.line}"
        if not link.path.is_relative_to(root):
            yield f"{place}: {link.target} leads out of the checkout"
        elif not link.path.exists():
            yield f"{place}: {link.target} leads nowhere: there is no {link.path.relative_to(root)}"
        elif link.anchor and link.path.suffix == ".md" and link.anchor not in anchors_of(link.path):
            yield f"{place}: {link.path.relative_to(root)} has no heading #{link.anchor}"


def _replace(form: re.Pattern[str], text: str, replace: Callable[[str, int], str]) -> str:
    blocks = [block.span() for block in _FENCE.finditer(text)]

    def replaced(link: re.Match[str]) -> str:
        in_code = any(start <= link.start() < end for start, end in blocks)
        if in_code or _SCHEME.match(link["target"]) or _in_code_span(text, link.start()):
            return link[0]
        target = replace(link["target"], text.count("\n", 0, link.start()) + 1)
        return f"{link['head']}{target}{link['end']}"

    return form.sub(replaced, text)


def _in_code_span(text: str, position: int) -> bool:
    """Return whether an odd number of backticks come before the position in its paragraph."""
    start = text.rfind("\n\n", 0, position) + 1
    return text.count("`", start, position) % 2 == 1
