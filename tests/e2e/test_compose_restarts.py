"""What happens to the rest when a container dies, restarts or is replaced: the rows of docs/operations.md."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.e2e.engine import Project, docker, need_engine
from tests.e2e.restarts import CASES, WORKERS, Case, wait_until_it_works
from tests.e2e.watcher import Watcher
from tests.support import ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

LIST_STREAMS = "import framebus; print([found.name for found in framebus.streams()])"


@pytest.fixture(scope="module")
def pipeline() -> Iterator[Project]:
    need_engine()
    project = Project()
    try:
        project.compose("up", "-d", "--build", "--wait", timeout_s=600)
        yield project
    finally:
        project.down()


@pytest.fixture(scope="module")
def watcher(pipeline: Project) -> Iterator[Watcher]:
    with Watcher(pipeline.url) as watching:
        wait_until_it_works(pipeline, watching, time.monotonic())
        yield watching


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.row.replace(" ", "-").replace("`", ""))
def test_one_that_goes_comes_back_and_disturbs_no_other(pipeline: Project, watcher: Watcher, case: Case) -> None:
    assert f"| {case.row} |" in (ROOT / "docs/operations.md").read_text()
    before, ring, last = pipeline.starts(), pipeline.ring(), watcher.pictures[-1]
    case.act(pipeline)
    pipeline.wait_for(lambda: pipeline.starts()[case.service] != before[case.service])
    wait_until_it_works(pipeline, watcher, time.monotonic())

    after = pipeline.starts()
    assert {name for name in before if after[name] != before[name]} == {case.service}
    assert (after[case.service][0] != before[case.service][0]) == ("recreate" in case.row), "its container"
    assert pipeline.ring() == ring, "the same file in the same memory"
    newest = watcher.pictures[-1]
    assert newest.sequence > last.sequence
    assert (newest.epoch != last.epoch) == (case.service == "stitcher")


def test_the_holders_death_is_seen_when_the_next_one_restarts(pipeline: Project, watcher: Watcher) -> None:
    assert "| holder killed |" in (ROOT / "docs/operations.md").read_text()
    before = pipeline.starts()
    pipeline.kill("holder")
    pipeline.wait_for(lambda: pipeline.starts()["holder"] != before["holder"])
    wait_until_it_works(pipeline, watcher, time.monotonic())
    after = pipeline.starts()
    assert {name for name in before if after[name] != before[name]} == {"holder"}, "the others go on"

    # The holder has a new, empty /dev/shm; who comes next comes there, and is alone.
    pipeline.kill("stitcher")
    pipeline.wait_for(lambda: pipeline.starts()["stitcher"] != before["stitcher"])
    pipeline.wait_for(lambda: "panorama" in pipeline.run_in("stitcher", LIST_STREAMS))
    pipeline.wait_for(lambda: not pipeline.healthy() & WORKERS - {"stitcher"})
    assert "gone" in " ".join(watcher.reasons) or "ended" in " ".join(watcher.reasons)

    pipeline.compose("up", "-d", "--force-recreate", "--wait")
    wait_until_it_works(pipeline, watcher, time.monotonic())
    assert docker("ps", "-q", "--filter", f"name={pipeline.holder}") != ""
