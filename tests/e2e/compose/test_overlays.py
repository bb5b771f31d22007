"""The compose files on top of compose.yaml on a real engine, as far as this engine can run them.

Not here: compose.gpu.yaml, for want of a GPU, and compose.model-image.yaml, for want of an engine that mounts images.
tests/deploy/test_overlays.py has them. compose.relay.yaml has test_compose_relay.py.
"""

from __future__ import annotations

import json
import re
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.engine import SERVICES, Project, docker, need_engine
from tests.e2e.walk import Shell, commands, copy_checkout, stand_in, with_two_cameras
from tests.support import ROOT, free_ports, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.docker, pytest.mark.long, pytest.mark.timeout(600)]

MONITORING = ROOT / "config/monitoring"
DASHBOARD = json.loads((MONITORING / "grafana/dashboards/framebus.json").read_text())
LIMIT = re.compile(r" (==|>) [\d.]+$")
"""What an alert's expression ends with."""
OF_A_QUEUE = re.compile(r'"relay"|framebus_worker_')
"""What an expression contains that is about detectors that share a queue."""
COUNT_SERIES = """
import json, sys, urllib.parse, urllib.request
found = {}
for expression in json.load(sys.stdin):
    url = sys.argv[1] + "/api/v1/query?" + urllib.parse.urlencode({"query": expression})
    found[expression] = len(json.load(urllib.request.urlopen(url))["data"]["result"])
print(json.dumps(found))
"""
"""How many series Prometheus has for each expression, asked from where Grafana would ask."""


def of_dashboard() -> set[str]:
    return {target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])}


def of_alerts() -> set[str]:
    """Return each alert's expression without its limit, which gives data while all is well."""
    content = yaml.safe_load((MONITORING / "prometheus/alerts.yaml").read_text())
    rules = [rule["expr"] for group in content["groups"] for rule in group["rules"]]
    assert all(LIMIT.search(rule) for rule in rules)
    return {LIMIT.sub("", rule) for rule in rules}


PATIENCE_S = 180.0
"""How long a machine with other work may take to find two cameras' directions and start a detector."""
EXPRESSIONS = of_dashboard() | of_alerts()


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """Open a shell in a checkout, with the test's own images of models in two versions."""
    need_engine()
    port = free_ports(4)
    holder = f"test-{secrets.token_hex(4)}"
    environment = {
        "FRAMEBUS_HOLDER": holder,
        "FRAMEBUS_PORT": str(port),
        "FRAMEBUS_PROMETHEUS_PORT": str(port + 1),
        "FRAMEBUS_GRAFANA_PORT": str(port + 2),
        "FRAMEBUS_BROKER_PORT": str(port + 3),
        "FRAMEBUS_BUNDLE": holder,
        "COMPOSE_FILE": "compose.yaml:compose.monitoring.yaml:compose.model-copy.yaml",
    }
    checkout = with_two_cameras(copy_checkout(tmp_path_factory.mktemp("checkout")))
    images = [f"framebus/model-{holder}-copy:{version}" for version in ("1.0.0", "1.0.1")]
    with (
        stand_in("prometheus", "compose.monitoring.yaml"),
        stand_in("grafana", "compose.monitoring.yaml"),
        stand_in("rabbitmq", "compose.relay.yaml"),
    ):
        opened = Shell(checkout, environment, {})
        try:
            manifest = checkout / "models/default/bundle.yaml"
            for image in images:
                version = image.rpartition(":")[2]
                manifest.write_text(re.sub(r"(?m)^version: .*", f"version: {version}", manifest.read_text()))
                how = "--quiet --target copy --file deploy/kubernetes/model.Dockerfile"
                opened.run(f"docker build {how} --tag {image} models/default")
            yield opened
        finally:
            opened.run("docker compose --profile '*' down -v -t 2 --remove-orphans", check=False)
            docker("rmi", *images, check=False)


def series(shell: Shell, expressions: set[str]) -> dict[str, int]:
    """Return the number of series of each expression, queried in Grafana's container at the datasource's address."""
    provisioned = "/etc/grafana/provisioning/datasources/prometheus.yaml"
    (datasource,) = yaml.safe_load(shell.run(f"docker compose exec -T grafana cat {provisioned}"))["datasources"]
    identity = shell.run("docker compose ps --quiet grafana").strip()
    done = subprocess.run(
        ["docker", "exec", "-i", identity, "python", "-c", COUNT_SERIES, datasource["url"]],
        input=json.dumps(sorted(expressions)),
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(json.loads(done.stdout))


def without_data(shell: Shell, expressions: set[str]) -> set[str]:
    return {expression for expression, count in series(shell, expressions).items() if count == 0}


def wait_for_data(shell: Shell, expressions: set[str]) -> None:
    """Wait until each expression has series. Rates, and the cameras' fit, have none in the first minute."""
    wait_until(
        lambda: not without_data(shell, expressions),
        "every expression has data",
        timeout_s=PATIENCE_S,
        interval_s=1,
        detail=lambda: without_data(shell, expressions),
    )


def detector(shell: Shell) -> dict[str, Any]:
    told = json.loads(shell.run("curl --silent --fail http://127.0.0.1:$FRAMEBUS_PORT/api/status"))
    return dict(told["services"]["detector"]["details"])


def starts(shell: Shell) -> dict[str, str]:
    """Return each service's container and its start time."""
    identities = shell.run("docker compose ps --quiet").split()
    found = json.loads(docker("inspect", *identities))
    return {one["Config"]["Labels"]["com.docker.compose.service"]: one["State"]["StartedAt"] for one in found}


def test_the_model_is_copied_from_an_image_into_a_volume(shell: Shell) -> None:
    shell.run("docker compose up --build --detach --wait")
    states = shell.states()
    assert states.pop("model") == ["exited"]
    assert {name: state for name, state in states.items() if state != ["healthy"]} == {
        "holder": ["running"],
        "grafana": ["running"],
    }
    assert states.keys() == {*SERVICES, "holder", "prometheus", "grafana"}
    assert detector(shell)["model_version"] == "1.0.0"


def test_another_version_of_the_model_replaces_only_the_detector(shell: Shell) -> None:
    before = starts(shell)
    shell.run("export FRAMEBUS_BUNDLE_VERSION=1.0.1\ndocker compose up --detach --wait")
    wait_until(
        lambda: detector(shell)["model_version"] == "1.0.1",
        "the new model is told",
        timeout_s=PATIENCE_S,
        interval_s=0.5,
    )
    after = starts(shell)
    assert {name for name in before if before[name] != after[name]} == {"detector"}
    listing = shell.run("docker compose exec -T detector ls /models").split()
    assert sorted(name.rpartition("-")[2] for name in listing) == ["1.0.0", "1.0.1"]


def test_dashboard_and_alerts_have_data(shell: Shell) -> None:
    wait_for_data(shell, {expression for expression in EXPRESSIONS if not OF_A_QUEUE.search(expression)})


def test_no_alert_fires_while_all_is_well(shell: Shell) -> None:
    assert series(shell, {'ALERTS{alertstate="firing"}'}) == {'ALERTS{alertstate="firing"}': 0}


def test_dashboard_and_alerts_also_have_data_of_a_queue(shell: Shell) -> None:
    shell.run(commands("scale-out.md", "Start")[0])  # the broker's password
    shell.run(
        "export COMPOSE_FILE=$COMPOSE_FILE:compose.relay.yaml FRAMEBUS_RELAY__TARGET_FPS=1\n"
        "docker compose up --build --detach --wait"
    )
    of_queue = {expression for expression in EXPRESSIONS if OF_A_QUEUE.search(expression)}
    assert of_queue
    wait_for_data(shell, of_queue)


SMALL = """
stream: {name: panorama, slots: 8}
stitcher:
  width_px: 1632
  height_px: 688
  cameras:
    - {name: left, url: "rtsp://simulator:8554/cam%d"}
    - {name: right, url: "rtsp://simulator:8554/cam%d"}
"""


def small(folder: Path, name: str, *cameras: int) -> dict[str, str]:
    """Return the environment of a project with a panorama of two of the simulator's cameras."""
    path = folder / f"{name}.yaml"
    path.write_text(SMALL % cameras)
    path.chmod(0o644)
    for parent in (folder, folder.parent, folder.parent.parent):
        parent.chmod(0o755)
    return {"FRAMEBUS_CONFIG": str(path), "FRAMEBUS_STREAM__NAME": name}


CAMERAS_TO_PAGE = ("stitcher", "streamer", "simulator")
"""What a panorama needs to be seen, without the detector, which costs most."""


@pytest.fixture
def north(tmp_path: Path) -> Iterator[Project]:
    need_engine()
    project = Project("compose.yaml", environment=small(tmp_path, "north", 0, 1))
    try:
        project.compose("up", "--build", "--detach", *CAMERAS_TO_PAGE)
        project.wait_for(lambda: serves(project, "north"), "the first panorama is served", PATIENCE_S)
        yield project
    finally:
        project.down()


def serves(project: Project, name: str) -> bool:
    """Return whether the project's page has a picture of this stream."""
    try:
        return bool(project.ask("/api/status")["stream"] == name and project.ask("/healthz")["healthy"])
    except OSError:
        return False


def fault(project: Project, service: str) -> str:
    """Return the output of a container's health check; empty if the service is healthy."""
    identity = project.container(service)["Id"]
    return docker("exec", identity, "python", "-m", "services.common.health", service, check=False)


def streams(project: Project) -> set[str]:
    program = "import framebus; print(*(found.name for found in framebus.streams()))"
    return set(project.run_in("streamer", program).split())


def test_another_panorama_joins_the_holder_of_the_first(north: Project, tmp_path: Path) -> None:
    environment = {**small(tmp_path, "south", 3, 4), "FRAMEBUS_HOLDER": north.holder}
    south = Project("compose.yaml", "compose.join.yaml", environment=environment)
    try:
        south.compose("up", "--detach")
        assert set(south.containers()) == {*SERVICES}
        south.wait_for(
            lambda: south.healthy() == {"stitcher", "detector", "streamer"}, "the second one is at work", PATIENCE_S
        )
        assert serves(south, "south")
        assert serves(north, "north")
        assert north.healthy() == {"stitcher", "streamer"}
        assert streams(north) == streams(south) == {"north", "south"}
        south.compose("stop", "stitcher")
        north.wait_for(lambda: not serves(south, "south"), "the second one is missed at its page")
        assert fault(north, "stitcher") == "", "a fault of one panorama does not affect the other"
    finally:
        south.down()


def test_another_panorama_can_have_its_own_holder(north: Project, tmp_path: Path) -> None:
    south = Project("compose.yaml", environment=small(tmp_path, "south", 3, 4))
    try:
        south.compose("up", "--detach", *CAMERAS_TO_PAGE)
        south.wait_for(lambda: serves(south, "south"), "the second panorama is served", PATIENCE_S)
        assert serves(north, "north")
        assert (streams(north), streams(south)) == ({"north"}, {"south"})
    finally:
        south.down()
