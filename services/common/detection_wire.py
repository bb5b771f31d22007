"""Encode and decode the messages of docs/detections.md.

Version 2 is written and read. Version 1 is read as well, and written for streamers that know no other version, to
allow upgrading detector and streamer one at a time and in any order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import msgpack

VERSION: Final = 2
OLD_VERSION: Final = 1
MAX_DETECTIONS: Final = 1000
MAX_TILES: Final = 4096
MAX_MESSAGE_BYTES: Final = 1 << 18


class MalformedDetections(ValueError):
    """The message is not a detections message of a supported version."""


class BadBox(ValueError):
    """A box has a number that is not finite or out of range, or its edges are swapped."""


@dataclass(frozen=True, slots=True)
class Detection:
    """One object found in a frame, or known to be in it."""

    label: str
    """Class of the object, by the model's name for it."""
    score: float
    """Confidence of the model, 0 to 1."""
    x_px: float
    """Left edge, in pixels of the full frame."""
    y_px: float
    """Top edge, in pixels of the full frame."""
    width_px: float
    """Width of the box."""
    height_px: float
    """Height of the box."""
    track_id: int = 0
    """Number that identifies the object from frame to frame; 0 if the object is not tracked."""
    angles: tuple[float, float, float, float] | None = None
    """Yaw of the left edge, pitch of the top, yaw of the right edge and pitch of the bottom, in rad, as defined by
    :class:`~services.common.geometry.PanoramaGeometry`; ``None`` for a frame without a geometry."""
    age_ms: float = 0.0
    """Milliseconds from the object's last sighting to the capture of the frame; 0 if it was found in this frame."""
    sub_class: str | None = None
    """Class by the second stage, such as ``helmet``; ``None`` if there is no second stage or it is not certain."""
    sub_score: float | None = None
    """Confidence of the second stage, 0 to 1."""


@dataclass(frozen=True, slots=True)
class TileAge:
    """Age of a tile: the time since the detector last ran on it."""

    xyxy: tuple[int, int, int, int]
    """Left, top, right and bottom, in pixels of the full frame."""
    age_ms: float | None
    """Milliseconds since the capture of the frame in which the detector last ran on it; ``None`` if it never did."""


@dataclass(frozen=True, slots=True)
class Detections:
    """All objects in one frame."""

    stream: str
    """Stream of the frame."""
    instance: str
    """Name of the detector."""
    epoch: int
    """Epoch of the frame's publisher."""
    sequence: int
    """Sequence of the frame."""
    captured_ns: int
    """When the frame was captured, CLOCK_MONOTONIC."""
    detected_ns: int
    """When the detector found the objects, CLOCK_MONOTONIC."""
    frame_height_px: int
    """Height of the frame that the boxes refer to."""
    frame_width_px: int
    """Width of that frame."""
    objects: tuple[Detection, ...]
    """The objects, by descending score."""
    model: str = ""
    """Name and version of the model; empty in messages of version 1."""
    tracker: int = 0
    """Epoch of the tracker. Track numbers restart in each epoch, so instance, tracker and track together identify an
    object. 0 in messages of version 1."""
    tiles: tuple[TileAge, ...] = ()
    """Every tile of the frame."""
    dropped: int = 0
    """Number of invalid boxes and invalid second classes that were dropped, by the detector or by the reader."""


_PLAIN: Final = {
    "stream": str,
    "instance": str,
    "epoch": int,
    "sequence": int,
    "captured_ns": int,
    "detected_ns": int,
    "frame_height_px": int,
    "frame_width_px": int,
}
_ADDED: Final = {"model": str, "tracker": int, "dropped": int}
_NUMBERS: Final = (float, int)


def to_map(detections: Detections) -> dict[str, Any]:
    """Return the content of a version 2 message. Objects that :func:`is_good` rejects are counted in ``dropped``."""
    return {
        "version": VERSION,
        **{name: getattr(detections, name) for name in (*_PLAIN, *_ADDED)},
        "dropped": detections.dropped + count_bad(detections),
        "tiles": [{"xyxy": tile.xyxy, "age_ms": tile.age_ms} for tile in detections.tiles],
        "objects": [_object(found) for found in detections.objects if is_good(found)],
    }


def pack(detections: Detections) -> bytes:
    """Return the message of version 2."""
    content: bytes = msgpack.packb(to_map(detections))
    return content


def pack_old(detections: Detections) -> bytes:
    """Return the message of version 1: an array of the version, the plain fields, and an array for each object."""
    objects = [
        (one.label, one.score, one.x_px, one.y_px, one.width_px, one.height_px, one.track_id)
        for one in detections.objects
        if is_good(one)
    ]
    content: bytes = msgpack.packb([OLD_VERSION, *(getattr(detections, name) for name in _PLAIN), objects])
    return content


def is_good(found: Detection) -> bool:
    """Return whether all numbers of an object are finite and in range."""
    try:
        _check_object(found)
    except BadBox:
        return False
    return True


def count_bad(detections: Detections) -> int:
    """Return how many objects are dropped or lose their second class."""
    return sum(not is_good(found) or not _is_sub_good(found) for found in detections.objects)


def unpack(message: bytes) -> Detections:
    """Parse and validate an untrusted message of version 2 or 1. Bad boxes are dropped and counted in ``dropped``.

    Raises:
        MalformedDetections: The message is not msgpack, has an unsupported version or is too large, or a field that
            all boxes share has a wrong type or range.
    """
    if len(message) > MAX_MESSAGE_BYTES:
        raise MalformedDetections(f"a message of {len(message)} bytes; at most {MAX_MESSAGE_BYTES} are read")
    try:
        # Messages have no extension types, which msgpack would unpack into other objects.
        content: Any = msgpack.unpackb(message, max_ext_len=0)
    except (ValueError, msgpack.UnpackException) as error:
        raise MalformedDetections(f"not msgpack: {error}") from None
    if isinstance(content, dict) and content.get("version") == VERSION:
        return _unpack_map(content)
    if isinstance(content, list) and len(content) == len(_PLAIN) + 2 and content[0] == OLD_VERSION:
        # The order of version 1 is that of _PLAIN; the last value, the objects, has no name there.
        plain = dict(zip(_PLAIN, content[1:], strict=False))
        return _unpack_objects(Detections(**_fields(plain, _PLAIN), objects=()), content[-1], _read_old_object)
    raise MalformedDetections(f"not a detections message of version {VERSION} or {OLD_VERSION}")


def _object(found: Detection) -> dict[str, Any]:
    content: dict[str, Any] = {
        "xyxy": (found.x_px, found.y_px, found.x_px + found.width_px, found.y_px + found.height_px),
        "class": found.label,
        "score": found.score,
        "track": found.track_id,
        "age_ms": found.age_ms,
    }
    if found.angles is not None:
        content["angles"] = found.angles
    if found.sub_class is not None and _is_sub_good(found):
        content |= {"sub_class": found.sub_class, "sub_score": found.sub_score}
    return content


def _unpack_map(content: Mapping[Any, Any]) -> Detections:
    tiles = content.get("tiles")
    if not isinstance(tiles, list) or len(tiles) > MAX_TILES:
        raise MalformedDetections(f"tiles are not a list of at most {MAX_TILES}")
    read = Detections(
        **_fields(content, _PLAIN), **_fields(content, _ADDED), tiles=tuple(map(_read_tile, tiles)), objects=()
    )
    return _unpack_objects(read, content.get("objects"), _read_object)


def _fields(content: Mapping[Any, Any], types: Mapping[str, type]) -> dict[str, Any]:
    for name, wanted in types.items():
        value = content.get(name)
        # Compare types exactly: isinstance() would accept True as an int.
        if type(value) is not wanted or (isinstance(value, int) and value < 0):
            raise MalformedDetections(f"{name} is missing, of a wrong type or negative")
    return {name: content[name] for name in types}


def _unpack_objects(read: Detections, objects: object, reader: Callable[[Any], Detection]) -> Detections:
    if not isinstance(objects, list) or len(objects) > MAX_DETECTIONS:
        raise MalformedDetections(f"objects are not a list of at most {MAX_DETECTIONS} objects")
    good = []
    bad = 0
    for content in objects:
        try:
            found = _check_object(reader(content))
        except BadBox:
            bad += 1
            continue
        if not _is_sub_good(found):  # the box itself is good, so keep it
            bad += 1
            found = replace(found, sub_class=None, sub_score=None)
        good.append(found)
    return replace(read, objects=tuple(good), dropped=read.dropped + bad)


def _read_object(content: Any) -> Detection:
    if not isinstance(content, dict):
        raise BadBox("not a map")
    left, top, right, bottom = _four(content.get("xyxy"))
    angles = content.get("angles")
    # The fields are still untrusted here; _check_object validates them.
    label, score, track_id, age_ms = (content.get(key) for key in ("class", "score", "track", "age_ms"))
    size = (right - left, bottom - top)
    fields: list[Any] = [label, score, left, top, *size, track_id, None if angles is None else _four(angles), age_ms]
    fields += [content.get("sub_class"), content.get("sub_score")]
    return Detection(*fields)


def _read_old_object(content: Any) -> Detection:
    if not isinstance(content, list) or len(content) != 7:
        raise BadBox("not an array of seven values")
    return Detection(*content)


def _read_tile(content: Any) -> TileAge:
    if not isinstance(content, dict):
        raise MalformedDetections("a tile that is not a map")
    xyxy, age_ms = content.get("xyxy"), content.get("age_ms")
    whole = isinstance(xyxy, list) and len(xyxy) == 4 and all(type(value) is int for value in xyxy)
    if not isinstance(xyxy, list) or not whole or not (age_ms is None or _is_at_least_0(age_ms)):
        raise MalformedDetections("a tile that is not four whole numbers and an age")
    return TileAge((xyxy[0], xyxy[1], xyxy[2], xyxy[3]), age_ms)


def _four(values: Any) -> tuple[float, float, float, float]:
    if not isinstance(values, list) or len(values) != 4 or any(type(value) not in _NUMBERS for value in values):
        raise BadBox("not four numbers")
    first, second, third, fourth = values
    return first, second, third, fourth


def _check_object(found: Detection) -> Detection:
    """Return the object, or raise BadBox. Its fields are untrusted and may be of any type."""
    # An exact type, because True would pass for a number.
    numbers = (found.score, found.x_px, found.y_px, found.width_px, found.height_px, *(found.angles or ()))
    if not isinstance(found.label, str) or type(found.track_id) is not int or found.track_id < 0:
        raise BadBox("a class or track of a wrong type")
    if any(type(number) not in _NUMBERS or not math.isfinite(number) for number in numbers):
        raise BadBox("a number that is not finite")
    if not 0 <= found.score <= 1 or found.width_px < 0 or found.height_px < 0 or not _is_at_least_0(found.age_ms):
        raise BadBox("a number that is out of its range")
    return found


def _is_sub_good(found: Detection) -> bool:
    """Return whether the second class and score are both absent, or a name and a number from 0 to 1.

    Both are untrusted and may be of any type.
    """
    if found.sub_class is None and found.sub_score is None:
        return True
    score: object = found.sub_score
    return isinstance(found.sub_class, str) and isinstance(score, float | int) and _is_at_least_0(score) and score <= 1


def _is_at_least_0(value: object) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
