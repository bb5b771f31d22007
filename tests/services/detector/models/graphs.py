"""Small ONNX files that give planted boxes for any picture, and the real weights beside the checkout."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.support import ROOT, lacks

WEIGHTS = ROOT.parent / "shared" / "models"
Plant = Mapping[Any, float]
"""Values by place, a tuple of indices."""


def weights(name: str) -> Path:
    """Return a file of real weights; skip the test if it is not beside the checkout."""
    path = WEIGHTS / name
    if not path.is_file():
        lacks(f"the weights {name} are not in ../shared/models beside the checkout: put them there")
    return path


def onnx(part: str = "helper") -> Any:
    """Return a module of the package onnx; skip the test if it is not installed."""
    try:
        return importlib.import_module(f"onnx.{part}")
    except ImportError:
        return lacks("the package onnx is not installed: run 'make check', which installs what the tests need")


@dataclass(frozen=True)
class Output:
    """An output with values at some places and zeros elsewhere."""

    name: str
    shape: Sequence[int]
    plant: Plant
    dtype: str = "float32"
    declared: Sequence[int | str] | None = None
    """The shape that the file declares; None for the real one."""


@dataclass(frozen=True)
class Input:
    name: str
    shape: Sequence[int | str]
    dtype: str = "float32"


def planted(
    path: Path,
    inputs: Sequence[Input],
    outputs: Sequence[Output],
    metadata: Mapping[str, str] | None = None,
    *,
    opset: int = 17,
    ir_version: int = 9,
) -> Path:
    """Write a file whose outputs are the same for every picture."""
    helper, proto, numpy_helper = onnx(), onnx("onnx_pb").TensorProto, onnx("numpy_helper")
    kinds = {"float32": proto.FLOAT, "float16": proto.FLOAT16, "uint8": proto.UINT8, "int64": proto.INT64}
    kinds["float64"] = proto.DOUBLE
    nodes, constants = [], []
    for one in outputs:
        constants += [
            numpy_helper.from_array(np.array(one.shape, np.int64), f"{one.name}_shape"),
            numpy_helper.from_array(np.array(list(one.plant), np.int64), f"{one.name}_places"),
            numpy_helper.from_array(np.array(list(one.plant.values()), one.dtype), f"{one.name}_values"),
        ]
        zero = helper.make_tensor("zero", kinds[one.dtype], [1], [0])
        nodes.append(helper.make_node("ConstantOfShape", [f"{one.name}_shape"], [f"{one.name}_zeros"], value=zero))
        parts = [f"{one.name}_zeros", f"{one.name}_places", f"{one.name}_values"]
        nodes.append(helper.make_node("ScatterND", parts, [one.name]))
    graph = helper.make_graph(
        nodes,
        "planted",
        [helper.make_tensor_value_info(one.name, kinds[one.dtype], one.shape) for one in inputs],
        [helper.make_tensor_value_info(one.name, kinds[one.dtype], one.declared or one.shape) for one in outputs],
        constants,
    )
    return save(path, graph, metadata, opset=opset, ir_version=ir_version)


def save(
    path: Path,
    graph: Any,
    metadata: Mapping[str, str] | None = None,
    *,
    opset: int = 17,
    ir_version: int = 9,
    domains: Sequence[str] = (),
) -> Path:
    """Write a graph as an ONNX file."""
    helper = onnx()
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)
    helper.set_model_props(model, dict(metadata or {}))
    path.write_bytes(model.SerializeToString())
    return path


BOX = (280.0, 220.0, 360.0, 420.0)
"""Left, top, right and bottom of the planted person, in a picture of 640 x 640."""
IMAGE = Input("images", [1, 3, 640, 640])


def ultralytics(path: Path, classes: int = 80, **changes: Any) -> Path:
    """Return a person in the format of YOLOv8 to YOLO11."""
    dtype = changes.get("dtype", "float32")
    plant = {(0, 0, 10): 320.0, (0, 1, 10): 320.0, (0, 2, 10): 80.0, (0, 3, 10): 200.0, (0, 4, 10): 0.9}
    output = Output("output0", [1, 4 + classes, 8400], plant, dtype, changes.get("declared"))
    image = Input("images", changes.get("image", IMAGE.shape), dtype)
    return planted(path, [image], [output], changes.get("metadata"))


SSD_IMAGE = Input("image", [1, 300, 300, 3], "uint8")
GOOD_BOX = {(0, 0, 0): 0.3, (0, 0, 1): 0.4, (0, 0, 2): 0.7, (0, 0, 3): 0.5}
OTHER_BOX = {(0, 1, 0): 0.3, (0, 1, 1): 0.1, (0, 1, 2): 0.7, (0, 1, 3): 0.2}


def ssd(path: Path, boxes: Plant, scores: Plant, image: Input = SSD_IMAGE, **changes: Any) -> Path:
    """Return boxes and scores in the format of SSDLite."""
    outputs = [Output("boxes", [1, 1917, 4], boxes), Output("scores", [1, 1917, 90], scores)]
    return planted(path, [image], outputs, **changes)


def colours(path: Path, kind: str = "shares", image: Input | None = None, **changes: Any) -> Path:
    """Write a classifier that distinguishes red, green and blue by the mean of each channel.

    Args:
        path: The file to write.
        kind: What it gives: ``shares`` are probabilities, and NaN for a black picture; ``logits`` are ten
            times the means; ``one`` is a single class; ``joined`` is one row for all pictures; ``maps`` has a third
            axis; ``number`` is the class's number; ``two`` has two outputs.
        image: Its input; by default RGB, float32, of any number of pictures.
        changes: Metadata of the file.
    """
    helper, proto, numpy_helper = onnx(), onnx("onnx_pb").TensorProto, onnx("numpy_helper")
    image = image or Input("images", ["N", 3, 32, 32])
    kinds = {"float32": proto.FLOAT, "float16": proto.FLOAT16, "uint8": proto.UINT8}
    made = proto.FLOAT if image.dtype == "uint8" else kinds[image.dtype]
    value = numpy_helper.from_array(np.array(10, "float16" if made == proto.FLOAT16 else "float32"), "ten")
    axis = numpy_helper.from_array(np.array([1], np.int64), "axis")
    nodes = [
        helper.make_node("Cast", [image.name], ["floats"], to=made),
        helper.make_node("ReduceMean", ["floats"], ["means"], axes=[2, 3] if image.shape[1] == 3 else [1, 2],
                         keepdims=0),
        helper.make_node("ReduceSum", ["means", "axis"], ["sums"], keepdims=1),
    ]  # fmt: skip
    last = {
        "shares": helper.make_node("Div", ["means", "sums"], ["out"]),
        "logits": helper.make_node("Mul", ["means", "ten"], ["out"]),
        "one": helper.make_node("Identity", ["sums"], ["out"]),
        "joined": helper.make_node("ReduceMean", ["means"], ["out"], axes=[0], keepdims=1),
        "maps": helper.make_node("Unsqueeze", ["means", "axis"], ["out"]),
        "number": helper.make_node("ArgMax", ["means"], ["out"], axis=1, keepdims=1),
        "two": helper.make_node("TopK", ["means", "axis"], ["out", "more"], axis=1),
    }[kind]
    outputs = [(name, proto.INT64 if kind == "number" or name == "more" else made) for name in last.output]
    graph = helper.make_graph(
        [*nodes, last],
        "colours",
        [helper.make_tensor_value_info(image.name, kinds[image.dtype], image.shape)],
        [helper.make_tensor_value_info(name, type_, None) for name, type_ in outputs],
        [value, axis],
    )
    return save(path, graph, changes.get("metadata"))
