"""Losses of RTP packets, with the real reader of cameras."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import av
import numpy as np
import numpy.typing as npt
import pytest

from services.stitcher.capture.synchronizer import Timed
from tests.services.stitcher.capture.reading import Read, reading
from tests.services.stitcher.faulty import Units, encode_units
from tests.services.stitcher.rtp import payloads, serve_rtp

pytestmark = pytest.mark.slow

GOP, COUNT = 15, 75
END = COUNT - 20
"""What the reader must reach. It is stopped while pictures still come, because it waits long for one that does not."""
KEY = 2 * GOP
"""A key frame, after which the camera is connected and before the last one."""
BY_FRAME = 3600
"""Difference of the time stamps of consecutive pictures."""
LOSSES: dict[str, list[tuple[int, float, float]]] = {
    "none": [],
    "inside": [(KEY + 5, 0.5, 0.5)],
    "last": [(KEY + 5, 0.99, 0.99)],
    "of a key frame": [(KEY, 0.5, 0.5)],
    "a whole picture": [(KEY + 5, 0.0, 1.0)],
    "of two": [(KEY - 1, 0.5, 0.5), (KEY + 7, 0.3, 0.6)],
}
"""What is not sent: the index of a picture, and the part of its packets."""
Frames = list[Timed[av.VideoFrame]]


def draw(index: int, noise: int) -> npt.NDArray[np.uint8]:
    """Return a picture that takes several packets, and not more: a socket buffers about a hundred of them."""
    chance = np.random.default_rng(index)
    blocks = np.random.default_rng(3).integers(0, 255, (6, 10)).repeat(16, 0).repeat(16, 1)
    drawn: npt.NDArray[np.int64] = np.roll(blocks, 5 * index, 1) + chance.integers(-noise, noise + 1, blocks.shape)
    return drawn.clip(0, 255).astype(np.uint8)


@pytest.fixture(
    scope="module",
    params=[("libx264", 0), ("libx265", 0), pytest.param(("libx265", 3), marks=pytest.mark.long)],
    ids=["H.264", "H.265", "H.265-B"],
)
def units(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Units:
    """A clip whose pictures take several packets."""
    codec, b_frames = request.param
    path = tmp_path_factory.mktemp("loss") / "clip.ts"
    noise = 20 if codec == "libx264" else 60  # x265 removes much more of it
    return encode_units(path, codec, count=COUNT, gop=GOP, b_frames=b_frames, picture=lambda index: draw(index, noise))


@pytest.fixture(scope="module")
def whole(units: Units) -> npt.NDArray[np.int16]:
    """The decoded clip."""
    with av.open(str(units.template)) as clip:
        return np.stack([frame.to_ndarray(format="gray") for frame in clip.decode(video=0)]).astype(np.int16)


@pytest.fixture(scope="module")
def seen(units: Units) -> dict[tuple[str, str], tuple[Frames, int]]:
    """The frames that the reader delivers, and the number of damaged ones, by the kind of loss and the setting.

    A clip takes its time, so all are read at once.
    """
    cases = [*((kind, "hold") for kind in LOSSES), ("inside", "mark")]
    with ExitStack() as stack:
        reads = {case: stack.enter_context(sent(units, LOSSES[case[0]], case[1])) for case in cases}
        return {case: delivered(read) for case, read in reads.items()}


@contextmanager
def sent(units: Units, losses: Sequence[tuple[int, float, float]], damaged: str) -> Iterator[Read]:
    """Send the clip with these losses to a reader with this setting."""
    lost = set()
    for index, first, last in losses:
        count = len(list(payloads(units.codec, units.packets[index])))
        assert count > 3
        lost |= {(index, position) for position in range(int(first * count), int(last * count) + 1)}
    with serve_rtp(units, lost=lost, fps=25) as url, reading(url, transport="udp", damaged=damaged) as read:
        yield read


def delivered(read: Read) -> tuple[Frames, int]:
    """Return the frames of the clip, and the number of damaged ones."""
    end = END * BY_FRAME
    read.wait("the end of the clip", lambda read: bool(read.frames) and (read.frames[-1].picture.pts or 0) >= end)
    read.reader.request_stop()
    return list(read.frames), read.reader.damaged_frames


def is_right(whole: npt.NDArray[np.int16], frame: Timed[av.VideoFrame]) -> bool:
    """Return whether a frame is one of the clip."""
    return bool(np.abs(whole - frame.picture.to_ndarray(format="gray")).max((1, 2)).min() <= 2)


@pytest.mark.parametrize("kind", LOSSES)
def test_no_picture_with_a_hole_is_shown_as_whole(
    whole: npt.NDArray[np.int16], seen: dict[tuple[str, str], tuple[Frames, int]], kind: str
) -> None:
    frames, damaged = seen[kind, "hold"]
    assert all(is_right(whole, frame) for frame in frames)
    assert bool(damaged) == bool(LOSSES[kind])
    assert len(frames) >= END - 2 * GOP - 2


def test_damaged_pictures_are_shown_and_marked_if_wanted(
    whole: npt.NDArray[np.int16], seen: dict[tuple[str, str], tuple[Frames, int]]
) -> None:
    frames, damaged = seen["inside", "mark"]
    assert all(frame.damaged or is_right(whole, frame) for frame in frames)
    marked = [frame.damaged for frame in frames]
    assert marked.count(True) == damaged > 5
    assert (marked[0], marked[-1]) == (False, False)
