"""A folder in which a test installs distributions with services of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support import ROOT

BAKER = """
import math

from services.common.config import CommonConfiguration, Section
from services.common.service import Service
from services.common.status import StatusServer, status_document


class BakerSection(Section):
    loaves: int = 3


class BakerConfiguration(CommonConfiguration):
    baker: BakerSection = BakerSection()


def run(configuration, stop):
    def status():
        return status_document("baker", {}, stale_after_s=math.inf, details={"loaves": configuration.baker.loaves})

    with StatusServer(configuration.stream.name, "baker", status):
        stop.wait()


SERVICE = Service("baker", BakerConfiguration, run)
"""
"""The module of a service that bakes, as another party may write it."""


class Site:
    """A folder of packages on the path of the processes that a test starts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{folder}"}

    def install(self, distribution: str, entry_point: str, **modules: str) -> None:
        """Install a distribution into the folder, as pip does."""
        metadata = self.folder / f"{distribution}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(f"[framebus.services]\n{entry_point}\n")
        for name, text in modules.items():
            (self.folder / f"{name}.py").write_text(text)

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run Python with the folder on its path."""
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def faults(self, *arguments: str, **environment: str) -> list[str]:
        """Return the errors that Python prints for an unusable configuration."""
        done = self.run(*arguments, **environment)
        assert (done.returncode, done.stdout) == (2, "")
        return done.stderr.splitlines()
