"""Checks beyond the schemas: that names exist, that a ring fits, and that no pod has more rights than it needs.

Every check yields a sentence for each fault.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Final

import yaml

from deploy.kubernetes.configuration import configuration_faults, shm_bytes_for_stream
from deploy.kubernetes.manifests import FOLDER, SHM, Manifest, Pod, bytes_of, of_kind, pods, title

MIB: Final = 1 << 20
PUBLISHER: Final = "stitcher"
"""The container that touches the ring's pages first, and is charged for them."""
DETECTOR: Final = "detector"
MODEL_FOLDER: Final = "/app/models/default"
PUBLISHER_OWN_BYTES: Final = 450 * MIB
"""Memory of the publisher without the ring: 400 MiB were measured."""
UNPRIVILEGED: Final[Mapping[str, object]] = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
PROBES: Final = ("startupProbe", "livenessProbe")
_SECRET_NAME: Final = re.compile(r"password|passwd|secret|token", re.IGNORECASE)
_LOGIN_IN_URL: Final = re.compile(r"://[^/\s\"']*:[^/\s\"']*@")


def faults_of(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Yield every fault of the manifests of an overlay."""
    for pod in pods(manifests):
        yield from _rights(pod)
        yield from _limits(pod)
        yield from _mounts(pod)
        yield from _model(pod)
        yield from _shared_memory(pod, manifests)
        yield from configuration_faults(pod, manifests)
        yield from _names_of(pod, manifests)
    yield from _selections(manifests)
    yield from _scaling(manifests)
    yield from _secrets(manifests)


def _rights(pod: Pod) -> Iterator[str]:
    common = pod.spec.get("securityContext", {})
    if common.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield f"{pod.title}: seccompProfile is not RuntimeDefault"
    if pod.spec.get("automountServiceAccountToken") is not False:
        yield f"{pod.title}: automountServiceAccountToken is not false, and no service talks to Kubernetes"
    for container in pod.all_containers:
        own = container.get("securityContext", {})
        user = own.get("runAsUser", common.get("runAsUser"))
        if not user or own.get("runAsNonRoot", common.get("runAsNonRoot")) is not True:
            yield f"{pod.title}: container {container['name']} may run as root: set runAsUser and runAsNonRoot"
        for key, value in UNPRIVILEGED.items():
            if own.get(key) != value:
                yield f"{pod.title}: container {container['name']}: {key} is {own.get(key)}, not {value}"


def _limits(pod: Pod) -> Iterator[str]:
    for container in pod.all_containers:
        if "memory" not in container.get("resources", {}).get("limits", {}):
            yield f"{pod.title}: container {container['name']} has no memory limit"
    for container in pod.containers:
        for probe in PROBES:
            if probe not in container:
                yield f"{pod.title}: container {container['name']} has no {probe}"
    for name, volume in pod.volumes.items():
        if volume.get("emptyDir", {}).get("medium") == "Memory" and "sizeLimit" not in volume["emptyDir"]:
            yield f"{pod.title}: volume {name} takes memory and has no sizeLimit"


def _mounts(pod: Pod) -> Iterator[str]:
    for container in pod.all_containers:
        for mount in container.get("volumeMounts", ()):
            if mount["name"] not in pod.volumes:
                yield f"{pod.title}: container {container['name']} mounts {mount['name']}, which is not a volume"
    mounted = {mount["name"] for one in pod.all_containers for mount in one.get("volumeMounts", ())}
    for name in pod.volumes.keys() - mounted:
        yield f"{pod.title}: volume {name} is mounted by no container"


def _model(pod: Pod) -> Iterator[str]:
    for container in pod.containers:
        places = [mount["mountPath"] for mount in container.get("volumeMounts", ())]
        if container["name"] == DETECTOR and MODEL_FOLDER not in places:
            yield f"{pod.title}: container {DETECTOR} has no model: add one of the components model-*, as the last"


def _shared_memory(pod: Pod, manifests: Sequence[Manifest]) -> Iterator[str]:
    publishers = [container for container in pod.containers if container["name"] == PUBLISHER]
    if not publishers:
        return
    places = {
        container["name"]: (mount["name"], mount.get("subPath")) if mount else None
        for container in pod.containers
        for mount in [pod.shared_memory_of(container)]
    }
    place = places[PUBLISHER]
    for name, other in places.items():
        if other is None or other != place:
            yield f"{pod.title}: container {name} does not mount the {SHM} of the {PUBLISHER}"
    volume = pod.volumes.get(place[0], {}).get("emptyDir", {}) if place else {}
    if volume.get("medium") != "Memory":
        yield f"{pod.title}: {SHM} is not an emptyDir with medium: Memory"
        return
    wanted, limit = shm_bytes_for_stream(pod, manifests), bytes_of(volume.get("sizeLimit", 0))
    if limit < wanted:
        yield f"{pod.title}: sizeLimit is {limit / MIB:g} MiB, and the ring needs {wanted // MIB} MiB: `framebus size`"
    memory = bytes_of(publishers[0].get("resources", {}).get("limits", {}).get("memory", 0))
    if memory < limit + PUBLISHER_OWN_BYTES:
        yield (
            f"{pod.title}: the {PUBLISHER} may take {memory // MIB} MiB, and needs {limit // MIB} for {SHM} "
            f"and {PUBLISHER_OWN_BYTES // MIB} for itself"
        )


def _names_of(pod: Pod, manifests: Sequence[Manifest]) -> Iterator[str]:
    """Yield the missing objects that the pod refers to."""
    config_maps = {one["metadata"]["name"] for one in of_kind(manifests, "ConfigMap")}
    claims = {one["metadata"]["name"] for one in of_kind(manifests, "PersistentVolumeClaim")}
    secrets = example_secrets()
    wanted: list[tuple[str, str, Mapping[str, Any] | set[str]]] = []
    for volume in pod.volumes.values():
        if "configMap" in volume:
            wanted.append(("ConfigMap", volume["configMap"]["name"], config_maps))
        if "persistentVolumeClaim" in volume:
            wanted.append(("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"], claims))
        if "secret" in volume:
            wanted.append(("Secret", volume["secret"]["secretName"], secrets))
    for container in pod.all_containers:
        for source in container.get("envFrom", ()):
            if "configMapRef" in source:
                wanted.append(("ConfigMap", source["configMapRef"]["name"], config_maps))
            if "secretRef" in source:
                yield f"{pod.title}: container {container['name']} has secrets in its environment: mount them as files"
    yield from (f"{pod.title}: there is no {kind} {name}" for kind, name, known in wanted if name not in known)


@cache
def example_secrets() -> Mapping[str, frozenset[str]]:
    """Return the names of the Secrets that ``secrets.example`` creates, each with its keys."""
    content = yaml.safe_load((FOLDER / "secrets.example" / "kustomization.yaml").read_text())
    return {
        one["name"]: frozenset(
            [*one.get("files", ()), *(literal.partition("=")[0] for literal in one.get("literals", ()))]
        )
        for one in content["secretGenerator"]
    }


def _selections(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Yield the selectors that select nothing, and the ports that no selected container has."""
    known = list(pods(manifests))
    for manifest in of_kind(manifests, "Deployment", "Service", "NetworkPolicy", "PodDisruptionBudget"):
        spec = manifest["spec"]
        selector = spec.get("podSelector", spec.get("selector", {}))
        chosen = [pod for pod in known if _selects(selector, pod.labels)]
        if not chosen:
            yield f"{title(manifest)} selects no pod"
        ports = {port.get("name") for pod in chosen for one in pod.containers for port in one.get("ports", ())}
        inward = [port for rule in spec.get("ingress", ()) for port in rule.get("ports", ())]
        named = [port["targetPort"] for port in spec.get("ports", ())] + [port["port"] for port in inward]
        yield from (f"{title(manifest)}: no container has a port {port}" for port in named if port not in ports)


def _selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    expressions = selector.get("matchExpressions", ())
    plain = selector.get("matchLabels", {} if "matchExpressions" in selector else selector)
    return all(labels.get(key) == value for key, value in plain.items()) and all(
        labels.get(one["key"]) in one["values"] for one in expressions if one["operator"] == "In"
    )


def _scaling(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Yield the missing objects that KEDA's kinds refer to; no schema covers these kinds."""
    deployments = {one["metadata"]["name"] for one in of_kind(manifests, "Deployment")}
    logins = {one["metadata"]["name"] for one in of_kind(manifests, "TriggerAuthentication")}
    config_maps = {one["metadata"]["name"]: one["data"].keys() for one in of_kind(manifests, "ConfigMap")}
    for manifest in of_kind(manifests, "ScaledObject"):
        spec = manifest["spec"]
        if spec["scaleTargetRef"]["name"] not in deployments:
            yield f"{title(manifest)}: there is no Deployment {spec['scaleTargetRef']['name']}"
        for trigger in spec["triggers"]:
            if trigger["authenticationRef"]["name"] not in logins:
                yield f"{title(manifest)}: there is no TriggerAuthentication {trigger['authenticationRef']['name']}"
    for manifest in of_kind(manifests, "TriggerAuthentication"):
        for field, known in (("configMapTargetRef", config_maps), ("secretTargetRef", example_secrets())):
            for reference in manifest["spec"].get(field, ()):
                if reference["key"] not in known.get(reference["name"], ()):
                    yield f"{title(manifest)}: {reference['name']} has no {reference['key']}"


def _secrets(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Yield the values of secrets that the manifests contain."""
    for manifest in of_kind(manifests, "Secret"):
        yield f"{title(manifest)} is in the manifests: make it apart from them, see secrets.example"
    for manifest in manifests:
        if _LOGIN_IN_URL.search(yaml.safe_dump(manifest)):
            yield f"{title(manifest)} has a URL with a password: name a password_file"
    variables = [
        (title(manifest), name) for manifest in of_kind(manifests, "ConfigMap") for name in manifest.get("data", {})
    ]
    for pod in pods(manifests):
        variables += [(pod.title, entry["name"]) for one in pod.all_containers for entry in one.get("env", ())]
    for place, name in variables:
        if _SECRET_NAME.search(name) and not name.endswith("_FILE"):
            yield f"{place}: {name} looks like a secret's value: name a file, as {name}_FILE"
