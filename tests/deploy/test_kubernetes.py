"""Kubernetes: the overlays as kubectl renders them, and the faults that the checks find. No cluster is used."""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, cast

import kubernetes_validate
import pytest
import yaml

from deploy.kubernetes import validate
from deploy.kubernetes.checks import example_secrets, faults_of
from deploy.kubernetes.manifests import (
    FOLDER,
    SHM,
    Kubectl,
    Manifest,
    Pod,
    Unusable,
    bytes_of,
    of_kind,
    overlays,
    pods,
)
from framebus import __version__
from framebus.cli import main as framebus_main
from tests.support import ROOT, lacks

pytestmark = pytest.mark.slow

NEWEST = kubernetes_validate.latest_version()
NAMES = ("cameras", "cluster", "simulator")
MIB = 1 << 20


@pytest.fixture(autouse=True, scope="module")
def _schemas_read_once() -> Iterator[None]:
    """Keep the schemas, which kubernetes-validate reads anew for each manifest: that takes most of its time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kubernetes_validate.utils, "schema_contents", cache(kubernetes_validate.utils.schema_contents))
        yield


@cache
def kubectl() -> Kubectl:
    try:
        return Kubectl.find()
    except Unusable as reason:
        lacks(str(reason))


@cache
def rendered(overlay: str) -> list[Manifest]:
    return kubectl().render(FOLDER / "overlays" / overlay)


def faults(manifests: list[Manifest]) -> list[str]:
    return [line.strip().removeprefix("fault: ") for line, is_fault in validate.report(manifests, NEWEST) if is_fault]


def one(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    (found,) = (found for found in of_kind(manifests, kind) if found["metadata"]["name"].startswith(name))
    return found


def pod_of(manifests: list[Manifest], name: str) -> Pod:
    (found,) = (pod for pod in pods(manifests) if pod.title == f"Deployment {name}")
    return found


def container(manifests: list[Manifest], deployment: str, name: str) -> dict[str, Any]:
    spec = one(manifests, "Deployment", deployment)["spec"]["template"]["spec"]
    (found,) = (found for found in spec["containers"] if found["name"] == name)
    return cast("dict[str, Any]", found)


# The overlays as they are


def test_every_overlay_is_tested() -> None:
    assert tuple(path.name for path in overlays()) == NAMES


@pytest.mark.parametrize("overlay", NAMES)
def test_no_container_has_a_right_that_it_does_not_need(overlay: str) -> None:
    for pod in pods(rendered(overlay)):
        for one_container in pod.all_containers:
            own = one_container["securityContext"]
            assert own.get("runAsUser", pod.spec["securityContext"].get("runAsUser")) >= 1000
            assert pod.spec["securityContext"]["runAsNonRoot"] is True
            assert pod.spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            assert (own["readOnlyRootFilesystem"], own["allowPrivilegeEscalation"]) == (True, False)
            assert own["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize("overlay", NAMES)
def test_all_containers_that_use_the_ring_share_a_sticky_folder_in_memory(overlay: str) -> None:
    pod = pod_of(rendered(overlay), "framebus")
    names = {"stitcher", "detector", "streamer"} | ({"relay"} if overlay == "cluster" else set())
    assert {one["name"] for one in pod.containers} == names
    for one_container in pod.containers:
        assert pod.shared_memory_of(one_container) == {"name": "shared-memory", "mountPath": SHM, "subPath": "shm"}
    assert pod.volumes["shared-memory"]["emptyDir"]["medium"] == "Memory"
    (holder,) = (one for one in pod.spec["initContainers"] if one["name"] == "holder")
    assert "/memory/shm" in holder["command"][-1]
    assert "0o1777" in holder["command"][-1]


@pytest.mark.parametrize("overlay", NAMES)
def test_the_shared_memory_holds_two_rings_and_the_stitcher_may_take_it(
    overlay: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert framebus_main(["size", "--height", "688", "--width", "4896", "--slots", "16", "--json"]) == 0
    size = json.loads(capsys.readouterr().out)
    limit = bytes_of(pod_of(rendered(overlay), "framebus").volumes["shared-memory"]["emptyDir"]["sizeLimit"])
    assert limit >= 2 * size["ring_bytes"]
    assert limit >= int(size["shm_size"].removesuffix("m")) * MIB
    memory = container(rendered(overlay), "framebus", "stitcher")["resources"]["limits"]["memory"]
    assert bytes_of(memory) >= limit + 400 * MIB


@pytest.mark.parametrize("overlay", NAMES)
def test_a_restart_is_for_a_service_that_hangs_and_not_for_one_without_frames(overlay: str) -> None:
    for one_container in pod_of(rendered(overlay), "framebus").containers:
        ask = ["python", "-m", "services.common.health"]
        name = one_container["name"]
        assert one_container["startupProbe"]["exec"]["command"] == [*ask, "--alive", name]
        assert one_container["livenessProbe"]["exec"]["command"] == [*ask, "--alive", name]
        assert one_container["readinessProbe"]["exec"]["command"] == [*ask, name]


def test_the_users_are_those_of_the_compose_file() -> None:
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    for overlay in NAMES:
        for pod in pods(rendered(overlay)):
            common = pod.spec["securityContext"]
            for one_container in pod.containers:
                if one_container["name"] in services:
                    user = one_container["securityContext"].get("runAsUser", common.get("runAsUser"))
                    assert services[one_container["name"]]["user"] == f"{user}:{common['runAsGroup']}"


def test_the_images_are_of_this_version() -> None:
    for overlay in NAMES:
        images = {one["image"] for pod in pods(rendered(overlay)) for one in pod.all_containers}
        assert {image for image in images if "/model-" not in image} <= {
            f"framebus/{name}:{__version__}" for name in ("stitcher", "detector", "streamer", "relay", "simulator")
        }


def test_the_document_names_every_overlay_and_the_current_versions() -> None:
    text = (ROOT / "docs/kubernetes.md").read_text()
    folders = [
        path.parent for kind in ("overlays", "components") for path in FOLDER.glob(f"{kind}/*/kustomization.yaml")
    ]
    assert [folder.name for folder in folders if f"`{folder.name}`" not in text] == []
    assert set(re.findall(r"FRAMEBUS_TAG=([\w.]+)", text)) == {__version__}
    assert f"schemas of Kubernetes {'.'.join(NEWEST.split('.')[:2])}" in text


def test_the_simulated_cameras_are_those_of_the_compose_file() -> None:
    data = one(rendered("simulator"), "ConfigMap", "framebus-configuration")["data"]
    assert yaml.safe_load(data["framebus.yaml"]) == yaml.safe_load((ROOT / "config/simulated.yaml").read_text())


def test_detectors_are_scaled_by_the_queue_of_the_stream_that_is_published() -> None:
    manifests = rendered("cluster")
    stream = yaml.safe_load(one(manifests, "ConfigMap", "framebus-configuration")["data"]["framebus.yaml"])["stream"]
    scaled = one(manifests, "ScaledObject", "detectors")["spec"]
    (trigger,) = scaled["triggers"]
    assert trigger["type"] == "rabbitmq"
    assert trigger["metadata"]["queueName"] == f"framebus.{stream['name']}.frames.detector"
    assert scaled["scaleTargetRef"] == {"name": "detectors"}
    assert "replicas" not in one(manifests, "Deployment", "detectors")["spec"]
    assert pod_of(manifests, "detectors").spec["terminationGracePeriodSeconds"] >= 30
    # KEDA queries from another namespace, where a name without the broker's namespace cannot be resolved.
    url = one(manifests, "ConfigMap", "framebus-broker")["data"]["FRAMEBUS_BROKER__URL"]
    assert re.match(r"amqps://[a-z-]+\.[a-z-]+\.svc:\d+/$", url)


def test_the_spool_fits_its_claim() -> None:
    manifests = rendered("cluster")
    claim = one(manifests, "PersistentVolumeClaim", "framebus-spool")["spec"]["resources"]["requests"]["storage"]
    (spool,) = (
        variable["value"]
        for variable in container(manifests, "framebus", "relay")["env"]
        if variable["name"] == "FRAMEBUS_RELAY__SPOOL_BYTES"
    )
    assert int(spool) <= 0.9 * bytes_of(claim)


def kustomization(folder: Path, *components: str) -> Path:
    """Write an overlay of the base and some components; return its folder."""
    base = os.path.relpath(FOLDER, folder)
    content = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [f"{base}/base"],
        "components": [f"{base}/components/{name}" for name in components],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(content))
    return folder


@pytest.mark.parametrize(
    ("component", "source"),
    [
        ("model-image", {"image": {"reference": "framebus/model-default:1.0.0", "pullPolicy": "IfNotPresent"}}),
        ("model-claim", {"persistentVolumeClaim": {"claimName": "framebus-model", "readOnly": True}}),
        ("model-copy", {"emptyDir": {"sizeLimit": "256Mi"}}),
    ],
)
def test_every_detector_gets_the_model(component: str, source: dict[str, Any], tmp_path: Path) -> None:
    folder = kustomization(tmp_path.resolve(), "simulator", "relay", "detectors", component)
    manifests = kubectl().render(folder)
    assert faults(manifests) == []
    for name in ("framebus", "detectors"):
        pod = pod_of(manifests, name)
        assert pod.volumes["model"] == {"name": "model", **source}
        mounts = [mount for mount in container(manifests, name, "detector")["volumeMounts"] if mount["name"] == "model"]
        assert mounts == [{"name": "model", "mountPath": "/app/models/default", "readOnly": True}]


def test_the_model_is_version_of_the_bundle_in_this_checkout() -> None:
    version = yaml.safe_load((ROOT / "models/default/bundle.yaml").read_text())["version"]
    named = [*FOLDER.glob("components/model-*/patch.yaml"), FOLDER / "model.Dockerfile"]
    tags = {tag for path in named for tag in re.findall(r"framebus/model-default(?:-copy)?:([\w.]+)", path.read_text())}
    assert tags == {version}


def test_the_example_makes_the_secrets_that_are_mounted(tmp_path: Path) -> None:
    example = FOLDER / "secrets.example"
    tracked = {path.name for path in example.iterdir()} - {".gitignore", "kustomization.yaml"}
    ignored = (example / ".gitignore").read_text().splitlines()
    assert not tracked or "*" in ignored, "the values of secrets are never committed"
    (tmp_path / "kustomization.yaml").write_text((example / "kustomization.yaml").read_text())
    for name in ("password", "ca.crt", "secret_key"):
        (tmp_path / name).write_text("a value")
    made = of_kind(kubectl().render(tmp_path), "Secret")
    assert {one["metadata"]["name"]: frozenset(one["data"]) for one in made} == example_secrets()
    assert {one["metadata"]["namespace"] for one in made} == {"framebus"}
    assert [validate.judge(one, NEWEST).fault for one in made] == ["", ""]


# Broken ones

TWO_CAMERAS = [{"name": name, "url": f"rtsp://192.0.2.1/{name}"} for name in ("left", "right")]
Break = Callable[[list[Manifest]], None]


def spec_of(manifests: list[Manifest], name: str = "framebus") -> dict[str, Any]:
    spec: dict[str, Any] = one(manifests, "Deployment", name)["spec"]["template"]["spec"]
    return spec


def stitcher(manifests: list[Manifest]) -> dict[str, Any]:
    return container(manifests, "framebus", "stitcher")


def volume(manifests: list[Manifest], name: str) -> dict[str, Any]:
    (found,) = (found for found in spec_of(manifests)["volumes"] if found["name"] == name)
    return cast("dict[str, Any]", found)


def name_wrong_secret(manifests: list[Manifest]) -> None:
    volume(manifests, "broker")["secret"]["secretName"] = "other"


def set_configuration(text: str) -> Break:
    def change(manifests: list[Manifest]) -> None:
        one(manifests, "ConfigMap", "framebus-configuration")["data"]["framebus.yaml"] = text

    return change


BROKEN: dict[str, tuple[Break, str]] = {
    "a key that does not exist": (
        lambda found: stitcher(found).update(memoryLimit="1Gi"),
        r"Deployment framebus: .*memoryLimit",
    ),
    "a kind without a version": (
        lambda found: one(found, "Service", "framebus").pop("apiVersion"),
        "needs an apiVersion",
    ),
    "root": (
        lambda found: stitcher(found)["securityContext"].update(runAsUser=0),
        "container stitcher may run as root",
    ),
    "root by default": (
        lambda found: spec_of(found)["securityContext"].pop("runAsNonRoot"),
        "container streamer may run as root",
    ),
    "a file system that can be written": (
        lambda found: stitcher(found)["securityContext"].update(readOnlyRootFilesystem=False),
        "readOnlyRootFilesystem is False",
    ),
    "a capability": (
        lambda found: stitcher(found)["securityContext"].update(capabilities={"add": ["SYS_ADMIN"]}),
        "capabilities is",
    ),
    "no seccomp profile": (lambda found: spec_of(found)["securityContext"].pop("seccompProfile"), "seccompProfile"),
    "an account": (lambda found: spec_of(found).pop("automountServiceAccountToken"), "automountServiceAccountToken"),
    "no memory limit": (
        lambda found: stitcher(found)["resources"].pop("limits"),
        "container stitcher has no memory limit",
    ),
    "no probe": (lambda found: stitcher(found).pop("livenessProbe"), "container stitcher has no livenessProbe"),
    "no model": (
        lambda found: container(found, "detectors", "detector")["volumeMounts"].pop(0),
        "Deployment detectors: container detector has no model",
    ),
    "a /dev/shm of its own": (
        lambda found: container(found, "framebus", "detector")["volumeMounts"].remove(
            {"name": "shared-memory", "mountPath": SHM, "subPath": "shm"}
        ),
        "container detector does not mount the /dev/shm of the stitcher",
    ),
    "another folder as /dev/shm": (
        lambda found: container(found, "framebus", "detector")["volumeMounts"][1].update(subPath="other"),
        "container detector does not mount the /dev/shm of the stitcher",
    ),
    "a /dev/shm on a disk": (
        lambda found: volume(found, "shared-memory").update(emptyDir={"sizeLimit": "320Mi"}),
        "/dev/shm is not an emptyDir with medium: Memory",
    ),
    "a /dev/shm without a limit": (
        lambda found: volume(found, "shared-memory").update(emptyDir={"medium": "Memory"}),
        "volume shared-memory takes memory and has no sizeLimit",
    ),
    "docker's m for Mi": (
        lambda found: volume(found, "shared-memory")["emptyDir"].update(sizeLimit="320m"),
        r"sizeLimit is .* MiB, and the ring needs 160 MiB: `framebus size`",
    ),
    "a larger picture": (
        set_configuration(yaml.safe_dump({"stitcher": {"cameras": TWO_CAMERAS, "width_px": 9792, "height_px": 1376}})),
        r"sizeLimit is 320 MiB, and the ring needs \d+ MiB",
    ),
    "a memory limit that does not hold the ring": (
        lambda found: stitcher(found)["resources"]["limits"].update(memory="512Mi"),
        "the stitcher may take 512 MiB, and needs 320 for /dev/shm and 450 for itself",
    ),
    "a mistake in the configuration": (
        set_configuration("stream: {slots: 2}"),
        "container stitcher: framebus.yaml:1: stream.slots",
    ),
    "a mistake in a variable": (
        lambda found: container(found, "framebus", "streamer")["env"][1].update(value="http"),
        "container streamer: FRAMEBUS_STREAMER__PORT: streamer.port",
    ),
    "a volume that is not there": (
        lambda found: spec_of(found)["volumes"].remove(volume(found, "calibration")),
        "container stitcher mounts calibration, which is not a volume",
    ),
    "a volume that is not mounted": (
        lambda found: stitcher(found)["volumeMounts"].pop(),
        "volume calibration is mounted by no container",
    ),
    "a claim that is not there": (
        lambda found: found.remove(one(found, "PersistentVolumeClaim", "framebus-spool")),
        "there is no PersistentVolumeClaim framebus-spool",
    ),
    "a ConfigMap that is not there": (
        lambda found: found.remove(one(found, "ConfigMap", "framebus-broker")),
        "Deployment detectors: there is no ConfigMap framebus-broker",
    ),
    "a Secret that is not there": (name_wrong_secret, "there is no Secret other"),
    "a selector that selects nothing": (
        lambda found: one(found, "Service", "framebus")["spec"].update(selector={"app": "other"}),
        "Service framebus selects no pod",
    ),
    "a port that is not there": (
        lambda found: container(found, "framebus", "streamer").pop("ports"),
        "NetworkPolicy page: no container has a port page",
    ),
    "a Deployment that is not there": (
        lambda found: one(found, "ScaledObject", "detectors")["spec"]["scaleTargetRef"].update(name="other"),
        "there is no Deployment other",
    ),
    "a login that is not there": (
        lambda found: found.remove(one(found, "TriggerAuthentication", "detectors")),
        "there is no TriggerAuthentication detectors",
    ),
    "a key that is not in the Secret": (
        lambda found: one(found, "TriggerAuthentication", "detectors")["spec"]["secretTargetRef"][0].update(key="pass"),
        "framebus-broker has no pass",
    ),
    "a secret in the manifests": (
        lambda found: found.append(
            {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "x"}, "stringData": {"password": "y"}}
        ),
        "Secret x is in the manifests",
    ),
    "a password in a variable": (
        lambda found: stitcher(found)["env"].append({"name": "FRAMEBUS_BROKER__PASSWORD", "value": "y"}),
        "FRAMEBUS_BROKER__PASSWORD looks like a secret's value",
    ),
    "a password in a URL": (
        lambda found: one(found, "ConfigMap", "framebus-broker")["data"].update(URL="amqps://user:word@rabbitmq/"),
        "has a URL with a password",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_manifest_is_reported_with_its_fault(what: str) -> None:
    change, sentence = BROKEN[what]
    whole = rendered("cluster")
    manifests = copy.deepcopy(whole)
    change(manifests)
    changed = [manifest for manifest in manifests if manifest not in whole]
    found = [judgement.fault for judgement in (validate.judge(one, NEWEST) for one in changed) if judgement.fault]
    found = found or list(faults_of(manifests))
    assert any(re.search(sentence, fault) for fault in found), found


# The command


def test_every_overlay_is_valid_and_the_command_names_its_tools_and_counts_manifests(
    capsys: pytest.CaptureFixture[str],
) -> None:
    version = kubectl().version
    assert validate.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"kubectl {version}, kustomize v")
    assert lines[0].endswith(f"schemas of Kubernetes {NEWEST}, strict")
    assert [line for line in lines[1:] if not line.startswith(" ")] == list(NAMES)
    assert any(re.fullmatch(r"  apps/v1 Deployment +2 of 2 valid", line) for line in lines)
    assert any(re.fullmatch(r"  keda.sh/v1alpha1 ScaledObject +1 not validated: .*", line) for line in lines)
    assert {line[:40].strip() for line in lines if " not validated: " in line} == {
        "keda.sh/v1alpha1 ScaledObject",
        "keda.sh/v1alpha1 TriggerAuthentication",
    }


def test_the_command_fails_at_a_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = kustomization(tmp_path.resolve(), "simulator", "model-copy")
    content = yaml.safe_load((folder / "kustomization.yaml").read_text())
    broken = [{"op": "add", "path": "/spec/replica", "value": 2}]
    content["patches"] = [{"target": {"kind": "Deployment", "name": "framebus"}, "patch": yaml.safe_dump(broken)}]
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(content))
    kubectl()
    assert validate.main([str(folder)]) == 1
    printed = capsys.readouterr().out
    assert "apps/v1 Deployment                     1 of 2 valid" in printed
    assert re.search(r"fault: Deployment framebus: spec: .*'replica' was unexpected", printed)


def test_a_folder_that_cannot_be_rendered_is_reported_with_kubectls_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kubectl()
    assert validate.main([str(tmp_path)]) == 1
    assert "unable to find one of 'kustomization.yaml'" in capsys.readouterr().err


def program(folder: Path, text: str) -> str:
    path = folder / "kubectl"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("""echo '{"clientVersion": {"gitVersion": "v1.26.9"}, "kustomizeVersion": "v4.5.7"}'""", r"is v1\.26\.9, and"),
        ("""echo '{"clientVersion": {"gitVersion": "v1.20.2"}}'""", r"older than 5, which 1\.27 has: install"),
        ("echo no JSON", "does not tell its version: install kubectl 1.27 or newer"),
        ("echo '{}'", "does not tell its version"),
        ("echo 'unknown flag: --output' >&2; exit 1", "unknown flag: --output"),
    ],
)
def test_an_unusable_kubectl_is_reported_in_one_sentence(text: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(Unusable, match=sentence):
        Kubectl.find(program(tmp_path, text))


def test_a_missing_kubectl_is_reported_with_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert validate.main([]) == 1
    assert capsys.readouterr().err.startswith("there is no kubectl here: install kubectl 1.27 or newer")


@pytest.mark.parametrize(
    ("quantity", "count"),
    [("160Mi", 160 * MIB), ("1.5Gi", 1536 * MIB), ("8G", 8 * 10**9), (1024, 1024), ("160m", 0), ("1e3", 1000)],
)
def test_a_quantity_is_counted_as_kubernetes_does(quantity: object, count: int) -> None:
    assert bytes_of(quantity) == count


@pytest.mark.parametrize("text", ["", "Mi", "160MB", "1.2.3", "-1Mi"])
def test_an_invalid_quantity_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="is not a quantity of bytes"):
        bytes_of(text)
