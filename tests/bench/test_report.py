"""The tables of a run: every question, every peer, failures and missing peers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench import plan, plots, report
from bench.peers import all_peers
from tests.bench import made_up

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "tables"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "draw", lambda results, folder: [])  # takes most of the time; test_publish.py draws
        report.write(made_up.whole_run(), path)
    return path


@pytest.fixture(scope="module")
def text(folder: Path) -> str:
    return "\n".join((folder / name).read_text() for name in report.TABLES)


def test_the_tables_have_every_question_and_every_peer(text: str) -> None:
    titles = {peer.title for peer in all_peers().values()}
    assert all(f"| {title} |" in text for title in titles)
    for scenario in plan.short(list(all_peers())):
        assert f"\n## {scenario.name[0].upper()}{scenario.name[1:]}\n" in text
    assert "4.5 ms (4.0 to 9.0)" in text
    assert "- two containers: no engine answers" in text


def test_each_file_says_when_and_where_its_figures_were_made(folder: Path) -> None:
    assert sorted(report.TABLES) == sorted(path.name for path in folder.glob("*.md"))
    for name in report.TABLES:
        text = (folder / name).read_text()
        assert "Made by `make bench` on 2030-01-02 03:04 UTC in 4.0 minutes: a machine of the test, 2 cores" in text


def test_a_figure_has_its_range_and_its_ratio(folder: Path) -> None:
    lines = (folder / "peers.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("| framebus, futex |")]
    assert "| 200 (100 to 300) | 1.00 | 400 (200 to 600) |" in rows[0]


def test_peers_that_are_ahead_are_listed_but_floors_are_not(folder: Path) -> None:
    section = (folder / "targets.md").read_text().partition("## Where another is ahead")[2]
    rows = [line for line in section.splitlines() if line.startswith("| ") and "---" not in line][1:]
    redis = [f"| peers, 25 fps | 10 MB | 1 | Redis {kind} | p50 | 100 | 200 |" for kind in ("pub/sub", "stream")]
    assert "| peers, 25 fps | 10 MB | 1 | multiprocessing.Pipe | sender's CPU | 12 | 50 |" in rows
    assert set(redis) < set(rows)  # by their only round
    assert not [row for row in rows if "floor" in row or "framebus," in row]


def test_a_report_says_if_no_peer_is_ahead(tmp_path: Path) -> None:
    rounds = made_up.scenario(plan.short(["floor-futex"])[1], lambda *_: made_up.row(100.0))
    report.write(made_up.results([rounds]), tmp_path)
    assert "## Where another is ahead\n\nNowhere in this run.\n" in (tmp_path / "targets.md").read_text()


def test_a_failure_is_shown_by_its_last_line(text: str) -> None:
    assert re.search(r"^- .*[Rr]edis.*: RuntimeError: the server is gone$", text, re.MULTILINE)
    assert "Traceback" not in text


def test_torn_frames_are_counted_only_for_peers_that_transfer_pixels(text: str) -> None:
    assert re.search(r"^\| floor: bare futex wake \|.* not checked \|$", text, re.MULTILINE)
    titles = all_peers()["tmpfs-file"].title
    assert re.search(rf"^\| {re.escape(titles)} \|.* 2 \|$", text, re.MULTILINE)


def test_each_table_has_as_many_cells_in_each_row(text: str) -> None:
    cells = 0
    for line in text.splitlines():
        if not line.startswith("|"):
            cells = 0
            continue
        cells = cells or line.count("|")
        assert line.count("|") == cells, line


def test_a_run_without_any_figures_has_tables(tmp_path: Path) -> None:
    assert report.write(made_up.results([], form="full"), tmp_path) == []
    text = (tmp_path / "targets.md").read_text()
    assert "Made by `make bench-full`" in text
    assert "0 of" in text
