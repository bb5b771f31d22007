"""Inspect a model's file before ONNX Runtime loads it.

ONNX Runtime reports a web page, a Git LFS pointer and a truncated download alike, as a failure of its parser. This
module reads the few fields of the ONNX format that distinguish them and decide how to load the model.

Source: onnx/onnx.proto of the ONNX project, whose field numbers are named below.
"""

from __future__ import annotations

import mmap
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from services.detector.models.errors import ModelError

# Fields of the messages of onnx.proto.
MODEL_IR_VERSION, MODEL_PRODUCER, MODEL_GRAPH, MODEL_OPSET, MODEL_METADATA = 1, 2, 7, 8, 14
GRAPH_NODE, GRAPH_INITIALIZER = 1, 5
NODE_OPERATOR, NODE_DOMAIN = 4, 7
OPSET_DOMAIN, OPSET_VERSION = 1, 2
TENSOR_TYPE, TENSOR_RAW, TENSOR_EXTERNAL = 2, 9, 13
ENTRY_KEY, ENTRY_VALUE = 1, 2
TYPE_INT8 = 3
VARINT, FIXED_64, LENGTH, FIXED_32 = 0, 1, 2, 5
"""Wire types of protocol buffers."""
LARGEST_7_BIT = 64
"""Largest magnitude of a weight of 7 bits: two products with uint8 activations then fit into 16 bits, 2 * 255 * 64."""
QUANTISED = frozenset({"QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger"})
"""Operators that quantise activations, not only weights."""


class _Malformed(Exception):
    """The bytes are not a valid protocol buffer."""


class _Truncated(Exception):
    """A field extends beyond the end of the file."""


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """The relevant content of an ONNX file."""

    ir_version: int = 0
    producer: str = ""
    opsets: dict[str, int] = field(default_factory=dict)
    """Version of each set of operators, by domain; the domain of ONNX's own is empty."""
    metadata: dict[str, str] = field(default_factory=dict)
    operators: frozenset[tuple[str, str]] = frozenset()
    """Domain and name of each operator of the graph."""
    external: frozenset[str] = frozenset()
    """External files that hold weights."""
    runtime_format: bool = False
    """Whether it has ONNX Runtime's own format (``.ort``); the other fields are then empty."""
    largest_int8: int | None = None
    """Largest magnitude of the int8 weights of a graph with quantised activations; None without such weights."""

    @property
    def may_saturate(self) -> bool:
        """Whether 16-bit sums of two products of uint8 activations and int8 weights can overflow."""
        return self.largest_int8 is not None and self.largest_int8 > LARGEST_7_BIT


def inspect_file(path: Path) -> OnnxFile:
    """Inspect an ONNX file.

    Raises:
        ModelError: The file cannot be read, is not an ONNX file, is truncated, or lacks the files with its weights.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            content: mmap.mmap | bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
    except OSError as error:
        raise ModelError(f"the model {path} cannot be read: {error.strerror}") from None
    # Do not close the mapping explicitly: an exception's traceback may still hold a view of it.
    found = _inspect(path, memoryview(content))
    for name in sorted(found.external):
        if not (path.parent / name).is_file():
            raise ModelError(f"the model {path} keeps its weights in {name}, which is not beside it: copy both files")
    return found


def _inspect(path: Path, view: memoryview) -> OnnxFile:
    # Recognise foreign files first: the parser would call each of them malformed, which does not say what to do.
    kind = _foreign_kind(path, bytes(view[:512]))
    if kind:
        raise ModelError(f"the model {path} is not a usable ONNX file: it is {kind}")
    # The identifier of the FlatBuffers schema of ONNX Runtime's own format.
    if bytes(view[4:8]) == b"ORTM":
        return OnnxFile(runtime_format=True)
    try:
        found = _parse(view)
    except _Truncated:
        raise ModelError(
            f"the model {path} is not a usable ONNX file: it is cut off after {len(view)} bytes, so copy it again"
        ) from None
    except (_Malformed, UnicodeDecodeError):
        raise ModelError(
            f"the model {path} is not a usable ONNX file: its {len(view)} bytes are of an unknown kind"
        ) from None
    if not found.ir_version or not found.operators:
        raise ModelError(f"the model {path} is not a usable ONNX file: it has no graph")
    return found


def _foreign_kind(path: Path, head: bytes) -> str | None:
    """Return what a file is that is known not to be ONNX, and what to do."""
    text = head.lstrip().lower()
    kinds = (
        (not head, "empty, so copy it again"),
        (
            head.startswith(b"version https://git-lfs"),
            "a Git LFS pointer, so fetch the file with 'git lfs pull'",
        ),
        (
            text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")),
            "a web page, so download the file itself by its raw link",
        ),
        (head.startswith(b"\x80") and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"), _CHECKPOINT),
        (head.startswith(b"\x1f\x8b"), "a gzip archive, so unpack it"),
        (head[4:8] == b"TFL3", "a TensorFlow Lite model, so export the network to ONNX instead"),
        (head.startswith(b"\x89HDF"), "an HDF5 file such as Keras writes, so export the network to ONNX instead"),
        (head.startswith((b"ftrt", b"ptrt")), "a TensorRT engine, so take the ONNX file that it was built from"),
        (text.startswith((b"{", b"[")), "JSON text"),
        (head[8:10] == b'{"', "a safetensors file of weights alone, so export the network to ONNX"),
    )
    for matches, kind in kinds:
        if matches:
            return kind
    if head.startswith(b"PK\x03\x04"):
        return _kind_of_zip(path)
    return None


_CHECKPOINT = "a PyTorch checkpoint, so export it to ONNX with the program that trained it"


def _kind_of_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return "a zip archive that is cut off, so copy it again"
    if any(name.endswith("data.pkl") for name in names):
        return _CHECKPOINT
    return "a zip archive, so unpack it"


def _parse(view: memoryview) -> OnnxFile:
    opsets: dict[str, int] = {}
    metadata: dict[str, str] = {}
    operators: set[tuple[str, str]] = set()
    external: set[str] = set()
    int8: list[int] = []
    ir_version, producer = 0, ""
    for number, value in _fields(view):
        if number == MODEL_IR_VERSION and isinstance(value, int):
            ir_version = value
        elif isinstance(value, int):
            continue
        elif number == MODEL_PRODUCER:
            producer = _text(value)
        elif number == MODEL_OPSET:
            opset = dict(_fields(value))
            domain, version = opset.get(OPSET_DOMAIN, b""), opset.get(OPSET_VERSION, 0)
            opsets[_text(domain) if not isinstance(domain, int) else ""] = version if isinstance(version, int) else 0
        elif number == MODEL_METADATA:
            key, text = _entry(value)
            metadata[key] = text
        elif number == MODEL_GRAPH:
            _parse_graph(value, operators, external, int8)
    quantised = any(operator in QUANTISED for _, operator in operators)
    largest = max(int8) if quantised and int8 else None
    return OnnxFile(
        ir_version, producer, opsets, metadata, frozenset(operators), frozenset(external), largest_int8=largest
    )


def _parse_graph(graph: memoryview, operators: set[tuple[str, str]], external: set[str], int8: list[int]) -> None:
    for number, value in _fields(graph):
        if isinstance(value, int):
            continue
        if number == GRAPH_NODE:
            node = {key: part for key, part in _fields(value) if key in (NODE_OPERATOR, NODE_DOMAIN)}
            domain, operator = node.get(NODE_DOMAIN, b""), node.get(NODE_OPERATOR, b"")
            if isinstance(domain, int) or isinstance(operator, int):
                raise _Malformed
            operators.add((_text(domain), _text(operator)))
        elif number == GRAPH_INITIALIZER:
            # The fields of a message may be in any order, so read all of them before their values are used.
            tensor = list(_fields(value))
            for key, part in tensor:
                if key == TENSOR_EXTERNAL and not isinstance(part, int):
                    name, text = _entry(part)
                    if name == "location":
                        external.add(text)
                elif key == TENSOR_RAW and not isinstance(part, int) and (TENSOR_TYPE, TYPE_INT8) in tensor and part:
                    weights = np.frombuffer(part, np.int8)
                    # As Python's integers: the magnitude of -128 does not fit into int8.
                    int8.append(max(int(weights.max()), -int(weights.min())))


def _entry(value: memoryview) -> tuple[str, str]:
    """Return key and value of a ``StringStringEntryProto``."""
    entry = {key: part for key, part in _fields(value) if not isinstance(part, int)}
    return _text(entry.get(ENTRY_KEY, b"")), _text(entry.get(ENTRY_VALUE, b""))


def _text(value: memoryview | bytes) -> str:
    return str(value, "utf-8")


def _fields(view: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield number and value of each field of a message: an integer, or the bytes of a length-delimited field."""
    position, end = 0, len(view)
    while position < end:
        tag, position = _varint(view, position)
        number, wire_type = tag >> 3, tag & 7
        if not number:
            raise _Malformed
        if wire_type == VARINT:
            value, position = _varint(view, position)
            yield number, value
            continue
        if wire_type == LENGTH:
            length, position = _varint(view, position)
        elif wire_type in (FIXED_64, FIXED_32):
            length = 8 if wire_type == FIXED_64 else 4
        else:
            raise _Malformed
        if position + length > end:
            raise _Truncated
        yield number, view[position : position + length]
        position += length


def _varint(view: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(view):
        byte = view[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:  # a varint holds at most 64 bits, in ten bytes
            raise _Malformed
    raise _Truncated
