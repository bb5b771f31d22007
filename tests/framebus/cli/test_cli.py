"""The command, as a person and as a program call it."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import socket
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from framebus import FrameFormat, Publisher, Subscriber, __version__
from framebus.bus.options import Wake
from framebus.cli import main
from tests.framebus import mounts
from tests.people import Person
from tests.support import SHM, files_of, publish, wait_until


@pytest.fixture(autouse=True)
def _no_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)  # a worker of pytest-xdist has it


@pytest.fixture
def publisher(stream: str) -> Iterator[Publisher]:
    with Publisher(stream, FrameFormat(40, 60)) as publisher:
        with publisher.loan() as loan:
            loan.pixels[:] = (10, 20, 30)
        yield publisher


def output(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> str:
    assert main(arguments) == status
    captured = capsys.readouterr()
    return captured.out if status == 0 or captured.out else captured.err


@pytest.mark.parametrize("width", ["", "60", "80", "nonsense", "-1"])
def test_list_and_inspect_show_a_live_stream(
    stream: str, width: str, publisher: Publisher, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    with Subscriber(stream, name="watcher") as subscriber:
        subscriber.receive(5).release()
        (line,) = (line for line in output(capsys, "list").splitlines() if line.startswith(stream))
        assert "live" in line
        assert "60x40x3" in line
        (row,) = (row for row in json.loads(output(capsys, "list", "--json")) if row["name"] == stream)
        assert (row["live"], row["sequence"], row["slots"]) == (True, 1, 8)
        assert "watcher: newest, wake zmq, 1 received" in output(capsys, "inspect", stream)
        inspected = json.loads(output(capsys, "inspect", "--json", stream))
        assert inspected["epoch"] == publisher.statistics.epoch
        assert inspected["subscribers"][0]["record"]["name"] == "watcher"
        assert inspected["slots_held"] == 0


@pytest.mark.usefixtures("publisher")
@pytest.mark.parametrize("wake", ["zmq", "futex", "predict", "busy"])
def test_inspect_tells_how_a_subscriber_waits(stream: str, wake: Wake, capsys: pytest.CaptureFixture[str]) -> None:
    with Subscriber(stream, name="watcher", mode="every", wake=wake):
        assert f"watcher: every, wake {wake}, 0 received" in output(capsys, "inspect", stream)
        (seen,) = json.loads(output(capsys, "inspect", "--json", stream))["subscribers"]
        assert seen["record"]["wake"] == wake


def test_top_counts_frames(stream: str, publisher: Publisher, capsys: pytest.CaptureFixture[str]) -> None:
    with Subscriber(stream, name="watcher") as subscriber:
        subscriber.receive(5).release()
        publisher.loan().publish()
        rows = json.loads(output(capsys, "top", "--once", "--interval", "0.05", "--json"))
        (row,) = (row for row in rows if row["stream"] == stream)
        (watcher,) = row["subscribers"]
        assert (row["sequence"], watcher["received"], watcher["lag"], watcher["max_leases"]) == (2, 1, 1, 2)
        table = output(capsys, "top", "--once", "--interval", "0.05")
        assert "watcher" in table
        assert "1 frames" in table


@pytest.mark.usefixtures("publisher")
def test_snapshot_writes_the_pixels(stream: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output(capsys, "snapshot", stream, str(tmp_path / "out.png"))
    picture = cv2.imread(str(tmp_path / "out.png"))
    assert picture is not None
    assert picture.shape == (40, 60, 3)
    assert (picture == np.array((10, 20, 30))).all()
    assert "cannot be written" in output(capsys, "snapshot", stream, str(tmp_path / "no" / "out.png"), status=1)
    assert "not written" in output(capsys, "snapshot", stream, str(tmp_path / "out.nonsense"), status=1)


def test_snapshot_turns_rgb_for_the_file(stream: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Publisher(stream, FrameFormat(4, 4, pixel_format="rgb")) as publisher:
        with publisher.loan() as loan:
            loan.pixels[:] = (1, 2, 3)
        output(capsys, "snapshot", stream, str(tmp_path / "out.png"))
    picture = cv2.imread(str(tmp_path / "out.png"))
    assert picture is not None
    assert (picture == np.array((3, 2, 1))).all()


def test_size_prints_what_the_ring_takes(stream: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("size", "--height", "40", "--width", "60", "--slots", "5")
    answer = json.loads(output(capsys, *arguments, "--json"))
    with Publisher(stream, FrameFormat(40, 60), slots=5):
        assert (SHM / f"framebus.{stream}.ring").stat().st_size == answer["ring_bytes"]
    assert "shm_size: 32m" in output(capsys, *arguments)
    panorama = ("size", "--height", "688", "--width", "4896", "--slots", "16")
    assert "shm_size: 160m" in output(capsys, *panorama)
    assert "height is a whole number" in output(capsys, "size", "--height", "0", "--width", "5", status=1)
    assert "3 to 255 slots" in output(capsys, "size", "--height", "5", "--width", "5", "--slots", "2", status=1)


def crash(stream: str) -> None:
    """Leave what a publisher leaves that is killed."""
    publisher = Publisher(stream, FrameFormat(4, 6))
    publish(publisher)
    os._exit(1)


def test_doctor_reports_and_gc_removes_what_a_crash_leaves(stream: str, capsys: pytest.CaptureFixture[str]) -> None:
    child = Person(0, crash, stream, group=0)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    child.end()
    findings = json.loads(output(capsys, "doctor", "--json", status=1))
    mine = [finding for finding in findings if f"framebus.{stream}." in finding["what"]]
    assert [finding["level"] for finding in mine] == ["problem"] * 3
    assert all(finding["remedy"] == "run 'framebus gc'" for finding in mine)
    assert output(capsys, "gc", "--dry-run", "--stream", stream).count("would remove") == 3
    assert len(files_of(stream)) == 3
    removed = json.loads(output(capsys, "gc", "--json", "--stream", stream))
    assert [(row["removed"], row["judgement"]) for row in removed] == [(True, "left")] * 3
    assert files_of(stream) == []
    assert "nothing is left over" in output(capsys, "gc", "--stream", stream)


def test_a_kept_ring_is_not_a_problem(stream: str, capsys: pytest.CaptureFixture[str]) -> None:
    publisher = Publisher(stream, FrameFormat(4, 6), keep_ring=True)
    service = socket.socket(socket.AF_UNIX)
    service.bind(str(SHM / f"framebus.{stream}.status.detector.sock"))
    publisher.close()
    service.close()
    assert main(["doctor", "--json"]) in (0, 1)  # other tests may leave something at this moment
    findings = json.loads(capsys.readouterr().out)
    mine = [finding for finding in findings if stream in finding["what"]]
    assert sorted(finding["level"] for finding in mine) == ["note", "note", "note", "ok"]
    removed = json.loads(output(capsys, "gc", "--json", "--stream", stream))
    assert [row["judgement"] for row in removed] == ["kept"] * 3
    assert files_of(stream) == []


def test_doctor_names_a_damaged_ring(stream: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = SHM / f"framebus.{stream}.ring"
    path.write_bytes(b"garbage" * 1000)
    findings = json.loads(output(capsys, "doctor", "--json", status=1))
    assert any("FRAMEBUS" in finding["what"] and stream in finding["what"] for finding in findings)
    path.unlink()


def run(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "framebus", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        env={**os.environ, **(environment or {})},
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("inspect", "no-such-stream"), "no publisher serves the stream 'no-such-stream' here"),
        (("inspect", "../x"), "is not a valid name of a stream"),
        (("inspect", "a\nb"), "is not a valid name of a stream"),
        (("inspect", "\u00fc"), "is not a valid name of a stream"),
        (("inspect", "\udcff"), "is not a valid name of a stream"),
        (("snapshot", "a/b", "out.png"), "is not a valid name of a stream"),
        (("gc", "--stream", "a b"), "is not a valid name of a stream"),
        (("size", "--height", "-1", "--width", "4"), "height is a whole number"),
        (("size", "--height", "9" * 30, "--width", "4"), "height is a whole number"),
        (("size", "--height", "4", "--width", "4", "--channels", "0"), "channels is a whole number"),
        (("size", "--height", "4294967295", "--width", "4294967295"), "do not fit in a ring"),
        (("size", "--height", "4", "--width", "4", "--slots", "9" * 30), "slots"),
        (("size", "--height", "4", "--width", "4", "--dtype", "float65"), "the values of a frame are"),
        (("size", "--height", "4", "--width", "4", "--dtype", "i4,("), "the values of a frame are"),
        (("size", "--height", "4", "--width", "4", "--dtype", "object"), "the values of a frame are"),
    ],
)
def test_a_fault_gets_one_sentence(
    arguments: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert sentence in captured.err
    assert len(captured.err.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("inspect",),
        ("list", "--nonsense"),
        ("size", "--height", "4"),
        ("size", "--height", "4.5", "--width", "4"),
        ("size", "--height", "9" * 5000, "--width", "4"),
        ("top", "--interval", "nan"),
        ("top", "--interval", "inf"),
        ("top", "--interval", "0"),
        ("top", "--interval", "-1"),
        ("top", "--interval", "1e300"),
        ("top", "--interval", "soon"),
        ("snapshot", "a", "b.png", "--timeout", "nan"),
    ],
)
def test_a_wrong_argument_ends_with_two(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("usage: framebus")
    assert "_seconds" not in captured.err


@pytest.mark.parametrize("arguments", [(), ("--help",), ("size", "--help")])
def test_help_goes_to_standard_output(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    text = output(capsys, *arguments)
    assert text.startswith("usage: framebus")
    assert "show this help" in text


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert output(capsys, "--version") == f"framebus {__version__}\n"


@pytest.mark.usefixtures("publisher")
@pytest.mark.parametrize(
    ("name", "sentence"),
    [("", "Is a directory"), ("no/out.png", "No such file or directory"), ("out", "not written as a picture")],
)
def test_a_snapshot_that_cannot_be_written_says_why(
    stream: str, name: str, sentence: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "directory.png").mkdir()
    file = tmp_path / (name or "directory.png")
    assert main(["snapshot", stream, str(file)]) == 1
    captured = capfd.readouterr()  # OpenCV's messages too
    assert sentence in captured.err
    assert len(captured.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("channels", "dtype", "suffix"),
    [
        (2, "uint8", ".png"),
        (5, "uint16", ".tiff"),
        (3, "uint32", ".png"),
        (1, "float32", ".png"),
        (3, "uint16", ".jpg"),
    ],
)
def test_a_frame_that_no_picture_format_supports_is_one_sentence(
    stream: str, channels: int, dtype: str, suffix: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with Publisher(stream, FrameFormat(4, 6, channels, dtype)) as publisher:
        publish(publisher)
        assert main(["snapshot", stream, str(tmp_path / f"out{suffix}")]) == 1
    captured = capfd.readouterr()
    assert captured.err.startswith(f"framebus: a frame of {channels} channels of {dtype} is not written as {suffix}: ")
    assert len(captured.err.splitlines()) == 1


@pytest.mark.usefixtures("publisher")
def test_a_snapshot_on_a_full_disk_is_one_sentence(
    stream: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out.png").symlink_to("/dev/full")
    assert "No space left on device" in output(capsys, "snapshot", stream, str(tmp_path / "out.png"), status=1)


CLOSED = "framebus: standard output cannot be written: it is closed\n"
FULL = "framebus: standard output cannot be written: No space left on device\n"
PRINTING = ["list", "top --once --interval 0.01", "doctor", "gc --dry-run", "size --height 4 --width 4"]


@pytest.mark.parametrize("arguments", [*PRINTING, *(f"{line} --json" for line in PRINTING), "--help", "--version", ""])
def test_no_command_minds_an_output_that_fails(
    arguments: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert main(arguments.split()) == 1
    assert capsys.readouterr().err == CLOSED
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(arguments.split()) == 1
    assert capsys.readouterr().err == FULL


@pytest.mark.parametrize(
    ("arguments", "redirection", "complaint"),
    [
        ("list", ">&-", CLOSED),
        ("--help", ">/dev/full", FULL),
        ("--version", ">/dev/full 2>/dev/full", ""),
        ("doctor", ">&- 2>&- <&-", ""),
    ],
)
def test_an_output_that_fails_is_one_sentence(arguments: str, redirection: str, complaint: str) -> None:
    answer = subprocess.run(
        ["sh", "-c", f'"{sys.executable}" -m framebus {arguments} {redirection}'],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (answer.returncode, answer.stderr) == (1, complaint)


@pytest.mark.parametrize(
    ("arguments", "status", "redirection"), [("nonsense", 2, "2>&-"), ("inspect no-such-stream", 1, "2>/dev/full")]
)
def test_a_complaint_that_cannot_be_written_changes_no_status(arguments: str, status: int, redirection: str) -> None:
    line = f'"{sys.executable}" -m framebus {arguments} {redirection}'
    answer = subprocess.run(["sh", "-c", line], capture_output=True, timeout=30, check=False)
    assert (answer.returncode, answer.stdout) == (status, b"")


def test_a_closed_pipe_is_not_an_error() -> None:
    command = f"{sys.executable} -m framebus top --interval 0.01 | head -n 1"
    answer = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=30)  # noqa: PLW1510
    assert (answer.returncode, answer.stderr) == (0, "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_top_without_a_word(number: signal.Signals) -> None:
    arguments = [sys.executable, "-m", "framebus", "top", "--interval", "0.02", "--json"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(number)
        _, complaint = process.communicate(timeout=20)
    assert (process.returncode, complaint) == (128 + number, b"")


def test_a_snapshot_that_is_ended_leaves_no_record(stream: str, tmp_path: Path) -> None:
    with Publisher(stream, FrameFormat(4, 6)):
        arguments = [sys.executable, "-m", "framebus", "snapshot", stream, str(tmp_path / "out.png")]
        with subprocess.Popen(arguments, stderr=subprocess.PIPE) as process:
            wait_until(lambda: any(".sub." in name for name in files_of(stream)), "the snapshot subscribes")
            process.send_signal(signal.SIGTERM)
            _, complaint = process.communicate(timeout=20)
        assert (process.returncode, complaint) == (143, b"")
        assert not any(".sub." in name for name in files_of(stream))


def test_every_encoding_will_do() -> None:
    answer = run("inspect", "\u00fc", environment={"LANG": "C", "PYTHONIOENCODING": "ascii"})
    assert answer.returncode == 1
    assert "'\\xfc' is not a valid name of a stream" in answer.stderr


def test_a_file_name_cannot_speak_to_the_terminal(stream: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = SHM / f"framebus.{stream}.\x1b[31m\udcffsock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.fsencode(path))
    text = output(capsys, "gc", "--stream", stream)
    assert "\x1b" not in text
    assert "\\x1b[31m\\udcffsock" in text


COMMANDS = (
    ("list",), ("top", "--once", "--interval", "0.01"), ("doctor",), ("gc", "--dry-run"),
    ("gc", "--stream", "none"), (), ("size", "--help"),
    ("list", "--help"), ("inspect", "--help"), ("top", "--help"), ("snapshot", "--help"), ("doctor", "--help"),
    ("gc", "--help"), ("size", "--height", "40", "--width", "60"), ("--version",),
)  # fmt: skip


def read_everything(width: int) -> dict[str, str]:
    os.environ["COLUMNS"] = str(width)
    long, kept = "panorama-of-the-north-side-and-of-the-south-side", "kept"
    with Publisher(long, FrameFormat(40, 60)) as publisher, Subscriber(long, name="w" * 48) as subscriber:
        publish(publisher)
        subscriber.receive(5).release()
        Publisher(kept, FrameFormat(4, 6), keep_ring=True).close()
        (SHM / "framebus.damaged.ring").write_bytes(b"garbage")
        said = {" ".join(run): mounts.command(*run)[1] for run in (("inspect", long), ("inspect", kept), *COMMANDS)}
        Publisher(kept, FrameFormat(4, 6), keep_ring=True).close()
        for run in COMMANDS[:4]:
            said[f"stranger's {run[0]}"] = Person(12003, mounts.command, *run, group=12003).result()[1]
    return said


@pytest.mark.root
def test_text_fits_60_columns() -> None:
    said = mounts.alone(read_everything, 60)
    for name, text in said.items():
        assert text, name
        assert [line for line in text.splitlines() if len(line) > 60] == [], name
    assert "60x40x3" in said["list"]
    assert "not readable by this user" in " ".join(said["stranger's list"].split())


@pytest.mark.usefixtures("publisher")
def test_text_fits_a_terminal_and_not_a_pipe(stream: str, capsys: pytest.CaptureFixture[str]) -> None:
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    arguments = [sys.executable, "-m", "framebus", "list"]
    assert subprocess.run(arguments, stdout=child, env=environment, timeout=30, check=True).returncode == 0
    os.close(child)
    lines = os.read(parent, 65536).decode().splitlines()
    os.close(parent)
    assert f"{stream}  live  60x40x3 uint8 bgr" in lines
    assert max(map(len, lines)) <= 60
    (line,) = (line for line in output(capsys, "list").splitlines() if line.startswith(stream))
    assert len(line) > 60
