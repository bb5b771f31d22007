"""Formats of frames: the array of each format, and the protocols by which numpy and others read frames."""

from __future__ import annotations

import inspect
import pickle
import sys
from typing import Any

import cv2
import numpy as np
import pytest

from framebus import FormatMismatch, Frame, FrameFormat, InvalidArgument, Loan, Publisher, Subscriber
from framebus.ring.frame_header import DTYPES

pytestmark = pytest.mark.usefixtures("each_steps")


def handed_over(stream: str, frame_format: FrameFormat, array: Any) -> tuple[Frame, Subscriber]:
    """Publish an array and return the frame that a subscriber receives."""
    with Publisher(stream, frame_format) as publisher:
        subscriber = Subscriber(stream)
        publisher.publish(array)
        return subscriber.receive(5), subscriber


def counting(shape: tuple[int, ...], dtype: str = "uint8") -> np.ndarray[Any, Any]:
    return (np.arange(np.prod(shape)) % 251).astype(dtype).reshape(shape)


@pytest.mark.parametrize(
    ("frame_format", "shape"),
    [
        (FrameFormat(6, 4), (6, 4, 3)),
        (FrameFormat(6, 4, 1), (6, 4, 1)),
        (FrameFormat(6, 4, None), (6, 4)),
        (FrameFormat(6, 4, 3, planar=True), (3, 6, 4)),
        (FrameFormat(6, 4, 7, planar=True), (7, 6, 4)),
        (FrameFormat(6, 4, pixel_format="nv12"), (9, 4)),
        (FrameFormat(6, 4, None, pixel_format="i420"), (9, 4)),
    ],
    ids=str,
)
def test_a_frame_arrives_in_its_shape_and_tells_its_format(
    stream: str, frame_format: FrameFormat, shape: tuple[int, ...]
) -> None:
    array = counting(shape)
    frame, subscriber = handed_over(stream, frame_format, array)
    assert frame.pixels.shape == frame.shape == frame.header.shape == shape
    assert frame.pixels.dtype == frame.dtype == np.uint8
    assert (frame.pixels == array).all()
    assert frame.pixels.flags.c_contiguous
    assert frame.format == frame_format
    assert frame.format.shape == shape
    subscriber.close()


@pytest.mark.parametrize("typestr", DTYPES)
def test_frames_of_every_element_type_arrive(stream: str, typestr: str) -> None:
    array = counting((3, 5), np.dtype(typestr).name)
    frame, subscriber = handed_over(stream, FrameFormat.of(array), array)
    assert frame.dtype == array.dtype
    assert (frame.pixels == array).all()
    subscriber.close()


@pytest.mark.parametrize(
    ("array", "arguments", "wanted"),
    [
        (counting((6, 4)), {}, FrameFormat(6, 4, None, "uint8", "gray")),
        (counting((6, 4, 3)), {}, FrameFormat(6, 4, 3, "uint8", "bgr")),
        (counting((6, 4, 4), "uint16"), {}, FrameFormat(6, 4, 4, "uint16", "bgra")),
        (counting((6, 4, 9), "float32"), {}, FrameFormat(6, 4, 9, "float32", "")),
        (counting((3, 6, 4)), {"pixel_format": "rgb", "planar": True}, FrameFormat(6, 4, 3, "uint8", "rgb", True)),
        (counting((9, 4)), {"pixel_format": "nv12"}, FrameFormat(6, 4, 3, "uint8", "nv12")),
        (counting((9, 4)), {"pixel_format": "i420"}, FrameFormat(6, 4, 3, "uint8", "i420")),
        ([[True, False]], {}, FrameFormat(1, 2, None, "bool", "gray")),
    ],
)
def test_the_format_of_an_array_is_found(array: Any, arguments: dict[str, Any], wanted: FrameFormat) -> None:
    assert FrameFormat.of(array, **arguments) == wanted
    assert FrameFormat.of(array, **arguments).shape == np.shape(array)


@pytest.mark.parametrize(
    ("array", "arguments"),
    [
        (np.zeros(5), {}),
        (np.zeros((2, 2, 2, 2)), {}),
        (np.zeros((0, 4)), {}),
        (np.zeros((4, 4), "complex64"), {}),
        (np.zeros((4, 4), ">u2"), {}),
        (np.zeros((4, 4), "U1"), {}),
        (np.zeros((4, 4), object), {}),
        (np.zeros((8, 4), np.uint8), {"pixel_format": "nv12"}),
        (np.zeros((9, 3), np.uint8), {"pixel_format": "i420"}),
        (np.zeros((9, 4), np.uint16), {"pixel_format": "i420"}),
        (None, {}),
        ("picture.png", {}),
        ([[1, 2], [3]], {}),
        (object(), {}),
    ],
)
def test_an_array_that_cannot_be_a_frame_is_rejected(array: Any, arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        FrameFormat.of(array, **arguments)


def test_luma_and_chroma_are_views_that_opencv_agrees_with(stream: str) -> None:
    picture = np.zeros((6, 8, 3), np.uint8)
    picture[:, :4] = (255, 0, 0)
    i420 = cv2.cvtColor(picture, cv2.COLOR_BGR2YUV_I420)
    with Publisher(stream, FrameFormat(6, 8, pixel_format="i420")) as publisher, Subscriber(stream) as subscriber:
        publisher.publish(i420)
        with subscriber.receive(5) as frame:
            blue_difference, red_difference = frame.chroma
            assert frame.luma.shape == (6, 8)
            assert blue_difference.shape == red_difference.shape == (3, 4)
            assert (blue_difference[:, :2] > 200).all()
            assert (blue_difference[:, 2:] == 128).all()
            assert np.shares_memory(frame.chroma, frame.pixels)
            assert not frame.chroma.flags.writeable
            assert (cv2.cvtColor(frame.pixels, cv2.COLOR_YUV2BGR_I420)[:, 0] == cv2.cvtColor(i420, 101)[:, 0]).all()
        loan = publisher.loan(FrameFormat(6, 8, pixel_format="nv12"))
        loan.luma[:] = 16
        loan.chroma[..., 0], loan.chroma[..., 1] = 90, 240
        loan.publish()
        with subscriber.receive(5) as frame:
            assert frame.chroma.shape == (3, 4, 2)
            assert (frame.chroma == (90, 240)).all()
            assert (cv2.cvtColor(frame.pixels, cv2.COLOR_YUV2BGR_NV12)[..., 2] > 100).all(), "V is the red difference"


def test_only_subsampled_frames_have_luma_and_chroma(stream: str) -> None:
    frame, subscriber = handed_over(stream, FrameFormat(2, 2), np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(InvalidArgument, match="no luma and chroma"):
        frame.luma  # noqa: B018
    subscriber.close()


def test_numpy_takes_a_frame_without_a_copy_and_holds_its_slot(stream: str) -> None:
    array = counting((4, 6, 3))
    with Publisher(stream, FrameFormat.of(array)) as publisher, Subscriber(stream) as subscriber:
        publisher.publish(array)
        frame = subscriber.receive(5)
        pixels = np.asarray(frame)
        from_dlpack = np.from_dlpack(frame)
        for view in (pixels, from_dlpack):
            assert np.shares_memory(view, frame.pixels)
            assert not view.flags.writeable
        assert not np.shares_memory(np.array(frame, copy=True), frame.pixels)
        assert np.asarray(frame, dtype=np.float32).dtype == np.float32
        with pytest.raises(ValueError, match="without a copy"):
            np.asarray(frame, dtype=np.float32, copy=False)
        frame.release()
        assert subscriber.statistics.leases == 1, "the arrays hold it"
        assert (pixels == array).all()
        del pixels, from_dlpack, view
        assert subscriber.statistics.leases == 0


def test_a_consumer_that_cannot_be_told_that_pixels_are_read_only_gets_none(stream: str) -> None:
    frame, subscriber = handed_over(stream, FrameFormat(2, 2), np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(BufferError):
        frame.__dlpack__()
    assert frame.__dlpack_device__() == (1, 0)
    view = frame.__buffer__(0)
    assert view.readonly
    assert view.shape == (2, 2, 3)
    if sys.version_info >= (3, 12):
        assert memoryview(frame).readonly  # type: ignore[arg-type]
    subscriber.close()


@pytest.mark.parametrize("kind", [Frame, Loan])
def test_help_describes_every_attribute(kind: type) -> None:
    public = [name for name in dir(kind) if not name.startswith("_")]
    assert [name for name in public if not inspect.getdoc(getattr(kind, name))] == []


def test_nothing_of_ours_is_pickled_and_the_error_says_what_to_send(stream: str) -> None:
    with Publisher(stream, FrameFormat(2, 2)) as publisher, Subscriber(stream) as subscriber:
        publisher.publish(np.ones((2, 2, 3), np.uint8))
        frame, loan = subscriber.receive(5), publisher.loan()
        for ours, recipe in (
            (frame, "pixels.copy"),
            (loan, "send what"),
            (publisher, "open one"),
            (subscriber, "open"),
        ):
            with pytest.raises(TypeError, match=recipe):
                pickle.dumps(ours)
        assert (pickle.loads(pickle.dumps(frame.pixels)) == 1).all()
        assert pickle.loads(pickle.dumps(frame.format)) == frame.format


def frame_of(subscriber: Subscriber, publisher: Publisher) -> Frame:
    publisher.loan().publish()
    return subscriber.receive(5)


class TestPublish:
    def test_it_copies_and_returns_the_sequence(self, stream: str) -> None:
        array = counting((4, 6, 3))
        with Publisher(stream, FrameFormat.of(array)) as publisher, Subscriber(stream) as subscriber:
            for sequence in (1, 2):
                assert publisher.publish(array, captured_ns=7, captured_wall_ns=8, metadata={"a": [1]}) == sequence
            array[:] = 0
            with subscriber.receive(5) as frame:
                assert (frame.pixels == counting((4, 6, 3))).all()
                assert (frame.captured_ns, frame.captured_wall_ns, frame.metadata) == (7, 8, {"a": [1]})
            assert publisher.publish(frame_of(subscriber, publisher)) == 4, "a frame is an array too"

    @pytest.mark.parametrize(
        "array",
        [np.zeros((4, 6)), np.zeros((4, 6, 4), np.uint8), np.zeros((4, 6, 3), np.int8), np.zeros((6, 4, 3), np.uint8),
         None, "x", [[1]], [[1], [2, 3]], object()],
    )  # fmt: skip
    def test_another_shape_or_type_is_refused_and_nothing_is_published(self, stream: str, array: Any) -> None:
        with Publisher(stream, FrameFormat(4, 6)) as publisher:
            with pytest.raises(FormatMismatch, match=r"\(4, 6, 3\) and type uint8 is required"):
                publisher.publish(array)
            assert publisher.statistics.published == 0
            publisher.loan().abandon()
