"""The containers of a pod on a Docker engine, with the users, mounts, limits and probes of its manifest.

They share a network and a tmpfs, as the containers of a pod do. There is no cluster.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deploy.kubernetes.configuration import environment_of
from deploy.kubernetes.manifests import Manifest, Pod, bytes_of, of_kind
from tests.e2e.engine import TAG, docker
from tests.support import free_ports

BASE_IMAGE = "python:3.11-slim-bookworm"
GROUP_MODE = "2777"
"""Mode of a volume in a pod with fsGroup."""


class EnginePod:
    """The containers of one pod.

    Args:
        pod: The pod to create.
        manifests: The manifests to which it refers.
        folder: Folder for the files of its ConfigMaps.
    """

    def __init__(self, pod: Pod, manifests: Sequence[Manifest], folder: Path) -> None:
        self.name = f"pod-{secrets.token_hex(4)}"
        self.port = free_ports(1)
        self._pod = pod
        self._manifests = manifests
        self._folder = folder
        self._places: dict[str, str] = {}
        self._others: list[str] = []

    def start(self) -> None:
        """Make the volumes, run the init containers to their end, and start the others."""
        docker("network", "create", self.name)
        mounts = []
        for name, volume in self._pod.volumes.items():
            if "configMap" in volume:
                self._places[name] = str(self._write(volume["configMap"]["name"]))
                continue
            size = bytes_of(volume.get("emptyDir", {}).get("sizeLimit", "64Mi"))
            options = f"o=size={size},mode={GROUP_MODE},gid={self._pod.spec['securityContext']['fsGroup']}"
            docker("volume", "create", "-o", "type=tmpfs", "-o", "device=tmpfs", "-o", options, self._owned(name))
            self._places[name] = docker("volume", "inspect", "--format", "{{.Mountpoint}}", self._owned(name)).strip()
            mounts += ["--volume", f"{self._owned(name)}:/held/{name}"]
        # Holds the network and the volumes, as the pause container of a pod does.
        held = ["--network", self.name, "--publish", f"127.0.0.1:{self.port}:8080", *mounts]
        docker("run", "--detach", "--name", self.name, *held, BASE_IMAGE, "sleep", "infinity")
        for container in self._pod.spec.get("initContainers", ()):
            docker("run", "--rm", *self.options(container), *container["command"])
        for container in self._pod.containers:
            docker("run", "--detach", "--name", self._owned(container["name"]), *self.options(container))

    def start_beside(self, name: str, *options: str) -> None:
        """Start a container of another pod, which this one finds by its name."""
        network = ["--network", self.name, "--network-alias", name]
        docker("run", "--detach", "--name", self._owned(name), *network, *options)
        self._others.append(name)

    def options(self, container: Mapping[str, Any], memory: str | None = None) -> list[str]:
        """Return how the engine runs a container of the pod, up to its image.

        Args:
            container: The container of the manifest.
            memory: A memory limit to use instead of the manifest's.
        """
        own, common = container["securityContext"], self._pod.spec["securityContext"]
        assert own["readOnlyRootFilesystem"]
        assert not own["allowPrivilegeEscalation"]
        limit = str(bytes_of(memory or container["resources"]["limits"]["memory"]))
        options = ["--user", f"{own['runAsUser']}:{common['runAsGroup']}", "--read-only", "--cap-drop", "ALL"]
        options += ["--security-opt", "no-new-privileges:true", "--memory", limit, "--memory-swap", limit]
        options += ["--network", f"container:{self.name}"]
        environment = environment_of(container, self._manifests) | {"KUBERNETES_SERVICE_HOST": "192.0.2.1"}
        for key, value in environment.items():
            options += ["--env", f"{key}={value}"]
        for mount in container.get("volumeMounts", ()):
            # Like the kubelet: mount a folder of the volume, which must exist already.
            place = Path(self._places[mount["name"]], mount.get("subPath", ""))
            options += ["--volume", f"{place}:{mount['mountPath']}" + (":ro" if mount.get("readOnly") else "")]
        return [*options, container["image"].rpartition(":")[0] + f":{TAG}"]

    def container(self, name: str) -> Mapping[str, Any]:
        """Return a container of the manifest."""
        (found,) = (one for one in self._pod.containers if one["name"] == name)
        return found

    def run_in(self, name: str, *command: str) -> tuple[int, str]:
        """Run a command in a container; return its exit status and what it printed."""
        # The status is printed last, because docker's own client has one too.
        script = 'output=$("$@" 2>&1); status=$?; printf "%s\\n%s" "$output" "$status"'
        answer = docker("exec", self._owned(name), "sh", "-c", script, "sh", *command)
        output, _, status = answer.rpartition("\n")
        return int(status), output

    def probe(self, name: str, kind: str) -> tuple[int, str]:
        """Run a probe of the manifest, such as ``livenessProbe``."""
        return self.run_in(name, *self.container(name)[kind]["exec"]["command"])

    def state(self, name: str) -> dict[str, Any]:
        """Return a container's state as the engine reports it."""
        return dict(json.loads(docker("inspect", "--format", "{{json .State}}", self._owned(name))))

    def restart(self, name: str) -> None:
        """Kill a container's process, and start the container again, as the kubelet does."""
        docker("kill", self._owned(name))
        docker("start", self._owned(name))

    def stop(self, name: str) -> None:
        """Stop a container."""
        docker("stop", "--time", "2", self._owned(name))

    def logs(self) -> str:
        """Return the end of the containers' logs."""
        names = [container["name"] for container in self._pod.containers]
        return "\n".join(docker("logs", "--tail", "15", self._owned(name), check=False) for name in names)

    def down(self) -> None:
        """Remove everything that belongs to the pod."""
        names = [*self._others, *(container["name"] for container in self._pod.containers)]
        docker("rm", "--force", *map(self._owned, names), self.name, check=False)
        docker("volume", "rm", "--force", *map(self._owned, self._pod.volumes), check=False)
        docker("network", "rm", self.name, check=False)

    def _owned(self, name: str) -> str:
        return f"{self.name}-{name}"

    def _write(self, config_map: str) -> Path:
        (found,) = (one for one in of_kind(self._manifests, "ConfigMap") if one["metadata"]["name"] == config_map)
        folder = self._folder / config_map
        folder.mkdir(mode=0o755)
        for name, text in found["data"].items():
            (folder / name).write_text(text)
        return folder
