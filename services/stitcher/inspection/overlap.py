"""Measure the displacement between the pictures of two cameras in their overlap.

Both pictures are warped to the panorama's cylinder, where they are equal if the calibration fits. Corners of one are
then tracked into the other by sparse optical flow.

Source: B. Lucas and T. Kanade, "An Iterative Image Registration Technique", IJCAI 1981, as in OpenCV's
``calcOpticalFlowPyrLK``; the noise of a picture by J. Immerkaer, "Fast Noise Variance Estimation", CVIU 1996.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from services.stitcher.calibration.poses import CameraPose
from services.stitcher.rendering.panorama import FAR_PX, inside
from services.stitcher.rendering.view import directions

Image = npt.NDArray[np.uint8]
Plane = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Array = npt.NDArray[np.float64]

MAX_AREA_PX: Final = 100_000
"""Larger overlaps are scaled down to bound the cost of a measurement; displacements are found to a twentieth of a pixel
anyway."""
LEAST_SIDE_PX: Final = 40
"""Narrower overlaps have no room for a displaced patch."""
MAX_V: Final = 2.0
"""Directions steeper than 63 degrees are ignored, because a cylinder stretches them too much."""
PATCH_PX: Final = 17
MAX_CELLS: Final = 400
"""Cells of the overlap. Each has at most one patch, to spread the patches over the overlap."""
LEAST_CELL_PX: Final = 14
"""Least side of a cell."""
LEAST_SLOPE: Final = 1.0
"""Least slope of a patch, in levels per pixel: the root mean square in the direction in which it is smallest. A patch
below it has too little texture."""
SLOPE_OF_NOISE: Final = 0.3
"""Steepest slope that noise with a deviation of one level causes; measured 0.24 to 0.28."""
LEAST_CORRELATION: Final = 0.75
"""Least correlation between a patch and its match."""
SAME_CORRELATION: Final = 0.9
"""Least correlation between a patch and the same place in the previous measurement, if nothing moved."""
BACK_AGAIN_PX: Final = 0.4
"""Largest error of a patch that is tracked to the other picture and back."""
PYRAMID_LEVELS: Final = 3


@dataclass(frozen=True, slots=True)
class Displacements:
    """Displacements of the right camera's picture against the left one's, one row for each patch."""

    textured: int
    """Number of patches that were searched for."""
    cells: npt.NDArray[np.intp]
    """Number of each patch's cell."""
    angles: Array
    """Place of each patch: yaw in rad from the overlap's middle, and v."""
    shifts_px: Array
    """Displacement to the right and downwards, in pixels of the panorama."""
    still: Mask
    """Which patches of the left picture look as they did in the previous comparison."""


class Overlap:
    """The part of the cylinder that two cameras see. Owned by one thread.

    Args:
        left: One camera.
        right: The other.
        scale_px: Pixels per radian of the panorama.
    """

    def __init__(self, left: CameraPose, right: CameraPose, scale_px: float) -> None:
        self.cameras = (left, right)
        self.is_seen = False
        """Whether the overlap is large enough for a comparison."""
        bounds = _bounds(left, right)
        if bounds is None:
            return
        self.yaw_rad, self._half_rad, v_min, v_max = bounds
        height, width = (v_max - v_min) * scale_px, 2 * self._half_rad * scale_px
        shrunk = max(1.0, math.sqrt(width * height / MAX_AREA_PX))
        self._scale_px = scale_px / shrunk
        self._shrunk = shrunk
        self._v_min = v_min
        self._shape = round(height / shrunk), round(width / shrunk)
        if min(self._shape) < LEAST_SIDE_PX:
            return
        maps = [self._map(camera) for camera in self.cameras]
        # Kept between measurements, so as fixed-point numbers: six bytes a pixel instead of eight.
        self._maps = [cv2.convertMaps(x, y, cv2.CV_16SC2) for x, y in maps]
        # A patch must lie in both pictures with all of its pixels.
        seen = [inside(camera, x, y) for camera, (x, y) in zip(self.cameras, maps, strict=True)]
        brim = np.ones((PATCH_PX, PATCH_PX), np.uint8)
        # A constant border of 0 treats the window's own edge like an edge of the pictures.
        self._whole = [
            cv2.erode(one.astype(np.uint8), brim, borderType=cv2.BORDER_CONSTANT, borderValue=0) > 0 for one in seen
        ]
        self._both = (seen[0] & seen[1]).astype(np.float32)
        area = int((self._whole[0] & self._whole[1]).sum())
        self._cell_px = max(LEAST_CELL_PX, math.ceil(math.sqrt(area / MAX_CELLS)))
        self._before: Image | None = None
        self.is_seen = area >= LEAST_SIDE_PX**2

    def compare(self, left: Image, right: Image) -> Displacements:
        """Measure the displacement between the two pictures.

        Args:
            left: Luma of the left camera, uint8 of shape ``(height, width)``; one of another size than the pose's is
                scaled.
            right: Likewise.
        """
        warped = [
            cv2.remap(fit_luma(luma, camera), *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE).astype(
                np.float32
            )
            for luma, camera, maps in zip((left, right), self.cameras, self._maps, strict=True)
        ]
        # Measure the slopes before the contrast is evened out, which would turn noise into texture.
        least = max(LEAST_SLOPE, SLOPE_OF_NOISE * max(_noise(one, self._both > 0) for one in warped))
        smooth = [np.asarray(cv2.GaussianBlur(one, (0, 0), 1.0), np.float32) for one in warped]
        cells, corners = self._corners(smooth[0], least)
        even = [_even_out(one) for one in smooth]
        guess = self._guess(even)
        found, shifts = _follow(even, corners, guess)
        ends = np.rint(corners + shifts).astype(int)
        rows, columns = self._shape
        there = (ends >= 0).all(axis=1) & (ends[:, 0] < columns) & (ends[:, 1] < rows)
        there[there] &= self._whole[1][ends[there, 1], ends[there, 0]]
        found &= there
        # Keep the picture, so that the next comparison can tell which patches have changed.
        before, self._before = self._before, even[0]
        still = _alike(even[0], even[0] if before is None else before, corners[found], corners[found])
        # The pixel of yaw 0 and v = 0, as _map() places the middles of pixels.
        middle = np.array([columns / 2 - 0.5, -0.5 - self._v_min * self._scale_px])
        return Displacements(
            textured=len(corners),
            cells=cells[found],
            angles=(corners[found] - middle) / self._scale_px,
            shifts_px=shifts[found] * self._shrunk,
            still=(still >= SAME_CORRELATION) & (before is not None),
        )

    def _map(self, camera: CameraPose) -> tuple[Plane, Plane]:
        rows, columns = self._shape
        yaw = self.yaw_rad + (np.arange(columns, dtype=np.float64) + 0.5 - columns / 2) / self._scale_px
        v = self._v_min + (np.arange(rows, dtype=np.float64) + 0.5) / self._scale_px
        pixels = camera.project(directions(yaw[None, :], v[:, None]))
        pixels = np.nan_to_num(pixels, nan=FAR_PX).clip(FAR_PX, -FAR_PX).astype(np.float32)
        return np.ascontiguousarray(pixels[..., 0]), np.ascontiguousarray(pixels[..., 1])

    def _corners(self, picture: Plane, least_slope: float) -> tuple[npt.NDArray[np.intp], Array]:
        """Return the best corner of each cell that has one: the cell's number, and x and y."""
        # For floats and a block of 7, OpenCV's value is four times the mean square of the slope.
        strength = np.where(
            self._whole[0] & self._whole[1], cv2.cornerMinEigenVal(picture, 7, ksize=3) / 4, np.float32(0)
        )
        size = self._cell_px
        rows, columns = (side // size for side in self._shape)
        blocks = strength[: rows * size, : columns * size].reshape(rows, size, columns, size).swapaxes(1, 2)
        flat = blocks.reshape(rows * columns, size * size)
        best = flat.argmax(axis=1)
        cells = np.flatnonzero(flat[np.arange(len(flat)), best] >= least_slope**2)
        y = cells // columns * size + best[cells] // size
        x = cells % columns * size + best[cells] % size
        return cells, np.stack([x, y], axis=-1).astype(np.float64)

    def _guess(self, even: list[Image]) -> Array:
        """Estimate the dominant displacement. Without it, optical flow finds at most a dozen pixels."""
        # The window fades towards its edges, whose step would otherwise correlate best without a displacement.
        window = self._both * cv2.createHanningWindow(self._shape[::-1], cv2.CV_32F)
        centered = [(one.astype(np.float32) - 128) * window for one in even]
        (x, y), _ = cv2.phaseCorrelate(*centered)
        shift = np.array([x, y])
        if (np.abs(shift) > np.array(self._shape[::-1]) / 2).any():
            return np.zeros(2)
        # Phase correlation always returns some displacement: use it only if the pictures fit better with it.
        still = _correlation(even[0], even[1], self._both)
        move = np.array([[1.0, 0.0, x], [0.0, 1.0, y]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        size = self._shape[::-1]
        moved = np.asarray(cv2.warpAffine(even[1], move, size, flags=flags), np.uint8)
        both = np.asarray(cv2.warpAffine(self._both, move, size, flags=flags), np.float32) * self._both
        return shift if _correlation(even[0], moved, both) > still else np.zeros(2)


def _bounds(left: CameraPose, right: CameraPose) -> tuple[float, float, float, float] | None:
    """Return middle and half width of the overlap, in rad of yaw, and its range of v; ``None`` if it is too small."""
    seen = []
    for one, other in ((left, right), (right, left)):
        x, y = np.meshgrid(np.linspace(0, one.width_px - 1, 64), np.linspace(0, one.height_px - 1, 48))
        rays = one.directions(np.stack([x, y], axis=-1)).reshape(-1, 3)
        rays = rays[np.isfinite(rays).all(axis=1)]
        pixels = other.project(rays)
        seen.append(rays[inside(other, pixels[:, 0], pixels[:, 1])])
    rays = np.concatenate(seen)
    level = np.hypot(rays[:, 0], rays[:, 2])
    rays, level = rays[np.abs(rays[:, 1]) < MAX_V * level], level[np.abs(rays[:, 1]) < MAX_V * level]
    if len(rays) < 16:
        return None
    # Count yaws from the middle, because they wrap around at the back.
    middle = rays.mean(axis=0)
    yaw = math.atan2(middle[0], middle[2])
    beside = np.arctan2(rays[:, 0], rays[:, 2]) - yaw
    beside = (beside + math.pi) % (2 * math.pi) - math.pi
    v = rays[:, 1] / level
    yaw += float(beside.min() + beside.max()) / 2
    return yaw, float(beside.max() - beside.min()) / 2, float(v.min()), float(v.max())


def fit_luma(luma: Image, camera: CameraPose) -> Image:
    """Return luma of shape ``(height, width)``, scaled to the size in the pose if necessary."""
    size = camera.width_px, camera.height_px
    if luma.shape[::-1] == size:
        return luma
    return np.asarray(cv2.resize(luma, size, interpolation=cv2.INTER_AREA), np.uint8)


def _even_out(picture: Plane) -> Image:
    """Normalise local brightness and contrast, because the cameras' exposures differ."""
    mean = cv2.GaussianBlur(picture, (0, 0), 8.0)
    spread = np.sqrt(np.maximum(cv2.GaussianBlur(picture * picture, (0, 0), 8.0) - mean * mean, 0))
    return np.asarray(np.clip(128 + 48 * (picture - mean) / (spread + 1.0), 0, 255), np.uint8)


def _noise(picture: Plane, mask: Mask) -> float:
    """Estimate the standard deviation of the noise in levels, from the flattest quarter of the picture."""
    kernel = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
    values = np.abs(cv2.filter2D(picture, cv2.CV_32F, kernel))[mask]
    # The lower quartile of a normal distribution's absolute value is 0.319 deviations; the kernel multiplies it by 6.
    # The source takes the mean, which texture increases: the quartile needs a flat quarter only.
    return float(np.percentile(values, 25)) / (0.319 * 6) if values.size else 0.0


def _follow(even: list[Image], corners: Array, guess: Array) -> tuple[Mask, Array]:
    """Track the corners of one picture into the other. Return which were found, and their displacements."""
    if not len(corners):
        return np.zeros(0, bool), np.zeros((0, 2))
    start = corners.astype(np.float32).reshape(-1, 1, 2)
    flow = partial(
        cv2.calcOpticalFlowPyrLK,
        winSize=(PATCH_PX, PATCH_PX),
        maxLevel=PYRAMID_LEVELS,
        criteria=(cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 20, 0.01),
        flags=cv2.OPTFLOW_USE_INITIAL_FLOW,
    )
    # A patch that was tracked to a similar but wrong place rarely leads back to where it came from.
    ends, there, _ = flow(even[0], even[1], start, start + guess.astype(np.float32))
    back, again, _ = flow(even[1], even[0], ends, ends - guess.astype(np.float32))
    places, returned = (np.asarray(points, np.float64).reshape(-1, 2) for points in (ends, back))
    found = np.logical_and(there, again).reshape(-1)
    found &= np.linalg.norm(returned - corners, axis=1) < BACK_AGAIN_PX
    found[found] = _alike(even[0], even[1], corners[found], places[found]) >= LEAST_CORRELATION
    return found, places - corners


def _alike(one: Image, other: Image, places: Array, others: Array) -> Array:
    """Return the correlation of two pictures' patches around the given places, row by row."""
    size = PATCH_PX, PATCH_PX
    result = np.empty(len(places))
    for index, (a, b) in enumerate(zip(places.tolist(), others.tolist(), strict=True)):
        patches = cv2.getRectSubPix(one, size, a), cv2.getRectSubPix(other, size, b)
        result[index] = cv2.matchTemplate(*patches, cv2.TM_CCOEFF_NORMED)[0, 0]
    return result


def _correlation(a: Image, b: Image, weights: Plane) -> float:
    total = float(weights.sum())
    if total < LEAST_SIDE_PX**2:
        return -1.0
    x, y = (one.astype(np.float32) - 128 for one in (a, b))
    return float((x * y * weights).sum() / max(math.sqrt((x * x * weights).sum() * (y * y * weights).sum()), 1e-6))
