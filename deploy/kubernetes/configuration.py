"""The configuration that the containers of a pod read, validated as the services validate it at their start."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeVar

from deploy.kubernetes.manifests import Manifest, Pod, of_kind
from services.common.config import CommonConfiguration, ConfigurationError, declared_services, load
from services.stitcher.config import StitcherConfiguration

CONFIGURATION_FOLDER: Final = "/app/config"
FILE_NAME: Final = "framebus.yaml"
BROKER: Final = "FRAMEBUS_BROKER__URL"
RELAY: Final = "relay"
"""The service whose installation provides the sections of broker and storage."""

C = TypeVar("C", bound=CommonConfiguration)


def configuration_faults(pod: Pod, manifests: Sequence[Manifest]) -> Iterator[str]:
    """Yield the faults that the services of a pod would report at their start."""
    declared = declared_services()
    for container in pod.containers:
        service = container["image"].rpartition("/")[2].partition(":")[0]
        text, environment = _text_of(pod, container, manifests), environment_of(container, manifests)
        if service not in declared or text is None or (BROKER in environment and RELAY not in declared):
            continue
        try:
            _load(declared[service].load().configuration, text, environment)
        except ConfigurationError as error:
            yield from (f"{pod.title}: container {container['name']}: {line}" for line in str(error).splitlines())


def environment_of(container: Mapping[str, Any], manifests: Sequence[Manifest]) -> dict[str, str]:
    """Return the environment variables of a container, including those of its ConfigMaps."""
    known = {one["metadata"]["name"]: one.get("data", {}) for one in of_kind(manifests, "ConfigMap")}
    environment: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        environment |= known.get(source.get("configMapRef", {}).get("name"), {})
    return environment | {entry["name"]: entry.get("value", "") for entry in container.get("env", ())}


def shm_bytes_for_stream(pod: Pod, manifests: Sequence[Manifest]) -> int:
    """Return the required size of /dev/shm for the stream that the pod's stitcher publishes."""
    (stitcher,) = (container for container in pod.containers if container["name"] == "stitcher")
    text = _text_of(pod, stitcher, manifests) or ""
    try:
        configuration = _load(StitcherConfiguration, text, environment_of(stitcher, manifests))
    except ConfigurationError:
        return 0  # another check reports this fault
    section = configuration.stitcher
    return _size_bytes(section.height_px, section.width_px, configuration.stream.slots)


@cache
def _size_bytes(height: int, width: int, slots: int) -> int:
    """Run ``framebus size``, whose ``160m`` are MiB, in Docker's notation."""
    command = [sys.executable, "-m", "framebus", "size", "--json"]
    command += ["--height", str(height), "--width", str(width), "--slots", str(slots)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(json.loads(answer.stdout)["shm_size"].removesuffix("m")) << 20


def _text_of(pod: Pod, container: Mapping[str, Any], manifests: Sequence[Manifest]) -> str | None:
    """Return the configuration file that the container reads, or None."""
    for mount in container.get("volumeMounts", ()):
        if mount["mountPath"] == CONFIGURATION_FOLDER:
            name = pod.volumes.get(mount["name"], {}).get("configMap", {}).get("name")
            for one in of_kind(manifests, "ConfigMap"):
                if one["metadata"]["name"] == name:
                    return str(one["data"][FILE_NAME])
    return None


def _load(kind: type[C], text: str, environment: Mapping[str, str]) -> C:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, FILE_NAME)
        path.write_text(text, encoding="utf-8")
        try:
            return load(kind, path, environment)
        except ConfigurationError as error:
            raise ConfigurationError(str(error).replace(f"{folder}/", "")) from None
