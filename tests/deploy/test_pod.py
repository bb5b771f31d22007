"""The pod's containers on a Docker engine, with the users, mounts, limits and probes that the manifests give them."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from deploy.kubernetes.manifests import FOLDER, Kubectl, Unusable, pods
from tests.deploy.engine_pod import EnginePod
from tests.e2e.engine import TAG, Project, docker, need_engine
from tests.support import ROOT, lacks, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.docker, pytest.mark.long, pytest.mark.timeout(900)]

RING = "/dev/shm/framebus.panorama.ring"
SERVICES = ("stitcher", "detector", "streamer")
PROBES = ("startupProbe", "livenessProbe", "readinessProbe")
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def pod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EnginePod]:
    """Run the pod of the simulator's overlay, with its cameras."""
    need_engine()
    try:
        manifests = Kubectl.find().render(FOLDER / "overlays/simulator")
    except Unusable as reason:
        lacks(str(reason))
    Project().compose("build", timeout_s=600)
    model = ["--file", str(FOLDER / "model.Dockerfile"), str(ROOT / "models/default")]
    docker("build", "--target", "copy", "--tag", f"framebus/model-default-copy:{TAG}", *model, timeout_s=300)
    described = {found.title: found for found in pods(manifests)}
    made = EnginePod(described["Deployment framebus"], manifests, tmp_path_factory.mktemp("pod"))
    try:
        made.start()
        rights = ["--user", "1004:1004", "--read-only", "--cap-drop", "ALL"]
        made.start_beside("simulator", *rights, f"framebus/simulator:{TAG}")
        wait_until(lambda: is_ready(made), "every probe succeeds", timeout_s=PATIENCE_S, detail=made.logs)
        yield made
    finally:
        made.down()


def is_ready(pod: EnginePod) -> bool:
    return all(pod.state(name)["Running"] and pod.probe(name, kind)[0] == 0 for name in SERVICES for kind in PROBES)


def identity(pod: EnginePod) -> str:
    status, printed = pod.run_in("streamer", "stat", "--format", "%i", RING)
    assert status == 0, printed
    return printed


def test_the_page_is_live(pod: EnginePod) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{pod.port}/healthz", timeout=10) as answer:
        assert json.load(answer)["state"] == "live"


def test_no_container_can_remove_the_ring_of_another(pod: EnginePod) -> None:
    before = identity(pod)
    for name in ("detector", "streamer"):
        status, printed = pod.run_in(name, "rm", "-f", RING)
        assert (status, "Operation not permitted" in printed) == (1, True)
    assert identity(pod) == before


def test_the_doctor_finds_no_problem_in_the_pod(pod: EnginePod) -> None:
    for name in SERVICES:
        status, printed = pod.run_in(name, "framebus", "doctor", "--json")
        findings: list[dict[str, Any]] = json.loads(printed)
        assert status == 0
        assert {finding["level"] for finding in findings} <= {"ok", "note"}, findings


def test_a_stitcher_that_dies_continues_in_the_same_ring(pod: EnginePod) -> None:
    before = identity(pod)
    pod.restart("stitcher")
    wait_until(lambda: is_ready(pod), "every probe succeeds again", timeout_s=PATIENCE_S, detail=pod.logs)
    assert identity(pod) == before


def test_a_stitcher_whose_memory_does_not_hold_the_ring_is_killed(pod: EnginePod) -> None:
    pod.stop("stitcher")
    assert pod.run_in("detector", "true")[0] == 0
    name = f"{pod.name}-small"
    # The existing ring is charged to the container that created it.
    docker("exec", "--user", "1001:2000", pod.name, "rm", "--force", "/held/shared-memory/shm/framebus.panorama.ring")
    try:
        docker("run", "--name", name, *pod.options(pod.container("stitcher"), memory="128Mi"), check=False)
        state = json.loads(docker("inspect", "--format", "{{json .State}}", name))
        assert (state["ExitCode"], state["OOMKilled"]) == (137, True), docker("logs", "--tail", "5", name)
    finally:
        docker("rm", "--force", name)
        docker("start", f"{pod.name}-stitcher")
    wait_until(lambda: is_ready(pod), "every probe succeeds again", timeout_s=PATIENCE_S, detail=pod.logs)


def test_a_stitcher_without_cameras_is_not_ready_and_not_restarted(pod: EnginePod) -> None:
    pod.stop("simulator")
    wait_until(lambda: pod.probe("stitcher", "readinessProbe")[0] == 1, "it is not ready", timeout_s=PATIENCE_S)
    assert pod.probe("stitcher", "livenessProbe") == (0, "")
