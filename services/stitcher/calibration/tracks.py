"""Track points from one picture into another, given an approximate calibration.

Both pictures of a pair are rendered, without distortion, as a camera between them would see their overlap. There they
differ only by the calibration's error, so that corners can be tracked from one to the other (Lucas and Kanade) to a
tenth of a pixel, in the whole overlap; feature matching finds few points, and none in the corners. Corners that cannot
be tracked are counted: their share says how much of the overlap the calibration explains.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from services.stitcher.calibration.prepare import View, local_statistics
from services.stitcher.calibration.rays import Rig

Image = npt.NDArray[np.uint8]
Matrix = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]

CORNERS = 420
WINDOW_PX = 21
LEAST_OVERLAP = 0.015
"""Least overlap that is used, as a share of a picture."""
FRAME_PIXELS = 900_000
MAX_ANGLE = math.radians(62)
"""Largest angle from the overlap's middle; what lies further out is not drawn."""
MAP_STEP = 8
"""Pixels of the frame for each computed position in a map."""
BACK_PX = 0.6
"""Largest error of a corner that is tracked to the other picture and back."""
MAX_ERROR = 22.0
"""Mean difference of the levels around a corner, in evened pictures of deviation 48: unlike things differ by 50."""
SAMPLES = 24
"""Points along each side of a picture that are tested for the overlap."""
ELSEWHERE_CORNERS = 60
"""Corners that are searched for elsewhere, at most; the result is extrapolated to all."""
ELSEWHERE_PX = 112
"""Distance up to which corners that could not be tracked are searched for."""
ELSEWHERE_LIKENESS = 0.8
PATCH = 9
"""Half the side of the patch that is searched for, in a picture of half the size."""
STRAY_PX = 3.0
"""A tracked point that is further than this from its position by the calibration is a stray: something moved, or is
near."""
NEIGHBOURS = 5
"""Corners around one whose tracks are compared with it."""
COARSE = 4
"""Pixels of the frame, along each side, whose mean is a pixel of the coarse picture, in which noise is faint."""
TEXTURE = 15.0
"""Least deviation around a corner in the coarse pictures; where it is less, the corner may be noise."""
RIVAL_PIXELS = 60_000
"""Size to which pictures are scaled down to search for alternative displacements."""
RIVAL_AREA = 0.4
"""Least area that two displaced pictures share, relative to that without displacement."""
RIVAL_DISTANCE_PX = 14.0
"""A displacement below this, in pixels of the frame, is not an alternative."""
RIVAL_CHANCE = 8.0
"""Correlation by chance, times the root of the area in pixels."""


@dataclass(frozen=True, slots=True)
class Tracks:
    """Result of tracking one pair."""

    p: Matrix
    q: Matrix
    """Positions in both pictures of the corners that were tracked."""
    moved_px: Matrix
    """Distance of each tracked corner from its position by the calibration, in working pixels of the coarser camera."""
    corners: int
    """Number of corners to track."""
    overlap: float
    """The overlap, as a share of the picture with the smaller field of view."""
    cells: float
    """Of the overlap's parts that have corners, the share in which some were tracked."""
    gone: int
    """Corners in parts of the overlap, a hundredth of it each, in which none could be tracked."""
    torn: int
    """Corners of textured parts that are not where the calibration predicts them, like nearly all around them."""
    elsewhere: int
    """Corners that could not be tracked but were found, unambiguously, further away."""
    rival: float
    """Fit of the best alternative displacement, relative to the fit of this one."""


def overlap_directions(rig: Rig, views: list[View], i: int, j: int, samples: int = SAMPLES) -> tuple[Matrix, float]:
    """Return the directions that both cameras see, and their share of the first camera's picture."""
    width, height = views[i].size
    x, y = np.meshgrid(np.linspace(-0.5, 0.5, samples), np.linspace(-0.5, 0.5, samples))
    points = np.stack([x.ravel() * (width - 1), y.ravel() * (height - 1)], axis=1)
    directions = rig.directions(i, points)
    there = rig.project(j, np.nan_to_num(directions))
    limit = (np.array(views[j].size) - 1) / 2
    inside = (np.abs(np.nan_to_num(there, nan=1e9)) <= limit).all(axis=1) & np.isfinite(directions).all(axis=1)
    return directions[inside], float(inside.mean())


def follow(rig: Rig, views: list[View], i: int, j: int, levels: int, *, with_rival: bool = False) -> Tracks | None:
    """Follow corners of camera i's picture into camera j's.

    Args:
        rig: The approximate calibration.
        views: Their pictures.
        i: One camera.
        j: The other.
        levels: Number of pyramid levels; each doubles the distance over which a corner can be tracked.
        with_rival: Find ``torn``, ``elsewhere`` and ``rival`` too, which only the verdict needs; they are 0 otherwise.

    Returns:
        ``None`` if the two do not overlap.
    """
    directions, share = overlap_directions(rig, views, i, j)
    back, share_j = overlap_directions(rig, views, j, i)
    if max(share, share_j) < LEAST_OVERLAP or len(directions) + len(back) < 6:
        return None
    frame = _Frame(rig, np.concatenate([directions, back]), i, j)
    drawn = [frame.draw(rig, views[camera], camera) for camera in (i, j)]
    # A corner's surroundings must lie in both pictures too, so keep clear of the edges and of masked areas.
    both = cv2.erode(np.minimum(drawn[0][1], drawn[1][1]), np.ones((15, 15), np.uint8))
    area = int(np.count_nonzero(both))
    nothing = Tracks(np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0), 0, max(share, share_j), 0.0, 0, 0, 0, 0.0)
    if area < 400:
        return nothing
    spacing = max(5.0, math.sqrt(area / CORNERS) * 0.8)
    found = cv2.goodFeaturesToTrack(drawn[0][0], CORNERS, 0.01, spacing, mask=both, blockSize=7)
    if found is None:
        return nothing
    corners = np.asarray(found, np.float32).reshape(-1, 1, 2)
    window = {"winSize": (WINDOW_PX, WINDOW_PX), "maxLevel": levels}
    there, status, error = cv2.calcOpticalFlowPyrLK(drawn[0][0], drawn[1][0], corners, None, **window)  # type: ignore[call-overload]
    again, status_back, _ = cv2.calcOpticalFlowPyrLK(drawn[1][0], drawn[0][0], there, None, **window)  # type: ignore[call-overload]
    # A corner that was tracked to a similar but wrong place rarely leads back to where it came from.
    returned = np.linalg.norm((again - corners).reshape(-1, 2), axis=1)
    good = (status.ravel() > 0) & (status_back.ravel() > 0) & (returned < BACK_PX) & (error.ravel() < MAX_ERROR)
    here, target = corners.reshape(-1, 2).astype(np.float64), there.reshape(-1, 2).astype(np.float64)
    corners_in, followed_in = (_by_cell(points, here, area, 24) for points in (here, here[good]))
    fine_in, fine_followed_in = (_by_cell(points, here, area, 96) for points in (here, here[good]))
    gone = int(fine_in[(fine_followed_in == 0) & (fine_in >= 3)].sum())
    p, q = rig.project(i, frame.directions(here[good])), rig.project(j, frame.directions(target[good]))
    fine = np.isfinite(p).all(axis=1) & np.isfinite(q).all(axis=1)
    shift = np.linalg.norm(target - here, axis=1) / frame.scale * float(rig.camera_focal[[i, j]].min())
    return Tracks(
        p[fine],
        q[fine],
        shift[good][fine],
        len(here),
        max(share, share_j),
        float((followed_in > 0).sum() / (corners_in > 0).sum()),
        gone,
        _count_torn(drawn, here, good & (shift < STRAY_PX)) if with_rival else 0,
        _count_elsewhere(drawn, here[~good]) if with_rival else 0,
        _rival(drawn) if with_rival else 0.0,
    )


class _Frame:
    """A picture without distortion, turned towards the middle of an overlap."""

    def __init__(self, rig: Rig, directions: Matrix, i: int, j: int) -> None:
        middle = directions.mean(axis=0)
        ahead = middle / np.linalg.norm(middle)
        # Horizontal as camera i has it, so that its picture is not rolled in the frame.
        right = rig.rotations[i][:, 0] - (rig.rotations[i][:, 0] @ ahead) * ahead
        right /= np.linalg.norm(right)
        self.axes = np.stack([right, np.cross(ahead, right), ahead], axis=1)
        seen = directions @ self.axes
        seen = seen[seen[:, 2] > math.cos(MAX_ANGLE)]
        plane = seen[:, :2] / seen[:, 2:]
        low, high = plane.min(axis=0), plane.max(axis=0)
        # No finer than the coarser camera: more pixels would hold no more detail.
        focal = float(rig.camera_focal[[i, j]].min())
        self.scale = min(focal, math.sqrt(FRAME_PIXELS / max(float(np.prod(high - low)), 1e-9)))
        margin = 4 * MAP_STEP
        self.origin = low * self.scale - margin
        self.width, self.height = (
            math.ceil((side * self.scale + 2 * margin) / MAP_STEP) * MAP_STEP for side in (high - low)
        )

    def directions(self, pixels: Matrix) -> Matrix:
        """Return the directions of the frame's pixels, in the rig's axes."""
        plane = (pixels + self.origin) / self.scale
        return np.asarray(np.concatenate([plane, np.ones((*plane.shape[:-1], 1))], axis=-1) @ self.axes.T)

    def draw(self, rig: Rig, view: View, camera: int) -> tuple[Image, Image]:
        """Render the camera's picture of the frame. Return it with the mask of what may be matched."""
        # The map is smooth, so compute one pixel in 64, with a margin of one, and interpolate.
        # Positions are those of the middles that cv2.resize() assumes.
        x = (np.arange(-1, self.width // MAP_STEP + 1) + 0.5) * MAP_STEP - 0.5
        y = (np.arange(-1, self.height // MAP_STEP + 1) + 0.5) * MAP_STEP - 0.5
        pixels = rig.project(camera, self.directions(np.stack(np.meshgrid(x, y), axis=-1))) + view.half
        coarse = np.nan_to_num(pixels, nan=-1e5).astype(np.float32)
        size = (len(x) * MAP_STEP, len(y) * MAP_STEP)
        fine = cv2.resize(coarse, size, interpolation=cv2.INTER_LINEAR)[MAP_STEP:-MAP_STEP, MAP_STEP:-MAP_STEP]
        maps = np.ascontiguousarray(fine[..., 0]), np.ascontiguousarray(fine[..., 1])
        picture = cv2.remap(view.even, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=(128,))
        mask = cv2.remap(view.mask, *maps, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=(0,))
        return np.asarray(picture, np.uint8), np.asarray(mask, np.uint8)


def _by_cell(points: Matrix, corners: Matrix, area: int, count: int) -> Matrix:
    """Count the points in each of about ``count`` equal squares of the corners' overlap."""
    side = max(math.sqrt(area / count), 1.0)
    shape = np.floor(corners.max(axis=0) / side).astype(int) + 1
    cells = np.floor(points / side).astype(int)
    return np.bincount(cells[:, 1] * shape[0] + cells[:, 0], minlength=int(shape.prod())).astype(np.float64)


def _count_torn(drawn: list[tuple[Image, Image]], corners: Matrix, is_in_place: npt.NDArray[np.bool_]) -> int:
    """Count the corners where both pictures show something, but not the same: single ones can fail by chance."""
    is_textured = np.ones(len(corners), bool)
    for picture, _ in drawn:
        size = (max(picture.shape[1] // COARSE, 1), max(picture.shape[0] // COARSE, 1))
        coarse = cv2.resize(picture, size, interpolation=cv2.INTER_AREA).astype(np.float32)
        _, deviation = local_statistics(coarse, 5)
        x, y = np.minimum(corners // COARSE, np.array(size) - 1).astype(int).T
        is_textured &= deviation[y, x] > TEXTURE
    corners, is_lost = corners[is_textured], ~is_in_place[is_textured]
    if len(corners) <= NEIGHBOURS:
        return 0
    squared = ((corners[:, None] - corners) ** 2).sum(axis=2)
    nearest = np.argpartition(squared, NEIGHBOURS, axis=1)[:, : NEIGHBOURS + 1]  # with the corner itself
    return int((is_lost & (is_lost[nearest].sum(axis=1) >= NEIGHBOURS)).sum())


def _count_elsewhere(drawn: list[tuple[Image, Image]], corners: Matrix) -> int:
    """Count the corners that are elsewhere in the other picture: near things seen from a different position."""
    (a, _), (b, mask) = (
        (cv2.resize(picture, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), mask[::2, ::2])
        for picture, mask in drawn
    )
    chosen = corners[:: max(len(corners) // ELSEWHERE_CORNERS, 1)]
    found = 0
    for x, y in np.floor(chosen / 2).astype(int).tolist():
        patch = a[max(y - PATCH, 0) : y + PATCH + 1, max(x - PATCH, 0) : x + PATCH + 1]
        left, top = max(x - PATCH - ELSEWHERE_PX // 2, 0), max(y - PATCH - ELSEWHERE_PX // 2, 0)
        right, bottom = x + PATCH + ELSEWHERE_PX // 2 + 1, y + PATCH + ELSEWHERE_PX // 2 + 1
        place = b[top:bottom, left:right]
        if patch.shape != (2 * PATCH + 1,) * 2 or min(place.shape) <= 2 * PATCH + 1:
            continue
        likeness = cv2.matchTemplate(place, patch, cv2.TM_CCOEFF_NORMED)
        # Erase the best place with its surroundings: if another one is nearly as good, the patch is ambiguous.
        _, best, _, (at_x, at_y) = cv2.minMaxLoc(likeness)
        cv2.circle(likeness, (at_x, at_y), 3, -1.0, -1)
        second = float(likeness.max())
        is_away = math.hypot(left + at_x - (x - PATCH), top + at_y - (y - PATCH)) > 2
        inside = mask[min(top + at_y + PATCH, mask.shape[0] - 1), min(left + at_x + PATCH, mask.shape[1] - 1)] > 0
        found += is_away and inside and best > ELSEWHERE_LIKENESS and best > second + 0.1
    return round(found * len(corners) / max(len(chosen), 1))


def _rival(drawn: list[tuple[Image, Image]]) -> float:
    """Return the best correlation of the two pictures at any other shift, relative to that without shift.

    A repetitive facade fits equally well one window further.
    """
    pictures, masks = [], []
    shrink = min(0.5, math.sqrt(RIVAL_PIXELS / drawn[0][0].size))
    for picture, mask in drawn:
        size = (max(round(picture.shape[1] * shrink), 8), max(round(picture.shape[0] * shrink), 8))
        inside = cv2.resize((mask > 0).astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0.9
        level = cv2.resize(picture, size, interpolation=cv2.INTER_AREA).astype(np.float32) - 128
        pictures.append(np.where(inside, level, 0.0))
        masks.append(inside.astype(np.float32))
    # Pad to twice the size, to avoid wrap-around.
    shape = tuple(cv2.getOptimalDFTSize(2 * side) for side in pictures[0].shape)

    def correlate(a: Floats, b: Floats) -> Matrix:
        return np.asarray(np.fft.irfft2(np.fft.rfft2(a, shape).conj() * np.fft.rfft2(b, shape), shape))

    # The correlation coefficient at all shifts at once. Outside their masks, pictures are 0, and each shift is
    # normalised by the energy of the pixels that both pictures have there.
    area = correlate(masks[0], masks[1])
    energy = correlate(pictures[0] ** 2, masks[1]) * correlate(masks[0], pictures[1] ** 2)
    likeness = correlate(pictures[0], pictures[1]) / np.sqrt(np.maximum(energy, 1.0))
    likeness[area < RIVAL_AREA * area[0, 0]] = 0
    here = float(likeness[0, 0])
    likeness -= RIVAL_CHANCE / np.sqrt(np.maximum(area, 1.0))  # small areas fit by chance
    reach = max(2, round(RIVAL_DISTANCE_PX * shrink))
    # Shifts to the left and upwards are at the ends of the axes, so no shift is at all four corners.
    likeness[:reach, :reach] = likeness[-reach:, :reach] = likeness[:reach, -reach:] = likeness[-reach:, -reach:] = 0
    return float(likeness.max()) / max(here, 1e-3)
