"""The published page is short, its links are valid, and publishing a run again changes nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench import __main__ as command
from bench import report
from bench.publish import BEGIN, BEST_PEERS, END, publish
from bench.results import Results, load, save
from tests.bench import made_up

pytestmark = pytest.mark.slow

MOST_LINES = 150
PNG = b"\x89PNG\r\n\x1a\n"
BEFORE, AFTER = "# Benchmarks\n\nWritten by hand.\n\n", "\n\n## More\n\nBy hand too.\n"
NOTHING = made_up.results([])
"""A run that has nothing to draw, which takes most of the time."""
RUN = "20300102T030405-short.json"


def links_of(page: Path) -> list[Path]:
    """Return the files that the page's relative links name."""
    targets = re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", page.read_text())
    return [page.parent / target for target in targets]


def anchors_of(page: Path) -> list[tuple[Path, str]]:
    """Return the files and the headings that the page's links to a heading name."""
    return [(page.parent / file, anchor) for file, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text())]


class Published:
    """A page, and the folder beside it, with a run published."""

    def __init__(self, root: Path, results: Results) -> None:
        self.page, self.folder, self.run = root / "docs/page.md", root / "results", root / "saved" / RUN
        self.page.parent.mkdir()
        self.page.write_text(f"{BEFORE}{BEGIN}\nof a run before\n{END}{AFTER}")
        save(results, self.run)
        self.publish()

    def publish(self) -> None:
        publish(self.run, self.folder, self.page)

    @property
    def text(self) -> str:
        return self.page.read_text()

    def table(self, heading: str) -> list[list[str]]:
        """Return the cells of the rows of the table below a heading."""
        section = self.text.partition(f"\n### {heading}\n")[2].partition("\n#")[0]
        lines = [line for line in section.splitlines() if line.startswith("| ")]
        return [line.strip("| ").split(" | ") for line in lines[2:]]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return Published(tmp_path_factory.mktemp("published"), made_up.whole_run())


def test_the_page_is_short() -> None:
    assert 50 < len(command.PAGE.read_text().splitlines()) <= MOST_LINES


def test_every_link_of_the_page_leads_to_a_file() -> None:
    files = links_of(command.PAGE)
    assert len({file.resolve() for file in files}) >= 6
    assert [str(file) for file in files if not file.is_file()] == []
    for file, anchor in anchors_of(command.PAGE):
        headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
        assert anchor in [heading.lower().replace(" ", "-") for heading in headings]


def test_every_row_of_the_page_has_its_figures_in_the_full_tables() -> None:
    full = "".join((command.PUBLISHED / name).read_text() for name in report.TABLES)
    rows = re.findall(r"^\| ([^|]+) \|(?: (\d+) \|)? ([\d.,]+ \([^)]*\)) \|", command.PAGE.read_text(), re.MULTILINE)
    assert len(rows) > 10
    for peer, receivers, figure in rows:
        row = f"| {peer} | {receivers} | {figure} |" if receivers else f"| {peer} | {figure} |"
        assert row in full


def test_the_page_names_the_machine_and_the_time_of_the_run() -> None:
    (statement,) = re.findall(r"^Made by `make bench.*$", command.PAGE.read_text(), re.MULTILINE)
    for name in report.TABLES:
        assert statement in (command.PUBLISHED / name).read_text()


def test_text_outside_the_generated_part_stays(published: Published) -> None:
    assert published.text.startswith(BEFORE + BEGIN)
    assert published.text.endswith(END + AFTER)
    assert "of a run before" not in published.text


def test_publishing_the_same_run_again_changes_no_file(published: Published) -> None:
    def content() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (published.page, *published.folder.iterdir())}

    before = content()
    publish(published.folder / RUN, published.folder, published.page)  # the published run itself
    assert content() == before


def test_the_files_of_the_previous_run_are_removed(tmp_path: Path) -> None:
    published = Published(tmp_path, NOTHING)
    (published.folder / "20290102T030405-full.json").write_text("{}")
    published.publish()
    assert sorted(path.name for path in published.folder.iterdir()) == sorted([*report.TABLES, RUN])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["docs", "results", "saved"]


def test_every_published_file_is_linked_and_every_link_leads_to_one(published: Published) -> None:
    assert {file.resolve() for file in links_of(published.page)} == set(published.folder.iterdir())
    pictures = list(published.folder.glob("*.png"))
    assert len(pictures) == 3
    assert all(picture.read_bytes().startswith(PNG) for picture in pictures)
    assert load(published.folder / RUN) == made_up.whole_run()


def test_the_best_peers_are_listed_between_framebus_and_the_floors(published: Published) -> None:
    titles = [row[0] for row in published.table("A hand-over beside the best peers")]
    ours, floors = (titles[:4], titles[4 + BEST_PEERS :])
    assert all(title.startswith("framebus, ") for title in ours)
    assert len(floors) == 3
    assert all(title.startswith("floor: ") for title in floors)
    assert set(titles[4:6]) == {"Redis pub/sub", "Redis stream"}  # by their only round


def test_each_number_of_subscribers_has_its_row(published: Published) -> None:
    rows = published.table("Cost by subscribers")
    assert rows == [["framebus, futex", count, "200 (100 to 300)", "400", "50", "60"] for count in ("1", "4", "16")]


def test_the_pipeline_has_its_stages_and_its_costs(published: Published) -> None:
    text = published.text
    assert "for 60 s from 2030-01-02 04:00 UTC on: 24.9 panoramas a second, of which" in text
    assert "a further subscriber missed 3; 24.5 pictures" in text
    assert "the hand-over of the panorama is 0.25%." in text
    assert "| captured to the picture at the page | 100 | 150 |" in text
    assert "| stitcher | 0.75 |" in text


def test_a_run_without_any_figures_can_be_published(tmp_path: Path) -> None:
    published = Published(tmp_path, NOTHING)
    assert "0 of" in published.text
    assert "![" not in published.text
    assert "###" not in published.text


def test_a_page_without_its_marks_is_left_unchanged(tmp_path: Path) -> None:
    published = Published(tmp_path, NOTHING)
    files = sorted(published.folder.iterdir())
    published.page.write_text(BEFORE)
    with pytest.raises(ValueError, match=r"page\.md has no generated part"):
        published.publish()
    assert published.text == BEFORE
    assert sorted(published.folder.iterdir()) == files


class TestCommand:
    """``python -m bench publish``."""

    @pytest.fixture
    def places(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Published:
        published = Published(tmp_path, NOTHING)
        monkeypatch.setattr(command, "ROOT", tmp_path)
        monkeypatch.setattr(command, "SAVED", published.run.parent)
        monkeypatch.setattr(command, "PUBLISHED", published.folder)
        monkeypatch.setattr(command, "PAGE", published.page)
        return published

    def run(self, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
        monkeypatch.setattr("sys.argv", ["bench", "publish", *map(str, arguments)])
        return command.main()

    def test_the_last_whole_run_is_published(
        self, places: Published, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        last = places.run.with_name("20300103T000000-full.json")
        save(made_up.results([], form="full"), last)
        save(made_up.results([]), places.run.with_name("20300104T000000-short-part.json"))
        assert self.run(monkeypatch) == 0
        assert (places.folder / last.name).read_bytes() == last.read_bytes()
        assert f"published {last.name} in results and docs/page.md" in capsys.readouterr().out

    def test_a_run_is_published_by_its_name(self, places: Published, monkeypatch: pytest.MonkeyPatch) -> None:
        other = places.run.with_name("another.json")
        save(made_up.results([]), other)
        assert self.run(monkeypatch, other) == 0
        assert [path.name for path in places.folder.glob("*.json")] == ["another.json"]

    def test_without_a_run_it_says_which_command_saves_one(
        self, places: Published, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        places.run.unlink()
        assert self.run(monkeypatch) == 2
        assert capsys.readouterr().err == "no saved run to publish: make bench-full saves one\n"

    def test_a_file_without_a_run_is_named(
        self, places: Published, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.run(monkeypatch, places.page) == 2
        assert "page.md holds no results" in capsys.readouterr().err
