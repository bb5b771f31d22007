"""The rules, alerts and dashboard of config/monitoring without a pipeline; test_overlays.py tests them with one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import ROOT, lacks

MONITORING = ROOT / "config/monitoring"
CASES = ROOT / "tests/deploy/alerts.test.yaml"
DASHBOARD = json.loads((MONITORING / "grafana/dashboards/framebus.json").read_text())
GRID_COLUMNS = 24
LIMIT = re.compile(r" (==|>) [\d.]+$")
"""What an alert's expression ends with."""
QUIET_AT = "11m"
"""When no alert of the cases fires: longer after their begin than any has to hold."""


def alerts() -> dict[str, dict[str, Any]]:
    content = yaml.safe_load((MONITORING / "prometheus/alerts.yaml").read_text())
    return {rule["alert"]: rule for group in content["groups"] for rule in group["rules"]}


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("promtool")
    if program is None:
        lacks("no promtool here: run 'make system-packages'")
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False)


def test_the_configuration_and_its_rules_are_valid() -> None:
    done = promtool("check", "config", "--lint-fatal", str(MONITORING / "prometheus/prometheus.yaml"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(alerts())} rules found" in done.stdout


def test_every_alert_is_quiet_first_and_then_fires() -> None:
    done = promtool("test", "rules", str(CASES))
    assert done.returncode == 0, done.stdout + done.stderr
    tried = {
        (case["alertname"], bool(case["exp_alerts"]))
        for test in yaml.safe_load(CASES.read_text())["tests"]
        for case in test["alert_rule_test"]
    }
    assert tried == {(name, fires) for name in alerts() for fires in (False, True)}


@pytest.mark.parametrize("fires", [False, True], ids=["never", "always"])
@pytest.mark.parametrize("name", alerts())
def test_an_alert_that_never_or_always_fires_is_found(name: str, fires: bool, tmp_path: Path) -> None:
    rule = alerts()[name]
    rule["expr"] = LIMIT.sub("" if fires else " > 1e12", rule["expr"])
    (tmp_path / "alerts.yaml").write_text(yaml.safe_dump({"groups": [{"name": "altered", "rules": [rule]}]}))
    shutil.copy(MONITORING / "prometheus/rules.yaml", tmp_path)
    (test,) = (test for test in yaml.safe_load(CASES.read_text())["tests"] if test["name"] == name)
    cases = {"rule_files": ["alerts.yaml", "rules.yaml"], "evaluation_interval": "30s", "tests": [test]}
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(cases))
    done = promtool("test", "rules", str(tmp_path / "test.yaml"))
    assert done.returncode == 1
    assert (f"time: {QUIET_AT}," in done.stdout + done.stderr) == fires


def test_the_dashboard_asks_the_datasource_that_is_provisioned() -> None:
    provisioned = yaml.safe_load((MONITORING / "grafana/provisioning/datasources/prometheus.yaml").read_text())
    (datasource,) = provisioned["datasources"]
    asked = {"type": datasource["type"], "uid": datasource["uid"]}
    panels = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
    assert panels
    for panel in panels:
        assert panel["datasource"] == asked
        assert panel["targets"], panel["title"]
        assert all(target["datasource"] == asked for target in panel["targets"])


def test_every_panel_has_a_place_of_its_own() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (column, row)
            for column in range(place["x"], place["x"] + place["w"])
            for row in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= GRID_COLUMNS
        assert not cells & taken, panel["title"]
        taken |= cells
