"""Mounts and processes are removed, also after an interrupt or the kill of an engine. These tests need root."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from bench.storage import backup, bundles, disks, drivers, ring, union
from bench.storage.engine import Engine, client_missing, engine, saved
from bench.storage.figures import FigureTable, NotHere
from bench.storage.form import BASE, Form
from bench.storage.memory import group
from bench.storage.mounts import MIB, command, loop_disk, mounted_below, overlay, work_folder
from tests.e2e.engine import need_engine
from tests.support import ROOT, lacks, wait_until

pytestmark = [pytest.mark.long, pytest.mark.root, pytest.mark.timeout(600)]
SHORT = Form(rounds=1, files=5, copy_up_bytes=(4096,), bundle_bytes=MIB, may_drop_caches=False)


@pytest.fixture
def place() -> Iterator[Path]:
    """Return a folder on the checkout's disk, because a temporary folder may be on an overlay or a tmpfs."""
    if os.geteuid() != 0:
        lacks("mounting needs root")
    with work_folder(ROOT / ".bench" / "tests") as folder:
        yield folder
    assert mounted_below(folder) == []
    assert str(folder) not in command("losetup", "--all")
    assert not folder.exists()


@pytest.fixture
def ours(place: Path) -> Iterator[Engine]:
    if reason := client_missing():
        lacks(reason)
    with engine(place / "engine", "overlay2") as started:
        yield started
    assert processes_of(started) == []
    assert not started.sockets.exists()


def processes_of(one: Engine) -> list[list[str]]:
    found = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    return [words for words in found if any(str(one.sockets) in word for word in words)]


def notes(table: FigureTable) -> dict[str, str]:
    return {row.name: row.note for row in table.rows}


def test_an_overlay_shows_its_layers_and_keeps_writes_in_the_upper_one(place: Path) -> None:
    lower = union.layers(place / "l", 3, 1)
    with overlay(place / "m", lower, place / "u", place / "w") as merged:
        assert {"own0", "own1", "own2", "small0"} <= {path.name for path in (merged / union.FOLDER).iterdir()}
        (merged / union.FOLDER / "small0").write_bytes(b"new")
    assert (place / "u" / union.FOLDER / "small0").read_bytes() == b"new"
    assert (lower[-1] / union.FOLDER / "small0").stat().st_size == 4096
    assert mounted_below(place) == []


def test_the_kernel_rejects_one_layer_more_than_its_limit(place: Path) -> None:
    said = union.deepest(place)
    assert f"{union.KERNEL_LIMIT} layers were mounted" in said
    assert f"{union.KERNEL_LIMIT + 1} layers were refused" in said


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_a_loop_disk_has_its_file_system_and_is_removed(place: Path, kind: str) -> None:
    try:
        with loop_disk(place / kind, kind, 512) as disk:
            assert command("stat", "-f", "-c", "%T", str(disk)).strip() in {kind, "ext2/ext3"}
            (disk / "file").write_bytes(b"x")
    except NotHere as error:
        lacks(str(error))
    assert list((place / kind).rglob("*.img")) == []


def test_an_interrupt_unmounts_all(place: Path) -> None:
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom bench.storage.mounts import *\n"
        "with work_folder(Path(sys.argv[1])) as folder, loop_disk(folder / 'd', 'ext4', 64) as disk,"
        " mounted(disk / 'inner', '-t', 'tmpfs', 'tmpfs'):\n"
        "    print('mounted', flush=True)\n    time.sleep(60)\n"
    )
    command_line = [sys.executable, "-c", program, str(place)]
    with subprocess.Popen(command_line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"mounted\n"
        assert len(mounted_below(place)) == 2
        process.send_signal(signal.SIGINT)
        process.wait(30)
    assert mounted_below(place) == []
    assert list(place.iterdir()) == []


def test_upper_and_work_on_two_disks_are_rejected(place: Path) -> None:
    found = notes(disks._rule(place))
    assert found["all on one disk"] == "mounted; a write was copied up"
    assert found["lower on another disk"] == "mounted; a write was copied up"
    assert found["upper and work on two disks"].startswith("refused: ")


def test_the_group_that_touches_the_ring_first_is_charged(place: Path) -> None:
    (_, charges, room) = ring.measure(SHORT, place)
    for row in charges.rows:
        assert row.cells["first group, MiB"][0] > 150
        assert row.cells["second group, MiB"][0] < 5
        assert row.note.startswith("ended well")
    found = notes(room)
    assert "ended well: published" in found["framebus, shm_size 256m"]
    assert "this ring needs 155 MiB: set shm_size: 160m" in found["framebus, shm_size 64m"]
    assert "killed by SIGBUS" in found["a program that only calls ftruncate(2), 64m"]
    assert "the kernel killed 1 for memory" in found["framebus, 256m, memory limit 128 MiB"]


def test_a_group_is_removed_with_its_processes(place: Path) -> None:
    with group() as one:
        process = one.start("-c", "import time; print('on', flush=True); time.sleep(60)")
        assert process.stdout is not None
        assert process.stdout.readline() == "on\n"
    process.communicate(timeout=10)
    assert process.returncode != 0
    assert not one.path.exists()


@pytest.mark.docker
def test_a_killed_engine_leaves_no_mount_and_no_process(place: Path) -> None:
    if reason := client_missing():
        lacks(reason)
    need_engine()
    with saved(BASE, place) as archive, engine(place / "engine", "overlay2") as ours:
        ours.load(archive)
        ours.docker("run", "--detach", "--network", "none", BASE, "sleep", "60")
        (mark,) = [one for one in psutil.process_iter(["cmdline"]) if one.info["cmdline"] == ["sleep", "60"]]
        os.kill(int((ours.sockets / "pid").read_text()), signal.SIGKILL)
    wait_until(lambda: not mark.is_running() or mark.status() == psutil.STATUS_ZOMBIE, "the container to end")
    assert processes_of(ours) == []


@pytest.mark.docker
def test_drivers_that_the_kernel_does_not_support_are_reported(place: Path) -> None:
    if reason := client_missing():
        lacks(reason)
    for number, (driver, module) in enumerate(drivers.OTHERS.items()):
        said = drivers.other(place / str(number), driver, module)
        assert said.startswith(("not in this kernel; the engine said: ", "starts here"))


@pytest.mark.docker
def test_a_single_volume_can_be_on_another_disk(ours: Engine, place: Path) -> None:
    assert disks.container_writes(ours, place / "build").startswith("layers on the first disk, volumes on the first")
    table = FigureTable("", "")
    disks._volume_elsewhere(table, place / "volume")
    assert table.rows[0].note == "layers on the first disk, the volume's files on the other disk"


@pytest.mark.docker
def test_the_calibration_is_restored_with_its_owner(place: Path) -> None:
    need_engine()
    (table,) = backup.measure(SHORT, place)
    found = notes(table)
    assert found["back up"].startswith(f"the volume holds {backup.OWNER} {backup.CONTENT}")
    assert found["restore into a new volume"] == "the same"
    assert found["prune while a container has it"] == "it stays"
    assert found["prune of what has no label `keep`"] == "it stays"


@pytest.mark.docker
def test_bundles_are_stored_and_built_as_often_as_the_page_says(place: Path) -> None:
    need_engine()
    (table,) = bundles.measure(SHORT, place)
    size_mb = MIB / 1e6
    images = SHORT.services * SHORT.models
    registry = {row.name: row.cells["in a registry, MB"][0] for row in table.rows if row.cells}
    # Two builds of the same folder make equal layers if its files get the same times, that is, in the same second.
    assert SHORT.models * size_mb <= registry["layers in the image"] + 1e-6
    assert registry["layers in the image"] <= images * size_mb + 1e-6
    assert registry["volumes filled from data-only images"] == pytest.approx(SHORT.models * size_mb)
    stored = {row.name: row.cells["stored by the engine, MB"][0] for row in table.rows if row.cells}
    assert stored["layers in the image"] > 1.5 * stored["bind mounts"]
