"""Images and containers of the Docker engine: what it reports of them, and how they are started and stopped."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.image_usage.errors import CannotMeasure
from bench.image_usage.layers import base_length
from bench.image_usage.processes import check_command

STOP_TIMEOUT_S: Final = 120.0
_WITHOUT_LAYER: Final = frozenset(
    {"ARG", "CMD", "ENTRYPOINT", "ENV", "EXPOSE", "HEALTHCHECK", "LABEL", "MAINTAINER", "ONBUILD", "SHELL"}
    | {"STOPSIGNAL", "USER", "VOLUME"}
)
"""Instructions that change no file. If the counts differ even so, layers are shown without their instruction."""
_BASE_LABEL: Final = "org.opencontainers.image.base.name"


def docker(*arguments: str, timeout_s: float = STOP_TIMEOUT_S) -> str:
    """Run the client; return what it printed.

    Raises:
        CannotMeasure: The command failed; the text is the last line of its error.
    """
    try:
        done = subprocess.run(
            ["docker", *arguments], capture_output=True, text=True, timeout=timeout_s, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except FileNotFoundError:
        raise CannotMeasure("docker is not installed: install it, or measure a folder with --rootfs") from None
    except subprocess.TimeoutExpired:
        raise CannotMeasure(f"docker {arguments[0]} did not end within {timeout_s:g} s") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it gave no reason"]
        raise CannotMeasure(f"docker {arguments[0]} failed: {lines[-1]}")
    return done.stdout


@dataclass(frozen=True)
class Image:
    """An image of the engine."""

    name: str
    identity: str
    layers: tuple[str, ...]
    """Digests of the layers' contents, from the bottom."""
    folders: tuple[Path, ...]
    """Folders of the unpacked layers."""
    commands: tuple[str, ...]
    """The instruction that made each layer."""
    check: tuple[str, ...]
    """Command line of its health check."""
    base_label: str = ""
    unshared: bool = False
    """Whether the folders are those of a copy, which no other image has."""


def inspect_image(name: str) -> Image:
    """Ask the engine about an image.

    Raises:
        CannotMeasure: There is no such image, or the engine does not keep its layers as folders.
    """
    (found,) = json.loads(docker("image", "inspect", name))
    layers = tuple(found["RootFS"].get("Layers") or ())
    driver = found.get("GraphDriver") or {}
    if driver.get("Name") != "overlay2":
        kind = driver.get("Name") or "containerd's image store"
        raise CannotMeasure(
            f"the engine keeps images by {kind} instead of overlay2: unpack the image with 'docker export' and measure "
            "the folder with --rootfs"
        )
    data = driver["Data"]
    # The engine lists the topmost lower folder first, and digests from the bottom.
    lower = [Path(one) for one in reversed(data.get("LowerDir", "").split(":")) if one]
    folders = (*lower, Path(data["UpperDir"]))
    if len(folders) != len(layers):
        raise CannotMeasure(f"the engine reports {len(layers)} layers but {len(folders)} folders of {name}")
    history = docker("history", "--no-trunc", "--format", "{{json .}}", found["Id"])
    configuration = found.get("Config") or {}
    return Image(
        name=name,
        identity=found["Id"],
        layers=layers,
        folders=folders,
        commands=_commands(history, len(layers)),
        check=_check(configuration),
        base_label=(configuration.get("Labels") or {}).get(_BASE_LABEL, ""),
    )


def _check(configuration: Mapping[str, Any]) -> tuple[str, ...]:
    test = (configuration.get("Healthcheck") or {}).get("Test")
    return check_command(test, configuration.get("Shell"))


def _commands(history: str, layers: int) -> tuple[str, ...]:
    steps = [json.loads(line)["CreatedBy"] for line in reversed(history.splitlines())]
    steps = [step.removeprefix("/bin/sh -c #(nop)").strip() for step in steps]
    made = [step for step in steps if step.partition(" ")[0] not in _WITHOUT_LAYER]
    # Without one instruction for each layer, any assignment could be wrong: show none.
    return tuple(made) if len(made) == layers else ("",) * layers


def other_images() -> dict[str, tuple[str, ...]]:
    """Return the layers of all images that have a name, by name."""
    identities = docker("images", "--quiet", "--no-trunc").split()
    if not identities:
        return {}
    # An image with several names has one identity, so ask for it once.
    found = json.loads(docker("image", "inspect", *dict.fromkeys(identities)))
    return {tag: tuple(one["RootFS"].get("Layers") or ()) for one in found for tag in one.get("RepoTags") or ()}


def base_of(image: Image, named: str | None, others: Mapping[str, Sequence[str]]) -> tuple[str, int, str]:
    """Return an image's base, how many of its layers that has, and how this is known.

    Args:
        image: The image.
        named: The base that the user has named, if any.
        others: Layers of the engine's images.

    Raises:
        CannotMeasure: The image that the user named is not its base.
    """
    if named is not None:
        layers = inspect_image(named).layers
        if image.layers[: len(layers)] != layers:
            raise CannotMeasure(f"{image.name} was not built from {named}, whose layers are not its first ones")
        return named, len(layers), "named by --base"
    label = {name: layers for name, layers in others.items() if name == image.base_label}
    # The label is a statement by the image's author, so it comes before a comparison of layers.
    for candidates, how in ((label, f"its label {_BASE_LABEL}"), (others, "an image here whose layers are its first")):
        name, length = base_length(image.layers, candidates)
        if length:
            return name, length, how
    return "", 0, "no image here has its first layers"


@dataclass(frozen=True)
class Container:
    """A container, and where its root file system is mounted while it runs."""

    identity: str
    image: str
    merged: str
    check: tuple[str, ...]

    @classmethod
    def named(cls, name: str) -> Container:
        """Ask the engine about a container.

        Raises:
            CannotMeasure: There is no container with this name.
        """
        (found,) = json.loads(docker("container", "inspect", name))
        merged = ((found.get("GraphDriver") or {}).get("Data") or {}).get("MergedDir", "")
        return cls(found["Id"], found["Image"], merged, _check(found["Config"]))

    def state(self) -> Mapping[str, Any]:
        """Return the state of the container, as the engine reports it."""
        state: Mapping[str, Any] = json.loads(
            docker("container", "inspect", "--format", "{{json .State}}", self.identity)
        )
        return state

    def process(self) -> int:
        """Return the PID of its process 1; 0 while it does not run."""
        return int(self.state()["Pid"])

    def wait_until_ready(self, timeout_s: float) -> None:
        """Wait until the container is healthy or has ended. Without a health check, wait until it runs.

        Raises:
            CannotMeasure: It is not healthy in time.
        """
        ends_s = time.monotonic() + timeout_s
        while True:
            state = self.state()
            health = state.get("Health", {}).get("Status", "healthy")
            if state["Status"] in {"exited", "dead"} or (state["Running"] and health == "healthy"):
                return
            if time.monotonic() > ends_s:
                raise CannotMeasure(
                    f"the container is {state['Status']} and {health} after {timeout_s:g} s: see its log"
                )
            time.sleep(0.2)


def create(image: str, options: Sequence[str], command: Sequence[str]) -> Container:
    """Create a container with the options that ``docker run`` takes."""
    return Container.named(docker("create", *options, image, *command).strip())


def sharers(folders: Sequence[Path], container: str) -> list[str]:
    """Return the names of the other running containers whose layers are among these folders."""
    running = docker("ps", "--quiet", "--no-trunc").split()
    if not running:
        return []
    names = []
    for found in json.loads(docker("container", "inspect", *running)):
        lower = ((found.get("GraphDriver") or {}).get("Data") or {}).get("LowerDir", "").split(":")
        # Pages of a shared layer that another container has mapped cannot be dropped.
        if found["Id"] != container and {str(folder) for folder in folders}.intersection(lower):
            names.append(found["Name"].lstrip("/"))
    return sorted(names)


def environment(container: str) -> dict[str, str]:
    """Return the environment for a command that works on the container."""
    return {**os.environ, "CONTAINER": container}
