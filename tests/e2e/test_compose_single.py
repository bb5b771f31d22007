"""The whole pipeline in one container."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.engine import Project, docker, need_engine
from tests.e2e.restarts import WORKERS

pytestmark = [pytest.mark.e2e, pytest.mark.docker, pytest.mark.long, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def single() -> Iterator[Project]:
    need_engine()
    project = Project("compose.single.yaml")
    try:
        project.compose("up", "-d", "--build", "--wait", timeout_s=600)
        project.wait_for(lambda: project.healthy() >= WORKERS, "all services are healthy")
        yield project
    finally:
        project.down()


def processes(project: Project) -> dict[str, int]:
    """Return the PIDs on the host, by service."""
    found = {}
    for line in docker("top", project.container("framebus")["Id"], "-eo", "pid,args").splitlines()[1:]:
        number, *arguments = line.split()
        if arguments[1:3] == ["-m", "services"]:
            found[arguments[3]] = int(number)
    return found


def test_all_services_run_without_a_privilege_or_a_file_written(single: Project) -> None:
    found = processes(single)
    assert found.keys() == {"supervisor", "simulator", "stitcher", "detector", "streamer"}
    for number in found.values():
        status = Path(f"/proc/{number}/status").read_text()
        assert f"CapEff:\t{'0' * 16}" in status
        assert "Uid:\t1001\t" in status
    assert docker("diff", single.container("framebus")["Id"]) == ""
    assert single.container("framebus")["HostConfig"]["ReadonlyRootfs"]


def test_the_page_is_reachable_only_from_this_machine_and_gets_new_frames(single: Project) -> None:
    (bound,) = single.container("framebus")["NetworkSettings"]["Ports"]["8080/tcp"]
    assert bound == {"HostIp": "127.0.0.1", "HostPort": str(single.port)}
    first = single.ask("/api/status")["streams"][0]["sequence"]
    single.wait_for(lambda: single.ask("/api/status")["streams"][0]["sequence"] > first + 10, "ten more frames")


def test_a_killed_service_comes_back_in_the_same_container(single: Project) -> None:
    before, container = processes(single), single.starts()
    os.kill(before["stitcher"], signal.SIGKILL)
    single.wait_for(
        lambda: processes(single).get("stitcher", before["stitcher"]) != before["stitcher"], "another stitcher runs"
    )
    single.wait_for(lambda: single.healthy() >= WORKERS, "all services are healthy again")
    after = processes(single)
    assert {name for name in before if after[name] != before[name]} == {"stitcher"}
    assert single.starts() == container


def test_a_stop_ends_the_container_without_a_kill(single: Project) -> None:
    single.compose("stop")
    assert single.container("framebus")["State"]["ExitCode"] == 0, single.logs()
    assert "Traceback" not in single.logs()
