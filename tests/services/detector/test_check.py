"""``framebus-detector check`` describes a model and a picture, or prints one sentence with status 1."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from services.detector.entry import SERVICE
from services.detector.models.bundle import DEFAULT_BUNDLE
from tests.services.detector.models.graphs import Input, colours, ultralytics
from tests.services.detector.models.test_classifier import bundle


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
def test_a_fault_is_reported_in_one_sentence(
    tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
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


def test_a_classifier_is_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = bundle(tmp_path / "colours", colours(tmp_path / "c.onnx"), applies_to=["person"], labels=["red", "blue"])
    assert SERVICE.main(["check", str(path)]) == 0
    assert capsys.readouterr().out == (
        "classifier colours 1.5\napplies to person\ninput      32 x 32 pixels, up to 8 a run\n"
        "outputs    probabilities\nclasses    3, named by the bundle: red, green, blue\n"
        "told       red 0.5, blue 0.5 (with the least probability of each)\nprovider   CPUExecutionProvider\n"
    )
    assert SERVICE.main(["check", str(tmp_path / "c.onnx"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["dimension"], told["applies_to"], list(told["classes"])) == (
        "classifier", None, ["class0", "class1", "class2"],
    )  # fmt: skip


def test_a_classifier_classifies_the_whole_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = bundle(tmp_path / "colours", colours(tmp_path / "c.onnx"))
    picture = np.zeros((40, 60, 3), np.uint8)
    for name, value in (("red", 200), ("black", 0)):
        picture[..., 2] = value
        cv2.imwrite(str(tmp_path / f"{name}.png"), picture[:, :40])
    assert SERVICE.main(["check", str(path), str(tmp_path / "red.png")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["probabilities"], told["rejected_crops"]) == ({"red": 1.0, "green": 0.0, "blue": 0.0}, 0)
    assert SERVICE.main(["check", str(path), str(tmp_path / "black.png")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["probabilities"], told["rejected_crops"]) == (None, 1)


def test_an_unusable_classifier_is_reported_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = colours(tmp_path / "c.onnx", "one", Input("images", [1, 3, 32, 32]))
    assert SERVICE.main(["check", str(path)]) == 1
    told = capsys.readouterr().err
    assert "floats of shape (1, classes), of at least two classes, are needed" in told
    assert told.count("\n") == 1


def test_a_model_is_tried_with_the_configured_classifier(
    tmp_path: Path,
    place: npt.NDArray[np.uint8],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cv2.imwrite(str(tmp_path / "place.png"), place)
    path = bundle(tmp_path / "colours", colours(tmp_path / "c.onnx"), applies_to=["person"], score_threshold=0.1)
    monkeypatch.setenv("FRAMEBUS_DETECTOR__CLASSIFIER", str(path))
    assert SERVICE.main(["check", str(DEFAULT_BUNDLE), str(tmp_path / "place.png")]) == 0
    objects = json.loads(capsys.readouterr().out)["objects"]
    assert {one["sub_class"] for one in objects if one["label"] == "person"} <= {"red", "green", "blue"}
    assert all(0.1 <= one["sub_score"] <= 1 for one in objects if one["label"] == "person")
