"""Manifests as kubectl renders them, and the parts that the checks examine."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Final

import yaml

FOLDER: Final = Path(__file__).parent
OLDEST_KUBECTL: Final = (1, 27)
"""The first version with kustomize 5, which the components require."""
SHM: Final = "/dev/shm"
INSTALL: Final = "install kubectl 1.27 or newer, of the vendor's repository or of your cluster's tools"
_QUANTITY: Final = re.compile(r"([0-9.]+(?:[eE][0-9]+)?)([a-zA-Z]*)")
_UNITS: Final[Mapping[str, Decimal]] = {
    "": Decimal(1),
    "m": Decimal("0.001"),
    **{unit: Decimal(1000) ** power for power, unit in enumerate(("k", "M", "G", "T", "P"), 1)},
    **{unit: Decimal(1024) ** power for power, unit in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi"), 1)},
}

Manifest = dict[str, Any]


class Unusable(Exception):
    """The manifests cannot be rendered; the message is a sentence that says what to do."""


@dataclass(frozen=True, slots=True)
class Kubectl:
    """A kubectl that is new enough."""

    path: str
    version: str
    """As kubectl prints it, such as ``v1.32.4``."""
    kustomize: str

    @classmethod
    def find(cls, path: str | None = None) -> Kubectl:
        """Return the kubectl of this machine.

        Raises:
            Unusable: There is no kubectl, it is too old, or it does not print its version.
        """
        path = path or shutil.which("kubectl")
        if path is None:
            raise Unusable(f"there is no kubectl here: {INSTALL}")
        try:
            said = json.loads(_run([path, "version", "--client", "--output", "json"]))
            version, kustomize = said["clientVersion"]["gitVersion"], said.get("kustomizeVersion", "unknown")
            major, minor = map(int, re.match(r"v(\d+)\.(\d+)", version).groups())  # type: ignore[union-attr]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise Unusable(f"{path} does not tell its version: {INSTALL}") from None
        if (major, minor) < OLDEST_KUBECTL:
            oldest = ".".join(map(str, OLDEST_KUBECTL))
            raise Unusable(f"{path} is {version}, and its kustomize is older than 5, which {oldest} has: {INSTALL}")
        return cls(path, version, kustomize)

    def render(self, folder: Path) -> list[Manifest]:
        """Return the manifests of a kustomization.

        Raises:
            Unusable: kubectl rejects it; the message is kubectl's own.
        """
        text = _run([self.path, "kustomize", str(folder)])
        return [manifest for manifest in yaml.safe_load_all(text) if manifest]


def _run(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise Unusable(f"{command[0]} cannot be run: {error.strerror}: {INSTALL}") from None
    if done.returncode:
        raise Unusable(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def overlays() -> list[Path]:
    """Return the folders of the overlays."""
    return sorted(path.parent for path in FOLDER.glob("overlays/*/kustomization.yaml"))


def title(manifest: Manifest) -> str:
    """Return the kind and the name of a manifest."""
    return f"{manifest.get('kind')} {manifest.get('metadata', {}).get('name')}"


def of_kind(manifests: Sequence[Manifest], *kinds: str) -> list[Manifest]:
    """Return the manifests of these kinds."""
    return [manifest for manifest in manifests if manifest.get("kind") in kinds]


@dataclass(frozen=True, slots=True)
class Pod:
    """The pod that a manifest describes."""

    title: str
    """Kind and name of the object that creates the pod."""
    labels: Mapping[str, str]
    spec: Mapping[str, Any]

    @property
    def containers(self) -> list[Mapping[str, Any]]:
        """The containers that run as long as the pod."""
        return list(self.spec.get("containers", ()))

    @property
    def all_containers(self) -> list[Mapping[str, Any]]:
        """The containers and the init containers."""
        return [*self.spec.get("initContainers", ()), *self.containers]

    @property
    def volumes(self) -> dict[str, Mapping[str, Any]]:
        """The volumes by name."""
        return {volume["name"]: volume for volume in self.spec.get("volumes", ())}

    def shared_memory_of(self, container: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Return the mount of the container's /dev/shm, if a volume is mounted there."""
        mounts = [mount for mount in container.get("volumeMounts", ()) if mount["mountPath"] == SHM]
        return mounts[0] if mounts else None


def pods(manifests: Sequence[Manifest]) -> Iterator[Pod]:
    """Yield the pods that the manifests describe."""
    for manifest in of_kind(manifests, "Deployment", "StatefulSet", "DaemonSet", "Job"):
        template = manifest["spec"]["template"]
        yield Pod(title(manifest), template.get("metadata", {}).get("labels", {}), template["spec"])


def bytes_of(quantity: object) -> int:
    """Return the bytes that a quantity of Kubernetes means, where ``160Mi`` are MiB and ``160m`` are 0.16 bytes.

    Raises:
        ValueError: The quantity is invalid.
    """
    match = _QUANTITY.fullmatch(str(quantity))
    if match is None or match[2] not in _UNITS:
        raise ValueError(f"{quantity!r} is not a quantity of bytes")
    try:
        return int(Decimal(match[1]) * _UNITS[match[2]])
    except InvalidOperation:
        raise ValueError(f"{quantity!r} is not a quantity of bytes") from None
