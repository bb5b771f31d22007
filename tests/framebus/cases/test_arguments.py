"""Arguments of every type: taken where they mean a number, refused at once where they do not."""

from __future__ import annotations

import asyncio
import math
import sys
import types
from typing import Any

import numpy as np
import pytest

from framebus import (
    FrameFormat,
    InvalidArgument,
    Publisher,
    ReceiveTimeout,
    Subscriber,
    UnsupportedEnvironment,
    companion_path,
    companion_paths,
)
from tests.framebus.cases.support import SMALL, by_type, descriptors, left_open
from tests.support import files_of, publish

HUGE = 10**5000
NUMBERS = [np.int64(6), np.uint8(6), np.array(6)]
NO_NUMBERS: list[Any] = [
    6.0,
    "6",
    None,
    b"6",
    [6],
    math.nan,
    math.inf,
    HUGE,
    -HUGE,
    -1,
    np.float64(6),
    np.array([6, 7]),
]
NO_TIMES: list[Any] = ["1", b"1", -0.1, math.nan, math.inf, -math.inf, HUGE, [1], 1j, np.array([1.0, 2.0]), object()]
NO_FLAGS: list[Any] = [np.array([1, 2])]


@pytest.mark.parametrize("value", NUMBERS)
def test_whole_numbers_of_numpy_are_whole_numbers(stream: str, value: Any) -> None:
    three: Any = np.uint8(3)
    few: Any = np.uint16(2)
    time: Any = np.float32(5)
    frame_format = FrameFormat(value, value, three)
    assert frame_format == FrameFormat(6, 6, 3)
    assert {type(size) for size in (frame_format.height, frame_format.width, frame_format.channels)} == {int}
    with (
        Publisher(stream, frame_format, slots=value, max_loans=few) as publisher,
        Subscriber(stream, max_leases=few, history=few) as subscriber,
    ):
        publish(publisher)
        assert subscriber.receive(time).pixels.shape == (6, 6, 3)


def test_the_size_of_narrow_numbers_does_not_overflow(stream: str) -> None:
    frame_format = FrameFormat(np.uint16(480), np.uint16(640), np.uint8(3))  # type: ignore[arg-type]
    assert frame_format.frame_bytes == 480 * 640 * 3
    with Publisher(stream, frame_format) as publisher:
        publish(publisher)


@pytest.mark.parametrize("value", NO_NUMBERS, ids=by_type)
def test_an_argument_that_is_not_a_whole_number_is_named(stream: str, value: Any) -> None:
    before = descriptors()
    for name in ("height", "width"):
        with pytest.raises(InvalidArgument, match=name):
            FrameFormat(**{"height": 4, "width": 6, name: value})
    if value is not None:
        with pytest.raises(InvalidArgument, match="channels"):
            FrameFormat(4, 6, value)
    for name in ("slots", "max_loans"):
        with pytest.raises(InvalidArgument, match=name):
            Publisher(stream, SMALL, **{name: value})
    with Publisher(stream, SMALL) as publisher:
        for name in ("max_leases", "history", "publisher_uid"):
            if name != "publisher_uid" or value is not None:
                with pytest.raises(InvalidArgument, match=name):
                    Subscriber(stream, **{name: value})
        if value is not None and not (isinstance(value, int) and abs(value) < 100):
            for name in ("captured_ns", "captured_wall_ns"):
                with pytest.raises(InvalidArgument, match=name):
                    publisher.publish(np.zeros((4, 6, 3), np.uint8), **{name: value})
    del publisher
    assert not left_open(before)


@pytest.mark.parametrize("value", NO_TIMES, ids=by_type)
def test_an_argument_that_is_not_a_time_is_named(stream: str, value: Any) -> None:
    with Publisher(stream, SMALL) as publisher, Subscriber(stream) as subscriber:
        for name in ("attach_timeout_s", "gone_after_s"):
            with pytest.raises(InvalidArgument, match=name):
                Subscriber(stream, **{name: value})
        for wait in (subscriber.receive, lambda timeout_s: publisher.loan(timeout_s=timeout_s)):
            with pytest.raises(InvalidArgument, match="timeout_s"):
                wait(value)
        with pytest.raises(InvalidArgument, match="timeout_s"):
            asyncio.run(subscriber.receive_async(value))
        with pytest.raises(InvalidArgument, match="attach_timeout_s"):
            asyncio.run(Subscriber.attach(stream, attach_timeout_s=value))
        with pytest.raises(ReceiveTimeout):
            subscriber.receive(0)
        publish(publisher)
        assert subscriber.receive(True).sequence == 1


@pytest.mark.parametrize("value", NO_FLAGS)
def test_a_value_that_is_not_a_bool_is_rejected_by_name(stream: str, value: Any) -> None:
    with pytest.raises(InvalidArgument, match="planar"):
        FrameFormat(4, 6, planar=value)
    with pytest.raises(InvalidArgument, match="keep_ring"):
        Publisher(stream, SMALL, keep_ring=value)
    assert files_of(stream) == []


@pytest.mark.parametrize(
    "value", [None, 5, 1.5, object, "U4", "datetime64[ns]", "S9999999999999", "(2,3)u1", ">u2", [1]]
)
def test_an_unknown_element_type_is_rejected(value: Any) -> None:
    with pytest.raises(InvalidArgument, match="values of a frame"):
        FrameFormat(4, 6, 3, value)


@pytest.mark.parametrize("value", [[1], {}, None, 5, b"bgr", "\n", "ä", np.array(["nv12", "x"])])
def test_an_invalid_pixel_format_is_rejected(value: Any) -> None:
    with pytest.raises(InvalidArgument, match="pixel format"):
        FrameFormat(4, 6, 3, "uint8", value)
    with pytest.raises(InvalidArgument, match="pixel format"):
        FrameFormat.of(np.zeros((6, 6), np.uint8), value)


@pytest.mark.parametrize("value", [None, 5, "x", [[1], [1, 2]], np.zeros((0, 3)), np.ndarray, object(), {1}, [[None]]])
def test_an_array_that_cannot_be_a_frame_has_no_format(value: Any) -> None:
    with pytest.raises(InvalidArgument):
        FrameFormat.of(value)


@pytest.mark.parametrize("value", [None, 5, "", "a/b", "..", b"name", "x" * 49, "\0", "é", ["a"], HUGE], ids=by_type)
def test_an_invalid_name_is_rejected(value: Any) -> None:
    before = descriptors()
    for use in (
        lambda: Publisher(value, SMALL),
        lambda: Subscriber(value, attach_timeout_s=0),
        lambda: Subscriber("test-none", name=value, attach_timeout_s=0),
        lambda: companion_path(value, "ring"),
        lambda: companion_paths(value, "*"),
    ):
        with pytest.raises(InvalidArgument):
            use()
    assert not left_open(before)


@pytest.mark.parametrize("value", [None, 5, "", "a/b", "\0"])
def test_a_suffix_or_pattern_names_one_file_in_dev_shm(stream: str, value: Any) -> None:
    with pytest.raises(InvalidArgument):
        companion_paths(stream, value)
    with pytest.raises(InvalidArgument):
        companion_path(stream, value)


@pytest.mark.parametrize("value", [None, 5, (4, 6, 3), "bgr", np.zeros((4, 6, 3), np.uint8)])
def test_an_argument_that_is_not_a_format_is_rejected(stream: str, value: Any) -> None:
    with pytest.raises(InvalidArgument, match="FrameFormat"):
        Publisher(stream, value)
    with Publisher(stream, SMALL) as publisher:
        if value is not None:
            with pytest.raises(InvalidArgument, match="FrameFormat"):
                publisher.loan(value)
        assert publish(publisher) == 1


@pytest.mark.usefixtures("each_steps")
@pytest.mark.parametrize("value", ["1", 1.5, None, HUGE, -HUGE, np.array([1, 2]), object()], ids=by_type)
@pytest.mark.parametrize("name", ["captured_ns", "captured_wall_ns"])
def test_an_invalid_capture_time_abandons_the_loan(stream: str, name: str, value: Any) -> None:
    with Publisher(stream, SMALL) as publisher:
        for touch in (True, False):
            with pytest.raises((TypeError, OverflowError)), publisher.loan() as loan:  # noqa: PT012
                setattr(loan, name, value)
                if touch:
                    loan.pixels[:] = 1
        assert publisher.statistics.abandoned == 2
        assert publish(publisher) == 1


@pytest.mark.parametrize(("module", "saved"), [("gevent.monkey", "saved"), ("eventlet.patcher", "already_patched")])
def test_a_library_that_has_patched_the_standard_library_is_named(
    stream: str, module: str, saved: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    patched = types.ModuleType(module)
    monkeypatch.setitem(sys.modules, module, patched)
    Publisher(stream, SMALL).close()
    setattr(patched, saved, {"socket": {}})
    with pytest.raises(UnsupportedEnvironment, match=f"{module.partition('.')[0]} has patched the standard library"):
        Publisher(stream, SMALL)
