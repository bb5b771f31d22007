"""Arbitrary arguments to every public call: a result, or an error of framebus; no descriptor and no file is lost."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import os
import secrets
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from framebus import (
    FramebusError,
    FrameFormat,
    Publisher,
    Subscriber,
    companion_path,
    companion_paths,
    remove_leftovers,
    streams,
)
from framebus.inspect.streams import inspect
from tests.framebus.cases.support import left_open, open_descriptors
from tests.support import SHM, publish

SMALL = FrameFormat(4, 6)
PIXELS = np.zeros((4, 6, 3), np.uint8)
STREAM = f"test-{secrets.token_hex(6)}"
"""What is opened under names that hypothesis chooses begins with it, or is not opened."""

numbers = st.integers() | st.floats() | st.booleans() | st.complex_numbers() | st.sampled_from([10**400, -(10**400)])
of_numpy = st.sampled_from(
    [np.int8(-1), np.uint16(7), np.int64(5), np.float32(1.5), np.bool_(True), np.array(4), np.array([1, 2]), PIXELS]
)
texts = (
    st.text(max_size=60) | st.binary(max_size=60) | st.sampled_from(["nv12", "i420", "uint8", "every", "futex", "*"])
)
oddities = st.sampled_from(
    [None, object(), int, FrameFormat, np.ndarray, SMALL, len, ..., range(3), datetime.datetime.now(datetime.UTC)]
)
flat = numbers | of_numpy | texts | oddities
anything: st.SearchStrategy[Any] = st.recursive(
    flat,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(texts | st.integers(), inner, max_size=3) | st.sets(texts)
    ),
    max_leaves=6,
)
examples = settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


State = tuple[frozenset[tuple[str, str]], list[str]]


def state() -> State:
    """Return what must not change: this process's descriptors, and the files of this module's streams."""
    return open_descriptors(), sorted(path.name for path in SHM.glob(f"framebus.{STREAM}*"))


def check(before: State) -> None:
    """Check that the state is unchanged since ``before``."""
    assert state()[1] == before[1]
    assert not left_open(before[0])


def call(function: Callable[..., Any], *arguments: Any, **named: Any) -> None:
    """Call the function, and close its result. It may only raise an error of framebus."""
    before = state()
    with contextlib.suppress(FramebusError):
        result = function(*arguments, **named)
        if isinstance(result, (Publisher, Subscriber)):
            result.close()
        del result
    if "keep_ring" in named:
        remove_leftovers(STREAM)
    check(before)


def is_modest(name: str, value: Any) -> bool:
    """Return whether a test has the time and the memory for the arguments."""
    if name.endswith("_s"):  # forever, or for long
        short = isinstance(value, (bool, int, float, np.generic, np.ndarray)) and np.ndim(value) == 0
        with contextlib.suppress(OverflowError, TypeError, ValueError):  # not a time
            return value is not None and not (short and 0.001 < float(value) < np.inf)
    return True


@examples
@given(name=st.sampled_from(["frame_format", "slots", "max_loans", "keep_ring"]), value=anything)
def test_publisher_accepts_arbitrary_arguments_or_raises_its_own_error(name: str, value: Any) -> None:
    options: dict[str, Any] = {"frame_format": SMALL, name: value}
    call(Publisher, STREAM, **options)


@examples
@given(value=anything)
def test_any_stream_name_is_accepted_or_rejected(value: Any) -> None:
    if not (isinstance(value, str) and value.isalnum() and value.isascii()):
        call(Publisher, value, SMALL)
    call(Subscriber, value, attach_timeout_s=0)
    call(companion_path, value, "ring")
    call(companion_path, STREAM, value)
    call(companion_paths, value, "*")
    call(companion_paths, STREAM, value)
    if value is not None:  # otherwise it would remove files that other tests use for a moment
        call(remove_leftovers, value)


@pytest.fixture(scope="module")
def publisher() -> Any:
    with Publisher(STREAM, SMALL, slots=20) as opened:
        publish(opened)
        yield opened


@pytest.fixture(scope="module")
def alone() -> Any:
    """Return a publisher to which no peer connects, because a connection would change the number of descriptors."""
    with Publisher(f"{STREAM}-alone", SMALL, slots=20) as opened:
        yield opened


OPTIONS = st.sampled_from(
    ["name", "mode", "wake", "max_leases", "history", "attach_timeout_s", "gone_after_s", "publisher_uid"]
)


@examples
@given(name=OPTIONS, value=anything)
def test_subscriber_accepts_arbitrary_arguments_or_raises_its_own_error(
    publisher: Publisher, name: str, value: Any
) -> None:
    call(Subscriber, STREAM, **{name: value})

    async def attach() -> Subscriber:
        return await Subscriber.attach(STREAM, **{name: value})

    before = state()
    with contextlib.suppress(FramebusError):
        asyncio.run(attach()).close()
    check(before)


@examples
@given(value=anything)
def test_receive_accepts_arbitrary_arguments_or_raises_its_own_error(publisher: Publisher, value: Any) -> None:
    if not is_modest("timeout_s", value):
        return
    with Subscriber(STREAM, max_leases=1, history=1) as subscriber:
        call(subscriber.receive, value)
        with contextlib.suppress(FramebusError):
            asyncio.run(subscriber.receive_async(value))


@examples
@given(value=anything)
def test_loan_accepts_arbitrary_arguments_or_raises_its_own_error(alone: Publisher, value: Any) -> None:
    call(alone.loan, value)
    if is_modest("timeout_s", value):
        call(alone.loan, timeout_s=value)
    publish(alone)


@examples
@given(name=st.sampled_from(["array", "captured_ns", "captured_wall_ns", "metadata", "timeout_s"]), value=anything)
def test_publish_accepts_arbitrary_arguments_or_raises_its_own_error(alone: Publisher, name: str, value: Any) -> None:
    if is_modest(name, value):
        call(alone.publish, **{"array": PIXELS, name: value})
        publish(alone)


@examples
@given(name=st.sampled_from(["captured_ns", "captured_wall_ns", "metadata"]), value=anything, touch=st.booleans())
def test_attributes_of_a_loan_accept_arbitrary_values_or_raise_an_error(
    alone: Publisher, name: str, value: Any, touch: bool
) -> None:
    before = state()
    with contextlib.suppress(FramebusError, TypeError, OverflowError), alone.loan() as loan:
        setattr(loan, name, value)
        if touch:
            loan.pixels[:] = 1
    publish(alone)
    assert inspect(alone.stream).slots_held == 0
    check(before)


FIELDS = st.sampled_from(["height", "width", "channels", "dtype", "pixel_format", "planar"])


@examples
@given(st.dictionaries(FIELDS, anything, max_size=3))
def test_frame_format_accepts_arbitrary_arguments_or_raises_its_own_error(fields: dict[str, Any]) -> None:
    try:
        frame_format = FrameFormat(**{"height": 4, "width": 6, **fields})
    except FramebusError:
        return
    assert frame_format.frame_bytes > 0
    assert frame_format == FrameFormat(**{name: getattr(frame_format, name) for name in frame_format.__slots__})
    assert len(frame_format.description.pack()) > 0


@examples
@given(anything, anything, anything)
def test_the_format_of_an_arbitrary_object_is_found_or_rejected(array: Any, pixel_format: Any, planar: Any) -> None:
    call(FrameFormat.of, array)
    call(FrameFormat.of, PIXELS, pixel_format)
    call(FrameFormat.of, PIXELS, planar=planar)
    call(FrameFormat.of, array, pixel_format, planar=planar)


@settings(max_examples=30)
@given(
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), max_size=40), st.binary(max_size=9000)
)
def test_a_directory_with_arbitrary_files_can_be_inspected(suffix: str, content: bytes) -> None:
    path = SHM / f"framebus.{STREAM}-x{suffix}"
    if len(os.fsencode(path.name)) > 255:
        return
    path.write_bytes(content)
    try:
        call(streams)
        call(companion_paths, f"{STREAM}-x", "*")
    finally:
        path.unlink()
