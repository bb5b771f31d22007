"""The command, as a person and as a program call it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from framebus import FrameFormat, Publisher, Subscriber
from framebus.bus.subscriber import Wake
from framebus.cli import main
from tests.support import SHM, files_of


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


def test_list_and_inspect(stream: str, publisher: Publisher, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_size_is_what_the_ring_takes(stream: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("size", "--height", "40", "--width", "60", "--slots", "5")
    answer = json.loads(output(capsys, *arguments, "--json"))
    with Publisher(stream, FrameFormat(40, 60), slots=5):
        assert (SHM / f"framebus.{stream}.ring").stat().st_size == answer["ring_bytes"]
    assert "shm_size: 32m" in output(capsys, *arguments)
    panorama = ("size", "--height", "688", "--width", "4896", "--slots", "16")
    assert "shm_size: 160m" in output(capsys, *panorama)
    assert "height is a whole number" in output(capsys, "size", "--height", "0", "--width", "5", status=1)
    assert "3 to 255 slots" in output(capsys, "size", "--height", "5", "--width", "5", "--slots", "2", status=1)


def test_doctor_and_gc_put_right_what_is_left(stream: str, capsys: pytest.CaptureFixture[str]) -> None:
    Publisher(stream, FrameFormat(4, 6), keep_ring=True).close()
    findings = json.loads(output(capsys, "doctor", "--json", status=1))
    mine = [finding for finding in findings if f"framebus.{stream}." in finding["what"]]
    assert len(mine) == 2
    assert all("framebus gc" in finding["remedy"] for finding in mine)
    assert "would remove" in output(capsys, "gc", "--dry-run", "--stream", stream)
    assert len(files_of(stream)) == 2
    removed = json.loads(output(capsys, "gc", "--json", "--stream", stream))
    assert len(removed) == 2
    assert files_of(stream) == []
    assert "nothing is left over" in output(capsys, "gc", "--stream", stream)


def test_doctor_names_a_damaged_ring(stream: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = SHM / f"framebus.{stream}.ring"
    path.write_bytes(b"garbage" * 1000)
    findings = json.loads(output(capsys, "doctor", "--json", status=1))
    assert any("FRAMEBUS" in finding["what"] and stream in finding["what"] for finding in findings)
    path.unlink()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("inspect", "no-such-stream"), "no publisher serves the stream 'no-such-stream' here"),
        (("snapshot", "a/b", "out.png"), "is no name for a stream"),
        (("gc", "--stream", "a b"), "is no name for a stream"),
    ],
)
def test_a_typo_gets_one_sentence(arguments: tuple[str, ...], sentence: str) -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "framebus", *arguments], capture_output=True, text=True, check=False, timeout=30
    )
    assert answer.returncode == 1
    assert sentence in answer.stderr
    assert len(answer.stderr.splitlines()) == 1


def test_a_closed_pipe_is_no_fault() -> None:
    command = f"{sys.executable} -m framebus top --interval 0.01 | head -n 1"
    answer = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=30)  # noqa: PLW1510
    assert answer.stderr == ""
