"""Models are data: one image runs each detector with each site and classifier, depending on what is mounted."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import cv2
import pytest
import yaml

from tests.e2e.engine import TAG, docker
from tests.services.detector.models.graphs import GOOD_BOX, IMAGE, OTHER_BOX, Input, Output, planted, ssd
from tests.services.detector.pictures import campus_path
from tests.support import ROOT

pytestmark = [pytest.mark.docker, pytest.mark.long]

IMAGE_NAME = f"framebus/detector:{TAG}"
PERSON, CAR = 0.9, 0.97
"""How sure the planted detectors are of a person and of a car."""
SITES: dict[str, dict[str, Any]] = {
    "people": {"labels": ["person"]},
    "vehicles": {"labels": ["car", "truck", "bus"]},
    "strict": {"labels": ["person", "car"], "score_threshold": 0.95},
}
FOUND = {
    ("yolo", "people"): {"person": 1},
    ("yolo", "vehicles"): {"car": 1},
    ("yolo", "strict"): {"car": 1},
    ("ssd", "people"): {"person": 1},
    ("ssd", "vehicles"): {"car": 1},
    ("ssd", "strict"): {"car": 1},
    ("default", "people"): {"person": 3},
    ("default", "vehicles"): {"car": 1},
    ("default", "strict"): {},
}
"""What the picture shows to each deployment, at least, by class."""
CLASSIFIERS: dict[str, dict[str, Any]] = {
    "helmets": {"applies_to": ["person"], "classes": ["helmet", "bare"]},
    "trucks": {"applies_to": ["car", "person"], "classes": ["van", "taxi"], "score_threshold": 0.7},
    "altered": {"classes": ["helmet", "bare"]},
}
SAID = {
    "helmets": {"person": "helmet", "car": None},
    "trucks": {"person": "van", "car": "van"},
    "altered": {"person": None, "car": None},
}
"""What each classifier says of a person and of a car."""


def bundle(folder: Path, dimension: str, **content: object) -> Path:
    """Write ``bundle.yaml`` for the content of the folder."""
    folder.mkdir(exist_ok=True)
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.onnx")}
    manifest = {"name": folder.name, "version": "1.2.0", "dimension": dimension, "files": files, **content}
    (folder / "bundle.yaml").write_text(yaml.safe_dump(manifest))
    return folder


@pytest.fixture(scope="module")
def mounts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a picture, two detectors, three sites and three classifiers, readable by every user."""
    folder = tmp_path_factory.mktemp("mounts")
    for name in ("pictures", "yolo", "ssd"):
        (folder / name).mkdir()
    assert cv2.imwrite(str(folder / "pictures" / "1.png"), campus_path()[:, -688:])
    person = {(0, 0, 10): 320.0, (0, 1, 10): 320.0, (0, 2, 10): 80.0, (0, 3, 10): 200.0, (0, 4, 10): PERSON}
    car = {(0, 0, 20): 120.0, (0, 1, 20): 120.0, (0, 2, 20): 150.0, (0, 3, 20): 90.0, (0, 6, 20): CAR}
    planted(folder / "yolo" / "yolo.onnx", [IMAGE], [Output("output0", [1, 84, 8400], person | car)])
    ssd(folder / "ssd" / "ssd.onnx", GOOD_BOX | OTHER_BOX, {(0, 0, 0): PERSON, (0, 1, 2): CAR})
    for name in ("yolo", "ssd"):
        bundle(folder / name, "detector", classes="coco")
    for name, content in SITES.items():
        bundle(folder / name, "site", **content)
    for name, content in CLASSIFIERS.items():
        (folder / name).mkdir()
        path = folder / name / f"{name}.onnx"
        planted(path, [Input("images", [1, 3, 64, 32])], [Output("out", [1, 2], {(0, 0): 0.875, (0, 1): 0.125})])
        bundle(folder / name, "classifier", **content)
    with (folder / "altered" / "altered.onnx").open("ab") as file:
        file.write(bytes(8))
    for path in (folder.parent.parent, folder.parent, folder, *folder.iterdir()):
        path.chmod(0o755)
    return folder


def told(*arguments: str) -> dict[str, object]:
    """Return what a container reports of the picture, in its only line of JSON."""
    output = docker(
        "run", "--rm", "--network", "none", "--read-only", "--cap-drop", "ALL", "--user", "1002:2000",
        "--env", "FRAMEBUS_DETECTOR__SOURCE=file:///pictures", *arguments, IMAGE_NAME,
    )  # fmt: skip
    lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    (found,) = [line for line in lines if "objects" in line]
    return dict(found)


def classes(found: dict[str, object]) -> dict[str, int]:
    names = [one["class"] for one in found["objects"]]  # type: ignore[attr-defined]
    return {name: names.count(name) for name in names}


@pytest.mark.usefixtures("pipeline")
@pytest.mark.parametrize(("detector", "site"), list(FOUND))
def test_every_detector_works_with_every_site(mounts: Path, detector: str, site: str) -> None:
    model = ROOT / "models" / "default" if detector == "default" else mounts / detector
    found = told(
        *("--volume", f"{mounts}/pictures:/pictures:ro"),
        *("--volume", f"{model}:/app/models/default:ro"),
        *("--volume", f"{mounts / site}:/site:ro", "--env", "FRAMEBUS_DETECTOR__SITE=/site"),
    )
    assert found["model"] == ("nanodet-g-480 1.0.0" if detector == "default" else f"{detector} 1.2.0")
    counts, wanted = classes(found), FOUND[detector, site]
    assert set(counts) <= set(SITES[site]["labels"])
    if detector != "default":
        assert counts == wanted
    assert all(counts.get(name, 0) >= count for name, count in wanted.items())


@pytest.mark.usefixtures("pipeline")
@pytest.mark.parametrize("detector", ["yolo", "ssd"])
@pytest.mark.parametrize("classifier", list(CLASSIFIERS))
def test_every_detector_works_with_every_classifier(mounts: Path, detector: str, classifier: str) -> None:
    """An altered classifier is left out, and the boxes are reported."""
    found = told(
        *("--volume", f"{mounts}/pictures:/pictures:ro"),
        *("--volume", f"{mounts / detector}:/app/models/default:ro"),
        *("--volume", f"{mounts / classifier}:/classifier:ro", "--env", "FRAMEBUS_DETECTOR__CLASSIFIER=/classifier"),
    )
    assert {one["class"]: one.get("sub_class") for one in found["objects"]} == SAID[classifier]  # type: ignore[attr-defined]


@pytest.mark.usefixtures("pipeline")
def test_a_bundle_can_come_from_a_data_only_image(mounts: Path, tmp_path: Path) -> None:
    """The volume has the version in its name, as in docs/models.md."""
    project = f"test-{tmp_path.name.replace('_', '-')}"
    image, volume = f"{project}-yolo:1.2.0", f"{project}-yolo-1.2.0"
    (mounts / "Dockerfile").write_text('FROM scratch\nCOPY yolo /bundle\nCMD ["none"]\n')
    try:
        docker("build", "--quiet", "--tag", image, str(mounts))
        docker("create", "--name", project, "--volume", f"{volume}:/bundle", image)
        found = told(
            *("--volume", f"{mounts}/pictures:/pictures:ro"),
            *("--volume", f"{volume}:/models/site:ro", "--env", "FRAMEBUS_DETECTOR__MODEL=/models/site"),
        )
        assert (found["model"], classes(found)) == ("yolo 1.2.0", {"person": 1, "car": 1})
    finally:
        docker("rm", "--force", project, check=False)
        docker("volume", "rm", volume, check=False)
        docker("rmi", image, check=False)
