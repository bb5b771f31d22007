"""The compose files on top of compose.yaml, alone, in every useful pair, and as many as go together.

No engine is used. tests/e2e/compose/test_overlays.py starts those that an engine of the tests can run.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.support import ROOT, lacks

pytestmark = [pytest.mark.docker, pytest.mark.slow]

OVERLAYS = ("monitoring", "gpu", "model-copy", "model-image", "relay", "relay-tls", "join")
EXCLUDED = ({"model-copy", "model-image"}, {"relay", "join"})
"""Those of which one makes the other meaningless: two ways for the model; a relay without a holder of its project."""
SCHEMA = json.loads((ROOT / "tests/deploy/schema/compose-spec.json").read_text())
PINNED = re.compile(r"[^:]+:(?!latest$)[\w.-]+")


def sensible() -> list[tuple[str, ...]]:
    """Return the useful sets of up to two overlays, and those that no overlay can be added to.

    Compose merges one file after another, so a set of a size between has no merge that these do not have.
    """
    useful = [
        names
        for count in range(len(OVERLAYS) + 1)
        for names in combinations(OVERLAYS, count)
        if ("relay-tls" not in names or "relay" in names) and not any(pair <= {*names} for pair in EXCLUDED)
    ]
    largest = [names for names in useful if not any({*names} < {*others} for others in useful)]
    return [names for names in useful if len(names) <= 2 or names in largest]


@cache
def merged(names: tuple[str, ...]) -> dict[str, Any]:
    """Return compose.yaml and the overlays as compose merges them."""
    files = ["compose.yaml", *(f"compose.{name}.yaml" for name in names)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("FRAMEBUS_", "COMPOSE_"))}
    environment["FRAMEBUS_TAG"] = "test"
    command = [
        "docker",
        "compose",
        *(word for file in files for word in ("--file", file)),
        "config",
        "--format",
        "json",
    ]
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        lacks("no Docker client with compose here")
    assert (done.returncode, done.stderr) == (0, "")
    return dict(json.loads(done.stdout))


def faults(content: dict[str, Any]) -> list[str]:
    """Return the faults that the specification's schema finds."""
    found = jsonschema.Draft7Validator(SCHEMA).iter_errors(content)
    return [f"{error.json_path}: {error.message}" for error in found]


def test_no_overlay_is_forgotten() -> None:
    files = {path.name for path in ROOT.glob("compose.*.yaml")} - {"compose.single.yaml"}
    assert files == {f"compose.{name}.yaml" for name in OVERLAYS}
    assert {name for names in sensible() for name in names} == {*OVERLAYS}


@pytest.mark.parametrize("names", sensible(), ids=lambda names: "+".join(names) or "alone")
def test_compose_accepts_the_combination(names: tuple[str, ...]) -> None:
    content = merged(names)
    assert faults(content) == []
    for name, service in content["services"].items():
        assert PINNED.fullmatch(service["image"]), name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert service["cap_drop"] == ["ALL"], name
        assert {port["host_ip"] for port in service.get("ports", [])} <= {"127.0.0.1"}, name
        for volume in service.get("volumes", []):
            assert volume["type"] != "bind" or Path(volume["source"]).exists(), (name, volume)


@pytest.mark.parametrize("names", sensible(), ids=lambda names: "+".join(names) or "alone")
def test_each_overlay_adds_its_services(names: tuple[str, ...]) -> None:
    services = merged(names)["services"]
    detector = services["detector"]
    mounts = {volume["target"]: volume["type"] for volume in detector["volumes"]}
    assert ({"prometheus", "grafana"} <= services.keys()) == ("monitoring" in names)
    assert ("rabbitmq" in services) == ("relay" in names)
    assert ("FRAMEBUS_BROKER__CA_FILE" in services["streamer"]["environment"]) == ("relay" in names)
    assert (services["stitcher"]["ipc"] == "service:holder") == ("holder" in services) == ("join" not in names)
    assert (detector["environment"].get("FRAMEBUS_DETECTOR__PROVIDERS") is not None) == ("gpu" in names)
    assert ("deploy" in detector) == ("gpu" in names)
    assert (mounts.get("/models") == "volume") == ("model-copy" in names)
    assert (mounts.get("/models/default-1.0.0") == "image") == ("model-image" in names)
    assert (detector["ipc"] == "private") == ("relay" in names)
    assert detector["read_only"]


def test_the_schema_finds_a_planted_fault() -> None:
    content = json.loads(json.dumps(merged(("model-image",))))
    (image,) = (one for one in content["services"]["detector"]["volumes"] if one["type"] == "image")
    image["type"] = "picture"
    assert any("services.detector.volumes" in fault for fault in faults(content))
