"""The page of a run: every question, every peer, what failed, what is missing, and plots that can be looked at."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from bench import plan, report
from bench.harness import Candidate
from bench.peers import all_peers
from bench.pipeline import AT_THE_PAGE, HAND_OVER
from bench.results import Results
from tests.bench import made_up
from tests.support import lacks

PNG = b"\x89PNG\r\n\x1a\n"
FAILURE = "Traceback (most recent call last):\n  ...\nRuntimeError: the server is gone\n"


@pytest.fixture(scope="module", autouse=True)
def _matplotlib() -> None:
    if importlib.util.find_spec("matplotlib") is None:
        lacks("matplotlib is not installed: pip install 'framebus[bench]'")


def whole_run() -> Results:
    """The short form, in which Redis failed after its first round and iceoryx2 does not exist."""

    def figures(one: Candidate, number: int) -> made_up.Row | None:
        if one.peer == "iceoryx2-listener" or (one.peer.startswith("redis") and number):
            return None
        cheap = {"sender_cpu_us": 12.0} if one.peer in ("pipe", "floor-zmq") else {}
        return made_up.row(100.0 * (1 + number), torn=float(number if one.peer == "tmpfs-file" else 0), **cheap)

    peers = list(all_peers())
    scenarios = [
        made_up.scenario(scenario, figures, {name: FAILURE for name in peers if name.startswith("redis")})
        for scenario in plan.short(peers)
    ]
    attach = {"first_frame_ms": 4.5, "first_frame_ms_least": 4.0, "first_frame_ms_most": 9.0}
    faults = {"first_lap_faults": 12.0, "second_lap_faults": 0.0, "waiting_faults": 1085.0, "touched_pages": 19_800.0}
    pipeline = {
        "started": "2030-01-02 04:00 UTC",
        "seconds": 60.0,
        "panoramas_per_s": 24.9,
        "skipped": 3,
        "pictures_per_s": 24.5,
        "boxes_per_s": 2.5,
        "stages_ms": {HAND_OVER: [0.25, 1.5], AT_THE_PAGE: [100.0, 150.0]},
        "hand_over_part": 0.0025,
        "cores": {"stitcher": 0.75},
    }
    return made_up.results(
        scenarios, attach=attach | faults, pipeline=pipeline, missing={"two containers": "no engine answers"}
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "benchmarks.md"
    report.write(whole_run(), path)
    return path


def test_the_page_has_every_question_and_every_peer(page: Path) -> None:
    text = page.read_text()
    assert "Made by `make bench` on 2030-01-02 03:04 UTC in 4.0 minutes" in text
    titles = {peer.title for peer in all_peers().values()}
    assert all(f"| {title} |" in text for title in titles)
    for scenario in plan.short(list(all_peers())):
        assert f"\n## {scenario.name[0].upper()}{scenario.name[1:]}\n" in text
    assert "4.5 ms (4.0 to 9.0)" in text
    assert "- two containers: no engine answers" in text


def test_a_figure_has_its_range_and_its_ratio(page: Path) -> None:
    rows = [line for line in page.read_text().splitlines() if line.startswith("| framebus, futex |")]
    assert "| 200 (100 to 300) | 1.00 | 400 (200 to 600) |" in rows[0]


def test_where_another_is_ahead_is_said_but_not_of_floors(page: Path) -> None:
    section = page.read_text().partition("## Where another is ahead")[2].partition("![")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ") and "---" not in line][1:]
    redis = [f"| peers, 25 fps | 10 MB | 1 | Redis {kind} | p50 | 100 | 200 |" for kind in ("pub/sub", "stream")]
    assert "| peers, 25 fps | 10 MB | 1 | multiprocessing.Pipe | sender's CPU | 12 | 50 |" in rows
    assert set(redis) < set(rows)  # by their only round
    assert not [row for row in rows if "floor" in row or "framebus," in row]


def test_it_is_said_too_if_nobody_is_ahead(tmp_path: Path) -> None:
    rounds = made_up.scenario(plan.short(["floor-futex"])[1], lambda *_: made_up.row(100.0))
    report.write(made_up.results([rounds]), tmp_path / "page.md")
    assert "## Where another is ahead\n\nNowhere in this run.\n" in (tmp_path / "page.md").read_text()


def test_the_pipeline_has_its_stages_and_its_costs(page: Path) -> None:
    text = page.read_text()
    assert "for 60 s from 2030-01-02 04:00 UTC on: 24.9 panoramas a second, of which" in text
    assert "a further subscriber missed 3; 24.5 pictures" in text
    assert "the hand-over of the panorama is 0.25%." in text
    assert "| captured to the picture at the page | 100 | 150 |" in text
    assert "| stitcher | 0.75 |" in text


def test_a_failure_is_its_last_line(page: Path) -> None:
    text = page.read_text()
    assert re.search(r"^- .*[Rr]edis.*: RuntimeError: the server is gone$", text, re.MULTILINE)
    assert "Traceback" not in text


def test_torn_frames_are_shown_where_pixels_cross(page: Path) -> None:
    text = page.read_text()
    assert re.search(r"^\| floor: bare futex wake \|.* not checked \|$", text, re.MULTILINE)
    titles = all_peers()["tmpfs-file"].title
    assert re.search(rf"^\| {re.escape(titles)} \|.* 2 \|$", text, re.MULTILINE)


def test_each_table_has_as_many_cells_in_each_row(page: Path) -> None:
    cells = 0
    for line in page.read_text().splitlines():
        if not line.startswith("|"):
            cells = 0
            continue
        cells = cells or line.count("|")
        assert line.count("|") == cells, line


def test_the_plots_are_there_and_linked(page: Path) -> None:
    linked = re.findall(r"^!\[[^]]+\]\(([^)]+)\)$", page.read_text(), re.MULTILINE)
    assert len(linked) == 3
    for name in linked:
        assert (page.parent / name).read_bytes().startswith(PNG)
    assert sorted(path.name for path in page.with_suffix("").iterdir()) == sorted(Path(name).name for name in linked)


def test_a_run_without_anything_is_a_page_too(tmp_path: Path) -> None:
    path = tmp_path / "benchmarks.md"
    report.write(made_up.results([], form="full"), path)
    text = path.read_text()
    assert "Made by `make bench-full`" in text
    assert "0 of" in text
    assert "![" not in text
