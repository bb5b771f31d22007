"""A model from a file: its boxes are in pixels of the tile for every kind of input, and bad boxes are dropped."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import structlog

from services.detector.boxes import Boxes, intersection_over_union
from services.detector.config import DetectorSection
from services.detector.detector import find_all
from services.detector.models.model import Model, ModelError, load_model
from services.detector.tiles import plan_tiles
from tests.services.detector.models.graphs import (
    GOOD_BOX,
    OTHER_BOX,
    Input,
    Output,
    onnx,
    planted,
    save,
    ssd,
    ultralytics,
    weights,
)

Picture = npt.NDArray[np.uint8]
TILE = np.zeros((320, 640, 3), np.uint8)
TILE_BOX = [280.0, 60.0, 360.0, 260.0]
"""The planted person in that tile, which has grey above and below it in the input."""
NAN, INF = float("nan"), float("inf")


def load(path: Path | None, **settings: Any) -> Model:
    return load_model(DetectorSection(model=path, **settings))


def people(model: Model, tile: Picture = TILE) -> Boxes:
    (found,) = model.detect([tile])
    return found.take(found.labels == model.labels.index("person"))


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({}, (640, 640)),
        ({"dtype": "float16"}, (640, 640)),
        ({"image": ["batch", 3, "height", "width"]}, (640, 640)),
        ({"image": [1, 640, 640, 3]}, (640, 640)),
        ({"image": ["batch", 3, "h", "w"], "metadata": {"imgsz": "[640, 640]", "task": "detect"}}, (640, 640)),
        ({"declared": ["batch", 84, "anchors"], "image": ["batch", 3, 640, 640]}, (640, 640)),
    ],
)
def test_inputs_of_all_kinds_are_accepted(tmp_path: Path, changes: dict[str, Any], size: tuple[int, int]) -> None:
    model = load(ultralytics(tmp_path / "yolo.onnx", **changes))
    assert (model.format, model.input_px, model.name) == ("ultralytics", size, "yolo.onnx")
    np.testing.assert_allclose(people(model).xyxy, [TILE_BOX], atol=0.5)


def test_the_size_of_a_dynamic_input_is_read_from_the_exporters_metadata(tmp_path: Path) -> None:
    plant = {(0, 0, 10): 160.0, (0, 1, 10): 160.0, (0, 2, 10): 40.0, (0, 3, 10): 100.0, (0, 4, 10): 0.9}
    cells = 40 * 80 + 20 * 40 + 10 * 20
    path = planted(
        tmp_path / "wide.onnx",
        [Input("images", ["batch", 3, "height", "width"])],
        [Output("output0", [1, 84, cells], plant, declared=[1, 84, "anchors"])],
        {"imgsz": "[320, 640]"},
    )
    assert load(path).input_px == (320, 640)


def test_the_classes_are_read_from_the_metadata(tmp_path: Path) -> None:
    path = ultralytics(tmp_path / "two.onnx", 2, metadata={"names": "{0: 'helmet', 1: 'person'}"})
    model = load(path)
    assert model.classes == ("helmet", "person")
    assert model.named_by == "the file"
    assert model.labels == ("person",)
    assert load(path, labels=("helmet",)).labels == ("helmet",)
    with pytest.raises(ModelError, match=r"two\.onnx does not know unicorn; it knows helmet, person"):
        load(path, labels=("unicorn",))


def test_the_classes_are_read_from_a_file(tmp_path: Path) -> None:
    path = ultralytics(tmp_path / "two.onnx", 2)
    for name, text in (("names.txt", "vest\nhelmet\n"), ("data.yaml", "names: {0: vest, 1: helmet}")):
        (tmp_path / name).write_text(text)
        model = load(path, classes=tmp_path / name)
        assert model.labels == ("vest", "helmet")
        assert len(model.detect([TILE])[0]) == 1
    (tmp_path / "three.txt").write_text("vest\nhelmet\nboot\n")
    with pytest.raises(ModelError, match=r"has 2 classes, but 3 names are given .*three\.txt"):
        load(path, classes=tmp_path / "three.txt")
    with pytest.raises(ModelError, match=r"nowhere\.txt cannot be read: No such file"):
        load(path, classes=tmp_path / "nowhere.txt")
    (tmp_path / "number.yaml").write_text("7")
    with pytest.raises(ModelError, match="are not a list: write one name a line"):
        load(path, classes=tmp_path / "number.yaml")


def test_a_number_of_classes_other_than_cocos_has_no_names(tmp_path: Path) -> None:
    model = load(ultralytics(tmp_path / "one.onnx", 1))
    assert model.labels == ("class0",)
    assert "set detector.classes" in model.named_by
    assert len(model.detect([TILE])[0]) == 1


def test_rt_detr_gets_its_size_as_width_and_height(tmp_path: Path) -> None:
    helper, proto, numpy_helper = onnx(), onnx("onnx_pb").TensorProto, onnx("numpy_helper")
    fractions = np.zeros((1, 300, 4), np.float32)
    fractions[0, 0] = 0.25, 0.5, 0.5, 1.0
    scores = np.zeros((1, 300), np.float32)
    scores[0, 0] = 0.9
    nodes = [
        helper.make_node("Cast", ["orig_target_sizes"], ["sizes"], to=proto.FLOAT),
        helper.make_node("Concat", ["sizes", "sizes"], ["sides"], axis=1),
        helper.make_node("Mul", ["fractions", "sides"], ["boxes"]),
        helper.make_node("Identity", ["all_labels"], ["labels"]),
        helper.make_node("Identity", ["all_scores"], ["scores"]),
    ]
    constants = [
        numpy_helper.from_array(fractions, "fractions"),
        numpy_helper.from_array(np.zeros((1, 300), np.int64), "all_labels"),
        numpy_helper.from_array(scores, "all_scores"),
    ]
    inputs = [
        helper.make_tensor_value_info("images", proto.FLOAT, ["N", 3, 320, 640]),
        helper.make_tensor_value_info("orig_target_sizes", proto.INT64, ["N", 2]),
    ]
    outputs = [
        helper.make_tensor_value_info("labels", proto.INT64, [1, 300]),
        helper.make_tensor_value_info("boxes", proto.FLOAT, [1, 300, 4]),
        helper.make_tensor_value_info("scores", proto.FLOAT, [1, 300]),
    ]
    path = save(tmp_path / "rtdetr.onnx", helper.make_graph(nodes, "rtdetr", inputs, outputs, constants))
    model = load(path)
    assert (model.format, model.input_px) == ("rt-detr", (320, 640))
    found = people(model, np.zeros((100, 100, 3), np.uint8))
    np.testing.assert_allclose(found.xyxy, [[25, 50, 50, 100]], atol=0.01)


def colours(path: Path, batch: int | str) -> Path:
    """Write a network whose only box begins at the first channel's value and has the last channel as its score."""
    helper, proto, numpy_helper = onnx(), onnx("onnx_pb").TensorProto, onnx("numpy_helper")
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["means"], axes=[2, 3], keepdims=0),
        helper.make_node("Split", ["means", "thirds"], ["red", "green", "blue"], axis=1),
        helper.make_node("Mul", ["red", "hundred"], ["left"]),
        helper.make_node("Add", ["left", "hundred"], ["right"]),
        helper.make_node("Concat", ["left", "left", "right", "right", "blue", "green"], ["row"], axis=1),
        helper.make_node("Unsqueeze", ["row", "middle"], ["output0"]),
    ]
    constants = [
        numpy_helper.from_array(np.array([1, 1, 1], np.int64), "thirds"),
        numpy_helper.from_array(np.array([100], np.float32), "hundred"),
        numpy_helper.from_array(np.array([1], np.int64), "middle"),
    ]
    image = helper.make_tensor_value_info("images", proto.FLOAT, [batch, 3, 640, 640])
    output = helper.make_tensor_value_info("output0", proto.FLOAT, [batch, 1, 6])
    return save(path, helper.make_graph(nodes, "colours", [image], [output], constants))


@pytest.mark.parametrize(("batch", "wanted"), [(1, 1), (4, 4), ("batch", 8)])
def test_each_tile_has_its_own_boxes(tmp_path: Path, batch: int | str, wanted: int) -> None:
    model = load(colours(tmp_path / "colours.onnx", batch))
    assert (model.format, model.batch) == ("end-to-end", wanted)
    tiles = [np.full((640, 640, 3), (204, 0, red), np.uint8) for red in range(0, 250, 25)]
    found = model.detect(tiles)
    assert len(found) == 10
    for red, boxes in zip(range(0, 250, 25), found, strict=True):
        left = 100 * red / 255
        np.testing.assert_allclose(boxes.xyxy, [[left, left, left + 100, left + 100]], atol=0.1)
        np.testing.assert_allclose(boxes.scores, [0.8], atol=0.01)
    assert model.detect([]) == []


def test_external_data_is_read_and_a_missing_file_is_named(tmp_path: Path) -> None:
    network = onnx("version_converter").onnx.load(str(weights("yolox_nano_416_coco.onnx")))
    path, data = tmp_path / "yolox.onnx", tmp_path / "yolox.onnx.data"
    onnx("version_converter").onnx.save_model(
        network, str(path), save_as_external_data=True, location=data.name, size_threshold=1024
    )
    assert load(path).format == "yolox"
    data.unlink()
    with pytest.raises(ModelError, match=r"keeps its weights in yolox\.onnx\.data, which is not beside it"):
        load(path)


BAD = {
    "a score that is not a number": (GOOD_BOX | OTHER_BOX, {(0, 0, 0): NAN, (0, 1, 0): 0.8}),
    "a corner that is not a number": (GOOD_BOX | OTHER_BOX | {(0, 0, 0): NAN}, {(0, 0, 0): 0.9, (0, 1, 0): 0.8}),
    "infinite corners": (
        GOOD_BOX | OTHER_BOX | {(0, 0, 0): -INF, (0, 0, 2): INF},
        {(0, 0, 0): 0.9, (0, 1, 0): 0.8},
    ),
    "a logit": (GOOD_BOX | OTHER_BOX, {(0, 0, 0): 4.7, (0, 1, 0): 0.8}),
    "an infinite score": (GOOD_BOX | OTHER_BOX, {(0, 0, 0): INF, (0, 1, 0): 0.8}),
    "inverted corners": (GOOD_BOX | OTHER_BOX | {(0, 0, 0): 0.7, (0, 0, 2): 0.3}, {(0, 0, 0): 0.9, (0, 1, 0): 0.8}),
    "a box far outside": (GOOD_BOX | OTHER_BOX | {(0, 0, 3): 1e30}, {(0, 0, 0): 0.9, (0, 1, 0): 0.8}),
    "a box beside the tile": (
        GOOD_BOX | OTHER_BOX | {(0, 0, 1): 1.2, (0, 0, 3): 1.4},
        {(0, 0, 0): 0.9, (0, 1, 0): 0.8},
    ),
}


@pytest.mark.parametrize(("boxes", "scores"), BAD.values(), ids=BAD)
def test_a_bad_box_is_dropped_and_the_others_stay(tmp_path: Path, boxes: Any, scores: Any) -> None:
    model = load(ssd(tmp_path / "bad.onnx", boxes, scores))
    with structlog.testing.capture_logs() as logs:
        for count in (1, 2, 3):
            found = people(model)
            np.testing.assert_allclose(found.xyxy, [[64, 96, 128, 224]], atol=0.01)
            np.testing.assert_allclose(found.scores, [0.8], atol=1e-6)
            assert model.rejected_boxes == count
    assert [log["event"] for log in logs] == ["boxes rejected"]
    assert ("sigmoid" in logs[0]["reason"]) == (scores[0, 0, 0] > 1)


def test_a_box_that_crosses_the_edge_is_clipped(tmp_path: Path) -> None:
    model = load(ssd(tmp_path / "edge.onnx", GOOD_BOX | {(0, 0, 0): -0.1, (0, 0, 3): 1.02}, {(0, 0, 0): 0.9}))
    np.testing.assert_allclose(people(model).xyxy, [[256, 0, 640, 224]], atol=0.01)
    assert model.rejected_boxes == 0


def test_the_most_certain_thousand_boxes_are_kept(tmp_path: Path) -> None:
    boxes = {(0, row, side): value for row in range(1917) for side, value in enumerate((0.1, 0.1, 0.2, 0.2))}
    scores = {(0, row, 0): 0.4 + row / 4000 for row in range(1917)}
    found = people(load(ssd(tmp_path / "many.onnx", boxes, scores)))
    assert len(found) == 1000
    assert found.scores.min() > 0.4 + 916 / 4000


def test_a_network_that_fails_when_it_runs_is_found_at_the_start(tmp_path: Path) -> None:
    helper, proto, numpy_helper = onnx(), onnx("onnx_pb").TensorProto, onnx("numpy_helper")
    nodes = [
        helper.make_node("Cast", ["image"], ["wide"], to=proto.INT64),
        helper.make_node("ReduceMax", ["wide"], ["most"], keepdims=0),
        helper.make_node("Add", ["most", "far"], ["index"]),
        helper.make_node("Gather", ["table", "index"], ["boxes"], axis=0),
    ]
    constants = [
        numpy_helper.from_array(np.array(10**6), "far"),
        numpy_helper.from_array(np.zeros((2, 1, 9, 4), np.float32), "table"),
    ]
    image = helper.make_tensor_value_info("image", proto.UINT8, [1, 300, 300, 3])
    output = helper.make_tensor_value_info("boxes", proto.FLOAT, [1, 9, 4])
    path = save(tmp_path / "fails.onnx", helper.make_graph(nodes, "fails", [image], [output], constants))
    with pytest.raises(ModelError, match=r"fails\.onnx fails when it runs: .*indices element out of data bounds"):
        load(path)


@pytest.mark.parametrize(
    "inputs",
    [[Input("x", [1, 10])], [Input("images", [1, 1, 64, 64])], [Input("images", [1, 3, 64, 64], "float64")]],
)
def test_an_input_that_is_not_a_picture_is_named(tmp_path: Path, inputs: list[Input]) -> None:
    path = planted(tmp_path / "other.onnx", inputs, [Output("y", [1, 5], {(0, 0): 1.0})])
    with pytest.raises(ModelError, match=r"other\.onnx takes .* (needed)"):
        load(path)


PEOPLE = np.array(
    [[250, 2, 275, 58], [562, 178, 604, 292], [770, 222, 811, 342], [838, 92, 876, 194], [880, 96, 918, 197],
     [975, 98, 1013, 204], [1037, 216, 1080, 357]],
    np.float32,
)  # fmt: skip
"""The people in the picture, marked by eye; an eighth stands behind a sign."""
REAL = {
    None: ("nanodet-decoded", "nanodet-g-480", (480, 480), 7),
    "coco_ssdlite_mnv2_w8.onnx": ("ssd", "coco_ssdlite_mnv2_w8.onnx", (300, 300), 5),
    "yolox_nano_416_coco.onnx": ("yolox", "yolox_nano_416_coco.onnx", (416, 416), 6),
    "nanodet_g_480_w8.onnx": ("nanodet-decoded", "nanodet_g_480_w8.onnx", (480, 480), 7),
}


@pytest.mark.parametrize("file", REAL, ids=lambda name: name or "default")
def test_real_weights_find_people_where_they_are(file: str | None, place: Picture) -> None:
    model = load(None if file is None else weights(file))
    kind, name, size, least = REAL[file]
    assert (model.format, model.name, model.input_px, model.batch) == (kind, name, size, 1)
    assert model.provider == "CPUExecutionProvider"
    assert model.labels == ("person", "bicycle", "car", "motorcycle", "bus", "truck", "cat", "dog")
    found = find_all(DetectorSection(), model, place)
    seen = found.take(found.labels == 0)
    overlap = intersection_over_union(PEOPLE, seen.xyxy)
    assert (overlap.max(axis=1) > 0.5).sum() >= least
    assert len(seen) <= 10
    assert model.rejected_boxes == 0


@pytest.fixture(scope="module")
def default() -> Model:
    return load(None)


def test_a_read_only_view_is_not_copied(default: Model) -> None:
    pixels = np.zeros((688, 4896, 3), np.uint8)
    pixels.flags.writeable = False
    tiles = plan_tiles(688, 4896, 688, 220)
    default.detect([tiles[0].view(pixels)])
    tracemalloc.start()
    try:
        for tile in tiles[:2]:
            default.detect([tile.view(pixels)])
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Less than a second buffer for the tile: the rest are the network's outputs and the selection of boxes.
    assert peak_bytes < tiles[0].view(pixels).size * 2


@pytest.mark.parametrize("shape", [(1, 1, 3), (5, 900, 3), (480, 480, 3), (100, 100, 3), (1200, 400, 3)])
def test_pictures_of_any_size_are_accepted(default: Model, shape: tuple[int, int, int]) -> None:
    (found,) = default.detect([np.zeros(shape, np.uint8)])
    assert isinstance(found, Boxes)


def test_thresholds_come_from_the_configuration_or_the_bundle(default: Model) -> None:
    assert set(default.thresholds) == {0.4}
    assert set(load(None, score_threshold=0.6).thresholds) == {0.6}


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nowhere\.onnx cannot be read: No such file"):
        load(tmp_path / "nowhere.onnx")
