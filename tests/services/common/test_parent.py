"""A process ends with the one that started it, also if that one died before it could ask for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.support import ROOT, wait_until

CHILD = """
import os, pathlib, signal, sys, time
from services.common.parent import end_with_parent
note = pathlib.Path(sys.argv[1])
note.write_text(str(os.getpid()))
while not pathlib.Path(sys.argv[2]).exists():
    time.sleep(0.01)
end_with_parent(signal.SIGTERM, int(sys.argv[3]))
note.with_suffix(".asked").touch()
time.sleep(100)
"""
PARENT = f"""
import os, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", {CHILD!r}, *sys.argv[1:], str(os.getpid())])
time.sleep(100)
"""


@pytest.mark.parametrize("dies_first", [False, True], ids=["asks_first", "dies_first"])
def test_a_child_does_not_outlive_its_parent(tmp_path: Path, dies_first: bool) -> None:
    note, go_on = tmp_path / "child", tmp_path / "go"
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(note), str(go_on)], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    wait_until(lambda: note.exists() and note.read_text(), "the child runs")
    child = psutil.Process(int(note.read_text()))
    if not dies_first:
        go_on.touch()
        wait_until(note.with_suffix(".asked").exists, "the child has asked")
    parent.kill()
    parent.wait()
    go_on.touch()
    # If process 1 does not wait for orphans, an orphan stays as a zombie.
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, "the child has ended")
