"""What happens to the others if a container dies, restarts or is replaced: the table in docs/operations.md."""

from __future__ import annotations

import datetime
import time
import urllib.error
from collections.abc import Iterator, Mapping

import pytest

from tests.e2e.engine import SERVICES, Project, docker
from tests.e2e.restarts import CASES, WORKERS, Case, wait_until_it_works
from tests.e2e.watcher import Watcher
from tests.support import ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.docker, pytest.mark.long, pytest.mark.timeout(600)]

DIFF_AFTER_S = 60
LIST_FILES = "import os; print(os.listdir('/dev/shm'))"
LIST_STREAMS = "import framebus; print([found.name for found in framebus.streams()])"


@pytest.fixture(scope="module")
def watcher(pipeline: Project) -> Iterator[Watcher]:
    with Watcher(pipeline.url) as watching:
        wait_until_it_works(pipeline, watching, time.monotonic())
        yield watching


def changed(before: Mapping[str, object], after: Mapping[str, object]) -> set[str]:
    """Return the services whose values differ."""
    return {name for name in before if after[name] != before[name]}


def in_the_table(row: str) -> bool:
    return f"| {row} |" in (ROOT / "docs/operations.md").read_text()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.row.replace(" ", "-").replace("`", ""))
def test_a_service_that_dies_or_restarts_returns_and_disturbs_no_other(
    pipeline: Project, watcher: Watcher, case: Case
) -> None:
    assert in_the_table(case.row)
    before, ring, last = pipeline.starts(), pipeline.ring(), watcher.pictures[-1]
    case.act(pipeline)
    pipeline.wait_for(lambda: pipeline.starts()[case.service] != before[case.service], f"another {case.service} runs")
    wait_until_it_works(pipeline, watcher, time.monotonic())

    after = pipeline.starts()
    assert changed(before, after) == {case.service}
    assert (after[case.service][0] != before[case.service][0]) == ("recreate" in case.row), "its container"
    assert pipeline.ring() == ring, "the same file in the same memory"
    newest = watcher.pictures[-1]
    assert newest.sequence > last.sequence
    assert (newest.epoch != last.epoch) == (case.service == "stitcher")


def test_after_a_minute_no_container_has_written(pipeline: Project) -> None:
    containers = pipeline.containers()
    for one in containers.values():
        created = datetime.datetime.fromisoformat(one["Created"])
        time.sleep(max(0.0, DIFF_AFTER_S - (datetime.datetime.now(datetime.UTC) - created).total_seconds()))
    assert {name: docker("diff", one["Id"]) for name, one in containers.items()} == dict.fromkeys(containers, "")


def test_the_death_of_the_holder_disturbs_no_service(pipeline: Project, watcher: Watcher) -> None:
    assert in_the_table("holder killed")
    before = pipeline.starts()
    pipeline.kill("holder")
    pipeline.wait_for(lambda: pipeline.starts()["holder"] != before["holder"], "another holder runs")
    wait_until_it_works(pipeline, watcher, time.monotonic())
    assert changed(before, pipeline.starts()) == {"holder"}
    assert pipeline.run_in("holder", LIST_FILES) == "[]\n"
    assert "panorama" in pipeline.run_in("stitcher", LIST_STREAMS)


def test_a_service_that_restarts_after_the_holders_death_is_alone(pipeline: Project, watcher: Watcher) -> None:
    assert in_the_table("holder killed, then another restarts")
    before = pipeline.starts()
    pipeline.kill("stitcher")
    pipeline.wait_for(lambda: pipeline.starts()["stitcher"] != before["stitcher"], "another stitcher runs")
    pipeline.wait_for(lambda: "framebus.panorama.ring" in pipeline.run_in("holder", LIST_FILES), "there is a ring")
    pipeline.wait_for(lambda: "stream panorama has ended" in watcher.reasons, "the page tells of the end")
    with pytest.raises(urllib.error.HTTPError, match="503"):
        pipeline.ask("/healthz")
    pipeline.wait_for(lambda: not pipeline.healthy() & {"detector", "streamer"}, "neither subscriber is healthy")


def test_a_restart_of_the_holder_reconnects_all_services(pipeline: Project, watcher: Watcher) -> None:
    assert in_the_table("`restart holder`")
    before = pipeline.starts()
    pipeline.compose("restart", "holder")
    wait_until_it_works(pipeline, watcher, time.monotonic())
    assert changed(before, pipeline.starts()) == {"holder", *WORKERS}
    assert "framebus.panorama.ring" in pipeline.run_in("holder", LIST_FILES)


def test_the_next_up_moves_all_services_to_a_new_holder(pipeline: Project, watcher: Watcher) -> None:
    assert in_the_table("`up --force-recreate holder`")
    before = pipeline.starts()
    pipeline.compose("up", "-d", "--force-recreate", "holder")
    wait_until_it_works(pipeline, watcher, time.monotonic())
    assert changed(before, pipeline.starts()) == {"holder"}

    assert in_the_table("then `up`")
    pipeline.compose("up", "-d")
    wait_until_it_works(pipeline, watcher, time.monotonic())
    assert changed(before, pipeline.starts()) == {"holder", *WORKERS}


def test_all_can_be_replaced_at_once(pipeline: Project, watcher: Watcher) -> None:
    assert in_the_table("`up --force-recreate`")
    before = pipeline.starts()
    pipeline.compose("up", "-d", "--force-recreate")
    wait_until_it_works(pipeline, watcher, time.monotonic())
    assert changed(before, pipeline.starts()) == {"holder", *SERVICES}


def test_a_stop_ends_every_service_by_itself(pipeline: Project) -> None:
    pipeline.compose("stop")
    ends = {name: one["State"]["ExitCode"] for name, one in pipeline.containers().items()}
    assert ends == dict.fromkeys([*SERVICES, "holder"], 0), pipeline.logs()
    assert "Traceback" not in pipeline.logs()
