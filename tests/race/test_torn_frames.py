"""A short race; ``make soak MINUTES=...`` runs a long one."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.support import ROOT


def test_no_frame_is_torn() -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "tests.race.torn", "--minutes", "0.05"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        cwd=ROOT,
    )
    assert answer.stderr == ""
    report = json.loads(answer.stdout)
    assert report["broken promises"] == [], report
    assert answer.returncode == 0
    assert report["publisher"]["published"] > 100
    assert report["publisher"]["lives"] > 1
    assert all(subscriber["received"] > 10 for subscriber in report["subscribers"])
