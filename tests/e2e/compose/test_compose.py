"""The containers on a real engine: what the page shows, what they may do, and which projects may join them."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.e2e.engine import SERVICES, TAG, Project, docker, need_engine
from tests.e2e.page import LEAST_SHOWN, collect_detections, open_page, part_shown
from tests.e2e.watcher import Watcher
from tests.support import ROOT, needs_browser

pytestmark = [pytest.mark.e2e, pytest.mark.docker, pytest.mark.long, pytest.mark.timeout(600)]

ALL = {*SERVICES, "holder"}
FIRST_PICTURE_S = 30
HEALTH_S = 30
GID = "2000"


def health(pipeline: Project) -> dict[str, str | None]:
    """Return each service's health as the engine reports it; ``None`` without a health check."""
    return {name: one["State"].get("Health", {}).get("Status") for name, one in pipeline.containers().items()}


@pytest.fixture(scope="module")
def page(pipeline: Project) -> Iterator[Page]:
    with open_page(pipeline.url) as opened:
        yield opened


@pytest.mark.parametrize("environment", [{}, {"COMPOSE_PROFILES": "", "FRAMEBUS_CONFIG": ""}], ids=["as it is", "own"])
@pytest.mark.parametrize("file", ["compose.yaml", "compose.single.yaml"])
def test_compose_accepts_the_files_without_a_warning(file: str, environment: dict[str, str]) -> None:
    need_engine()
    project = Project(file, environment=environment)
    assert project.compose("config", "--quiet") == ""
    content = json.loads(project.compose("config", "--format", "json"))
    assert ("simulator" in content["services"]) == (file == "compose.yaml" and not environment)
    if file == "compose.yaml":
        configuration, model = content["services"]["detector"]["volumes"]
        assert Path(configuration["source"]).name == ("framebus.yaml" if environment else "simulated.yaml")
        assert Path(model["source"]) == ROOT / "models" / "default"
        assert model["read_only"]


def test_the_first_picture_is_shown_soon_after_the_start(pipeline: Project) -> None:
    with Watcher(pipeline.url) as watcher:
        pipeline.wait_for(lambda: bool(watcher.pictures), "a first picture", FIRST_PICTURE_S)
    pipeline.compose("up", "-d", "--build", "--wait")


@needs_browser
def test_the_page_shows_distinct_panoramas(pipeline: Project, page: Page) -> None:
    def encoded() -> int:
        frames: int = pipeline.ask("/api/status")["services"]["streamer"]["stages"]["encode"]["frames"]
        return frames

    assert part_shown(page, encoded) >= LEAST_SHOWN, pipeline.ask("/api/status")


@needs_browser
def test_the_page_gets_boxes_of_people(pipeline: Project, page: Page) -> None:
    at_page = collect_detections(page)
    expect(page.locator("#objects")).to_have_text(re.compile("[1-9]"), timeout=60_000)
    page.wait_for_timeout(2000)
    people = [found for objects in at_page.values() for found in objects if found["label"] == "person"]
    assert people, pipeline.logs()
    assert all(-1 <= box["x"] <= box["x"] + box["width"] <= 4897 for box in people)


def test_every_service_is_healthy_and_its_metrics_are_at_the_streamer(pipeline: Project) -> None:
    assert health(pipeline) == {**dict.fromkeys(SERVICES, "healthy"), "holder": None}
    with urllib.request.urlopen(f"{pipeline.url}/metrics", timeout=10) as answer:
        metrics = answer.read().decode()
    for service in ("stitcher", "detector", "streamer"):
        assert f'framebus_service_healthy{{service="{service}"}} 1.0' in metrics
        assert f'framebus_stage_frames_total{{service="{service}"' in metrics


def test_the_page_is_published_on_this_machine_only(pipeline: Project) -> None:
    ports = {name: one["NetworkSettings"]["Ports"] for name, one in pipeline.containers().items()}
    bound = [binding for found in ports.values() for bindings in found.values() for binding in bindings or []]
    assert bound == [{"HostIp": "127.0.0.1", "HostPort": str(pipeline.port)}]


def test_a_foreign_site_is_refused(pipeline: Project) -> None:
    for headers in ({"Host": "rebound.example.org"}, {"Origin": "http://example.org"}):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(urllib.request.Request(f"{pipeline.url}/snapshot.jpg", headers=headers), timeout=10)


def test_no_process_has_a_privilege(pipeline: Project) -> None:
    users = {}
    for name, one in pipeline.containers().items():
        group = Path(f"/proc/{one['State']['Pid']}/cgroup").read_text()
        for process in docker("top", one["Id"], "-eo", "pid").split()[1:]:
            status = dict(
                line.split(":\t", 1)
                for line in Path(f"/proc/{process}/status").read_text().splitlines()
                if ":\t" in line
            )
            assert one["Id"] in group
            assert {status[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}, name
            assert status["NoNewPrivs"] == "1"
            assert "0" not in status["Uid"].split()
            users[name] = status["Uid"].split()[0], status["Gid"].split()[0]
        assert one["HostConfig"]["ReadonlyRootfs"]
        assert one["HostConfig"]["RestartPolicy"]["Name"] == "unless-stopped"
    assert users.keys() == ALL
    assert len({uid for uid, _ in users.values()}) == len(ALL)
    assert {gid for name, (_, gid) in users.items() if name != "simulator"} == {GID}


def test_the_detector_has_no_network(pipeline: Project) -> None:
    assert pipeline.run_in("detector", "import os; print(os.listdir('/sys/class/net'))") == "['lo']\n"
    assert pipeline.container("detector")["HostConfig"]["NetworkMode"] == "none"
    assert pipeline.container("holder")["HostConfig"]["NetworkMode"] == "none"


CLOCK = """
import time
from framebus import Subscriber
with Subscriber("panorama", name="clock", wake="futex") as subscriber:
    first = subscriber.receive(20)
    held_ns, sequence = time.monotonic_ns(), first.sequence
    first.release()
    while (frame := subscriber.receive(20)).sequence < sequence + 2:
        frame.release()
    print(held_ns < frame.published_ns < time.monotonic_ns(), frame.captured_ns < frame.published_ns)
"""


def test_all_containers_share_one_clock(pipeline: Project) -> None:
    # The frame after the next was published after the first was held here, and before it was held itself.
    assert pipeline.run_in("detector", CLOCK) == "True True\n"


# Distributions that only one image has, in addition to those of all.
OWN = {
    "av": {"stitcher", "detector"},
    "onnxruntime": {"detector"},
    "aiohttp": {"streamer"},
    "prometheus-client": {"streamer"},
}
LIST = "import importlib.metadata as m; print(*sorted(d.name.lower().replace('_', '-') for d in m.distributions()))"


@pytest.mark.parametrize("service", ["stitcher", "detector", "streamer"])
def test_an_image_has_one_opencv_and_only_its_own_packages(pipeline: Project, service: str) -> None:
    found = pipeline.run_in(service, LIST).split()
    assert [name for name in found if name.startswith("opencv")] == ["opencv-python-headless"]
    assert {name for name in OWN if name in found} == {name for name, services in OWN.items() if service in services}
    assert not {"pytest", "mypy", "ruff", "playwright"} & set(found)


def test_the_simulators_image_has_no_package(pipeline: Project) -> None:
    program = LIST
    found = docker("exec", pipeline.container("simulator")["Id"], "python", "-c", program).split()
    assert not [name for name in found if name.startswith("opencv") or name == "av"]


def readme_block(language: str, word: str) -> str:
    """Return the README's code block in this language that contains the word."""
    blocks = re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (found,) = (block for block in blocks if word in block)
    return str(found)


def test_another_project_joins_as_the_readme_says(pipeline: Project, tmp_path: Path) -> None:
    compose = readme_block("yaml", "container:framebus-holder")
    compose = compose.replace("container:framebus-holder", f"container:{pipeline.holder}")
    compose = compose.replace("image: framebus/streamer", f"image: framebus/streamer:{TAG}")
    (tmp_path / "compose.yaml").write_text(compose)
    (tmp_path / "watch.py").write_text(readme_block("python", 'name="watch"'))
    tmp_path.chmod(0o755)
    (tmp_path / "watch.py").chmod(0o644)
    other = Project(directory=tmp_path)
    try:
        other.compose("up", "-d")
        watch = other.container("watch")
        other.wait_for(lambda: docker("logs", watch["Id"]).count("\n") > 30, "thirty lines in its log")
        lines = [line.split() for line in docker("logs", watch["Id"]).splitlines()]
        sequences = [int(line[0]) for line in lines]
        assert sequences == sorted(set(sequences))
        assert len({line[-1] for line in lines}) > 10, "the pictures differ"
        uid, gid = watch["Config"]["User"].split(":")
        assert gid == GID
        assert uid not in {one["Config"]["User"].split(":")[0] for one in pipeline.containers().values()}
    finally:
        other.down()


def test_with_a_wrong_group_the_error_names_the_right_one(pipeline: Project) -> None:
    command = ["--user", "1100:1999", "--network", "none", "--ipc", f"container:{pipeline.holder}"]
    program = "from framebus import Subscriber; Subscriber('panorama')"
    output = docker("run", "--rm", *command, f"framebus/streamer:{TAG}", "python", "-c", program, check=False)
    assert output.splitlines()[-1].startswith("framebus.errors.PermissionDenied: /dev/shm/framebus.panorama.ring")
    assert "group 2000" in output
    assert f"run this process with group {GID}" in output


def test_a_small_dev_shm_is_reported_with_the_size_to_set() -> None:
    need_engine()
    command = ["--user", f"1001:{GID}", "--network", "none", "--shm-size", "64m", "--read-only"]
    output = docker("run", "--rm", *command, f"framebus/stitcher:{TAG}", check=False)
    reason = json.loads(output.splitlines()[-1])["reason"]
    assert reason == "/dev/shm has 64 MiB free, this ring needs 155 MiB: set shm_size: 160m"
    assert "Traceback" not in output
