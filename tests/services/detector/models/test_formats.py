"""Each format is recognised by its outputs, prepares tiles as its trainer did, and finds the planted person."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest

from services.detector.models.choose import Chooser
from services.detector.models.errors import ModelError
from services.detector.models.formats import FORMATS, find_format
from services.detector.models.formats.base import Array, Graph
from tests.services.detector.models.graphs import BOX

COCO = tuple(f"name{index}" for index in range(80))
SIDE = 640


def zeros(*shape: int, **plant: tuple[tuple[int, ...], float]) -> Array:
    array = np.zeros(shape, np.float32)
    for place, value in plant.values():
        array[place] = value
    return array


def rows(shape: tuple[int, int, int], row: int, values: Mapping[int, float], fill: float = 0.0) -> Array:
    """An output that is the same everywhere but for some columns of one row."""
    array = np.full(shape, fill, np.float32)
    for column, value in values.items():
        array[0, row, column] = value
    return array


CENTRE = {0: 320.0, 1: 320.0, 2: 80.0, 3: 200.0}
FRACTIONS = {0: 0.5, 1: 0.5, 2: 80 / 640, 3: 200 / 640}
CORNERS = dict(enumerate(BOX))


def yolox(decoded: bool, classes: int = 80) -> Array:
    """The person in the cell in column 40 and row 40 of the grid of stride 8."""
    array = np.zeros((1, 8400, 5 + classes), np.float32)
    cell = 40 * 80 + 40
    if decoded:
        places: list[Array] = [np.mgrid[: 640 // s, : 640 // s].reshape(2, -1)[::-1].T * s for s in (8, 16, 32)]
        array[0, :, :2] = np.concatenate(places)
        array[0, cell, :4] = list(CENTRE.values())
    else:
        array[0, cell, :4] = 0, 0, np.log(80 / 8), np.log(200 / 8)
    array[0, cell, 4:6] = 0.95, 0.9 / 0.95
    return array


def distribution(distance: float, bins: int) -> Array:
    """Logits whose mean is a distance in strides."""
    weights = np.full(bins, 1e-9)
    low = int(distance)
    weights[low], weights[min(low + 1, bins - 1)] = 1 - (distance - low) + 1e-9, distance - low + 1e-9
    logits: Array = np.log(weights).astype(np.float32)
    return logits


def nanodet_plus(bins: int = 8) -> Array:
    """The person in the cell in column 10 and row 10 of the grid of stride 32, seen from the cell's corner."""
    array = np.zeros((1, 8500, 80 + 4 * bins), np.float32)
    row = 6400 + 1600 + 10 * 20 + 10
    array[0, row, 0] = 0.9
    for side, distance in enumerate((40 / 32, 100 / 32, 40 / 32, 100 / 32)):
        array[0, row, 80 + side * bins : 80 + (side + 1) * bins] = distribution(distance, bins)
    return array


def nanodet_old() -> dict[str, Array]:
    """The same with an output for scores and distances of each stride, seen from the cell's middle."""
    outputs: dict[str, Array] = {}
    for stride in (8, 16, 32):
        cells = (640 // stride) ** 2
        outputs[f"cls_pred_stride_{stride}"] = np.zeros((1, cells, 80), np.float32)
        outputs[f"dis_pred_stride_{stride}"] = np.zeros((1, cells, 44), np.float32)
    row = 10 * 20 + 10  # its middle is (336, 336)
    outputs["cls_pred_stride_32"][0, row, 0] = 0.9
    for side, distance in enumerate((56 / 32, 116 / 32, 24 / 32, 84 / 32)):
        outputs["dis_pred_stride_32"][0, row, side * 11 : (side + 1) * 11] = distribution(distance, 11)
    return outputs


def logits(shape: tuple[int, int, int], row: int, column: int) -> Array:
    return rows(shape, row, {column: float(np.log(0.9 / 0.1))}, fill=-10.0)


@dataclass(frozen=True)
class Case:
    outputs: dict[str, Array]
    format: str
    metadata: dict[str, str] = field(default_factory=dict)
    names: tuple[str, ...] | None = None
    person: int = 0
    """Number of the person's class."""


FRACTION_CORNERS = {0: BOX[1] / SIDE, 1: BOX[0] / SIDE, 2: BOX[3] / SIDE, 3: BOX[2] / SIDE}
YOLOV8 = np.swapaxes(rows((1, 8400, 84), 10, CENTRE | {4: 0.9}), 1, 2)
CASES = {
    "YOLOv8": Case({"output0": YOLOV8}, "ultralytics"),
    "YOLOv8, one class": Case({"output0": YOLOV8[:, :5]}, "ultralytics"),
    "YOLOv8, 200 classes": Case({"output0": np.pad(YOLOV8, ((0, 0), (0, 120), (0, 0)))}, "ultralytics"),
    "YOLO11, float16": Case({"output0": YOLOV8.astype(np.float16)}, "ultralytics", names=COCO),
    "YOLOv8 with a head of its own": Case({"output0": YOLOV8[:, :, :777]}, "ultralytics", names=COCO),
    "YOLOv10": Case({"output0": rows((1, 300, 6), 7, CORNERS | {4: 0.9})}, "end-to-end"),
    "YOLOX": Case({"output": yolox(decoded=False)}, "yolox"),
    "YOLOX, one class": Case({"output": yolox(decoded=False, classes=1)}, "yolox"),
    "YOLOX, decoded": Case({"output": yolox(decoded=True)}, "yolox"),
    "YOLOv5": Case({"output": rows((1, 25200, 85), 10, CENTRE | {4: 0.95, 5: 0.9 / 0.95})}, "yolox"),
    "RT-DETR": Case(
        {
            "labels": np.zeros((1, 300), np.int64),
            "boxes": rows((1, 300, 4), 7, CORNERS),
            "scores": zeros(1, 300, person=((0, 7), 0.9)),
        },
        "rt-detr",
    ),
    "RT-DETR by Hugging Face": Case(
        {"logits": logits((1, 300, 80), 7, 0), "pred_boxes": rows((1, 300, 4), 7, FRACTIONS)}, "rt-detr-logits"
    ),
    "RT-DETR by Ultralytics": Case(
        {"output0": rows((1, 300, 84), 7, FRACTIONS | {4: 0.9})}, "rt-detr-ultralytics", names=COCO
    ),
    "RT-DETR by Ultralytics, two classes": Case(
        {"output0": rows((1, 300, 6), 7, FRACTIONS | {4: 0.9})},
        "rt-detr-ultralytics",
        {"description": "Ultralytics rtdetr-l model"},
        ("person", "car"),
    ),
    "RF-DETR": Case(
        {"dets": rows((1, 300, 4), 7, FRACTIONS), "labels": logits((1, 300, 91), 7, 1)}, "rf-detr", person=1
    ),
    "SSD": Case(
        {"boxes": rows((1, 1917, 4), 9, FRACTION_CORNERS), "scores": rows((1, 1917, 90), 9, {0: 0.9})}, "ssd"
    ),
    "NanoDet-Plus": Case({"output": nanodet_plus()}, "nanodet"),
    "NanoDet, an output a stride": Case(nanodet_old(), "nanodet"),
    "NanoDet, decoded": Case(
        {"scores": rows((1, 8400, 80), 9, {0: 0.9}), "boxes": rows((1, 8400, 4), 9, FRACTION_CORNERS)},
        "nanodet-decoded",
    ),
}  # fmt: skip


def graph_of(case: Case) -> Graph:
    return Graph(SIDE, SIDE, True, "float32", (), case.outputs, case.metadata, case.names)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_planted_person_is_found(case: Case) -> None:
    found = find_format(graph_of(case), None)
    assert found.name == case.format
    chooser = Chooser((case.person,), (0.5,))
    boxes = found.decode([output[0] for output in case.outputs.values()], chooser)
    np.testing.assert_allclose(boxes.xyxy, [BOX], atol=0.05)
    np.testing.assert_allclose(boxes.scores, [0.9], atol=1e-3)
    assert boxes.labels.tolist() == [0]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_other_classes_and_lower_scores_are_dropped(case: Case) -> None:
    found = find_format(graph_of(case), None)
    outputs = [output[0] for output in case.outputs.values()]
    assert len(found.decode(outputs, Chooser((case.person,), (0.95,))).scores) == 0
    classes = found.classes or 80
    if classes > 1:
        other = classes - 1 if case.person != classes - 1 else 0
        assert len(found.decode(outputs, Chooser((other,), (0.5,))).scores) == 0


PREPARATIONS = {
    "YOLOv8": ("rgb", 1 / 255, "centre", 0.0),
    "YOLOv10": ("rgb", 1 / 255, "centre", 0.0),
    "YOLOX": ("bgr", 1.0, "corner", 0.0),
    "YOLOv5": ("rgb", 1 / 255, "centre", 0.0),
    "RT-DETR": ("rgb", 1 / 255, "stretch", 0.0),
    "RT-DETR by Hugging Face": ("rgb", 1 / 255, "stretch", 0.0),
    "RT-DETR by Ultralytics": ("rgb", 1 / 255, "stretch", 0.0),
    "RF-DETR": ("rgb", 1 / 255, "stretch", 0.485),
    "SSD": ("rgb", 1.0, "stretch", 0.0),
    "NanoDet-Plus": ("bgr", 1.0, "stretch", 103.53),
    "NanoDet, decoded": ("bgr", 1.0, "stretch", 0.0),
}


@pytest.mark.parametrize(("name", "wanted"), PREPARATIONS.items(), ids=PREPARATIONS)
def test_tiles_are_prepared_as_in_training(name: str, wanted: tuple[str, float, str, float]) -> None:
    preparation = find_format(graph_of(CASES[name]), None).preparation
    assert (preparation.colour, preparation.scale, preparation.fit, preparation.mean[0]) == wanted


def test_a_format_can_be_named() -> None:
    assert find_format(graph_of(CASES["YOLOX"]), "yolox").name == "yolox"
    with pytest.raises(ModelError, match=r"gives output float32 \(1, 8400, 85\), which does not fit the format ssd"):
        find_format(graph_of(CASES["YOLOX"]), "ssd")
    with pytest.raises(ModelError, match="the format 'yolo', which is unknown; known are ultralytics, end-to-end"):
        find_format(graph_of(CASES["YOLOX"]), "yolo")


def test_outputs_of_no_known_format_are_reported_with_the_known_formats() -> None:
    with pytest.raises(ModelError) as caught:
        find_format(graph_of(Case({"probabilities": np.zeros((1, 1000), np.float32)}, "")), None)
    told = str(caught.value)
    assert "gives probabilities float32 (1, 1000), which no known format has" in told
    assert all(kind.name in told and kind.known in told for kind in FORMATS)


def test_a_segmentation_model_is_not_mistaken_for_a_detector() -> None:
    outputs = {"output0": np.zeros((1, 116, 8400), np.float32), "output1": np.zeros((1, 32, 160, 160), np.float32)}
    with pytest.raises(ModelError, match="no known format"):
        find_format(graph_of(Case(outputs, "", {"task": "segment"})), None)
    pose = Case({"output0": np.zeros((1, 56, 8400), np.float32)}, "", {"task": "pose"})
    with pytest.raises(ModelError, match="no known format"):
        find_format(graph_of(pose), None)
