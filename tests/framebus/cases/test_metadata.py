"""Metadata: what is published can be read, and what could not be read is refused before it is published."""

from __future__ import annotations

import datetime
from collections import OrderedDict
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from framebus import FrameFormat, InvalidMetadata, Publisher, ReceiveTimeout, Subscriber
from framebus.ring.layout import MAX_METADATA_BYTES
from tests.framebus.cases.support import SMALL
from tests.support import publish

PIXELS = np.zeros((4, 6, 3), np.uint8)


def nested(depth: int, key: Any = "x") -> Any:
    content: Any = 1
    for _ in range(depth):
        content = {key: content}
    return content


itself: dict[str, Any] = {}
itself["x"] = itself
UNREADABLE: dict[str, Any] = {
    "an int as a key": {1: "x"},
    "None as a key": {None: 1},
    "a tuple as a key": {(1, 2): 3},
    "a float as a key": {1.5: 1},
    "an int as a nested key": {"x": [{"y": {1: 2}}]},
    "a set": {"x": {1, 2}},
    "a datetime": {"x": datetime.datetime.now(datetime.UTC)},
    "a surrogate": {"x": "\ud800"},
    "a surrogate as a key": {"\ud800": 1},
    "a number of 70 bits": {"x": 1 << 70},
    "a numpy number": {"x": np.float32(1)},
    "an array": {"x": PIXELS},
    "an object": {"x": object()},
    "deeper than msgpack goes": nested(600),
    "a map of itself": itself,
    "too large": {"x": b"y" * MAX_METADATA_BYTES},
    "a list": [1, 2],
    "an empty list": [],
    "a string": "x",
    "a number": 0,
}
READABLE: list[Mapping[str, Any]] = [
    {},
    {"x": None, "y": [True, 1.5, -1, "é\0", b"\xff"]},
    {"": 1},
    {"x": "y" * (MAX_METADATA_BYTES - 6)},
    nested(250),
    OrderedDict(x=1),
    MappingProxyType({"x": {"y": [[]]}}),
]


@pytest.mark.usefixtures("each_steps")
@pytest.mark.parametrize("metadata", UNREADABLE.values(), ids=UNREADABLE)
def test_metadata_that_no_subscriber_could_read_is_rejected(stream: str, metadata: Any) -> None:
    with Publisher(stream, SMALL) as publisher, Subscriber(stream) as subscriber:
        with pytest.raises(InvalidMetadata, match="metadata"):
            publisher.publish(PIXELS, metadata=metadata)
        for touch in (True, False):
            with pytest.raises(InvalidMetadata, match="metadata"), publisher.loan() as loan:  # noqa: PT012
                loan.metadata = metadata
                if touch:
                    loan.pixels[:] = 1
        assert publisher.statistics.abandoned == 2
        with pytest.raises(ReceiveTimeout):
            subscriber.receive(0)
        publish(publisher)
        assert subscriber.receive(5).metadata == {}


@pytest.mark.usefixtures("each_steps")
@pytest.mark.parametrize("metadata", READABLE, ids=range(len(READABLE)))
def test_published_metadata_is_read_unchanged(stream: str, metadata: Mapping[str, Any]) -> None:
    with Publisher(stream, SMALL) as publisher, Subscriber(stream) as subscriber:
        publisher.publish(PIXELS, metadata=metadata)
        assert subscriber.receive(5).metadata == metadata
        with publisher.loan() as loan:
            loan.pixels[:] = 1
            loan.metadata = metadata
        assert subscriber.receive(5).metadata == metadata


def test_none_means_empty_metadata(stream: str) -> None:
    with Publisher(stream, FrameFormat(2, 2)) as publisher, Subscriber(stream) as subscriber:
        with publisher.loan() as loan:
            loan.metadata = None  # type: ignore[assignment]
        assert subscriber.receive(5).metadata == {}
