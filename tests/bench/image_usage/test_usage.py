"""Shares, advice, the report and the picture of made-up images."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from bench.image_usage.advice import advise, base_note, largest_idle, lost_without
from bench.image_usage.layers import State
from bench.image_usage.observe import Seen
from bench.image_usage.processes import Role
from bench.image_usage.report import as_json, opened_in, text
from bench.image_usage.treemap import Box, squarify, svg
from bench.image_usage.usage import also, share, shares
from tests.bench.image_usage.made import report, row, used

ROWS = (
    row("/base/used", 4_000_000, seen=used(1_000_000), ours=False),
    row("/base/idle", 6_000_000, ours=False),
    row("/np/core.so", 5_000_000, package="numpy", kind="shared libraries", seen=used(2_000_000)),
    row("/np/tests/a.py", 7_000_000, package="numpy", kind="tests"),
    row("/np/tests/b.py", 1_000_000, package="numpy", kind="tests"),
    row("/pip/x.py", 2_000_000, package="pip", kind="Python"),
    row("/old", 3_000_000, state=State.SUPERSEDED),
    row("/gone", 1_500_000, state=State.DELETED),
    row("/check.py", 500_000, seen=Seen(apart=frozenset({Role.CHECK}), touched_bytes=500_000)),
    row("/lazy.py", 250_000, seen=Seen(only_in="the tests")),
)


def test_files_are_summed_by_use() -> None:
    total = share(ROWS)
    assert (total.files, total.size_bytes) == (10, 30_250_000)
    assert (total.opened_files, total.opened_bytes, total.touched_bytes) == (2, 9_000_000, 3_000_000)
    assert total.idle_bytes == 21_250_000
    ours = report(*ROWS).ours
    assert (ours.size_bytes, ours.opened_bytes, ours.touched_bytes) == (20_250_000, 5_000_000, 2_000_000)
    assert (share([]).opened, share([]).touched) == (0, 0)


def test_groups_are_sorted_by_the_bytes_that_were_not_opened() -> None:
    groups = shares((one for one in ROWS if one.ours and one.visible), lambda one: str(one.package))
    assert list(groups) == ["numpy", "pip", "no package, /app"]
    assert groups["numpy"].opened == pytest.approx(5 / 13)


def test_the_last_line_is_the_summary() -> None:
    expected = "made:1: opened 25 %, touched 10 % of 20 MB of our layers, 30 % of the whole opened"
    assert report(*(row for row in ROWS if not row.seen.only_in)).summary() == expected
    found = report(*ROWS)
    with_further = f"{expected}; with the further observations 26 % of our layers"
    assert found.summary() == text(found).splitlines()[-1] == with_further


def test_the_advice_names_what_to_drop_and_what_it_saves() -> None:
    sentences = [one.text for one in advise(ROWS)]
    assert sentences == [
        "numpy's tests: 8.0 MB in 2 files, never opened; drop them.",
        "3.0 MB in 1 file written again by a later layer; make each file once, in one instruction.",
        "pip: 2.0 MB in 1 file, of which the work used nothing; uninstall it at the end of the build.",
        "1.5 MB in 1 file deleted by a later layer, which does not make the image smaller; "
        "delete them in the same instruction.",
    ]
    assert [one.saves_bytes for one in advise(ROWS)] == [8_000_000, 3_000_000, 2_000_000, 1_500_000]
    assert base_note(ROWS) == ("Of the base, 4.0 MB of 10 MB were opened: a smaller base could save at most 6.0 MB.")
    assert base_note([one for one in ROWS if one.ours]) == ""


def test_a_package_of_which_only_metadata_was_read_was_not_used() -> None:
    rows = [
        row("/pip/x.py", 2_000_000, package="pip", kind="Python"),
        row("/pip-1.dist-info/METADATA", 1_000, package="pip", kind="package lists", seen=used()),
    ]
    assert [one.text for one in advise(rows)] == [
        "pip: 2.0 MB in 2 files, of which the work used nothing; uninstall it at the end of the build."
    ]


def test_no_advice_asks_to_drop_files_that_a_check_or_a_test_used() -> None:
    told = "\n".join(one.text for one in advise(ROWS, least_bytes=0))
    assert "/app" not in told
    idle = [one.file.path for one in largest_idle(ROWS, 20)]
    assert idle == ["/np/tests/a.py", "/base/idle", "/old", "/pip/x.py", "/gone", "/np/tests/b.py"]
    assert [one.file.path for one in lost_without(ROWS)["the tests"]] == ["/lazy.py"]


def test_another_run_is_a_further_observation() -> None:
    saved = json.dumps(as_json(report(row("/pip/x.py", 1, seen=used()), row("/np/core.so", 1, seen=used()))))
    work, opened = opened_in(saved)
    assert work == "its work"
    found = also(ROWS, "tests.json", opened)
    assert [one.file.path for one in lost_without(found)["tests.json"]] == ["/pip/x.py"]
    assert not any(one.text.startswith("pip") for one in advise(found))
    assert share(found) == share(ROWS)


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 99}', '{"format": 1}', '{"format": 1, "files": [{}]}'])
def test_a_file_that_is_not_a_report_is_rejected(content: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        opened_in(content)


def test_the_report_shows_what_was_observed() -> None:
    found = replace(report(*ROWS), sharers=("holder",))
    held = replace(found, rows=(*ROWS, row("/held", 10, seen=Seen(held_bytes=2_000_000))))
    told = text(held)
    assert "2.0 MB were held in memory by holder before the start" in told
    assert "held in memory" not in text(found)
    assert "Images here with layers in common, whose files in memory are the same pages: other:1." in told
    assert "Only 'the tests' opened 1 files, 0.2 MB" in told
    assert "Base: base:1 (named by --base)." in told


def test_the_report_as_json_is_complete() -> None:
    found = json.loads(json.dumps(as_json(report(*ROWS))))
    assert found["ours"]["opened_bytes"] == 5_000_000
    assert [one["path"] for one in found["files"]] == [one.file.path for one in ROWS]
    assert found["files"][2] == {
        "path": "/np/core.so", "other_paths": [], "layer": 1, "state": "visible", "size_bytes": 5_000_000,
        "package": "numpy", "version": "1", "manager": "wheel", "kind": "shared libraries", "order": 1, "opened": True,
        "read_or_mapped": True, "touched_bytes": 2_000_000, "held_bytes": 0, "apart": [], "only_in": "",
    }  # fmt: skip
    assert found["summary"] == report(*ROWS).summary()


@pytest.mark.parametrize("sizes", [[1.0], [6, 6, 4, 3, 2, 2, 1], [1000, 1, 1, 1], [5] * 40])
def test_areas_of_a_treemap_are_in_proportion_and_do_not_overlap(sizes: list[float]) -> None:
    canvas = Box(10, 20, 300, 200)
    boxes = squarify(sizes, canvas)
    scale = 300 * 200 / sum(sizes)
    for box, size in zip(boxes, sizes, strict=True):
        assert box.width * box.height == pytest.approx(size * scale)
        assert box.x >= 10 - 1e-6
        assert box.y >= 20 - 1e-6
        assert box.x + box.width <= 310 + 1e-6
        assert box.y + box.height <= 220 + 1e-6
    for index, one in enumerate(boxes):
        for other in boxes[index + 1 :]:
            across = min(one.x + one.width, other.x + other.width) - max(one.x, other.x)
            down = min(one.y + one.height, other.y + other.height) - max(one.y, other.y)
            assert min(across, down) < 1e-6


def test_equal_areas_are_nearly_square() -> None:
    for box in squarify([1.0] * 16, Box(0, 0, 100, 100)):
        assert max(box.width / box.height, box.height / box.width) < 2


def test_the_picture_shows_each_file_in_its_colour() -> None:
    root = ET.fromstring(svg(report(*ROWS)))
    titles = [one.text or "" for one in root.iter("{http://www.w3.org/2000/svg}title")]
    for expected in (
        "/np/core.so, touched, 2.0 MB", "/np/core.so, opened, the rest, 3.0 MB", "/np/tests/a.py, never opened, 7.0 MB",
        "/old, superseded, 3.0 MB", "/check.py, only by health checks and shells, 0.5 MB",
        "/lazy.py, only by a further observation, 0.2 MB", "numpy, 13 MB", "base: base:1, 10 MB",
    ):  # fmt: skip
        assert expected in titles
