"""The tree that Sphinx reads: pages with rewritten links, generated parts, and tables of contents."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.support import ROOT
from website import stage
from website.stage import Stage, StageError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stage") / "source"
    Stage(folder).write()
    return folder


def test_every_page_has_its_generated_parts(tree: Path) -> None:
    for page in stage.pages():
        text = (tree / stage.place_of(page)).read_text()
        assert "\n<!-- site:" not in text, page
    assert "FRAMEBUS_STREAMER__PORT" in (tree / "configuration.md").read_text()
    assert ".. autoclass:: framebus.Publisher" in (tree / "api.md").read_text()
    assert "`framebus-stitcher probe`" in (tree / "commands.md").read_text()
    assert "<svg" in (tree / "spec.md").read_text()
    assert json.loads((tree / stage.SCHEMAS[0]).read_text())["$defs"]


def test_a_link_out_of_the_folder_leads_to_a_page_that_shows_the_file(tree: Path) -> None:
    assert "](source/framebus/ring/__init__.py.md)" in (tree / "design.md").read_text()
    assert "SVG" not in (tree / "source/constraints.txt.md").read_text()
    shown = (tree / "source/framebus/ring/_ring_c.c.md").read_text()
    assert (ROOT / "framebus/ring/_ring_c.c").read_text().splitlines()[20] in shown
    assert (
        "test_rings.py" in (tree / "source/tests/framebus/cases.md").read_text()
        or "cases/" in (tree / "source/tests/framebus/cases.md").read_text()
    )


def test_every_page_is_in_a_table_of_contents(tree: Path) -> None:
    index = (tree / "index.md").read_text()
    for page in stage.pages():
        place = stage.place_of(page)
        if place.parent in (Path(), Path("bench/results")) and place.name != "index.md":
            assert re.search(rf"^(.* <)?{re.escape(str(place.with_suffix('')))}>?$", index, re.MULTILINE), page
    assert ":caption: How to\n" in index


@pytest.fixture
def docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with two pages."""
    folder = tmp_path / "docs"
    (folder / "decisions").mkdir(parents=True)
    (folder / "cli.schema.json").write_text("{}")
    (folder / "index.md").write_text("# All\n\n## How to\n\n- [A](a.md): first\n")
    (folder / "a.md").write_text("# A\n")
    for name, value in (("ROOT", tmp_path), ("DOCS", folder)):
        monkeypatch.setattr(stage, name, value)
    return folder


def test_a_page_that_the_index_does_not_list_is_found(docs: Path, tmp_path: Path) -> None:
    (docs / "tutorial.md").write_text("# Tutorial\n")
    Stage(tmp_path / "out").write()
    index = (tmp_path / "out/index.md").read_text()
    assert index.index("\nA <a>\n") < index.index("\ntutorial\n")


def test_a_dead_link_ends_the_build(docs: Path, tmp_path: Path) -> None:
    (docs / "a.md").write_text("# A\n\n[b](b.md)\n")
    with pytest.raises(StageError, match=r"a\.md:3: b\.md leads nowhere"):
        Stage(tmp_path / "out").write()


def test_an_unknown_generated_part_ends_the_build(docs: Path, tmp_path: Path) -> None:
    (docs / "a.md").write_text("# A\n\n<!-- site: weather -->\n")
    with pytest.raises(StageError, match="nothing is generated for 'site: weather'"):
        Stage(tmp_path / "out").write()
