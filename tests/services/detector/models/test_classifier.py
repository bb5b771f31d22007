"""Classifiers of the second stage, from files that distinguish red, green and blue: each layout, type and output."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from structlog.testing import capture_logs

from services.detector.models.bundle import DEFAULT_BUNDLE, MANIFEST
from services.detector.models.classifier import Classifier, is_classifier, load_classifier, softmax
from services.detector.models.errors import ModelError
from services.detector.tiles import Pixels
from tests.services.detector.models.graphs import Input, colours, ultralytics

CLASSES = ["red", "green", "blue"]


def bundle(folder: Path, model: Path, **values: Any) -> Path:
    """Write a bundle for the dimension ``classifier``; None removes a value."""
    folder.mkdir(exist_ok=True)
    (folder / model.name).write_bytes(model.read_bytes())
    content: dict[str, Any] = {
        "name": "colours",
        "version": 1.5,
        "dimension": "classifier",
        "files": {model.name: hashlib.sha256(model.read_bytes()).hexdigest()},
        "classes": CLASSES,
        "input": {"scale": 1 / 255},
        **values,
    }
    content = {key: value for key, value in content.items() if value is not None}
    (folder / MANIFEST).write_text(yaml.safe_dump(content))
    return folder


def crop(red: int, green: int, blue: int, height: int = 40, width: int = 40) -> Pixels:
    """Return a crop of one colour, which is a view on a larger picture."""
    picture = np.zeros((height + 7, width + 9, 3), np.uint8)
    picture[3 : 3 + height, 4 : 4 + width] = (blue, green, red)
    return picture[3 : 3 + height, 4 : 4 + width]


RED, GREEN, BLUE = crop(250, 5, 5), crop(5, 250, 5, 100, 40), crop(5, 5, 250, 30, 90)


def named(classifier: Classifier, *crops: Pixels) -> list[str]:
    return [classifier.classes[index] for index in classifier.classify(crops).argmax(axis=1)]


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("batch", ["N", 1, 4])
@pytest.mark.parametrize("kind", ["shares", "logits"])
def test_each_kind_of_input_and_output_classifies_the_colours(
    tmp_path: Path, dtype: str, first: bool, batch: int | str, kind: str
) -> None:
    image = Input("images", [batch, 3, 32, 48] if first else [batch, 32, 48, 3], dtype)
    classifier = load_classifier(bundle(tmp_path / "b", colours(tmp_path / "c.onnx", kind, image)))
    assert (classifier.input_px, classifier.batch) == ((32, 48), {"N": 8, 1: 1, 4: 4}[batch])
    assert classifier.outputs == ("logits" if kind == "logits" else "probabilities")
    assert named(classifier, RED, GREEN, BLUE, *[RED] * 9) == ["red", "green", "blue", *["red"] * 9]
    assert classifier.rejected_crops == 0


@pytest.mark.parametrize("kind", ["shares", "logits"])
def test_probabilities_are_distinguished_from_logits_by_their_sum(tmp_path: Path, kind: str) -> None:
    classifier = load_classifier(bundle(tmp_path / "b", colours(tmp_path / "c.onnx", kind)))
    assert classifier.outputs == ("probabilities" if kind == "shares" else "logits")
    (row,) = classifier.classify([crop(200, 100, 0)])
    means = np.array([200, 100, 0], np.float32) / 255
    assert row == pytest.approx(means / means.sum() if kind == "shares" else softmax(means[None] * 10)[0], abs=1e-5)
    assert float(row.sum()) == pytest.approx(1, abs=1e-5)


def test_a_bundle_may_declare_what_the_outputs_are(tmp_path: Path) -> None:
    classifier = load_classifier(bundle(tmp_path / "b", colours(tmp_path / "c.onnx"), outputs="logits"))
    (row,) = classifier.classify([crop(255, 0, 0)])
    assert row == pytest.approx(softmax(np.array([[1, 0, 0]], np.float32))[0], abs=1e-5)
    scores = load_classifier(bundle(tmp_path / "s", colours(tmp_path / "s.onnx", "logits"), outputs="probabilities"))
    with capture_logs() as logs:
        rows = scores.classify([crop(20, 10, 5), crop(255, 0, 0), crop(0, 255, 0)])
    assert rows[0] == pytest.approx(np.array([200, 100, 50]) / 255, abs=1e-4)
    assert np.isnan(rows[1:]).all()
    assert scores.rejected_crops == 2
    assert [entry["reason"] for entry in logs] == [
        "a probability is below 0 or above 1: say 'outputs: logits' in the bundle"
    ]


def test_scores_that_are_not_declared_as_probabilities_cause_a_warning(tmp_path: Path) -> None:
    path = colours(tmp_path / "c.onnx", "logits")
    with capture_logs() as logs:
        classifier = load_classifier(bundle(tmp_path / "b", path, input={"scale": 1 / 2550}))
        load_classifier(bundle(tmp_path / "o", path, input={"scale": 1 / 2550}, outputs="probabilities"))
    assert classifier.outputs == "logits"
    assert [entry["event"] for entry in logs] == ["outputs taken for logits"]


def test_scores_of_nan_are_dropped_counted_and_logged_once(tmp_path: Path) -> None:
    classifier = load_classifier(bundle(tmp_path / "b", colours(tmp_path / "c.onnx")))
    with capture_logs() as logs:
        rows = classifier.classify([RED, crop(0, 0, 0), BLUE])
        classifier.classify([crop(0, 0, 0)])
    assert np.isfinite(rows[[0, 2]]).all()
    assert np.isnan(rows[1]).all()
    assert classifier.rejected_crops == 2
    assert [entry["event"] for entry in logs] == ["crops rejected"]


def test_a_file_without_a_bundle_is_read_as_its_exporter_made_it(tmp_path: Path) -> None:
    metadata = {"task": "classify", "names": "{0: 'rot', 1: 'gruen', 2: 'blau'}", "imgsz": "[64, 64]"}
    image = Input("images", ["N", 3, "height", "width"])
    classifier = load_classifier(colours(tmp_path / "c.onnx", image=image, metadata=metadata), known=("person",))
    assert (classifier.name, classifier.version, classifier.applies_to) == ("c.onnx", "", None)
    assert (classifier.input_px, classifier.named_by) == ((64, 64), "the file")
    assert named(classifier, RED, BLUE) == ["rot", "blau"]
    bare = load_classifier(colours(tmp_path / "bare.onnx", "logits", image))
    assert (bare.input_px, bare.classes) == ((224, 224), ("class0", "class1", "class2"))
    assert bare.named_by == "nothing: name them in a bundle"
    # Normalised as ImageNet: red is 2.25, -2.04 and -1.80 of the standard deviations.
    assert bare.outputs == "logits"
    assert named(bare, RED, GREEN, BLUE) == ["class0", "class1", "class2"]


def test_thresholds_and_reported_classes_are_those_of_the_bundle(tmp_path: Path) -> None:
    classifier = load_classifier(
        bundle(
            tmp_path / "b",
            colours(tmp_path / "c.onnx"),
            labels=["red", "blue"],
            score_threshold=0.7,
            score_thresholds={"blue": 0.9},
            applies_to=["person"],
        ),
        known=("person", "car"),
    )
    assert (classifier.name, classifier.version) == ("colours", "1.5")
    assert (classifier.told, classifier.thresholds) == (("red", "blue"), (0.7, 0.7, 0.9))
    assert classifier.applies_to == ("person",)


def fault(path: Path, known: tuple[str, ...] = ("person", "car")) -> str:
    with pytest.raises(ModelError) as caught:
        load_classifier(path, known=known)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("one", "gives float32 (3, 1) for 3 pictures; floats of shape (3, classes), of at least two classes"),
        ("maps", "gives float32 (3, 1, 3) for 3 pictures"),
        ("number", "gives int64 (3, 1) for 3 pictures"),
        ("two", "has 0 inputs beside the image, and 2 outputs; one image and one output (N, classes) are needed"),
    ],
)
@pytest.mark.parametrize("batch", ["N", 3])
def test_an_unsupported_output_is_reported_in_one_sentence(
    tmp_path: Path, kind: str, told: str, batch: int | str
) -> None:
    path = colours(tmp_path / "c.onnx", kind, Input("images", [batch, 3, 32, 32]))
    if batch == "N":
        told = told.replace("(3,", "(1,").replace("3 pictures", "1 pictures")
    assert told in fault(path)


def test_a_file_that_takes_one_picture_despite_its_shape_is_run_for_each(tmp_path: Path) -> None:
    classifier = load_classifier(bundle(tmp_path / "b", colours(tmp_path / "c.onnx", "joined")))
    assert classifier.batch == 1
    assert named(classifier, RED, GREEN, BLUE) == CLASSES


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"classes": ["red", "green"]}, "has 3 classes, but 2 names are given (the bundle): name each class"),
        ({"classes": [*CLASSES, "pink"]}, "has 3 classes, but 4 names are given (the bundle)"),
        ({"labels": ["red", "pink"]}, "does not know pink; it knows red, green, blue"),
        ({"score_thresholds": {"pink": 0.4}}, "does not know pink; it knows red, green, blue"),
        ({"applies_to": ["person", "persn"]}, "applies to persn, which the detector's model does not know; it knows"),
        ({"applies_to": []}, "applies_to: Tuple should have at least 1 item"),
        ({"outputs": "scores"}, "outputs: Input should be 'probabilities' or 'logits'"),
        ({"classes": "coco"}, "a bundle for a classifier has no format, and names its own classes"),
        ({"format": "yolox"}, "a bundle for a classifier has no format, and names its own classes"),
        ({"dimension": "site", "files": {}, "outputs": None}, "it is for the dimension 'site', and one for"),
        ({"files": {"c.onnx": "0" * 64}}, "c.onnx is not the file that bundle.yaml describes"),
        ({"input": {"height_px": 64}}, "takes [32, 32] pixels, and its bundle says [64, None]"),
    ],
)
def test_a_bundle_that_does_not_match_its_file_is_reported_in_one_sentence(
    tmp_path: Path, values: dict[str, Any], told: str
) -> None:
    assert told in fault(bundle(tmp_path / "b", colours(tmp_path / "c.onnx"), **values))


def test_a_file_that_is_not_a_classifier_is_reported_in_one_sentence(tmp_path: Path) -> None:
    assert "it is for the dimension 'detector', and one for 'classifier' is needed" in fault(DEFAULT_BUNDLE)
    assert "cannot be read" in fault(tmp_path / "nowhere.onnx")
    assert "gives float32 (1, 84, 8400) for 1 pictures" in fault(ultralytics(tmp_path / "yolo.onnx"))


def test_a_classifier_is_recognised_by_its_bundle_or_its_output(tmp_path: Path) -> None:
    path = colours(tmp_path / "c.onnx")
    assert is_classifier(path)
    assert is_classifier(bundle(tmp_path / "b", path))
    assert not is_classifier(DEFAULT_BUNDLE)
    assert not is_classifier(ultralytics(tmp_path / "yolo.onnx"))
