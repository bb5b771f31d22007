"""References: messages that locate and describe an object in the storage. docs/relay.md specifies their schema.

A relay sends references to frames to detectors; a detector sends references to results to the readers of results. Each
reference is a JSON object. All input from a broker is untrusted.
"""

from __future__ import annotations

import calendar
import hashlib
import json
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, Self

import numpy as np

from services.common import geometry
from services.common.config import STREAM_NAME

VERSION: Final = 1
MAX_REFERENCE_BYTES: Final = 1 << 14
MAX_OBJECT_BYTES: Final = 1 << 28
FRAMES, RESULTS = "frames", "results"
"""The two kinds of objects, which are the first part of their addresses."""
FORMATS: Final = ("jpeg", "png", "raw", "lz4", "zstd")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_PART: Final = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9._+-]{0,199}")
"""A part of an address. It must not begin with a dot, so that no address leads outside of the storage."""
_STREAM: Final = re.compile(STREAM_NAME)
_DTYPE: Final = re.compile(r"[|<>=]?[biufc][1-9][0-9]?")
_NUMBERS: Final = ("size_bytes", "epoch", "sequence", "captured_ns", "captured_wall_ns")
_BIGGEST: Final = (1 << 64) - 1
"""Largest number. JSON has no limit, but the ring's numbers have 64 bits."""
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._+-]+")
SLICE_S: Final = 60
"""Length of a slice: the addresses of frames that were captured in the same minute share a prefix."""
_SLICE: Final = re.compile(r"\d{8}T\d{4}Z")
_SLICE_FORMAT: Final = "%Y%m%dT%H%MZ"


class BadReference(ValueError):
    """The message is not a valid reference; the text is one sentence."""


@dataclass(frozen=True, slots=True)
class Address:
    """Fields that all references share."""

    address: str
    """Key within the configured storage, such as ``frames/panorama/20261129T2051Z-7/42-0f3a.jpeg``; never a URL."""
    size_bytes: int
    sha256: str
    """SHA-256 of the object's bytes, in hexadecimal digits."""


@dataclass(frozen=True, slots=True)
class FrameReference(Address):
    """Location of a frame, and the content of its slot's header."""

    stream: str
    epoch: int
    sequence: int
    captured_ns: int
    """CLOCK_MONOTONIC of the cameras' host; not comparable with that of another host."""
    captured_wall_ns: int
    """The same instant, in nanoseconds since 1970."""
    format: str
    """One of :data:`FORMATS`."""
    shape: tuple[int, ...]
    dtype: str
    pixel_format: str
    geometry: Mapping[str, Any] | None = None
    """Geometry of the panorama, as returned by
    :meth:`services.common.geometry.PanoramaGeometry.to_metadata`."""
    deadline_wall_ns: int | None = None
    """Deadline for a result, in nanoseconds since 1970; None if a result is useful however late."""
    attempts: int = 0
    """Deliveries after which the broker dead-letters the message; 0 if not known."""

    @property
    def key(self) -> str:
        """The frame's name in messages and logs."""
        return f"{self.stream}/{self.epoch}/{self.sequence}"

    def to_json(self) -> bytes:
        """Return the message."""
        return _to_json(self, FRAMES)

    @classmethod
    def from_json(cls, body: bytes) -> Self:
        """Parse and validate an untrusted message.

        Raises:
            BadReference: The message is not a reference to a frame, has an unsupported version, or points outside the
                storage.
        """
        content = _parse(body, FRAMES)
        shape = content.get("shape")
        if not isinstance(shape, list) or not 1 <= len(shape) <= 8 or not all(_is_number(side, 1) for side in shape):
            raise BadReference("shape is not a list of 1 to 8 whole numbers above 0")
        if content.get("format") not in FORMATS:
            raise BadReference(f"format is not one of {', '.join(FORMATS)}")
        dtype, pixel_format = content.get("dtype"), content.get("pixel_format")
        if not isinstance(dtype, str) or not _is_dtype(dtype):
            raise BadReference("dtype is not the name of a type of numbers, such as |u1")
        if not isinstance(pixel_format, str) or len(pixel_format) > 32:
            raise BadReference("pixel_format is not a text of at most 32 characters")
        deadline_wall_ns = content.get("deadline_wall_ns")
        if deadline_wall_ns is not None and not _is_number(deadline_wall_ns):
            raise BadReference("deadline_wall_ns is not a whole number")
        if (told := content.get("geometry")) is not None:
            try:
                geometry.PanoramaGeometry.from_metadata(told)
            except geometry.GeometryError as error:
                raise BadReference(str(error)) from None
        return cls(
            **_common(content, FRAMES),
            format=content["format"],
            shape=tuple(shape),
            dtype=dtype,
            pixel_format=pixel_format,
            geometry=told,
            deadline_wall_ns=deadline_wall_ns,
            attempts=_number(content, "attempts"),
        )


@dataclass(frozen=True, slots=True)
class ResultReference(Address):
    """Location of a detector's result for a frame."""

    stream: str
    epoch: int
    sequence: int
    captured_ns: int
    captured_wall_ns: int
    model: str
    """Name and version of the model."""
    group: str
    """Name of the detectors' group. The detectors of a group are interchangeable and share the work."""
    instance: str
    """Name of the detector that produced the result."""
    frame_address: str
    """Address of the frame's object."""

    @property
    def key(self) -> tuple[str, int, int, str]:
        """Identity of a result: results with equal keys are duplicates."""
        return self.stream, self.epoch, self.sequence, self.model

    def to_json(self) -> bytes:
        """Return the message."""
        return _to_json(self, RESULTS)

    @classmethod
    def from_json(cls, body: bytes) -> Self:
        """Parse and validate an untrusted message.

        Raises:
            BadReference: The message is not a reference to a result, has an unsupported version, or points outside the
                storage.
        """
        content = _parse(body, RESULTS)
        texts: dict[str, Any] = {}
        for name in ("model", "group", "instance"):
            value = content.get(name)
            if not isinstance(value, str) or len(value) > 256:
                raise BadReference(f"{name} is not a text of at most 256 characters")
            texts[name] = value
        frame_address = check_address(content.get("frame_address"), FRAMES)
        return cls(**_common(content, RESULTS), **texts, frame_address=frame_address)


def frame_address(stream: str, epoch: int, sequence: int, captured_wall_ns: int, *, encoding: str, sha256: str) -> str:
    """Return a frame's address. It includes a digest of the content, so that no object is ever overwritten."""
    return f"{FRAMES}/{stream}/{_slice(captured_wall_ns)}-{epoch}/{sequence}-{sha256[:16]}.{encoding}"


def result_prefix(stream: str, epoch: int, sequence: int, captured_wall_ns: int, model: str) -> str:
    """Return the prefix of the addresses of a frame's results by a model."""
    part = _UNSAFE.sub("_", model)
    if not _PART.fullmatch(part):  # too long, or with a dot first
        # A model may be named by its file, whose name may hold bytes that are not UTF-8, as surrogates.
        part = f"model-{hashlib.sha256(model.encode(errors='surrogatepass')).hexdigest()[:16]}"
    return f"{RESULTS}/{stream}/{_slice(captured_wall_ns)}-{epoch}/{sequence}/{part}/"


def slice_start_s(part: str) -> float | None:
    """Return the first instant of a slice, in seconds since 1970.

    Args:
        part: The third part of an address: a slice and an epoch.

    Returns:
        None if the part is not the name of a slice. Addresses had only the epoch there before they had slices.
    """
    name = part.partition("-")[0]
    if not _SLICE.fullmatch(name):
        return None
    try:
        return float(calendar.timegm(time.strptime(name, _SLICE_FORMAT)))
    except ValueError:  # such as a month 13
        return None


def _slice(captured_wall_ns: int) -> str:
    """Return the name of the slice of a frame: the minute of its capture, in UTC."""
    # A date, and not a number, so that the name cannot be an epoch, and operators can read it. The time of the capture,
    # and not that of the write, so that each worker computes the same prefix for a frame.
    return time.strftime(_SLICE_FORMAT, time.gmtime(captured_wall_ns // 10**9))


def trace_id(key: str) -> str:
    """Return a frame's W3C trace id. It is deterministic, so that all hosts compute the same, even after a restart."""
    return hashlib.sha256(key.encode()).hexdigest()[:32]


def check_address(address: object, kind: str) -> str:
    """Return an untrusted address.

    Raises:
        BadReference: The address is not that of an object of this kind within the storage.
    """
    if isinstance(address, str) and len(address) <= 1024:
        first, *parts = address.split("/")
        if first == kind and parts and all(_PART.fullmatch(part) for part in parts):
            return address
    raise BadReference(f"the address is not one of an object in {kind}/ of the storage, so nothing is fetched from it")


def _to_json(reference: FrameReference | ResultReference, kind: str) -> bytes:
    content = {"version": VERSION, "kind": kind}
    # Not asdict(), which copies the geometry's nested values one by one.
    content |= {field.name: getattr(reference, field.name) for field in fields(reference)}
    return json.dumps(content, separators=(",", ":")).encode()


def _parse(body: bytes, kind: str) -> dict[str, Any]:
    if len(body) > MAX_REFERENCE_BYTES:
        raise BadReference(f"a message of {len(body)} bytes, and a reference has at most {MAX_REFERENCE_BYTES}")
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):  # a hostile message may nest deeper than Python recurses
        raise BadReference("the message is not JSON") from None
    if not isinstance(content, dict) or "version" not in content or "kind" not in content:
        raise BadReference("the message is not a reference: it has no version and kind")
    # type() instead of isinstance(), because True is an int and equals 1.
    if type(content["version"]) is not int or content["version"] != VERSION:
        raise BadReference(
            f"the reference is of version {content['version']!r:.20}, and only {VERSION} is understood: "
            "update this service"
        )
    if content["kind"] != kind:
        raise BadReference(f"the reference is of kind {content['kind']!r:.20}, and {kind} are wanted here")
    return content


def _common(content: Mapping[str, Any], kind: str) -> dict[str, Any]:
    stream, sha256 = content.get("stream"), content.get("sha256")
    if not isinstance(stream, str) or not _STREAM.fullmatch(stream):
        raise BadReference("stream is not the name of a stream")
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise BadReference("sha256 is not 64 hexadecimal digits")
    # The size bounds the memory of a fetch, so it must not be taken from an untrusted message without a limit.
    if _number(content, "size_bytes") > MAX_OBJECT_BYTES:
        raise BadReference(f"an object of {content['size_bytes']} bytes; at most {MAX_OBJECT_BYTES} are fetched")
    return {
        "address": check_address(content.get("address"), kind),
        "sha256": sha256,
        "stream": stream,
        **{name: _number(content, name) for name in _NUMBERS},
    }


def _number(content: Mapping[str, Any], name: str) -> int:
    value: Any = content.get(name)
    if not _is_number(value):
        raise BadReference(f"{name} is not a whole number of 64 bits")
    return int(value)


def _is_number(value: Any, least: int = 0) -> bool:
    return type(value) is int and least <= value <= _BIGGEST


def _is_dtype(name: str) -> bool:
    if not _DTYPE.fullmatch(name):
        return False
    try:
        np.dtype(name)
    except TypeError:  # such as u3
        return False
    return True


def pixels_bytes(reference: FrameReference) -> int:
    """Return the size of the frame's decoded pixels.

    Raises:
        BadReference: The size exceeds the limit for decoded frames.
    """
    # Python's integers do not overflow, unlike numpy's.
    size = math.prod(reference.shape) * np.dtype(reference.dtype).itemsize
    if size > MAX_OBJECT_BYTES:
        raise BadReference(f"a frame of {size} bytes; at most {MAX_OBJECT_BYTES} are decoded")
    return size
