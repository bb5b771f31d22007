"""The page of the answers: a run replaces the tables and nothing else, and the page has room for every section."""

from __future__ import annotations

import pytest

from bench.storage import backup
from bench.storage.__main__ import PAGE, SECTIONS
from bench.storage.figures import FigureTable, to_json
from bench.storage.page import begin, end, published

MACHINE = {"cores": 2, "kernel": "6.1.0-made-up"}


def results(section: str, value: float) -> dict[str, object]:
    table = FigureTable("lookups", "a folder")
    table.row("overlay").add({"us": value})
    saved = {"tables": to_json([table]), "seconds": 3.2, "load_before": 0.5}
    return {
        "form": "full", "image": "", "started": "2026-01-02 03:04 UTC", "machine": MACHINE,
        "sections": {section: saved},
    }  # fmt: skip


def test_a_run_replaces_only_the_tables_of_its_sections() -> None:
    page = (
        f"# Storage\n\nWhy.\n\n{begin('union')}\nbefore\n{end('union')}\n\n{begin('ring')}\nkept\n{end('ring')}\nlast\n"
    )
    once = published(page, results("union", 1.0))
    twice = published(once, results("union", 2.5))
    assert once.count("| overlay | 1 |") == 1
    assert "| overlay | 2.5 |" in twice
    assert "| overlay | 1 |" not in twice
    assert "GONE" not in once
    assert "`python -m bench.storage union --form full`, as root, on 2026-01-02 03:04 UTC in 3 s" in once
    for text in (once, twice):
        assert text.startswith("# Storage\n\nWhy.\n")
        assert text.endswith(f"{begin('ring')}\nkept\n{end('ring')}\nlast\n")


def test_a_page_without_a_place_for_a_section_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"the page needs the line .*: union -->"):
        published("# Storage\n", results("union", 1.0))


def test_the_page_has_a_place_for_every_section() -> None:
    page = PAGE.read_text()
    for section in SECTIONS:
        assert published(page, results(section, 1.0)).count("| overlay | 1 |") == 1


def test_the_page_shows_the_commands_that_are_tried() -> None:
    page = PAGE.read_text()
    for line in (backup.BACK_UP, backup.RESTORE, backup.LIST_UNUSED):
        assert line in page
