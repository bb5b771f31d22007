"""The tree of pages that Sphinx reads: docs/ and what its pages link to, with the generated parts filled in."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from website import api, bytes_of_ring, commands, configuration, import_graph, life_of_slot
from website.links import Link, faults_of, replace_links

ROOT: Final = Path(__file__).parent.parent.resolve()
DOCS: Final = ROOT / "docs"
INDEX: Final = "index.md"
SCHEMAS: Final = ("configuration.schema.json", "cli.schema.json")
"""Files beside the pages, for programs: the first is generated, the second one of docs/."""
BESIDE: Final = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "bench/results/*.md")
"""Pages outside docs/ that are part of the site."""
GENERATED: Final[Mapping[str, Callable[[], str]]] = {
    "api": api.page,
    "commands": commands.page,
    "configuration": configuration.page,
    "imports": import_graph.drawing,
    "ring": bytes_of_ring.drawing,
    "slot": life_of_slot.drawing,
}
"""What takes the place of a comment ``<!-- site: NAME -->``."""
_COMMENT: Final = re.compile(r"^<!-- site: (\w+) -->$", re.MULTILINE)
_ENTRY: Final = re.compile(r"^- \[([^\]]*)\]\(([^)#]+\.md)\)", re.MULTILINE)
_LANGUAGES: Final = {
    ".c": "c", ".py": "python", ".toml": "toml", ".yaml": "yaml", ".Dockerfile": "docker",
}  # fmt: skip


class StageError(Exception):
    """The pages cannot be put together; the message has a line for each fault."""


def pages() -> list[Path]:
    """Return all pages of the site that are written by hand."""
    return sorted([*DOCS.rglob("*.md"), *(page for pattern in BESIDE for page in ROOT.glob(pattern))])


def faults() -> list[str]:
    """Return a sentence for each link of the pages that leads nowhere."""
    return [fault for page in pages() for fault in faults_of(page, ROOT)]


def place_of(path: Path) -> Path:
    """Return where a page or picture of the checkout is in the site."""
    return path.relative_to(DOCS) if path.is_relative_to(DOCS) else path.relative_to(ROOT)


class Stage:
    """Writes the tree."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pages = {page: place_of(page) for page in pages()}
        self._shown: set[Path] = set()
        """Other files and folders that pages link to; each gets a page that shows it."""

    def write(self) -> None:
        """Write the tree, in the place of what the folder held.

        Raises:
            StageError: A link leads nowhere, or a page asks for what is not generated.
        """
        dead = faults()
        if dead:
            raise StageError("\n".join(dead))
        shutil.rmtree(self._folder, ignore_errors=True)
        for page, place in self._pages.items():
            self._put(place, self._text(page))
        for path in sorted(self._shown):
            self._put(self._page_showing(path), _shown(path))
        generated, kept = SCHEMAS
        self._put(Path(generated), json.dumps(configuration.schema(), indent=2) + "\n")
        self._put(Path(kept), (DOCS / kept).read_text(encoding="utf-8"))

    def _put(self, place: Path, text: str) -> None:
        target = self._folder / place
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")

    def _text(self, page: Path) -> str:
        """Return a page with its links turned, and what is generated filled in."""

        def turned(target: str, line: int) -> str:
            link = Link(page, line, target)
            if target.startswith("#"):
                return target
            hash_and_anchor = f"#{link.anchor}" if link.anchor else ""
            return os.path.relpath(self._place(link.path), self._pages[page].parent) + hash_and_anchor

        def generated(comment: re.Match[str]) -> str:
            if comment[1] not in GENERATED:
                raise StageError(f"{page}: nothing is generated for 'site: {comment[1]}'; there are {[*GENERATED]}")
            return GENERATED[comment[1]]()

        text = _COMMENT.sub(generated, replace_links(page.read_text(encoding="utf-8"), turned))
        if page == DOCS / INDEX:
            text += self._tables_of_contents(page)
        elif page == DOCS / "decisions/README.md":
            text += _toctree("", ["0*"], glob=True)
        return text

    def _place(self, path: Path) -> Path:
        """Return where the target of a link is in the site; pictures and data are copied there."""
        if path in self._pages:
            return self._pages[path]
        if path.suffix in (".png", ".svg", ".json"):
            place = place_of(path)
            (self._folder / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, self._folder / place)
            return place
        self._shown.add(path)
        return self._page_showing(path)

    def _page_showing(self, path: Path) -> Path:
        return Path("source", f"{path.relative_to(ROOT)}.md")

    def _tables_of_contents(self, index: Path) -> str:
        """Return a hidden table of contents for each section of the index, from the pages that it lists."""
        parts = []
        listed: set[Path] = set()
        sections = re.split(r"^## (.*)$", index.read_text(encoding="utf-8"), flags=re.MULTILINE)
        for heading, text in zip(sections[1::2], sections[2::2], strict=True):
            entries = [(title, (index.parent / target).resolve()) for title, target in _ENTRY.findall(text)]
            listed |= {path for _, path in entries}
            parts.append(
                _toctree(heading, [f"{title} <{self._pages[path].with_suffix('')}>" for title, path in entries])
            )
        others = [
            str(place.with_suffix(""))
            for page, place in self._pages.items()
            if page not in listed and page != index and page.parent == DOCS
        ]
        results = [str(place.with_suffix("")) for page, place in self._pages.items() if "results" in page.parts]
        if others:
            parts.append(_toctree("More", others))
        parts.append(_toctree("Figures in full", results))
        return "\n".join(parts)


def _toctree(caption: str, entries: list[str], *, glob: bool = False) -> str:
    head = [
        "",
        "```{toctree}",
        ":hidden:",
        *([f":caption: {caption}"] if caption else []),
        *([":glob:"] if glob else []),
    ]
    return "\n".join([*head, "", *entries, "```", ""])


def _shown(path: Path) -> str:
    """Return a page that shows a file or lists a folder."""
    name = path.relative_to(ROOT)
    head = f"---\norphan: true\n---\n# {name}"
    if path.is_dir():
        files = sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
        kept = [file for file in files if "__pycache__" not in file and not file.endswith(".so")]
        return f"{head}/\n\nA folder of the checkout, with these files:\n\n```text\n" + "\n".join(kept) + "\n```\n"
    language = _LANGUAGES.get(path.suffix, "text")
    text = path.read_text(encoding="utf-8")
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall(r"`+", text) or [""]))
    return f"{head}\n\nA file of the checkout.\n\n{fence}{language}\n{text}\n{fence}\n"
