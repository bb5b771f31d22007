"""Every fault of a stream, or of the command itself, is one sentence that says what to do."""

from __future__ import annotations

import errno
import json
import sys
import threading
from pathlib import Path

import pytest

from framebus import FrameFormat, Publisher, Subscriber
from framebus.cli import main, upkeep
from tests.support import SHM, publish

SMALL = FrameFormat(4, 6)


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return what a failing command prints to standard error."""
    assert main(arguments) == 1
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (MemoryError(), "there is not enough memory"),
        (OSError(errno.EIO, "Input/output error", "/dev/shm/x"), "/dev/shm/x: Input/output error"),
        (OSError("strange"), "strange"),
    ],
)
def test_what_the_system_refuses_is_one_sentence(
    error: Exception, sentence: str, stream: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr("framebus.cli.show.inspect", fail)
    assert said(capsys, "inspect", stream) == f"framebus: {sentence}\n"


def test_a_thread_may_run_a_command(stream: str, capsys: pytest.CaptureFixture[str]) -> None:
    statuses: list[int] = []
    thread = threading.Thread(target=lambda: statuses.append(main(["gc", "--stream", stream])))
    thread.start()
    thread.join()
    assert statuses == [0]
    assert "nothing is left over" in capsys.readouterr().out


def test_a_snapshot_without_opencv_names_what_to_install(
    stream: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    complaint = said(capsys, "snapshot", stream, str(tmp_path / "out.png"))
    assert complaint == "framebus: snapshot needs OpenCV: pip install 'framebus[snapshot]'\n"


def doctor(stream: str, capsys: pytest.CaptureFixture[str]) -> list[tuple[str, str, str]]:
    """Return the doctor's finding on the stream: level, what, remedy."""
    assert main(["doctor", "--json"]) in (0, 1)  # other tests may leave files at this moment
    findings = json.loads(capsys.readouterr().out)
    return [tuple(finding.values()) for finding in findings if stream in finding["what"]]


def test_the_doctor_names_a_stream_whose_slots_are_all_held(stream: str, capsys: pytest.CaptureFixture[str]) -> None:
    with Publisher(stream, SMALL, slots=3) as publisher, Subscriber(stream, max_leases=1) as subscriber:
        publish(publisher)
        held = subscriber.receive(5), publisher.loan()
        remedy = "see in 'framebus top' which subscribers hold them, and stop those"
        assert doctor(stream, capsys) == [("problem", f"stream {stream}: 2 of 3 slots are held", remedy)]
        del held


def test_the_doctor_names_a_publisher_that_has_fallen_silent(
    stream: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "STALE_AFTER_S", 0.0)
    with Publisher(stream, SMALL) as publisher:
        publish(publisher)
        ((level, what, remedy),) = doctor(stream, capsys)
    assert (level, remedy) == ("warning", "look at the publisher's log")
    assert f"stream {stream}: its publisher lives, but the newest frame is " in what


def test_a_directory_in_the_place_of_a_ring_is_named_and_kept(stream: str, capsys: pytest.CaptureFixture[str]) -> None:
    place = SHM / f"framebus.{stream}.ring.0123456789abcdef"
    place.mkdir()
    try:
        assert main(["gc", "--stream", stream]) == 1
        assert f"{place}" in capsys.readouterr().out
        assert place.is_dir()
    finally:
        place.rmdir()
