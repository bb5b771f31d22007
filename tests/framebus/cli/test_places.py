"""The command where it does not own everything: other users, odd file systems on /dev/shm, other clocks."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2 as cv2  # noqa: PLC0414  imported once, before the children are forked
import pytest

from framebus import FrameFormat, PermissionDenied, Publisher, Subscriber, companion_path
from framebus.cli import room, show, upkeep
from framebus.inspect.streams import inspect
from framebus.shm.locks import PublisherLock
from tests.framebus.mounts import MS_RDONLY, MS_REMOUNT, alone, answer, checked, command, in_other_time, libc, mount
from tests.people import GROUP, Person
from tests.support import lacks, publish, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.root]

SMALL = FrameFormat(4, 6)
CLONE_NEWUSER = 0x10000000
OWNER, MEMBER, STRANGER = 12001, 12002, 12003
COMMANDS = (["list"], ["inspect", "panorama"], ["top", "--once", "--interval", "0.01"], ["doctor"], ["gc"])


@pytest.fixture(autouse=True, scope="module")
def _own_mounts() -> None:
    try:
        alone(os.getpid)
    except OSError as error:
        lacks(f"root cannot mount a tmpfs in a namespace here ({error}): run the tests with CAP_SYS_ADMIN")


@pytest.fixture(autouse=True)
def _no_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)  # a worker of pytest-xdist has it


def levels(findings: list[dict[str, Any]], part: str) -> list[str]:
    return [finding["level"] for finding in findings if part in finding["what"]]


@contextlib.contextmanager
def served(end: Callable[[Publisher], None], user: int = OWNER, group: int = GROUP) -> Iterator[None]:
    """A publisher of another user that has published a frame, and then came to its end."""
    reader, writer = os.pipe()

    def serve() -> None:
        publisher = Publisher("panorama", SMALL, keep_ring=True)
        publish(publisher)
        os.write(writer, b"\n")
        end(publisher)

    person = Person(user, serve, group=group)
    os.close(writer)
    os.read(reader, 1)
    os.close(reader)
    if end is not live:
        os.waitid(os.P_PID, person.pid, os.WEXITED | os.WNOWAIT)
    try:
        yield
    finally:
        person.end()


def live(publisher: Publisher) -> None:
    time.sleep(30)
    publisher.close()


def crash(_publisher: Publisher) -> None:
    os._exit(1)


def close(publisher: Publisher) -> None:
    publisher.close()


def ask(*arguments: str, user: int, group: int = GROUP) -> Any:
    return Person(user, answer, *arguments, group=group).result()


# Other users


def look_as_stranger() -> None:
    with served(live):
        status, (row,) = ask("list", user=STRANGER, group=STRANGER)
        assert status == 0
        assert (row["name"], row["readable"], row["group"], row["owner"]) == ("panorama", False, GROUP, OWNER)
        _, text, _ = Person(STRANGER, command, "list", group=STRANGER).result()
        assert "panorama: not readable by this user" in text
        assert f"group {GROUP}" in text
        assert "no streams" not in text
        status, findings = ask("doctor", user=STRANGER, group=STRANGER)
        assert status == 0
        assert levels(findings, "panorama") == ["unknown"]
        assert not any("restart" in finding["remedy"] or "start its" in finding["remedy"] for finding in findings)
        status, (left,) = ask("gc", user=STRANGER, group=STRANGER)
        assert (status, left["judgement"], left["removed"], left["owner"]) == (0, "unknown", False, OWNER)
        status, (row,) = ask("top", "--once", "--interval", "0.01", user=STRANGER, group=STRANGER)
        assert (status, row["stream"], row["readable"]) == (0, "panorama", False)
        status, _, complaint = Person(STRANGER, command, "inspect", "panorama", group=STRANGER).result()
        assert status == 1
        assert f"run this process with group {GROUP}" in complaint
        assert inspect("panorama").live, "no file was removed"


def test_another_user_is_told_which_users_may_read() -> None:
    alone(look_as_stranger)


def look_as_member() -> None:
    with served(live):
        status, (row,) = ask("list", user=MEMBER)
        assert (status, row["readable"], row["live"]) == (0, True, True)
        status, findings = ask("doctor", user=MEMBER)
        assert (status, levels(findings, "panorama")) == (0, ["ok"])
        assert ask("gc", user=MEMBER) == (0, [])
        with pytest.raises(PermissionDenied) as caught:
            Person(MEMBER, Publisher, "panorama", SMALL).result()
        sentence = str(caught.value)
        assert f"user {OWNER}" in sentence
        assert "serves this stream" in sentence
        assert "with group" not in sentence.partition(f"with group {GROUP}:")[2], sentence


def test_a_member_of_the_group_is_not_told_to_change_it() -> None:
    alone(look_as_member)


def look_at_lock(user: int, group: int) -> None:
    companion_path("panorama", "lock").touch(0o600)
    os.chown(companion_path("panorama", "lock"), OWNER, GROUP)
    with pytest.raises(PermissionDenied) as caught:
        Person(user, PublisherLock.acquire, "framebus.panorama.lock", group=group).result()
    assert "run this process with group" not in str(caught.value)
    assert f"as user {OWNER}" in str(caught.value)
    status, findings = ask("doctor", user=user, group=group)
    assert (status, levels(findings, "panorama.lock")) == (0, ["unknown"])
    status, (left,) = ask("gc", user=user, group=group)
    assert (status, left["judgement"]) == (0, "unknown")
    assert f"user {OWNER}" in left["obstacle"]


@pytest.mark.parametrize(("user", "group"), [(MEMBER, GROUP), (STRANGER, STRANGER)])
def test_a_lock_of_another_user_is_closed_to_every_group(user: int, group: int) -> None:
    alone(look_at_lock, user, group)


def look_at_leftovers(end: Callable[[Publisher], None], level: str, others: str) -> None:
    with served(end):
        names = {"ring", "lock"} | ({"sock"} if end is crash else set())
        status, findings = ask("doctor", user=OWNER)
        assert status == (1 if level == "problem" else 0), findings
        assert levels(findings, "panorama.") == [level] * len(names)
        status, findings = ask("doctor", user=MEMBER)
        assert status == 0, findings
        assert levels(findings, "panorama.") == [others] * len(names)
        status, left = ask("gc", user=MEMBER)
        assert status == 0, "what belongs to another user is not this user's failure"
        assert all(f"run 'framebus gc' as user {OWNER}" in row["obstacle"] for row in left)
        assert {row["path"].rpartition(".")[2] for row in left} == names
        assert not any(row["removed"] for row in left)
        status, left = ask("gc", "--dry-run", user=0, group=0)
        assert status == 0
        assert len(left) == len(names)
        assert companion_path("panorama", "ring").exists()
        status, left = ask("gc", user=OWNER)
        assert status == 0
        assert all(row["removed"] and not row["obstacle"] for row in left)
    assert os.listdir("/dev/shm") == []


@pytest.mark.parametrize(("end", "level", "others"), [(crash, "problem", "warning"), (close, "note", "note")])
def test_only_the_owner_is_told_to_remove_a_leftover(end: Callable[[Publisher], None], level: str, others: str) -> None:
    alone(look_at_leftovers, end, level, others)


def look_at_damaged_ring() -> None:
    path = companion_path("panorama", "ring")
    path.write_bytes(b"garbage" * 1000)
    path.chmod(0o644)
    os.chown(path, OWNER, GROUP)
    (status, findings), (of_others, found_by_others) = ask("doctor", user=OWNER), ask("doctor", user=MEMBER)
    assert (status, levels(findings, "stream panorama")) == (1, ["problem"])
    assert (of_others, levels(found_by_others, "stream panorama")) == (0, ["warning"])
    _, (row,) = ask("list", user=MEMBER)
    assert (row["readable"], row["denied"]) == (False, False)


def test_a_damaged_ring_is_a_problem_only_for_its_owner() -> None:
    alone(look_at_damaged_ring)


def leave_user_namespace() -> None:
    checked(libc.unshare(CLONE_NEWUSER))


def look_at_other_version() -> None:
    with Publisher("panorama", SMALL), open(companion_path("panorama", "ring"), "r+b") as ring:
        ring.seek(8)
        ring.write((99).to_bytes(4, "little"))
        ring.flush()
        status, findings = answer("doctor")
        assert status == 1
        (finding,) = (finding for finding in findings if "stream panorama" in finding["what"])
        assert finding["remedy"] == "run the same version of framebus in all containers"
        assert "layout version 99" in finding["what"]
        assert "gc" not in finding["remedy"]
        assert answer("gc") == (0, [])


def test_a_ring_of_another_version_in_use_is_left_alone() -> None:
    alone(look_at_other_version)


def look_in_user_namespace() -> None:
    leave_user_namespace()
    _, (row,) = answer("list")
    assert "not mapped in this user namespace" in row["reason"]
    assert "nobody" not in row["reason"]
    status, findings = answer("doctor")
    assert (status, levels(findings, "panorama")) == (0, ["unknown"])
    (remedy,) = (finding["remedy"] for finding in findings if "panorama" in finding["what"])
    assert "as user 65534" not in remedy
    assert "outside this user namespace" in remedy
    _, _, complaint = command("inspect", "panorama")
    assert "not mapped in this user namespace" in complaint


def serve_in_another() -> None:
    with served(live):
        Person(0, look_in_user_namespace, group=0).result()


def test_an_unmapped_number_is_not_the_user_nobody() -> None:
    try:
        Person(0, leave_user_namespace, group=0).result()
    except OSError as error:
        lacks(f"no user namespace can be made here ({error}): set kernel.unprivileged_userns_clone=1")
    alone(serve_in_another)


# Odd file systems


def remove_shm() -> None:
    checked(libc.umount2(b"/dev/shm", 2))
    mount("tmpfs", "/dev")


def make_file() -> None:
    remove_shm()
    Path("/dev/shm").touch()


def close_it() -> None:
    os.chmod("/dev/shm", 0o700)


def make_read_only() -> None:
    Publisher("panorama", SMALL, keep_ring=True).close()
    checked(libc.mount(None, b"/dev/shm", None, MS_REMOUNT | MS_RDONLY, None))


def run_everything(prepare: Callable[[], None], user: int) -> dict[str, tuple[int, str, str]]:
    prepare()
    runs = [*COMMANDS, ["snapshot", "panorama", "/nonexistent/x.png"]]
    said: dict[str, tuple[int, str, str]] = Person(user, lambda: {run[0]: command(*run) for run in runs}).result()
    return said


@pytest.mark.parametrize(
    ("prepare", "user", "sentence", "remedy"),
    [
        (remove_shm, 0, "/dev/shm does not exist", "mount a tmpfs on /dev/shm"),
        (make_file, 0, "/dev/shm is not a directory", "mount a tmpfs on /dev/shm"),
        (close_it, STRANGER, f"/dev/shm cannot be read by user {STRANGER}", "chmod 1777 /dev/shm"),
    ],
)
def test_a_dev_shm_that_cannot_be_read_is_one_sentence(
    prepare: Callable[[], None], user: int, sentence: str, remedy: str
) -> None:
    for name, (status, output, complaint) in alone(run_everything, prepare, user).items():
        said = output if name == "doctor" else complaint
        assert status == 1, name
        assert sentence in said, name
        assert remedy in said, name
        assert "no streams" not in output


def test_a_read_only_dev_shm_can_be_looked_at() -> None:
    said = alone(run_everything, make_read_only, 0)
    assert {name: status for name, (status, _, _) in said.items()} == {
        "list": 0,
        "inspect": 0,
        "top": 0,
        "doctor": 1,
        "gc": 1,
        "snapshot": 1,
    }
    assert "/dev/shm is mounted read-only" in said["doctor"][1]
    assert "mount it writable" in said["doctor"][1]
    assert "/dev/shm is mounted read-only" in said["gc"][1]
    assert said["snapshot"][2] == "framebus: /dev/shm is mounted read-only: mount it writable\n"


def fill_bytes() -> None:
    space = os.statvfs("/dev/shm")
    with open("/dev/shm/filler", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, space.f_bavail * space.f_frsize)


def fill_files() -> None:
    for index in range(os.statvfs("/dev/shm").f_ffree):
        Path(f"/dev/shm/filler-{index}").touch()


def look_at_room(prepare: Callable[[], None]) -> tuple[int, list[dict[str, Any]]]:
    prepare()
    for run in COMMANDS:
        if run[0] not in ("inspect", "doctor"):
            assert command(*run)[0] == 0
    return answer("doctor")


@pytest.mark.parametrize(
    ("options", "prepare", "status", "level", "what", "remedy"),
    [
        ("size=100m,mode=1777", lambda: None, 0, "ok", "100 MiB free of 100 MiB", ""),
        ("size=64m,mode=1777", lambda: None, 0, "warning", "64 MiB free of 64 MiB", "set shm_size"),
        ("size=64m,mode=1777", lambda: None, 0, "note", "no streams", "ipc: service:holder"),
        ("size=64m,mode=1777", lambda: None, 0, "note", "docker's default size", "medium: Memory"),
        ("size=2m,mode=1777", fill_bytes, 1, "problem", "0 MiB free of 2 MiB", "larger shm_size"),
        ("size=2m,nr_inodes=20,mode=1777", fill_files, 1, "problem", "no room for one more file", "larger nr_inodes"),
        ("size=100m,mode=0777", lambda: None, 0, "warning", "mode 0777", "chmod 1777 /dev/shm"),
    ],
)
def test_the_doctor_checks_the_room_in_dev_shm(
    options: str, prepare: Callable[[], None], status: int, level: str, what: str, remedy: str
) -> None:
    found_status, findings = alone(look_at_room, prepare, options=options)
    assert found_status == status, findings
    assert any(
        finding["level"] == level and what in finding["what"] and remedy in finding["remedy"] for finding in findings
    ), findings


def enter_pod(limit_mib: int | None = None) -> None:
    os.environ["KUBERNETES_SERVICE_HOST"] = "10.0.0.1"
    setattr(room, "memory_limit_bytes", lambda: None if limit_mib is None else limit_mib << 20)  # noqa: B010


def enter_small_pod() -> None:
    enter_pod(limit_mib=64)


def fill_pod() -> None:
    enter_pod()
    fill_bytes()


@pytest.mark.parametrize(
    ("options", "prepare", "status", "level", "what", "remedy"),
    [
        ("size=100m,mode=1777", enter_pod, 0, "ok", "100 MiB free of 100 MiB", ""),
        ("size=64m,mode=1777", enter_pod, 0, "warning", "64 MiB free of 64 MiB", "'medium: Memory' and a 'sizeLimit'"),
        ("size=2m,mode=1777", fill_pod, 1, "problem", "0 MiB free of 2 MiB", "set a larger sizeLimit"),
        (
            "mode=1777",
            enter_pod,
            0,
            "warning",
            "Kubernetes evicts a pod that fills it too far",
            "'sizeLimit'",
        ),
        ("size=100m,mode=1777", enter_small_pod, 0, "warning", "may use 64 MiB of memory", "above the sizeLimit"),
        ("size=100m,mode=2777", enter_pod, 0, "warning", "mode 2777", "by 'subPath'"),
    ],
)
def test_the_doctor_checks_the_room_of_a_pod(
    options: str, prepare: Callable[[], None], status: int, level: str, what: str, remedy: str
) -> None:
    found_status, findings = alone(look_at_room, prepare, options=options)
    assert found_status == status, findings
    assert any(
        finding["level"] == level and what in finding["what"] and remedy in finding["remedy"] for finding in findings
    ), findings
    assert not any("shm_size" in finding["remedy"] for finding in findings), findings


def test_a_pod_with_a_sized_volume_and_memory_for_it_is_well() -> None:
    _, findings = alone(look_at_room, enter_pod)
    assert {finding["level"] for finding in findings} <= {"ok", "note"}, findings


def look_at_disk() -> None:
    checked(libc.umount2(b"/dev/shm", 2))
    mount("tmpfs", "/mnt")
    for place in ("upper", "work"):
        Path("/mnt", place).mkdir()
    mount("overlay", "/dev/shm", options="lowerdir=/usr/share/zoneinfo,upperdir=/mnt/upper,workdir=/mnt/work")
    os.chmod("/dev/shm", 0o1777)


def test_a_dev_shm_on_a_disk_is_named() -> None:
    try:
        _, findings = alone(look_at_room, look_at_disk)
    except OSError as error:
        lacks(f"an overlay cannot be mounted here ({error}): run the tests where it can")
    assert levels(findings, "on overlay, not on a tmpfs") == ["warning"]


# Other clocks


def look_from_other_time(offset_s: int) -> None:
    with Publisher("panorama", SMALL) as publisher, Subscriber("panorama", name="watcher") as subscriber:
        publish(publisher)
        subscriber.receive(5).release()
        found = in_other_time(offset_s, look_everywhere)
        for status, text in found.values():
            assert status == 0, text
            assert "unknown" in text
            assert "is 0." not in text
            assert " s old" not in text
        assert "runs in another time namespace" in found["inspect"][1]
        assert "runs in another time namespace" in found["doctor"][1]
        _, text, _ = command("inspect", "panorama")
        assert " s old" in text


def look_everywhere() -> dict[str, tuple[int, str]]:
    for module in (show, upkeep):
        setattr(module, "CLOCK_TIMEOUT_S", 0.05)  # noqa: B010  in this child process only
    found = {}
    for run in COMMANDS[:4]:
        status, output, complaint = command(*run)
        found[run[0]] = status, output + complaint
    _, (row,) = answer("list")
    assert row["age_s"] is None
    assert row["age_unknown"]
    return found


@pytest.fixture
def other_time() -> None:
    try:
        in_other_time(100, os.getpid)
    except OSError as error:
        lacks(f"root cannot make a time namespace here ({error}): run the tests with CAP_SYS_ADMIN on Linux 5.6")


@pytest.mark.usefixtures("other_time")
@pytest.mark.parametrize("offset_s", [100_000, -500])
def test_an_age_by_another_clock_is_unknown(offset_s: int) -> None:
    alone(look_from_other_time, offset_s)


def look_at_recording() -> None:
    """The pictures are of another day, and the clock is the same: a further frame shows that."""

    def record() -> None:
        with Publisher("panorama", SMALL) as publisher:
            while True:
                with publisher.loan() as loan:
                    loan.captured_wall_ns = 1_000_000_000_000_000_000
                time.sleep(0.01)

    person = Person(0, record, group=0)
    try:
        ring = companion_path("panorama", "ring")
        wait_until(lambda: ring.exists() and inspect("panorama").frame is not None, "a frame is published")
        _, (row,) = answer("list")
        assert (row["age_unknown"], row["age_s"] < 5) == ("", True)
        status, findings = answer("doctor")
        assert (status, levels(findings, "panorama")) == (0, ["ok"])
    finally:
        person.end()


def test_a_recording_is_of_the_same_clock() -> None:
    alone(look_at_recording)
