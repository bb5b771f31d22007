"""Detectors that share a queue, on a real engine, with the commands of docs/scale-out.md."""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests import s3
from tests.e2e.engine import SERVICES, docker, need_engine
from tests.e2e.page import collect_detections, open_page
from tests.e2e.walk import Shell, commands, copy_checkout, stand_in
from tests.support import free_ports, needs_browser, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.docker, pytest.mark.long, pytest.mark.timeout(600)]

PAGE = "scale-out.md"
FILES = ("compose.yaml", "compose.relay.yaml")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_checkout(tmp_path_factory.mktemp("checkout"))


@pytest.fixture(scope="module")
def gateway() -> str:
    """Return the address at which containers reach this machine."""
    need_engine()
    (network,) = json.loads(docker("network", "inspect", "bridge"))
    (described,) = network["IPAM"]["Config"]
    # A restarted engine does not report the address that it has chosen itself.
    return described.get("Gateway") or str(ip_network(described["Subnet"])[1])


@pytest.fixture(scope="module")
def storage(gateway: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3.S3Server]:
    with s3.S3Server(tmp_path_factory.mktemp("s3"), host=gateway) as server:
        yield server


@pytest.fixture(scope="module")
def broker_image() -> Iterator[None]:
    need_engine()
    with stand_in("rabbitmq", "compose.relay.yaml"):
        yield


Opener = Callable[[], Shell]


@pytest.fixture(scope="module")
def shells(checkout: Path, gateway: str, storage: s3.S3Server, broker_image: None) -> Iterator[Opener]:
    """Return a function that opens shells on hosts, of which the second one has only detectors."""
    del broker_image
    port = free_ports(3)
    environment = {
        "FRAMEBUS_PORT": str(port),
        "FRAMEBUS_BROKER_PORT": str(port + 1),
        "FRAMEBUS_HOLDER": f"test-{secrets.token_hex(4)}-holder",
        # The page must get boxes, however late they are on a busy machine.
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
            shell.down(*FILES)


@pytest.fixture(scope="module")
def shell(shells: Opener) -> Shell:
    return shells()


def walk(shell: Shell, section: str) -> list[str]:
    """Run the blocks of a section of the page; return the output of each."""
    return [shell.run(block) for block in commands(PAGE, section)]


def results(printed: str) -> list[dict[str, object]]:
    return [json.loads(line[line.index("{") :]) for line in printed.splitlines() if '"tracker"' in line]


def test_the_overlay_starts_healthy(shell: Shell) -> None:
    walk(shell, "Start")
    expected = {name: ["healthy"] for name in (*SERVICES, "relay", "rabbitmq")}
    assert shell.states() == {**expected, "holder": ["running"]}


def test_the_queue_and_the_results_can_be_listed(shell: Shell) -> None:
    (printed,) = walk(shell, "Look at the queue")
    assert re.search(r"framebus\.panorama\.frames\.detector\s+\d+\s+1\b", printed)
    assert len(results(printed)) == 3
    assert 'detail="unsettled",service="relay"' in printed


def test_the_group_of_the_services_can_write_their_files(shell: Shell) -> None:
    listing = shell.run("docker compose exec -T relay find /var/lib/framebus/objects -printf '%m %g %U %y\\n'")
    found = [line.split() for line in listing.splitlines()]
    assert {(mode, group) for mode, group, _, kind in found if kind == "d"} == {("2775", "2000")}
    assert {(mode, group) for mode, group, _, kind in found if kind == "f"} == {("664", "2000")}
    assert {user for _, _, user, _ in found} == {"1002", "1005"}


def test_three_detectors_share_the_queue(shell: Shell) -> None:
    walk(shell, "Scale to three")
    assert shell.states()["detector"] == ["healthy"] * 3


def test_a_killed_detector_is_restarted_and_results_continue(shell: Shell) -> None:
    (printed,) = walk(shell, "Kill one")
    assert len(results(printed)) == 5
    wait_until(lambda: shell.states()["detector"] == ["healthy"] * 3, "three detectors are healthy", timeout_s=60)


def test_a_dead_letter_can_be_shown_run_and_replayed(shell: Shell) -> None:
    _, told, handled = walk(shell, "A dead letter")
    assert '"reason"' in told
    failure, _, mended = handled.partition("it fails as it did")
    assert "no such object" in failure
    assert len(results(mended)) == 1
    assert "1 replayed" in mended
    assert "there are no dead letters" in mended


def test_a_drain_leaves_nothing_in_the_queue(shell: Shell) -> None:
    (printed,) = walk(shell, "Drain and stop")
    assert re.search(r"framebus\.panorama\.frames\.detector\s+0\b", printed)
    assert shell.states() == {}


def test_other_hosts_share_the_work_by_tls_and_s3(shell: Shell, shells: Opener, storage: s3.S3Server) -> None:
    secret = shell.checkout / "secrets/storage"
    secret.write_text(f"{s3.SECRET_KEY}\n")
    secret.chmod(0o640)
    os.chown(secret, -1, 2000)
    walk(shell, "An S3 server in place of the folder")
    here, there, _ = commands(PAGE, "TLS, and other hosts")
    assert len(results(shell.run(here))) == 3
    # Frames are removed after their use, results stay.
    assert [path for path in (storage.folder / "data").rglob("*") if path.is_file() and "results" in path.parts]
    other = shells()
    walk(other, "An S3 server in place of the folder")
    other.run(there)
    assert other.states() == {"detector": ["healthy"] * 2}
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


def test_the_overlay_stops(shell: Shell) -> None:
    shell.run(commands(PAGE, "TLS, and other hosts")[-1])
    assert shell.states() == {}
