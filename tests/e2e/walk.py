"""Runs the commands of a page of the documentation unchanged, in a checkout of their own."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import yaml

from tests.e2e.engine import STARTERS, TAG, docker
from tests.support import ROOT

NEEDED = (
    *("framebus", "services", "config", "models", "deploy"),
    *("pyproject.toml", "setup.py", "constraints.txt", ".dockerignore", ".env"),
)
"""What the commands need of the checkout, beside the compose files."""
STAND_INS = ROOT / "tests/e2e/standins"
TIMEOUT_S = 300.0


def commands(page: str, section: str) -> list[str]:
    """Return the shell blocks of a section of a page of ``docs/``."""
    content = (ROOT / "docs" / page).read_text()
    (found,) = re.findall(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", content, re.DOTALL | re.MULTILINE)
    return re.findall(r"^```sh\n(.*?)^```$", found, re.DOTALL | re.MULTILINE)


def copy_checkout(folder: Path) -> Path:
    """Copy what the commands need into a folder that they may write; return it."""
    for path in [*(ROOT / name for name in NEEDED), *ROOT.glob("compose*.yaml")]:
        if path.is_dir():
            shutil.copytree(path, folder / path.name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        else:
            shutil.copy2(path, folder)
    return folder


def with_two_cameras(checkout: Path) -> Path:
    """Keep only the last two cameras of the simulated site, to save CPU; return the checkout."""
    path = checkout / "config/simulated.yaml"
    content = yaml.safe_load(path.read_text())
    lines = [line for line in path.read_text().splitlines(keepends=True) if not re.search(r"name: cam[012]\b", line)]
    first = next(number for number, line in enumerate(lines) if "cameras:" in line)
    lines.insert(first, "  width_px: 1632\n")
    path.write_text("".join(lines))
    assert len(content["stitcher"]["cameras"]) - 3 == len(yaml.safe_load(path.read_text())["stitcher"]["cameras"]) == 2
    return checkout


@contextmanager
def stand_in(name: str, compose_file: str) -> Iterator[str]:
    """If no registry is reachable, give the name of the official image to an image of ours; yield the name.

    Args:
        name: Name of the image, without tag and folder: ``standins/NAME.Dockerfile`` describes ours.
        compose_file: The compose file whose service uses this image.
    """
    (image,) = re.findall(rf"image: ((?:\w+/)?{name}:\S+)", (ROOT / compose_file).read_text())
    made = all(starter.exists() for starter in STARTERS) and not docker("images", "--quiet", image).strip()
    if made:
        with (STAND_INS / f"{name}.Dockerfile").open() as dockerfile:
            subprocess.run(["docker", "build", "--quiet", "--tag", image, "-"], stdin=dockerfile, check=True)
    try:
        yield image
    finally:
        if made:
            docker("rmi", image, check=False)


class Shell:
    """A shell on a host, in a checkout of its own. Variables that a block exports are set in the next one.

    Args:
        checkout: Where the blocks run.
        environment: Variables of the blocks. Their project has its own name.
        placeholders: Texts of the page to replace, such as names of hosts that only the reader has.
    """

    def __init__(self, checkout: Path, environment: Mapping[str, str], placeholders: Mapping[str, str]) -> None:
        self.checkout = checkout
        self.name = f"test-{secrets.token_hex(4)}"
        self._placeholders = placeholders
        self._environment = {**os.environ, "COMPOSE_PROJECT_NAME": self.name, "FRAMEBUS_TAG": TAG, **environment}
        self._state = checkout / f"{self.name}.state"
        self._state.touch()

    def run(self, block: str, *, check: bool = True) -> str:
        """Run a block to its end; return its output, including errors."""
        for name, value in self._placeholders.items():
            block = block.replace(name, value)
        script = f"set -a; source {self._state}; set -euo pipefail\n{block}\nexport -p >{self._state}"
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=self.checkout,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        logs = "" if done.returncode == 0 or not check else self.run("docker compose logs --tail 20", check=False)
        assert not check or done.returncode == 0, f"{block}\n{done.stdout[-4000:]}\n{logs}"
        return done.stdout

    def states(self) -> dict[str, list[str]]:
        """Return the health of each service's containers, or their state if there is no health check."""
        found: dict[str, list[str]] = {}
        for line in self.run("docker compose ps --all --format json").splitlines():
            one = json.loads(line)
            found.setdefault(one["Service"], []).append(one["Health"] or one["State"])
        return found

    def down(self, *files: str) -> None:
        """Remove everything that belongs to the project, as far as these compose files name it."""
        # A failed block exports nothing, not even the names of the files.
        named = " ".join(f"-f {file}" for file in files)
        self.run(f"docker compose {named} --profile '*' down -v -t 2 --remove-orphans", check=False)
