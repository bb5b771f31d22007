"""Files that are used in known ways are classified exactly, in a container and in a folder, and on a real server.

These tests run alone, because they drop files from memory and disable read-ahead meanwhile.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.image_usage.__main__ import main
from tests.e2e.engine import docker, need_engine

pytestmark = [
    pytest.mark.docker,
    pytest.mark.long,
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="listens to the kernel: run this as root"),
    pytest.mark.timeout(600),
]

PLANTED = Path(__file__).parent / "planted"
SERVER = """\
FROM python:3.11-slim-bookworm
RUN apt-get update --quiet=2 && apt-get install --quiet=2 --no-install-recommends nginx-light \\
    && rm -rf /var/lib/apt/lists/*
CMD ["nginx", "-g", "daemon off;"]
"""
FILE_BYTES = 1_000_000
PAGE_BYTES = 4096
SAME = 0.03
Report = dict[str, Any]


def read_ahead() -> dict[str, str]:
    """Return the read-ahead settings by device. Other programs may mount a device or unmount it meanwhile."""
    return {one.parent.name: one.read_text() for one in Path("/sys/class/bdi").glob("*/read_ahead_kb")}


def measure(folder: Path, *arguments: str) -> Report:
    """Run the tool and return its report."""
    path = folder / f"{secrets.token_hex(4)}.json"
    separator = arguments.index("--") if "--" in arguments else len(arguments)
    before = read_ahead()
    assert main([*arguments[:separator], "--json", str(path), *arguments[separator:]]) == 0
    after = read_ahead()
    assert {device: after.get(device, kilobytes) for device, kilobytes in before.items()} == before
    report: Report = json.loads(path.read_text())
    return report


def image(context: list[str], dockerfile: str | None = None) -> Iterator[str]:
    need_engine()
    name = f"test-image-usage-{secrets.token_hex(4)}"
    built = subprocess.run(
        ["docker", "build", "--quiet", "--tag", name, *context],
        input=dockerfile, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    yield name
    docker("rmi", "--force", name)


@pytest.fixture(scope="module")
def planted() -> Iterator[str]:
    yield from image([str(PLANTED)])


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    yield from image(["-"], SERVER)


def by_name(report: Report) -> dict[str, list[dict[str, Any]]]:
    """Return the planted files by name; a superseded file is there twice."""
    found: dict[str, list[dict[str, Any]]] = {}
    for one in report["files"]:
        folder, _, name = one["path"].rpartition("/")
        if folder == "/planted":
            found.setdefault(name.removesuffix(".bin"), []).append(one)
    return found


def seen(one: dict[str, Any]) -> tuple[bool, bool, int]:
    return one["opened"], one["read_or_mapped"], one["touched_bytes"]


NOT_SEEN = (False, False, 0)


def check_planted(files: dict[str, list[dict[str, Any]]]) -> None:
    """Check what is the same in a container and in a folder."""
    (never,), (opened,), (one_page,), (mapped,) = (files[name] for name in ("never", "opened", "one-page", "mapped"))
    assert seen(never) == NOT_SEEN
    assert seen(opened) == (True, False, 0)
    assert seen(one_page) == (True, True, PAGE_BYTES)
    assert seen(mapped) == (True, True, 0)
    (whole,) = files.get("whole") or files["whole-too"]
    assert seen(whole) == (True, True, FILE_BYTES)
    assert {whole["path"], *whole["other_paths"]} == {"/planted/whole.bin", "/planted/whole-too.bin"}
    (script,) = files["server.py"]
    assert script["opened"]
    assert script["order"] < opened["order"] < one_page["order"] < mapped["order"] < whole["order"]
    (start,) = files["only-start"]
    assert (start["opened"], start["apart"], start["order"]) == (False, ["start"], None)


def test_planted_files_of_an_image_are_told_apart(planted: str, tmp_path: Path) -> None:
    base = "python:3.11-slim-bookworm"
    by_command = "docker exec $CONTAINER python -c \"open('/planted/by-command.bin', 'rb', 0).read(1)\"; sleep 3"
    later = "docker exec $CONTAINER python -c \"open('/planted/lazy.bin', 'rb').read()\""
    report = measure(tmp_path, planted, "--during", by_command, "--during", later, "--base", base)
    files = by_name(report)
    check_planted(files)
    (check,), (command,), (lazy,) = files["only-check"], files["by-command"], files["lazy"]
    assert (check["opened"], check["apart"]) == (False, ["check"])
    assert seen(command) == (True, True, PAGE_BYTES)
    assert (seen(lazy)[:2], lazy["only_in"]) == (NOT_SEEN[:2], later)
    assert {(one["state"], one["size_bytes"]) for one in files["superseded"]} == {
        ("superseded", FILE_BYTES),
        ("visible", FILE_BYTES // 2),
    }
    assert [one["state"] for one in files["deleted"]] == ["deleted"]
    assert report["service"] == ["python", "/planted/server.py"]
    assert report["base"] == base
    sentences = [one["text"] for one in report["advice"]]
    assert any(one.startswith("1.0 MB in 1 file deleted by a later layer") for one in sentences), sentences
    assert any(one.startswith("1.0 MB in 1 file written again by a later layer") for one in sentences), sentences
    ours = report["ours"]
    assert ours["size_bytes"] == sum(one["size_bytes"] for same in files.values() for one in same)
    # opened, one page, mapped, whole, and the file of the command, in addition to the script
    (script,) = files["server.py"]
    assert ours["opened_bytes"] == 5 * FILE_BYTES + script["size_bytes"]
    assert ours["touched_bytes"] == FILE_BYTES + 2 * PAGE_BYTES + script["size_bytes"]


def test_what_other_containers_of_the_image_read_is_not_counted_for_a_copy(planted: str, tmp_path: Path) -> None:
    reader = "while true; do cat /planted/*.bin >/dev/null; sleep 0.1; done"
    other = docker("run", "--detach", "--entrypoint", "sh", planted, "-c", reader).strip()
    try:
        by_command = "docker exec $CONTAINER python -c \"open('/planted/by-command.bin', 'rb', 0).read(1)\"; sleep 3"
        report = measure(tmp_path, planted, "--unshared", "--during", by_command, "--base", "python:3.11-slim-bookworm")
    finally:
        docker("rm", "--force", other)
    files = by_name(report)
    check_planted(files)
    assert seen(files["by-command"][0]) == (True, True, PAGE_BYTES)
    assert report["held_bytes"] == 0
    assert report["image"] == planted
    assert "image-usage-" not in {name[:12] for name in docker("images", "--format", "{{.Repository}}").split()}


def test_planted_files_of_a_folder_are_told_apart(planted: str, tmp_path: Path) -> None:
    folder = tmp_path / "rootfs"
    folder.mkdir()
    container = docker("create", planted).strip()
    try:
        with subprocess.Popen(["docker", "export", container], stdout=subprocess.PIPE) as exported:
            subprocess.run(["tar", "-x", "-C", str(folder)], stdin=exported.stdout, check=True)
    finally:
        docker("rm", container)
    report = measure(tmp_path, "--rootfs", str(folder), "--for", "3", "--", "--", "/bin/sh", "/planted/entry.sh")
    files = by_name(report)
    check_planted(files)
    assert seen(files["only-check"][0]) == NOT_SEEN
    assert not [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if "image-usage-" in line]


def test_use_below_the_given_percentage_fails(planted: str) -> None:
    assert main([planted, "--for", "1", "--fail-under", "0"]) == 0
    assert main([planted, "--for", "1", "--fail-under", "99"]) == 1


def test_two_runs_of_a_real_server_give_the_same_figures(server: str, tmp_path: Path) -> None:
    address = "$(docker inspect -f '{{.NetworkSettings.IPAddress}}' $CONTAINER)"
    request = f"curl --silent --fail --retry 40 --retry-connrefused --retry-delay 1 http://{address}/"
    work = f"for turn in 1 2 3; do {request} >/dev/null; done"
    first, second = (measure(tmp_path, server, "--during", work) for _ in range(2))
    for sums in ("ours", "whole"):
        for figure in ("size_bytes", "opened_bytes", "read_bytes", "touched_bytes"):
            assert first[sums][figure] > 0
            if figure == "touched_bytes" and sums == "whole" and (first["held_bytes"] or second["held_bytes"]):
                continue  # other containers of the base start and stop
            assert second[sums][figure] == pytest.approx(first[sums][figure], rel=SAME), (sums, figure)
    (binary,) = (one for one in first["files"] if one["path"] == "/usr/sbin/nginx")
    assert (binary["package"], binary["manager"], binary["kind"]) == ("nginx-light", "deb", "programs") or (
        binary["package"].startswith("nginx")
    )
    assert binary["opened"]
    assert 0 < binary["touched_bytes"] < binary["size_bytes"]
    (page,) = (one for one in first["files"] if one["path"] == "/var/www/html/index.nginx-debian.html")
    assert page["opened"]


def test_a_running_container_is_watched_and_runs_afterwards(server: str, tmp_path: Path) -> None:
    container = docker("run", "--detach", server).strip()
    try:
        report = measure(tmp_path, "--container", container, "--for", "1")
        (binary,) = (one for one in report["files"] if one["path"] == "/usr/sbin/nginx")
        assert binary["opened"]
        assert docker("inspect", "--format", "{{.State.Running}}", container).strip() == "true"
    finally:
        docker("rm", "--force", container)


def test_a_measurement_that_is_not_possible_fails_with_one_sentence(
    planted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["no-such-image"]) == 2
    assert main([planted, "--during", "exit 3"]) == 2
    assert main(["--rootfs", "/no/such/folder", "--", "--", "true"]) == 2
    lines = capsys.readouterr().err.splitlines()
    told = [line for line in lines if line.startswith("image usage: ")]
    assert len(told) == 3
    assert not [line for line in lines if "Traceback" in line]
