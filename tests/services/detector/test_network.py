"""The network finds people in a real picture, and a bad file is one clear sentence."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest

from services.detector.boxes import Boxes, intersection_over_union
from services.detector.coco import COCO_COLUMNS, DEFAULT_MODEL
from services.detector.merge import merge
from services.detector.network import Network, NetworkError
from services.detector.tiles import plan_tiles


@pytest.fixture(scope="module")
def network() -> Network:
    return Network(DEFAULT_MODEL, ("person", "car", "truck"), 0.3)


def in_tiles(network: Network, pixels: npt.NDArray[np.uint8]) -> Boxes:
    tiles = plan_tiles(pixels.shape[0], pixels.shape[1], 688, 220)
    return merge(tiles, [network.detect(tile.view(pixels)) for tile in tiles], 0.5, 0.6)


PEOPLE = np.array(
    [[250, 2, 275, 58], [562, 178, 604, 292], [770, 222, 811, 342], [838, 92, 876, 194], [880, 96, 918, 197],
     [975, 98, 1013, 204], [1037, 216, 1080, 357]],
    np.float32,
)  # fmt: skip
"""The people in the picture, marked by eye; an eighth stands behind a sign."""


def test_people_are_found_where_they_are(network: Network, place: npt.NDArray[np.uint8]) -> None:
    found = in_tiles(network, place)
    people = found.take(found.labels == 0)
    overlap = intersection_over_union(PEOPLE, people.corners)
    assert (overlap.max(axis=1) > 0.5).sum() >= 6
    assert len(people) <= 9


def test_the_network_sees_red_green_blue(network: Network, place: npt.NDArray[np.uint8]) -> None:
    """A view of the network's own size reaches it unchanged but for the order of its colours."""
    view = place[180:480, 700:1000]
    session = onnxruntime.InferenceSession(DEFAULT_MODEL, providers=["CPUExecutionProvider"])
    _, scores = session.run(["boxes", "scores"], {"image": np.ascontiguousarray(view[None, ..., ::-1])})
    wanted = scores[0][:, [COCO_COLUMNS[label] for label in network.labels]].max(axis=1)
    found = network.detect(view)
    assert len(found) > 0
    np.testing.assert_allclose(found.scores, wanted[wanted >= 0.3], rtol=1e-5)


def test_boxes_lie_within_the_view(network: Network, place: npt.NDArray[np.uint8]) -> None:
    found = network.detect(place[:400, :700])
    assert found.corners.min() >= 0
    assert (found.corners[:, [0, 2]] <= 700).all()
    assert (found.corners[:, [1, 3]] <= 400).all()
    assert (found.scores >= 0.3).all()
    assert set(found.labels) <= {0, 1, 2}


def test_a_read_only_view_is_not_copied(network: Network) -> None:
    pixels = np.zeros((688, 4896, 3), np.uint8)
    pixels.flags.writeable = False
    tiles = plan_tiles(688, 4896, 688, 220)
    network.detect(tiles[0].view(pixels))
    tracemalloc.start()
    try:
        for tile in tiles:
            network.detect(tile.view(pixels))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < tiles[0].view(pixels).size
    # What is left is the small picture, the network's outputs and the choice among them.


@pytest.mark.parametrize("shape", [(1, 1, 3), (5, 900, 3), (300, 300, 3), (100, 100, 3), (1200, 400, 3)])
def test_any_size_is_taken(network: Network, shape: tuple[int, int, int]) -> None:
    assert isinstance(network.detect(np.zeros(shape, np.uint8)), Boxes)


def test_labels_stand_in_the_columns_of_coco() -> None:
    assert len(COCO_COLUMNS) == 80
    wanted = {"person": 0, "bicycle": 1, "car": 2, "motorcycle": 3, "bus": 5, "truck": 7, "cat": 16, "dog": 17}
    assert wanted.items() <= COCO_COLUMNS.items()
    assert COCO_COLUMNS["toothbrush"] == 89


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match=r"nowhere\.onnx cannot be read: No such file"):
        Network(tmp_path / "nowhere.onnx", ("person",), 0.5)


@pytest.mark.parametrize("content", [b"", b"no model", DEFAULT_MODEL.read_bytes()[:100_000]])
def test_a_file_that_is_no_model_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(NetworkError, match=r"broken\.onnx is not a usable ONNX file"):
        Network(path, ("person",), 0.5)


def test_a_model_of_another_shape_is_named(tmp_path: Path) -> None:
    path = tmp_path / "identity.onnx"
    path.write_bytes(identity_model())
    with pytest.raises(NetworkError, match=r"identity\.onnx takes .*; one input 'image'"):
        Network(path, ("person",), 0.5)


def identity_model() -> bytes:
    """A valid ONNX model that gives back its one float, written by hand as protocol buffers."""

    def field(number: int, value: bytes | int) -> bytes:
        if isinstance(value, int):
            return bytes([number << 3, value])
        return bytes([number << 3 | 2, len(value)]) + value

    dimension = field(1, field(1, 1))
    tensor_type = field(1, field(1, 1) + field(2, dimension))
    node = field(1, b"x") + field(2, b"y") + field(4, b"Identity")
    graph = (
        field(1, node)
        + field(2, b"g")
        + field(11, field(1, b"x") + field(2, tensor_type))
        + field(12, field(1, b"y") + field(2, tensor_type))
    )
    return field(1, 8) + field(7, graph) + field(8, field(1, b"") + field(2, 13))
