"""The rules, alerts and dashboard of config/monitoring without a pipeline; test_overlays.py tests them with one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from itertools import product
from typing import Any

import pytest
import yaml

from tests.support import ROOT, lacks

pytestmark = pytest.mark.slow

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
    pipe, same = subprocess.PIPE, subprocess.STDOUT
    return subprocess.run([program, *arguments], stdout=pipe, stderr=same, text=True, check=False)


def test_the_configuration_and_its_rules_are_valid() -> None:
    done = promtool("check", "config", "--lint-fatal", str(MONITORING / "prometheus/prometheus.yaml"))
    assert done.returncode == 0, done.stdout
    assert f"{len(alerts())} rules found" in done.stdout


def test_every_alert_is_quiet_first_and_then_fires() -> None:
    done = promtool("test", "rules", str(CASES))
    assert done.returncode == 0, done.stdout
    tried = {
        (case["alertname"], bool(case["exp_alerts"]))
        for test in yaml.safe_load(CASES.read_text())["tests"]
        for case in test["alert_rule_test"]
    }
    assert tried == {(name, fires) for name in alerts() for fires in (False, True)}


@pytest.fixture(scope="module")
def altered(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool], str]:
    """What promtool says of the cases of each alert if this alert never fires, and if it always does.

    All are tested by one process, whose start takes longer than a test.
    """
    folder = tmp_path_factory.mktemp("altered")
    shutil.copy(MONITORING / "prometheus/rules.yaml", folder)
    cases = {test["name"]: test for test in yaml.safe_load(CASES.read_text())["tests"]}
    files = {}
    for name, fires in product(alerts(), (False, True)):
        rule = alerts()[name]
        rule["expr"] = LIMIT.sub("" if fires else " > 1e12", rule["expr"])
        rules, file = folder / f"{name}-{fires}.rules.yaml", folder / f"{name}-{fires}.yaml"
        rules.write_text(yaml.safe_dump({"groups": [{"name": "altered", "rules": [rule]}]}))
        content = {"rule_files": [rules.name, "rules.yaml"], "evaluation_interval": "30s", "tests": [cases[name]]}
        file.write_text(yaml.safe_dump(content))
        files[name, fires] = str(file)
    done = promtool("test", "rules", *files.values())
    assert done.returncode == 1
    said = re.split(r"^Unit Testing: +(.+)$", done.stdout, flags=re.MULTILINE)
    by_file = dict(zip(said[1::2], said[2::2], strict=True))
    return {key: by_file[file] for key, file in files.items()}


@pytest.mark.parametrize("fires", [False, True], ids=["never", "always"])
@pytest.mark.parametrize("name", alerts())
def test_an_alert_that_never_or_always_fires_is_found(
    name: str, fires: bool, altered: dict[tuple[str, bool], str]
) -> None:
    said = altered[name, fires]
    assert "FAILED" in said
    assert (f"time: {QUIET_AT}," in said) == fires


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
