"""``framebus-detector run``: the objects of one frame in the storage, or the reason of the failure."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from services.common.frame_codec import encode
from services.common.reference import FrameReference, frame_address
from services.detector.detector import Detector
from services.detector.entry import SERVICE


@pytest.fixture
def reference(
    tmp_path: Path, place: npt.NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch, stream: str
) -> FrameReference:
    """A frame in the storage that the environment configures, and ``reference.json``, which names it."""
    monkeypatch.setenv("FRAMEBUS_STREAM__NAME", stream)
    monkeypatch.setenv("FRAMEBUS_STORAGE__URL", f"file://{tmp_path}/objects")
    data = encode(place, "png")
    sha256 = hashlib.sha256(data).hexdigest()
    told = FrameReference(
        address=frame_address(stream, 7, 42, 0, encoding="png", sha256=sha256),
        size_bytes=len(data),
        sha256=sha256,
        stream=stream,
        epoch=7,
        sequence=42,
        captured_ns=1000,
        captured_wall_ns=time.time_ns(),
        format="png",
        shape=place.shape,
        dtype="|u1",
        pixel_format="bgr",
    )
    path = tmp_path / "objects" / told.address
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    (tmp_path / "reference.json").write_bytes(told.to_json())
    return told


def test_the_objects_are_printed_as_json(
    reference: FrameReference, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert SERVICE.main(["run", str(tmp_path / "reference.json")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["stream"], told["epoch"], told["sequence"]) == (reference.stream, 7, 42)
    assert len([one for one in told["objects"] if one["class"] == "person"]) >= 6


def test_a_failure_is_printed_with_its_traceback(
    reference: FrameReference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_arguments: object) -> None:
        raise ZeroDivisionError("no tile")

    monkeypatch.setattr(Detector, "detect", fail)
    assert SERVICE.main(["run", str(tmp_path / "reference.json")]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("Traceback (most recent call last):\n")
    last = said.err.splitlines()[-1]
    assert last == f"the detector fails on frame {reference.key}: ZeroDivisionError: no tile"


def test_a_reference_that_cannot_be_run_is_reported_in_one_sentence(
    reference: FrameReference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other.json").write_text("{}")

    def refused(name: str) -> str:
        assert SERVICE.main(["run", str(tmp_path / name)]) == 1
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith("framebus-detector run: ")
        assert said.err.count("\n") == 1
        return said.err

    assert "cannot be read: No such file" in refused("nowhere.json")
    assert "other.json is not a reference to a frame: " in refused("other.json")
    path = tmp_path / "objects" / reference.address
    path.write_bytes(b"damaged")
    assert "has 7 bytes" in refused("reference.json")
    path.unlink()
    assert "there is no such object" in refused("reference.json")
    monkeypatch.setenv("FRAMEBUS_STREAM__NAME", "another")
    assert f"the frame is of stream {reference.stream}, and stream.name is another" in refused("reference.json")
