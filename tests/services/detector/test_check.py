"""``framebus-detector check`` says what a model is and what a picture shows, or one sentence with status 1."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from services.detector.entry import SERVICE
from services.detector.models.bundle import DEFAULT_BUNDLE
from tests.services.detector.models.graphs import ultralytics


def test_a_bundle_is_described(capsys: pytest.CaptureFixture[str]) -> None:
    assert SERVICE.main(["check", str(DEFAULT_BUNDLE)]) == 0
    told = capsys.readouterr().out
    assert "model     nanodet-g-480 1.0.0\nformat    nanodet-decoded\ninput     480 x 480 pixels, 1 a run\n" in told
    assert "classes   80, named by COCO, by their number: person, bicycle, " in told
    assert "labels    person 0.4, " in told
    assert "provider  CPUExecutionProvider\n" in told


def test_a_picture_gives_boxes_as_json(
    tmp_path: Path, place: npt.NDArray[np.uint8], capsys: pytest.CaptureFixture[str]
) -> None:
    cv2.imwrite(str(tmp_path / "place.png"), place)
    assert SERVICE.main(["check", str(DEFAULT_BUNDLE), str(tmp_path / "place.png")]) == 0
    told = json.loads(capsys.readouterr().out)
    people = [one for one in told["objects"] if one["label"] == "person"]
    assert len(people) >= 6
    assert all(one["score"] >= 0.4 and len(one["xyxy"]) == 4 for one in people)
    assert told["rejected_boxes"] == 0


def test_names_and_format_may_be_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = ultralytics(tmp_path / "two.onnx", 2)
    (tmp_path / "names.txt").write_text("vest\nhelmet\n")
    arguments = ["check", str(path), "--classes", str(tmp_path / "names.txt"), "--format", "ultralytics", "--json"]
    assert SERVICE.main(arguments) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["classes"] == ["vest", "helmet"]
    assert told["labels"] == {"vest": 0.35, "helmet": 0.35}


@pytest.mark.parametrize("content", [b"", b"no picture"])
def test_a_fault_is_one_sentence(tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "thing"
    path.write_bytes(content)
    assert SERVICE.main(["check", str(path)]) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"framebus-detector check: the model {path} is not a usable ONNX file: ")
    assert told.count("\n") == 1
    assert SERVICE.main(["check", str(DEFAULT_BUNDLE), str(path)]) == 1
    assert f"{path} is not a picture that can be read: give PNG or JPEG" in capsys.readouterr().err
    assert SERVICE.main(["check", str(DEFAULT_BUNDLE), str(tmp_path / "nowhere.png")]) == 1
    assert "cannot be read: No such file" in capsys.readouterr().err
