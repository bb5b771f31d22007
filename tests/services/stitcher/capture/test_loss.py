"""Losses of RTP packets, with the real reader of cameras."""

from __future__ import annotations

from collections.abc import Sequence

import av
import numpy as np
import numpy.typing as npt
import pytest

from services.stitcher.capture.synchronizer import Timed
from tests.services.stitcher.capture.reading import reading
from tests.services.stitcher.faulty import Units, encode_units
from tests.services.stitcher.rtp import payloads, serve_rtp

pytestmark = pytest.mark.slow

GOP, COUNT = 25, 100
KEY = 2 * GOP
"""A key frame, after which the camera is connected and before the last one."""
BY_FRAME = 1800
"""Difference of the time stamps of consecutive pictures."""


def draw(index: int, noise: int) -> npt.NDArray[np.uint8]:
    """Return a picture that takes several packets."""
    chance = np.random.default_rng(index)
    blocks = np.random.default_rng(3).integers(0, 255, (12, 20)).repeat(16, 0).repeat(16, 1)
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
    noise = 14 if codec == "libx264" else 60  # x265 removes much more of it
    return encode_units(path, codec, count=COUNT, gop=GOP, b_frames=b_frames, picture=lambda index: draw(index, noise))


@pytest.fixture(scope="module")
def whole(units: Units) -> npt.NDArray[np.int16]:
    """The decoded clip."""
    with av.open(str(units.template)) as clip:
        return np.stack([frame.to_ndarray(format="gray") for frame in clip.decode(video=0)]).astype(np.int16)


def read(
    units: Units, losses: Sequence[tuple[int, float, float]], damaged: str
) -> tuple[list[Timed[av.VideoFrame]], int]:
    """Return the frames that the reader delivers, and the number of damaged ones.

    Args:
        units: The clip.
        losses: What is not sent: the index of a picture, and the part of its packets.
        damaged: The setting.
    """
    lost = set()
    for index, first, last in losses:
        count = len(list(payloads(units.codec, units.packets[index])))
        assert count > 3
        lost |= {(index, position) for position in range(int(first * count), int(last * count) + 1)}
    with serve_rtp(units, lost=lost, fps=50) as url, reading(url, transport="udp", damaged=damaged) as seen:
        end = (COUNT - 8) * BY_FRAME
        seen.wait("the end of the clip", lambda seen: bool(seen.frames) and (seen.frames[-1].picture.pts or 0) >= end)
        return list(seen.frames), seen.reader.damaged_frames


def is_right(whole: npt.NDArray[np.int16], frame: Timed[av.VideoFrame]) -> bool:
    """Return whether a frame is one of the clip."""
    return bool(np.abs(whole - frame.picture.to_ndarray(format="gray")).max((1, 2)).min() <= 2)


@pytest.mark.parametrize(
    "losses",
    [
        [],
        [(KEY + 5, 0.5, 0.5)],
        [(KEY + 5, 0.99, 0.99)],
        [(KEY, 0.5, 0.5)],
        [(KEY + 5, 0.0, 1.0)],
        [(KEY - 1, 0.5, 0.5), (KEY + 7, 0.3, 0.6)],
    ],
    ids=["none", "inside", "last", "of a key frame", "a whole picture", "of two"],
)
def test_no_picture_with_a_hole_is_shown_as_whole(
    units: Units, whole: npt.NDArray[np.int16], losses: Sequence[tuple[int, float, float]]
) -> None:
    frames, damaged = read(units, losses, "hold")
    assert all(is_right(whole, frame) for frame in frames)
    assert bool(damaged) == bool(losses)
    assert len(frames) >= COUNT - 2 * GOP - 10


def test_damaged_pictures_are_shown_and_marked_if_wanted(units: Units, whole: npt.NDArray[np.int16]) -> None:
    frames, damaged = read(units, [(KEY + 5, 0.5, 0.5)], "mark")
    assert all(frame.damaged or is_right(whole, frame) for frame in frames)
    marked = [frame.damaged for frame in frames]
    assert marked.count(True) == damaged > 5
    assert (marked[0], marked[-1]) == (False, False)
