"""An unusable file is reported in one sentence, which says what it is and what to do."""

from __future__ import annotations

import contextlib
import gzip
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.detector.config import DetectorSection
from services.detector.models.bundle import DEFAULT_BUNDLE
from services.detector.models.model import ModelError, load_model
from services.detector.models.onnx_file import inspect_file
from tests.services.detector.models.graphs import GOOD_BOX, onnx, save, ssd

NETWORK = DEFAULT_BUNDLE / "nanodet_g_480_int8.onnx"


def fault(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(DetectorSection(model=path))
    told = str(caught.value)
    assert "\n" not in told
    assert told.startswith(f"the model {path} ")
    return told


FOREIGN = {
    "empty": (b"", "it is empty, so copy it again"),
    "web page": (b"\n<!DOCTYPE html><html><body>404</body></html>", "a web page, so download the file itself"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 48\n", "'git lfs pull'"),
    "pickle": (b"\x80\x02}q\x00.", "a PyTorch checkpoint, so export it to ONNX"),
    "gzip": (gzip.compress(b"model"), "a gzip archive, so unpack it"),
    "TensorFlow Lite": (b"\x1c\x00\x00\x00TFL3" + bytes(100), "a TensorFlow Lite model"),
    "HDF5": (b"\x89HDF\r\n\x1a\n", "an HDF5 file such as Keras writes"),
    "TensorRT": (b"ftrt" + bytes(100), "a TensorRT engine"),
    "JSON": (b'{"format": "graph-model"}', "it is JSON text"),
    "safetensors": (b'\x40\x00\x00\x00\x00\x00\x00\x00{"weight": {}}', "a safetensors file of weights alone"),
    "text": (b"no model", "its 8 bytes are of an unknown kind"),
    "random": (np.random.default_rng(1).bytes(100_000), "not a usable ONNX file"),
    "another protocol buffer": (b"\x12\x05hello", "it has no graph"),
}


@pytest.mark.parametrize(("content", "told"), FOREIGN.values(), ids=FOREIGN)
def test_a_foreign_file_is_named(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert told in fault(path)


def test_each_kind_of_archive_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    for name, told in (("best/data.pkl", "a PyTorch checkpoint"), ("model.onnx", "a zip archive, so unpack it")):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, b"\x80\x02}q\x00.")
        assert told in fault(path)
    path.write_bytes(path.read_bytes()[:-10])
    assert "a zip archive that is cut off" in fault(path)


@pytest.mark.parametrize("kept", [100, 100_000, 3_900_000])
def test_a_truncated_file_is_named(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(NETWORK.read_bytes()[:kept])
    assert f"it is cut off after {kept} bytes, so copy it again" in fault(path)


def test_a_directory_and_a_missing_file_are_named(tmp_path: Path) -> None:
    assert "No such file" in fault(tmp_path / "nowhere.onnx")
    with pytest.raises(ModelError, match=r"the bundle .* cannot be used: bundle\.yaml cannot be read: No such file"):
        load_model(DetectorSection(model=tmp_path))


def test_a_version_of_the_future_is_named(tmp_path: Path) -> None:
    told = fault(ssd(tmp_path / "opset.onnx", GOOD_BOX, {(0, 0, 0): 0.9}, opset=99))
    assert "it needs opset 99, and ONNX Runtime" in told
    assert "export it with opset=" in told
    told = fault(ssd(tmp_path / "ir.onnx", GOOD_BOX, {(0, 0, 0): 0.9}, ir_version=99))
    assert "it has the IR version 99, and ONNX Runtime" in told
    assert "install a newer onnxruntime" in told


@pytest.mark.parametrize(
    ("operator", "domain", "told"),
    [
        ("EfficientNMS_TRT", "trt", "the operator EfficientNMS_TRT of TensorRT, which ONNX Runtime does not have"),
        ("EfficientNMS_TRT", "", "the operator EfficientNMS_TRT of TensorRT"),
        ("DeformConv", "mmdeploy", "the operator DeformConv of mmdeploy, which ONNX Runtime does not have"),
    ],
)
def test_an_operator_of_another_runtime_is_named(tmp_path: Path, operator: str, domain: str, told: str) -> None:
    helper, proto = onnx(), onnx("onnx_pb").TensorProto
    graph = helper.make_graph(
        [helper.make_node(operator, ["image"], ["boxes"], domain=domain)],
        "foreign",
        [helper.make_tensor_value_info("image", proto.UINT8, [1, 300, 300, 3])],
        [helper.make_tensor_value_info("boxes", proto.FLOAT, [1, 1917, 4])],
    )
    path = save(tmp_path / "foreign.onnx", graph, domains=[domain] if domain else [])
    assert told in fault(path)


def test_the_metadata_of_a_file_is_read() -> None:
    found = inspect_file(NETWORK)
    assert (found.ir_version, found.opsets, found.external) == (8, {"": 15}, frozenset())
    assert ("", "QuantizeLinear") in found.operators
    assert found.largest_int8 == 127
    assert found.may_saturate


@given(st.binary(max_size=300), st.integers(0, 3000))
def test_arbitrary_bytes_raise_no_other_error(
    tmp_path_factory: pytest.TempPathFactory, changed: bytes, place: int
) -> None:
    content = bytearray(NETWORK_HEAD)
    content[place : place + len(changed)] = changed
    path = tmp_path_factory.getbasetemp() / "changed.onnx"
    path.write_bytes(content)
    with contextlib.suppress(ModelError):
        assert inspect_file(path).operators


NETWORK_HEAD = NETWORK.read_bytes()[:3000]
