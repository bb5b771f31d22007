"""A bundle that differs from its manifest is not loaded."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.detector.config import DetectorSection
from services.detector.models import model as models
from services.detector.models.bundle import DEFAULT_BUNDLE, MANIFEST, read_bundle
from services.detector.models.model import ModelError, load_model
from tests.services.detector.models.graphs import ultralytics

DIGEST = "0" * 64


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Return a copy of the default bundle."""
    copy = tmp_path / "bundle"
    shutil.copytree(DEFAULT_BUNDLE, copy)
    return copy


def change(bundle: Path, **values: Any) -> None:
    """Set values of the manifest; None removes a value."""
    content = yaml.safe_load((bundle / MANIFEST).read_text()) | values
    (bundle / MANIFEST).write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))


def fault(bundle: Path, **settings: Any) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(DetectorSection(model=bundle, **settings))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_default_bundle_is_complete() -> None:
    manifest = read_bundle(DEFAULT_BUNDLE, "detector")
    assert manifest.network == "nanodet_g_480_int8.onnx"
    assert manifest.licence
    notice = (DEFAULT_BUNDLE / "NOTICE.txt").read_text()
    for name, digest in manifest.files.items():
        assert f"{digest} {name}" in notice or f"{name} {digest}" in notice
    assert {"LICENSE.Apache-2.0", "LICENSE.MIT", "convert.py"} <= {path.name for path in DEFAULT_BUNDLE.iterdir()}


def test_a_bundle_has_its_name_labels_and_thresholds(bundle: Path) -> None:
    change(bundle, name="mine", version=2.5, labels=["dog", "person"], score_thresholds={"dog": 0.7})
    model = load_model(DetectorSection(model=bundle))
    assert (model.name, model.version, model.labels) == ("mine", "2.5", ("dog", "person"))
    assert model.thresholds == (0.7, 0.4)
    assert load_model(DetectorSection(model=bundle, labels=("cat",))).labels == ("cat",)


def test_an_altered_or_missing_file_is_named(bundle: Path) -> None:
    network = bundle / "nanodet_g_480_int8.onnx"
    content = bytearray(network.read_bytes())
    content[1_000_000] ^= 1
    network.write_bytes(content)
    told = fault(bundle)
    assert "nanodet_g_480_int8.onnx is not the file that bundle.yaml describes: its SHA-256 is" in told
    assert "instead of 9a44e4fb40f1..., so copy the bundle again" in told
    network.unlink()
    assert "its file nanodet_g_480_int8.onnx cannot be read: No such file" in fault(bundle)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"name": None}, "name: Field required"),
        ({"speed": 9}, "speed: Extra inputs are not permitted"),
        ({"files": {"../../etc/passwd": DIGEST}}, "'../../etc/passwd' is not a file of the bundle"),
        ({"files": {"/etc/passwd": DIGEST}}, "'/etc/passwd' is not a file of the bundle"),
        ({"files": {"a.onnx": "4d7a"}}, "the SHA-256 of a.onnx is not 64 hexadecimal digits"),
        ({"files": {"a.onnx": DIGEST, "b.onnx": DIGEST}}, "of 2 .onnx and .ort files none is named as the model"),
        ({"files": {"notes.txt": DIGEST}}, "of 0 .onnx and .ort files none is named as the model"),
        ({"model": "other.onnx"}, "the model other.onnx is not among the files"),
        ({"score_threshold": 1.5}, "score_threshold: Input should be less than 1"),
        ({"score_thresholds": {"dog": 7}}, "each threshold must lie between 0 and 1"),
        ({"dimension": "camera"}, "dimension: Input should be 'detector', 'site' or 'classifier'"),
        ({"dimension": "classifier"}, "a bundle for a classifier has no format, and names its own classes"),
        ({"applies_to": ["person"]}, "applies_to and outputs are of a bundle for the dimension 'classifier'"),
        ({"outputs": "logits"}, "applies_to and outputs are of a bundle for the dimension 'classifier'"),
        ({"dimension": "site"}, "a bundle for a site has no network"),
    ],
)
def test_a_fault_of_the_manifest_is_named(bundle: Path, values: dict[str, Any], told: str) -> None:
    change(bundle, **values)
    assert f"the bundle {bundle} cannot be used: bundle.yaml: " in fault(bundle)
    assert told in fault(bundle)


@pytest.mark.parametrize(
    ("content", "told"),
    [("a: [", "is not YAML"), ("", "Input should be"), ("- 1", "Input should be"), ("a: !!int x", "is not YAML")],
)
def test_a_manifest_that_is_not_a_mapping_is_named(bundle: Path, content: str, told: str) -> None:
    (bundle / MANIFEST).write_text(content)
    assert told in fault(bundle)


def test_a_model_of_a_bundle_that_does_not_fit_is_named(bundle: Path) -> None:
    change(bundle, format="yolox")
    assert "which does not fit the format yolox" in fault(bundle)
    change(bundle, format="nanodet-decoded", input={"height_px": 320, "width_px": 320})
    assert "takes [480, 480] pixels, and its bundle says [320, 320]" in fault(bundle)


def test_a_bundle_supplies_what_the_file_does_not_say(tmp_path: Path) -> None:
    path = ultralytics(tmp_path / "net.onnx", 2, image=["batch", 3, "h", "w"])
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest = {
        "name": "site-net",
        "version": "1",
        "dimension": "detector",
        "files": {"net.onnx": digest},
        "classes": ["helmet", "vest"],
        "input": {"height_px": 640, "width_px": 640, "colour": "bgr", "scale": 1.0, "fit": "stretch"},
    }
    (tmp_path / MANIFEST).write_text(yaml.safe_dump(manifest))
    model = load_model(DetectorSection(model=tmp_path))
    assert (model.labels, model.named_by, model.format) == (("helmet", "vest"), "the bundle", "ultralytics")
    preparation = model._format.preparation
    assert (preparation.colour, preparation.scale, preparation.fit) == ("bgr", 1.0, "stretch")


def test_a_site_has_its_own_labels_and_thresholds(tmp_path: Path) -> None:
    manifest = {
        "name": "harbour",
        "version": "3",
        "dimension": "site",
        "labels": ["boat", "person"],
        "score_threshold": 0.5,
        "score_thresholds": {"boat": 0.3},
    }
    (tmp_path / MANIFEST).write_text(yaml.safe_dump(manifest))
    model = load_model(DetectorSection(site=tmp_path))
    assert (model.name, model.labels, model.thresholds) == ("nanodet-g-480", ("boat", "person"), (0.3, 0.5))
    assert load_model(DetectorSection(site=tmp_path, labels=("dog",))).labels == ("dog",)
    with pytest.raises(ModelError, match="it is for the dimension 'site', and one for 'detector' is needed"):
        load_model(DetectorSection(model=tmp_path))


def test_without_a_default_bundle_the_setting_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "DEFAULT_BUNDLE", tmp_path / "models" / "default")
    with pytest.raises(ModelError, match=r"no model is configured, and there is no .*: set detector\.model to"):
        load_model(DetectorSection())
