"""The output of pip becomes progress; if it fails, its output is shown."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from services.supervisor.install import Installation, install
from tests.support import ROOT


def test_packages_are_counted_as_pip_prints_them(tmp_path: Path) -> None:
    installation = Installation(tmp_path)
    for line in (
        "Obtaining file:///here",
        "Collecting numpy>=1.26 (from framebus==0.1.0)",
        "  Downloading numpy-2.4.6-cp311-cp311-manylinux_2_28_x86_64.whl.metadata (6.6 kB)",
        "Collecting posix_ipc>=1.2 (from framebus==0.1.0)",
        "  Downloading posix_ipc-1.3.2-cp311-cp311-linux_x86_64.whl (50 kB)",
    ):
        installation.take(line)
    assert len(installation.collected) == 3
    assert installation.now == "posix_ipc, 50 kB"
    console = Console(width=200)
    with console.capture() as shown:
        console.print(installation.picture("all", 80))
    assert "3 packages found" in shown.get()
    installation.take("Installing collected packages: posix_ipc, numpy, framebus")
    (tmp_path / "numpy-2.4.6.dist-info").mkdir()
    (tmp_path / "posix_ipc-1.3.2.dist-info").mkdir()
    (tmp_path / "another-1.dist-info").mkdir()
    assert installation.installed() == 2
    for columns in (5, 30, 80, 200):
        with console.capture() as shown:
            console.print(installation.picture("all", columns))
        assert max(map(len, shown.get().splitlines())) <= columns
    assert "2 of 3 packages" in shown.get()


@pytest.fixture
def _plain_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set what a user may have set, and no warning as an error, which pip is not made for."""
    monkeypatch.setenv("PIP_QUIET", "1")
    monkeypatch.delenv("PYTHONWARNINGS")


@pytest.mark.slow
@pytest.mark.usefixtures("_plain_pip")
def test_without_a_terminal_each_part_is_a_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "services.supervisor.install", "a thing", "--no-index", "--dry-run", "rich"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    first, last = done.stdout.splitlines()
    assert first == "installing a thing"
    assert last.startswith("installed a thing in ")


@pytest.mark.slow
@pytest.mark.usefixtures("_plain_pip")
def test_the_output_of_a_failed_pip_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    assert install("a thing", ["--no-index", "--dry-run", "no-such-package-of-ours"]) == 1
    said, errors = capfd.readouterr()
    assert said == "installing a thing\n"
    assert "No matching distribution found for no-such-package-of-ours" in errors
    assert errors.endswith("pip ended with status 1\n")
