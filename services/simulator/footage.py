"""Extract the material of the scene from one short film: the empty scene, walking people, and a van.

The film's camera is static, so the median over time is the scene without people, and differences from it are people. A
walk is a section of the film in which one person walks freely; its best-fitting full stride becomes a cycle that can be
repeated endlessly.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
PATH = Path(__file__).parent / "footage" / "pedestrians.mp4"
FRAMES_PER_SECOND = 10
MEDIAN_STEP = 8
"""Step between the frames of the median, long enough for people to move on."""

VAN_OUTLINE = (
    (652.0, 86.5), (653.3, 71.7), (655.8, 53.3), (660.0, 46.9), (664.5, 46.0), (708.3, 45.3), (712.5, 48.3),
    (715.8, 61.7), (721.7, 67.5), (722.8, 78.3), (722.0, 91.0), (718.3, 92.6), (715.8, 89.2), (703.0, 93.0),
    (700.8, 98.8), (695.8, 99.6), (693.3, 94.2), (658.0, 91.7),
)  # fmt: skip
"""Outline of the white van in the empty scene, in the film's pixels; its right wheels are on row 99."""


@dataclass(frozen=True)
class Walk:
    """A section of the film with one free walker, identified by its start."""

    first_frame: int
    frames: int
    x: int
    """Column of the walker's middle in the first frame."""
    feet_y: int
    """Row of the walker's feet in the first frame."""
    heading: int
    """1 if the person walks to the right, -1 to the left."""


WALKS = (
    Walk(3, 14, 633, 329, -1),
    Walk(356, 15, 534, 284, 1),
    Walk(186, 16, 188, 229, -1),
    Walk(232, 25, 726, 399, -1),
    Walk(180, 15, 607, 309, 1),
    Walk(180, 18, 517, 309, 1),
    Walk(213, 18, 659, 414, -1),
    Walk(229, 15, 688, 305, -1),
)


@dataclass(frozen=True)
class Cutout:
    """A piece of the film with a soft mask."""

    pixels: Picture
    """(height, width, 3), BGR."""
    alpha: NDArray[np.float32]
    """(height, width), 0 to 1."""
    anchor_x: float
    """Column under the body's middle."""
    feet_y: float
    """Row of the ground contact."""


@dataclass(frozen=True)
class Cycle:
    """One full stride, to be repeated. The cut-outs share one anchor."""

    cutouts: tuple[Cutout, ...]
    heading: int
    height_px: float
    """Height of the person in the film."""
    stride_px: float
    """Distance that the person covers in one cycle, in the film's pixels."""


@dataclass(frozen=True)
class Material:
    """All material from the film."""

    place: Picture
    """(576, 768, 3), BGR, without people."""
    cycles: tuple[Cycle, ...]
    van: Cutout


@functools.lru_cache(maxsize=1)
def load(path: Path = PATH) -> Material:
    """Read the film and extract the material, once per process.

    Raises:
        av.error.FFmpegError: The film is missing or cannot be decoded.
    """
    # Keep only the frames of the walks and of the median in memory.
    walked = {index for walk in WALKS for index in range(walk.first_frame, walk.first_frame + walk.frames)}
    film: dict[int, Picture] = {}
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "AUTO"
        for index, frame in enumerate(container.decode(video=0)):
            if index in walked or index % MEDIAN_STEP == 0:
                film[index] = np.asarray(frame.to_ndarray(format="bgr24"), np.uint8)
    still = np.asarray([film[index] for index in film if index % MEDIAN_STEP == 0], np.uint8)
    place = np.median(still, axis=0).astype(np.uint8)
    return Material(place, tuple(_cycle(film, place, walk) for walk in WALKS), _van(place))


def _foreground(frame: Picture, place: Picture) -> NDArray[np.float32]:
    """Return a soft mask (height, width) of people; 0.5 is the edge.

    A shadow darkens the ground evenly in all three colours and is not part of a person.
    """
    # The offset bounds the ratio where both pictures are almost black.
    now, empty = (cv2.GaussianBlur(picture, (0, 0), 0.9).astype(np.float32) + 4.0 for picture in (frame, place))
    sure = np.clip(np.abs(now - empty).max(axis=2) / 56.0, 0.0, 1.0)
    ratio = now / empty
    shadow = (ratio.min(axis=2) > 0.48) & (ratio.max(axis=2) < 1.05) & (np.ptp(ratio, axis=2) < 0.09)
    return np.where(shadow, 0.0, sure).astype(np.float32)


def _cycle(film: dict[int, Picture], place: Picture, walk: Walk) -> Cycle:
    x, feet_y = float(walk.x), float(walk.feet_y)
    found: list[Cutout] = []
    middles: list[float] = []
    # Follow the person from frame to frame, beginning at the marked place.
    for index in range(walk.first_frame, walk.first_frame + walk.frames):
        cutout, x, feet_y = _person(film[index], place, x, feet_y)
        found.append(cutout)
        middles.append(x)
    first, length = _best_stride([_silhouette(cutout) for cutout in found])
    chosen = found[first : first + length]
    return Cycle(
        cutouts=tuple(chosen),
        heading=walk.heading,
        height_px=float(np.median([np.ptp(np.nonzero(cutout.alpha > 0.5)[0]) + 1 for cutout in chosen])),
        stride_px=abs(middles[first + length] - middles[first]),
    )


def _person(frame: Picture, place: Picture, x: float, feet_y: float) -> tuple[Cutout, float, float]:
    """Cut out the person with middle and feet near (x, feet_y). Return it and the new position of these."""
    left, top = max(0, round(x) - 48), max(0, round(feet_y) - 130)
    right, bottom = min(frame.shape[1], round(x) + 48), min(frame.shape[0], round(feet_y) + 16)
    window = np.ascontiguousarray(frame[top:bottom, left:right])
    sure = _foreground(window, place[top:bottom, left:right])
    closed = cv2.morphologyEx(
        (sure > 0.5).astype(np.uint8), cv2.MORPH_CLOSE, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 5))
    )
    mask = cv2.morphologyEx(closed, cv2.MORPH_OPEN, np.ones((2, 2), np.uint8))
    # Other people may be in the window: take the large component near the expected place.
    count, labels, statistics, _ = cv2.connectedComponentsWithStats(mask)
    best = max(
        range(1, count),
        key=lambda i: statistics[i, cv2.CC_STAT_AREA] - 12 * abs(_middle(labels == i) - (x - left)),
    )
    body = labels == best
    filled = body.astype(np.uint8)
    # Fill small holes, where clothes have the colour of the ground, but not the gap between the legs.
    holes, _ = cv2.findContours(1 - filled, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(filled, [hole for hole in holes if cv2.contourArea(hole) < 14], -1, 1, cv2.FILLED)
    alpha = cv2.GaussianBlur(filled.astype(np.float32), (0, 0), 0.8)
    rows = np.nonzero(body)[0]
    middle, feet = _middle(body), float(rows.max())
    return Cutout(window, alpha, middle, feet), left + middle, top + feet


def _middle(body: NDArray[np.bool_]) -> float:
    """Return the mean column of the upper half, which swings less than the legs."""
    rows, columns = np.nonzero(body)
    return float(columns[rows <= (rows.min() + rows.max()) / 2].mean())


def _silhouette(cutout: Cutout) -> NDArray[np.float32]:
    """Return the mask (128, 96), shifted to a common anchor."""
    shift = np.array([[1, 0, 48 - cutout.anchor_x], [0, 1, 120 - cutout.feet_y]], np.float32)
    return cv2.warpAffine(cutout.alpha, shift, (96, 128)).astype(np.float32)


def _best_stride(silhouettes: list[NDArray[np.float32]]) -> tuple[int, int]:
    """Return first frame and length of the stride whose end is most similar to its beginning."""
    return min(
        (
            (first, length)
            for length in range(9, 13)  # a stride of two steps takes about a second
            for first in range(len(silhouettes) - length)
        ),
        key=lambda stretch: float(np.abs(silhouettes[stretch[0]] - silhouettes[sum(stretch)]).sum()),
    )  # fmt: skip


def _van(place: Picture) -> Cutout:
    left, top, right, bottom = 646, 40, 728, 104
    # Fill the outline at eight times the size, so that the reduced mask has a soft edge.
    fine = 8
    outline = np.array([((x - left) * fine, (y - top) * fine) for x, y in VAN_OUTLINE])
    mask = cv2.fillPoly(
        np.zeros(((bottom - top) * fine, (right - left) * fine), np.float32), [outline.astype(np.int32)], 1.0
    )
    alpha = cv2.resize(mask, (right - left, bottom - top), interpolation=cv2.INTER_AREA).astype(np.float32)
    return Cutout(place[top:bottom, left:right].copy(), alpha, 688.0 - left, 99.0 - top)
