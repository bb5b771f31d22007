"""Two compose projects that share one /dev/shm, by the commands of the example's README."""

from __future__ import annotations

import re
import secrets
import shlex
from collections.abc import Iterator
from typing import Final

import pytest

from tests.e2e.engine import Project, docker, need_engine
from tests.examples.runs import page
from tests.examples.terminals import terminal_commands
from tests.support import ROOT

pytestmark = [pytest.mark.docker, pytest.mark.long, pytest.mark.timeout(600)]

IMAGE: Final = "framebus/example"
LINE: Final = re.compile(r"frame (\d+): 1280x720x3, brightness (\d+\.\d+)")


def compose_file(terminal: int) -> str:
    """Return the file of a terminal's command."""
    words = shlex.split(terminal_commands(page("container"))[terminal - 1])
    assert words[:3] == ["docker", "compose", "-f"]
    assert words[4] == "up"
    return words[3]


@pytest.fixture(scope="module")
def projects() -> Iterator[tuple[Project, Project]]:
    """Run the publishing project and one that joins it, each with its own name and image."""
    need_engine()
    name = f"test-{secrets.token_hex(4)}"
    image = f"{IMAGE}:{name}"
    environment = {"HOLDER": f"{name}-holder", "IMAGE": image}
    first = Project(compose_file(1), environment=environment, directory=ROOT)
    second = Project(compose_file(2), environment=environment, directory=ROOT)
    try:
        first.compose("build", timeout_s=500)
        first.compose("up", "-d")
        second.compose("up", "-d")
        yield first, second
    finally:
        second.down()
        first.down()
        docker("rmi", image, check=False)


def log_of(project: Project, service: str) -> str:
    """Return what the container of a service has printed."""
    return docker("logs", project.container(service)["Id"])


def sequences(project: Project) -> list[int]:
    """Return the sequences that the watcher has printed."""
    found = [LINE.fullmatch(line) for line in log_of(project, "watch").splitlines()]
    assert all(line is not None for line in found), log_of(project, "watch")
    return [int(line[1]) for line in found if line is not None]


def test_a_container_of_another_project_reads_the_frames(projects: tuple[Project, Project]) -> None:
    _, second = projects
    second.wait_for(lambda: len(sequences(second)) > 10, "ten frames in the watcher's log")
    seen = sequences(second)
    assert seen == sorted(set(seen))


def test_the_reader_has_another_user_no_network_and_no_capability(projects: tuple[Project, Project]) -> None:
    first, second = projects
    watch, publisher = second.container("watch"), first.container("publisher")
    users = [one["Config"]["User"].split(":") for one in (watch, publisher)]
    assert users[0][0] != users[1][0]
    assert users[0][1] == users[1][1]
    assert watch["HostConfig"]["NetworkMode"] == "none"
    assert watch["HostConfig"]["CapDrop"] == ["ALL"]
    assert watch["HostConfig"]["ReadonlyRootfs"]


def test_the_reader_continues_after_a_restart_of_the_publisher(projects: tuple[Project, Project]) -> None:
    first, second = projects
    second.wait_for(lambda: bool(sequences(second)), "a frame in the watcher's log")
    first.kill("publisher")
    first.wait_for(lambda: not first.container("publisher")["State"]["Running"], "the end of the publisher")
    first.compose("up", "-d")
    before = len(sequences(second))
    second.wait_for(lambda: len(sequences(second)) > before + 5, "frames of the next publisher")
    assert log_of(first, "publisher").count("publishing camera\n") == 2
    seen = sequences(second)
    assert seen == sorted(set(seen)), "the ring was adopted, and the sequences went on"


def test_the_watcher_stops_cleanly(projects: tuple[Project, Project]) -> None:
    _, second = projects
    second.compose("stop", "watch")
    assert second.container("watch")["State"]["ExitCode"] == 0
