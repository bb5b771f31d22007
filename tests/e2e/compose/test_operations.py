"""The work of an operator, on a real engine, with the commands of docs/operations.md."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator

import pytest

from tests.e2e.engine import SERVICES, docker, need_engine
from tests.e2e.walk import Shell, commands, copy_checkout, stand_in, with_two_cameras
from tests.support import free_ports, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.docker, pytest.mark.long, pytest.mark.timeout(600)]

FILES = ("compose.yaml", "compose.monitoring.yaml")
CALIBRATION = "/var/lib/framebus/simulated.json"
NEW_CODE = "sed -i 's/^MAX_REMEMBERED: Final = 16$/MAX_REMEMBERED: Final = 15/' services/streamer/security.py"
"""In the place of what a pull would bring."""
PATIENCE_S = 180.0


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    need_engine()
    tag = f"test-{secrets.token_hex(4)}"  # one image is built again from other code, and the last block removes all
    port = free_ports(3)
    environment = {
        "FRAMEBUS_TAG": tag,
        "FRAMEBUS_HOLDER": f"{tag}-holder",
        "FRAMEBUS_PORT": str(port),
        "FRAMEBUS_PROMETHEUS_PORT": str(port + 1),
        "FRAMEBUS_GRAFANA_PORT": str(port + 2),
    }
    checkout = with_two_cameras(copy_checkout(tmp_path_factory.mktemp("checkout")))
    with stand_in("prometheus", FILES[1]), stand_in("grafana", FILES[1]):
        opened = Shell(checkout, environment, {"git pull": NEW_CODE, "streamer:before": f"streamer:{tag}-before"})
        try:
            yield opened
        finally:
            opened.down(*FILES)
            for image in docker("images", "--quiet", "--filter", f"reference=framebus/*:{tag}*").split():
                docker("rmi", "--force", image, check=False)


def walk(shell: Shell, section: str) -> list[str]:
    """Run the blocks of a section of the page; return the output of each."""
    return [shell.run(block) for block in commands("operations.md", section)]


def starts(shell: Shell) -> dict[str, str]:
    """Return the start time and number of each service's container, which a restart changes."""
    identities = shell.run("docker compose ps --all --quiet").split()
    return {
        one["Config"]["Labels"]["com.docker.compose.service"]: one["Id"] + one["State"]["StartedAt"]
        for one in json.loads(docker("inspect", *identities))
    }


def changed(shell: Shell, before: dict[str, str]) -> set[str]:
    """Return the services whose container was started since."""
    after = starts(shell)
    assert after.keys() == before.keys()
    return {name for name, start in after.items() if start != before[name]}


def calibration(shell: Shell) -> str:
    return shell.run(f"docker compose exec -T stitcher cat {CALIBRATION}")


def samples(printed: str) -> dict[str, float]:
    """Return the series and values that ``promtool query instant`` printed."""
    found = re.findall(r"^(\S.*) => (\S+) @\[", printed, re.MULTILINE)
    return {series: float(value) for series, value in found}


def value_of(found: dict[str, float], *labels: str) -> float:
    """Return the value of the only series with all labels, each as ``name="value"``."""
    (value,) = (value for series, value in found.items() if all(label in series for label in labels))
    return value


def skipped_share(printed: str) -> float:
    """Return the share of the pictures that the stitcher skipped."""
    return value_of(samples(printed), "ratio_rate1m", 'service="stitcher"', 'stage="publish"')


def test_all_services_start_healthy(shell: Shell) -> None:
    walk(shell, "Start")
    states = shell.states()
    assert states == {
        **{name: ["healthy"] for name in (*SERVICES, "prometheus")},
        "holder": ["running"],
        "grafana": ["running"],
    }


def test_a_camera_can_be_changed(shell: Shell) -> None:
    before = starts(shell)
    (printed,) = walk(shell, "Change a camera")
    assert "1920x1080" in printed.replace(" ", "")
    assert len(re.findall(r'framebus_camera_up\{camera="cam\d",service="stitcher"\} 1\.0', printed)) == 2
    told = json.loads(shell.run("curl --silent http://127.0.0.1:$FRAMEBUS_PORT/api/status"))
    assert told["services"]["stitcher"]["details"]["cameras"]["cam4"]["transport"] == "tcp"
    assert changed(shell, before) == {"stitcher"}


def test_a_model_can_be_replaced_and_restored(shell: Shell) -> None:
    before = starts(shell)
    replaced, _ = walk(shell, "Replace a model")
    assert '"model_version": "1.0.1"' in replaced
    asked = commands("operations.md", "Replace a model")[0].splitlines()[-1]
    wait_until(
        lambda: '"model_version": "1.0.0"' in shell.run(asked),
        "the old model is told",
        timeout_s=PATIENCE_S,
        interval_s=0.5,
    )
    assert changed(shell, before) == {"detector"}


def test_one_service_can_be_upgraded_and_rolled_back_while_the_others_run(shell: Shell) -> None:
    program = "from services.streamer import security; print(security.MAX_REMEMBERED)"
    asked = f"docker compose exec -T streamer python -c '{program}'"
    before = starts(shell)
    upgrade, back = commands("operations.md", "Upgrade one service")
    shell.run(upgrade)
    assert shell.run(asked) == "15\n"
    shell.run(back)
    assert shell.run(asked) == "16\n"
    assert changed(shell, before) == {"streamer"}
    assert shell.states()["streamer"] == ["healthy"]


def test_the_calibration_can_be_backed_up_and_restored(shell: Shell) -> None:
    backup, restore = commands("operations.md", "Back up the calibration")
    shell.run(backup)
    known = calibration(shell)
    assert "cam4" in known
    shell.run("docker compose stop stitcher && docker compose rm --force stitcher")
    docker("volume", "rm", f"{shell.name}_calibration")
    # A new host has a stitcher with a volume of its own.
    shell.run("docker compose create stitcher")
    shell.run(restore.replace("restart stitcher", "start stitcher"))
    assert calibration(shell) == known
    assert "no saved calibration yet" not in shell.run("docker compose logs stitcher")


def test_the_queries_of_the_dashboard_give_data(shell: Shell) -> None:
    (printed,) = walk(shell, "Read the dashboard's data")
    assert value_of(samples(printed), 'service="stitcher"', 'stage="publish"') > 0


def test_the_documented_commands_find_a_slow_stage(shell: Shell) -> None:
    limited = shell.run("docker compose ps --quiet stitcher").strip()
    (block,) = commands("operations.md", "Find out why it is slow")
    asked = block.partition("docker stats")[0]
    before = skipped_share(shell.run(asked))
    docker("update", "--cpus", "0.2", limited)
    try:
        wait_until(
            lambda: skipped_share(shell.run(asked)) > max(before, 0.3),
            f"the stitcher is seen to skip more than the {before:.0%} of before",
            timeout_s=PATIENCE_S,
            interval_s=1,
        )
        printed = shell.run(block)
    finally:
        docker("update", "--cpus", "0", limited)
    assert value_of(samples(printed), 'quantile="0.5"', 'service="stitcher"', 'stage="publish"') > 0
    assert f"{shell.name}-stitcher-1" in printed, "docker stats"
    assert re.search(r"(?m)^panorama\b", printed), "framebus top"
    assert "backend: c" in printed, "framebus doctor"


def test_the_clean_up_leaves_no_container_no_volume_and_no_image(shell: Shell) -> None:
    tag = shell.run("echo $FRAMEBUS_TAG").strip()
    assert docker("images", "--quiet", f"framebus/*:{tag}").split()
    walk(shell, "Clean up")
    assert shell.states() == {}
    assert docker("volume", "ls", "--quiet", "--filter", f"name={shell.name}") == ""
    assert docker("images", "--quiet", f"framebus/*:{tag}") == ""
