"""Detectors that share a queue, on a real engine, by the commands of docs/scale-out.md as they stand there."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from ipaddress import ip_network
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests import s3
from tests.e2e.engine import SERVICES, STARTERS, TAG, docker, need_engine
from tests.e2e.page import collect_detections, open_page
from tests.support import ROOT, free_ports, needs_browser, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.docker, pytest.mark.long, pytest.mark.timeout(600)]

PAGE = (ROOT / "docs/scale-out.md").read_text()
NEEDED = ("framebus", "services", "config", "models", "pyproject.toml", "setup.py", "constraints.txt", ".dockerignore")
(BROKER_IMAGE,) = re.findall(r"image: (rabbitmq:\S+)", (ROOT / "compose.relay.yaml").read_text())
STAND_IN = ROOT / "tests/e2e/standins/rabbitmq.Dockerfile"
TIMEOUT_S = 300.0


def commands(section: str) -> list[str]:
    """The shell blocks of a section of the page."""
    (found,) = re.findall(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    return re.findall(r"^```sh\n(.*?)^```$", found, re.DOTALL | re.MULTILINE)


class Shell:
    """A shell on a host, in a checkout of its own: what a block exports, the next one has."""

    def __init__(self, checkout: Path, environment: Mapping[str, str], placeholders: Mapping[str, str]) -> None:
        self.checkout = checkout
        self.name = f"test-{secrets.token_hex(4)}"
        self._placeholders = placeholders
        self._environment = {**os.environ, **environment, "COMPOSE_PROJECT_NAME": self.name, "FRAMEBUS_TAG": TAG}
        self._state = checkout / f"{self.name}.state"
        self._state.touch()

    def run(self, block: str, *, check: bool = True) -> str:
        """Run a block to its end; return what it printed, errors included."""
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

    def walk(self, section: str) -> list[str]:
        """Run the blocks of a section; return what each printed."""
        return [self.run(block) for block in commands(section)]

    def down(self) -> None:
        """Remove all that belongs to the project."""
        # A block that has failed exports nothing, not even the names of the files.
        files = "-f compose.yaml -f compose.relay.yaml"
        self.run(f"docker compose {files} --profile '*' down -v -t 2 --remove-orphans", check=False)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the page's commands need of the checkout, where they may write."""
    folder = tmp_path_factory.mktemp("checkout")
    for path in [*(ROOT / name for name in NEEDED), ROOT / ".env", *ROOT.glob("compose*.yaml")]:
        if path.is_dir():
            shutil.copytree(path, folder / path.name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        else:
            shutil.copy2(path, folder)
    return folder


@pytest.fixture(scope="module")
def gateway() -> str:
    """Address at which containers reach this machine."""
    need_engine()
    (network,) = json.loads(docker("network", "inspect", "bridge"))
    (described,) = network["IPAM"]["Config"]
    # An engine that was started again does not tell of the address that it has chosen itself.
    return described.get("Gateway") or str(ip_network(described["Subnet"])[1])


@pytest.fixture(scope="module")
def storage(gateway: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3.S3Server]:
    with s3.S3Server(tmp_path_factory.mktemp("s3"), host=gateway) as server:
        yield server


@pytest.fixture(scope="module")
def broker_image() -> Iterator[None]:
    """Where no registry is reached, an image of Debian's server has the name of the official one."""
    need_engine()
    made = all(starter.exists() for starter in STARTERS) and not docker("images", "--quiet", BROKER_IMAGE).strip()
    if made:
        with STAND_IN.open() as dockerfile:
            subprocess.run(["docker", "build", "--quiet", "--tag", BROKER_IMAGE, "-"], stdin=dockerfile, check=True)
    yield
    if made:
        docker("rmi", BROKER_IMAGE, check=False)


Opener = Callable[[], Shell]


@pytest.fixture(scope="module")
def shells(checkout: Path, gateway: str, storage: s3.S3Server, broker_image: None) -> Iterator[Opener]:
    """Opens shells on hosts, of which the second one has detectors alone."""
    del broker_image
    port = free_ports(3)
    environment = {
        "FRAMEBUS_PORT": str(port),
        "FRAMEBUS_BROKER_PORT": str(port + 1),
        "FRAMEBUS_HOLDER": f"test-{secrets.token_hex(4)}-holder",
        # Boxes are wanted at the page, however late a busy machine has them.
        "FRAMEBUS_STREAMER__BOXES_MAX_AGE_S": "60",
    }
    placeholders = {
        "DNS:framebus.example": f"IP:{gateway}",
        "framebus.example": f"{gateway}:{port + 2}",
        "0.0.0.0:5671": f"0.0.0.0:{port + 2}",
        "http://minio.example:9000": storage.endpoint,
        "ACCESS_KEY_ID=framebus": f"ACCESS_KEY_ID={s3.ACCESS_KEY}",
    }
    opened: list[Shell] = []

    def open_shell() -> Shell:
        opened.append(Shell(checkout, environment, placeholders))
        return opened[-1]

    try:
        yield open_shell
    finally:
        for shell in opened:
            shell.down()


@pytest.fixture(scope="module")
def shell(shells: Opener) -> Shell:
    return shells()


def states(shell: Shell) -> dict[str, list[str]]:
    """The health of each service's containers, or their state where nothing checks it."""
    found: dict[str, list[str]] = {}
    for line in shell.run("docker compose ps --all --format json").splitlines():
        one = json.loads(line)
        found.setdefault(one["Service"], []).append(one["Health"] or one["State"])
    return found


def results(printed: str) -> list[dict[str, object]]:
    return [json.loads(line[line.index("{") :]) for line in printed.splitlines() if '"tracker"' in line]


def test_the_overlay_starts_healthy(shell: Shell) -> None:
    shell.walk("Start")
    expected = {name: ["healthy"] for name in (*SERVICES, "relay", "rabbitmq")}
    assert states(shell) == {**expected, "holder": ["running"]}


def test_the_queue_and_the_results_are_seen(shell: Shell) -> None:
    (printed,) = shell.walk("Look at the queue")
    assert re.search(r"framebus\.panorama\.frames\.detector\s+\d+\s+1\b", printed)
    assert len(results(printed)) == 3
    assert 'detail="unsettled",service="relay"' in printed


def test_what_the_services_write_is_shared_by_their_group_alone(shell: Shell) -> None:
    listing = shell.run("docker compose exec -T relay find /var/lib/framebus/objects -printf '%m %g %U %y\\n'")
    found = [line.split() for line in listing.splitlines()]
    assert {(mode, group) for mode, group, _, kind in found if kind == "d"} == {("2775", "2000")}
    assert {(mode, group) for mode, group, _, kind in found if kind == "f"} == {("664", "2000")}
    assert {user for _, _, user, _ in found} == {"1002", "1005"}


def test_three_detectors_share_the_queue(shell: Shell) -> None:
    shell.walk("Scale to three")
    assert states(shell)["detector"] == ["healthy"] * 3


def test_a_killed_one_comes_back_and_results_go_on(shell: Shell) -> None:
    (printed,) = shell.walk("Kill one")
    assert len(results(printed)) == 5
    wait_until(lambda: states(shell)["detector"] == ["healthy"] * 3, "three detectors are healthy", timeout_s=60)


def test_a_dead_letter_is_read_run_and_replayed(shell: Shell) -> None:
    _, told, handled = shell.walk("A dead letter")
    assert '"reason"' in told
    failure, _, mended = handled.partition("it fails as it did")
    assert "no such object" in failure
    assert len(results(mended)) == 1
    assert "1 replayed" in mended
    assert "there are no dead letters" in mended


def test_a_drain_leaves_nothing_in_the_queue(shell: Shell) -> None:
    (printed,) = shell.walk("Drain and stop")
    assert re.search(r"framebus\.panorama\.frames\.detector\s+0\b", printed)
    assert states(shell) == {}


def test_other_hosts_share_the_work_by_tls_and_s3(shell: Shell, shells: Opener, storage: s3.S3Server) -> None:
    secret = shell.checkout / "secrets/storage"
    secret.write_text(f"{s3.SECRET_KEY}\n")
    secret.chmod(0o640)
    os.chown(secret, -1, 2000)
    shell.walk("An S3 server in place of the folder")
    here, there, _ = commands("TLS, and other hosts")
    assert len(results(shell.run(here))) == 3
    # Frames are removed after their use, results stay.
    assert [path for path in (storage.folder / "data").rglob("*") if path.is_file() and "results" in path.parts]
    other = shells()
    other.walk("An S3 server in place of the folder")
    other.run(there)
    assert states(other) == {"detector": ["healthy"] * 2}
    names = {one["Name"] for one in map(json.loads, other.run("docker compose ps --format json").splitlines())}
    hosts = {json.loads(docker("inspect", name))[0]["Config"]["Hostname"] for name in names}
    found = results(shell.run("docker compose exec -T relay framebus-relay results --count 9"))
    assert hosts & {str(one["instance"]) for one in found}


@needs_browser
def test_the_page_shows_the_queues_boxes(shell: Shell) -> None:
    with open_page(f"http://127.0.0.1:{shell.run('echo $FRAMEBUS_PORT').strip()}") as page:
        at_page = collect_detections(page)
        expect(page.locator("#objects")).to_have_text(re.compile("[1-9]"), timeout=60_000)
        assert any(one["label"] == "person" for objects in at_page.values() for one in objects)


def test_it_stops(shell: Shell) -> None:
    shell.run(commands("TLS, and other hosts")[-1])
    assert states(shell) == {}
