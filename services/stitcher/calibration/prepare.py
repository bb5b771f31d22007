"""Prepare pictures for matching: square pixels, a working size, even contrast, masks of what must not match.

All later steps count positions in *working pixels* from the picture's centre: square ones, at most
:data:`WORKING_WIDTH` of them in the longer side.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from services.stitcher.calibration.poses import CameraPrior

Image = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Matrix = npt.NDArray[np.float64]

WORKING_WIDTH = 1920
FLAT_RANGE = 110
"""A picture whose middle 98 % of luma span less than this is stretched, and its contrast equalised."""
BLANK_DEVIATION = 1.5
"""A picture whose blurred luma deviates less from its mean, in levels, is blank."""
NORM_WINDOW_PX = 31
NORM_DEVIATION = 48.0
"""Deviation of the normalised picture around each pixel, in levels."""
OVERLAY_EDGE = 60.0
"""Least gradient of overlaid text, in levels: the response of a Sobel operator, divided by 4."""


@dataclass(frozen=True, slots=True)
class View:
    """One camera's picture, ready for matching."""

    name: str
    source_size: tuple[int, int]
    """Width and height of the original picture, in its own pixels."""
    scale: tuple[float, float]
    """Working pixels per source pixel, in x and y."""
    grey: Image
    """Luma, stretched if it was dark or flat."""
    even: Image
    """Luma of even local contrast, which is independent of gains, vignetting and light."""
    mask: Image
    """0 where matches are not allowed."""
    is_blank: bool

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in working pixels."""
        return self.grey.shape[1], self.grey.shape[0]

    @property
    def half(self) -> Matrix:
        """The centre, in working pixels from the middle of the first pixel."""
        return np.array([(self.size[0] - 1) / 2, (self.size[1] - 1) / 2])

    def from_source(self, pixels: Matrix) -> Matrix:
        """Convert positions in the original picture to positions from the centre, in working pixels."""
        middle = (np.array(self.source_size) - 1) / 2
        return np.asarray((pixels - middle) * np.array(self.scale))


def prepare(pictures: Mapping[str, Sequence[Image]], priors: Mapping[str, CameraPrior]) -> list[View]:
    """Prepare each camera's pictures. Several pictures of a camera become their median, which removes moving things."""
    lumas = {name: _luma(several, priors.get(name, CameraPrior())) for name, several in pictures.items()}
    overlays = _find_overlays({name: luma[0] for name, luma in lumas.items()})
    views = []
    for name, several in pictures.items():
        luma, mask, scale = lumas[name]
        mask = np.asarray(np.where(overlays[name], 0, mask), np.uint8)
        height, width = several[0].shape[:2]
        deviation = float(cv2.GaussianBlur(luma, (0, 0), 3).std())
        views.append(View(name, (width, height), scale, _stretch(luma), _even(luma), mask, deviation < BLANK_DEVIATION))
    return views


def _luma(several: Sequence[Image], prior: CameraPrior) -> tuple[Floats, Image, tuple[float, float]]:
    """Return luma as float32 in the working size, the mask, and the scale."""
    height, width = several[0].shape[:2]
    # Make pixels square by stretching one side, never by shrinking the other, which would lose resolution.
    square = (max(width * prior.pixel_aspect, width), max(height / prior.pixel_aspect, height))
    shrink = min(1.0, WORKING_WIDTH / max(square))
    size = (max(round(square[0] * shrink), 1), max(round(square[1] * shrink), 1))
    planes = [
        cv2.resize(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY), size, interpolation=cv2.INTER_AREA)
        for picture in several
        if picture.shape[:2] == (height, width)
    ]
    mask = np.full(size[::-1], 255, np.uint8)
    if prior.mask is not None:
        mask = np.asarray(cv2.resize(prior.mask, size, interpolation=cv2.INTER_NEAREST), np.uint8)
    if len(planes) == 1:
        luma = planes[0].astype(np.float32)
    else:
        stack = np.stack(planes)
        luma = np.median(stack, axis=0).astype(np.float32)
        spread = (stack.max(axis=0) - stack.min(axis=0)).astype(np.float32)
        # Noise differs from picture to picture as well, so compare with the spread of most pixels.
        limit = max(25.0, 6 * float(np.median(spread)))
        moves = cv2.dilate((cv2.blur(spread, (5, 5)) > limit).astype(np.uint8), np.ones((15, 15), np.uint8))
        mask[moves > 0] = 0
    return luma, mask, (size[0] / width, size[1] / height)


def _stretch(luma: Floats) -> Image:
    low, high = np.percentile(luma[::4, ::4], (1, 99))
    if high - low >= FLAT_RANGE:
        return np.asarray(np.clip(luma, 0, 255), np.uint8)
    # Stretching amplifies the noise, so smooth it first.
    soft = cv2.GaussianBlur(luma, (0, 0), 1.0)
    stretched = np.clip((soft - low) * (255 / max(high - low, 8.0)), 0, 255).astype(np.uint8)
    return np.asarray(cv2.createCLAHE(2.0, (8, 8)).apply(stretched), np.uint8)


def _even(luma: Floats) -> Image:
    soft = np.asarray(cv2.GaussianBlur(luma, (0, 0), 0.8), np.float32)
    mean, deviation = local_statistics(soft, NORM_WINDOW_PX)
    # The constant prevents amplifying the noise of even areas; it is small against any texture, even at night.
    return np.asarray(np.clip(128 + NORM_DEVIATION * (soft - mean) / (deviation + 2.0), 0, 255), np.uint8)


def local_statistics(picture: Floats, window_px: int) -> tuple[Floats, Floats]:
    """Return the mean and the deviation of the square window around each pixel, float32 of the picture's shape."""
    window = (window_px, window_px)
    mean = cv2.blur(picture, window)
    variance = cv2.blur(picture * picture, window) - mean * mean
    return np.asarray(mean, np.float32), np.asarray(np.sqrt(np.maximum(variance, 0)), np.float32)


def _find_overlays(lumas: Mapping[str, Floats]) -> dict[str, npt.NDArray[np.bool_]]:
    """Find overlays: sharp edges in the same place of pictures of the same size, such as clocks, names, logos.

    Two cameras with different directions have nothing else in common. Large areas that are equal in two pictures are
    not text, so they are not masked.
    """
    small = {name: _halve(luma) for name, luma in lumas.items()}
    gradients = {
        name: [cv2.Sobel(luma, cv2.CV_32F, x, 1 - x, scale=0.25) for x in (1, 0)] for name, luma in small.items()
    }
    strengths = {name: cv2.max(*(np.abs(side) for side in sides)) for name, sides in gradients.items()}
    is_strong = {name: strength > OVERLAY_EDGE for name, strength in strengths.items()}
    found = {name: np.zeros(luma.shape, bool) for name, luma in lumas.items()}
    for a, b in itertools.combinations(lumas, 2):
        if lumas[a].shape != lumas[b].shape:
            continue
        differ = cv2.max(*(cv2.absdiff(*sides) for sides in zip(gradients[a], gradients[b], strict=True)))
        is_same = is_strong[a] & is_strong[b] & (differ < 0.3 * strengths[a])
        if not is_same.any():
            continue
        edges, same = (cv2.blur(one.astype(np.float32), (9, 9)) for one in (is_strong[a] | is_strong[b], is_same))
        painted = ((same > 0.6 * edges) & (same > 0.08)).astype(np.uint8)
        if not 0 < painted.mean() < 0.2:
            continue  # nothing, or two pictures of the same thing
        # Close the mask widely in x, because changing digits stand between constant ones.
        reach = max(5, round(0.03 * painted.shape[1]))
        wide = cv2.dilate(painted, np.ones((max(5, reach // 2), 2 * reach), np.uint8))
        height, width = lumas[a].shape
        hidden = cv2.resize(wide, (width, height), interpolation=cv2.INTER_NEAREST) > 0
        found[a] |= hidden
        found[b] |= hidden
    return found


def _halve(luma: Floats) -> Floats:
    # A camera may send a picture of a single row.
    size = (max(luma.shape[1] // 2, 1), max(luma.shape[0] // 2, 1))
    return np.asarray(cv2.resize(luma, size, interpolation=cv2.INTER_AREA), np.float32)
