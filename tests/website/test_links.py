"""Links of pages are valid, and dead links are found."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import ROOT
from website.links import anchors_of, faults_of, links_of, replace_links
from website.stage import faults, pages


def test_every_link_of_the_documents_leads_somewhere() -> None:
    assert faults() == []
    names = {str(page.relative_to(ROOT)) for page in pages()}
    assert {"README.md", "CONTRIBUTING.md", "docs/index.md", "docs/decisions/README.md"} <= names
    assert sum(len(links_of(page)) for page in pages()) > 200


@pytest.fixture
def page(tmp_path: Path) -> Path:
    (tmp_path / "other.md").write_text("# Other\n\n## Of `code`, a [link](x.md) & more\n\n## Twice\n\n## Twice\n")
    return tmp_path / "page.md"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[a](other.md)", ""),
        ("[a](other.md#twice) [b](other.md#twice-1)", ""),
        ("[a](other.md#of-code-a-link--more)", ""),
        ("[a](other.md#twice-2)", "page.md:1: other.md has no heading #twice-2"),
        ("# Here\n\n[a](#here)", ""),
        ("# Here\n\n[a](#there)", "page.md:3: page.md has no heading #there"),
        ("text\n[a](gone.md)", "page.md:2: gone.md leads nowhere: there is no gone.md"),
        ("![a](gone.png)", "page.md:1: gone.png leads nowhere: there is no gone.png"),
        ("[![a](gone.png)](other.md)", "gone.png leads nowhere"),
        ("[a](../../../etc/hostname)", "leads out of the checkout"),
        ("[a](https://example.org/x.md) [b](mailto:a@example.org)", ""),
        ("```\n[a](gone.md)\n```", ""),
        ("Write `[a](gone.md)` so.", ""),
        ("Of `code` and [a](gone.md)", "gone.md leads nowhere"),
    ],
)
def test_dead_links_are_reported_with_their_line(page: Path, text: str, expected: str) -> None:
    page.write_text(text)
    found = "\n".join(faults_of(page, page.parent))
    assert expected in found
    assert bool(found) == bool(expected)


def test_only_the_targets_of_links_are_replaced() -> None:
    text = "[a](x.md#y) ![p](p.png)\n\n```\n[a](x.md)\n```\n[b](https://example.org)"
    seen = []

    def turned(target: str, line: int) -> str:
        seen.append((target, line))
        return target.upper()

    assert replace_links(text, turned) == text.replace("(x.md#y)", "(X.MD#Y)").replace("(p.png)", "(P.PNG)")
    assert seen == [("p.png", 1), ("x.md#y", 1)]


def test_headings_in_code_blocks_are_not_anchors(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A\n\n```\n# a comment\n```\n\n## B_c\n")
    assert anchors_of(page) == {"a", "b_c"}
