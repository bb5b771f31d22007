"""Estimate each camera's exposure and vignetting from the overlaps of two cameras.

A camera multiplies each colour by its own gain, and its lens darkens the picture towards the corners by
``exp(-(a r^2 + b r^4))``, where ``r`` is 1 in the corner. Both are linear in logarithms, so least squares on the
overlaps finds them. Outliers, such as a vehicle that one camera sees a frame later, lose their weight.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from services.stitcher.calibration.poses import Calibration, CameraPose
from services.stitcher.rendering.colour import to_bgr
from services.stitcher.rendering.convert import Planes

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

POINTS = 300
"""Largest number of points of a pair of cameras."""
GRID = 100
"""Candidate points along each side of a picture."""
LEAST_POINTS = 30
"""A pair with fewer usable points is not used."""
PATCH_RAD = 0.003
"""Half the side of the patch whose mean is a point's value. It exceeds the error of the placement."""
PATCH = 5
"""Samples along a side of a patch."""
DARKEST, BRIGHTEST = 5.0, 245.0
"""Bounds of the levels outside which a point is clipped and carries no information about the gain."""
NOISE = 2.0
"""Levels of noise in the mean of a patch."""
ITERATIONS = 5
OUTLIER = 2.0
"""A point that deviates by this many standard deviations keeps a quarter of its weight."""
GAIN_PRIOR = 0.5
"""Standard deviation of the logarithm of a gain, before anything is measured."""
LENS_PRIOR = 0.3
"""The same for the common coefficients of the vignetting."""
SPREAD_PRIOR = 0.02
"""The same for the difference between a camera's coefficients and the common ones, as of lenses of one type."""
POINT_SHARE = 0.03
"""Weight of a point relative to the priors. It is below 1 because the errors of neighbouring points correlate."""
LIMIT = 0.7
"""Largest logarithm of a gain: a factor of two."""
MEDIAN_OF = 5
"""Measurements whose median is followed. It ignores changes that last for two measurements or less."""
TIME_CONSTANT_S = 8.0
RATE_PER_S = 0.02
"""Largest change of a gain's logarithm: two to three levels a second."""
LENS_STEP = 0.02
"""Smaller changes of a lens' coefficients are ignored, because each change requires new maps in the renderer."""


@dataclass(frozen=True, slots=True)
class Exposure:
    """Correction of the cameras' pictures. Immutable."""

    gains: Array
    """Factors of blue, green and red, shape ``(cameras, 3)``."""
    lens: Array
    """``a`` and ``b`` of each camera, shape ``(cameras, 2)``: a pixel is multiplied by ``exp(a r^2 + b r^4)``."""

    @staticmethod
    def neutral(cameras: int) -> Exposure:
        """Return the identity correction."""
        return Exposure(np.ones((cameras, 3)), np.zeros((cameras, 2)))


@dataclass(frozen=True, slots=True)
class Patches:
    """Positions in one camera's picture of the points that both cameras of a pair see."""

    camera: int
    luma: tuple[Indices, Indices]
    """Rows and columns, shape ``(points, PATCH ** 2)``."""
    lens: Array
    """``r^2`` and ``r^4`` of each point, shape ``(points, 2)``."""


class ExposureMeter:
    """Measures the exposure of a calibration's cameras.

    Args:
        calibration: The placed cameras.
    """

    def __init__(self, calibration: Calibration) -> None:
        cameras = calibration.cameras
        self._count = len(cameras)
        self._pairs = shared_patches(cameras)
        # A group is a pair in one colour. Its values depend on six unknowns: two gains, and two coefficients per lens.
        self._slopes = np.zeros((3 * len(self._pairs), POINTS, 6))
        self._unknowns = np.zeros((3 * len(self._pairs), 6), np.intp)
        for index, (left, right) in enumerate(self._pairs):
            for colour in range(3):
                group, points = 3 * index + colour, len(left.lens)
                self._slopes[group, :points, :2] = 1.0, -1.0
                self._slopes[group, :points, 2:4] = -left.lens
                self._slopes[group, :points, 4:6] = right.lens
                gains = [3 * side.camera + colour for side in (left, right)]
                lens = [3 * self._count + 2 * side.camera + k for side in (left, right) for k in (0, 1)]
                self._unknowns[group] = gains + lens

    def measure(self, pictures: Sequence[Planes | None]) -> Exposure | None:
        """Measure the exposure of one set of pictures.

        Args:
            pictures: One for each camera, of the size in its pose, or ``None`` if the camera is gone.

        Returns:
            ``None`` if no two cameras overlap, or all overlaps are too dark or too bright. A camera without
            measurement has gains of 1.
        """
        values, precision = np.zeros((2, len(self._pairs), POINTS, 3))
        measured = np.zeros(self._count, np.bool_)
        for index, (left, right) in enumerate(self._pairs):
            one, other = pictures[left.camera], pictures[right.camera]
            if one is None or other is None:
                continue
            (a, spread_a), (b, spread_b) = _read(one, left), _read(other, right)
            usable = np.asarray(((np.minimum(a, b) > DARKEST) & (np.maximum(a, b) < BRIGHTEST)).all(axis=1))
            if usable.sum() < LEAST_POINTS:
                continue
            a, b = a.clip(1), b.clip(1)  # for the logarithm of unused points
            # The error of a logarithm is relative. A textured patch is less precise, because the patches of the two
            # cameras do not lie on each other exactly.
            variance = (NOISE**2 + spread_a**2 / 4)[:, None] / a**2 + (NOISE**2 + spread_b**2 / 4)[:, None] / b**2
            values[index, : len(a)] = np.log(a) - np.log(b)
            precision[index, : len(a)] = usable[:, None] / variance
            measured[[left.camera, right.camera]] = True
        if not measured.any():
            return None
        shape = len(self._slopes), POINTS
        values, precision = (array.transpose(0, 2, 1).reshape(shape) for array in (values, precision))
        solution = self._solve(values, precision * POINT_SHARE)
        logs = solution[: 3 * self._count].reshape(-1, 3)
        # Keep the mean gain at 1, so that the panorama is neither brightened nor tinted.
        logs[measured] -= logs[measured].mean(axis=0)
        return Exposure(np.exp(-logs.clip(-LIMIT, LIMIT)), solution[3 * self._count : -2].reshape(-1, 2))

    def _solve(self, values: Array, precision: Array) -> Array:
        """Solve for the logarithms of the gains, the coefficients of the lenses, and the common coefficients."""
        gains, size = 3 * self._count, 5 * self._count + 2
        prior = np.zeros((size, size))
        prior[range(gains), range(gains)] = GAIN_PRIOR**-2
        # Each camera's coefficients have a prior around the common ones, which are unknowns themselves.
        for unknown in range(gains, size - 2):
            common = size - 2 + (unknown - gains) % 2
            prior[unknown, unknown] += SPREAD_PRIOR**-2
            prior[common, common] += SPREAD_PRIOR**-2
            prior[unknown, common] = prior[common, unknown] = -(SPREAD_PRIOR**-2)
        prior[[-2, -1], [-2, -1]] += LENS_PRIOR**-2
        weights = precision
        solution: Array = np.zeros(size)
        rows, columns = self._unknowns[:, :, None], self._unknowns[:, None, :]
        for _ in range(ITERATIONS):
            weighted = self._slopes * weights[..., None]
            normal, right = prior.copy(), np.zeros(size)
            # Avoid BLAS here: starting its threads costs more than they save on such small matrices.
            np.add.at(normal, (rows, columns), np.einsum("gpk,gpl->gkl", weighted, self._slopes))
            np.add.at(right, self._unknowns, np.einsum("gpk,gp->gk", weighted, values))
            solution = np.asarray(np.linalg.solve(normal, right), np.float64)
            errors = values - np.einsum("gpk,gk->gp", self._slopes, solution[self._unknowns])
            # 1.4826 times the median of absolute values is a standard deviation that outliers do not change.
            deviations = errors * np.sqrt(precision)
            scale = max(1.4826 * float(np.median(np.abs(deviations[precision > 0]))), 1e-6)
            weights = precision / (1 + (deviations / (OUTLIER * scale)) ** 2) ** 2
        return solution


def shared_patches(cameras: Sequence[CameraPose]) -> list[tuple[Patches, Patches]]:
    """Return the common points of each pair of cameras with a sufficient overlap, in both pictures."""
    pairs = [_pair(i, cameras[i], j, cameras[j]) for i in range(len(cameras)) for j in range(i + 1, len(cameras))]
    return [pair for pair in pairs if pair is not None]


def _pair(i: int, left: CameraPose, j: int, right: CameraPose) -> tuple[Patches, Patches] | None:
    """Return the points that both cameras see, or None if they are too few."""
    x, y = np.meshgrid(*(np.linspace(0, size_px - 1, GRID) for size_px in (left.width_px, left.height_px)))
    here = np.stack([x.ravel(), y.ravel()], axis=-1)
    there = right.project(left.directions(here))
    # The whole patch must lie in both pictures.
    inner = _is_inner(here, left) & _is_inner(there, right)
    chosen = np.flatnonzero(inner)
    if len(chosen) < LEAST_POINTS:
        return None
    if len(chosen) > POINTS:
        # Deterministic, so that each calibration yields the same points.
        chosen = np.random.default_rng(0).choice(chosen, POINTS, replace=False)
    return _side(i, left, here[chosen]), _side(j, right, there[chosen])


def _is_inner(pixels: Array, camera: CameraPose) -> npt.NDArray[np.bool_]:
    size = np.array([camera.width_px, camera.height_px])
    margin = PATCH_RAD * camera.focal_px + 1
    return np.asarray(((pixels >= margin) & (pixels <= size - 1 - margin)).all(axis=-1))


def _side(index: int, camera: CameraPose, pixels: Array) -> Patches:
    steps = np.linspace(-1, 1, PATCH) * PATCH_RAD * camera.focal_px
    dx, dy = (one.ravel() for one in np.meshgrid(steps, steps))
    columns = np.rint(pixels[:, :1] + dx).astype(np.intp)
    rows = np.rint(pixels[:, 1:] + dy).astype(np.intp)
    squared = radius_squared(camera, pixels[:, 0], pixels[:, 1])
    return Patches(index, (rows, columns), np.stack([squared, squared**2], axis=-1))


def radius_squared(camera: CameraPose, x: npt.NDArray[np.floating], y: npt.NDArray[np.floating]) -> Array:
    """Return the squared distance to the middle of the picture, 1 in the corner; pixels need not be square."""
    dx, dy = x - (camera.width_px - 1) / 2, (y - (camera.height_px - 1) / 2) / camera.pixel_aspect
    corner = (camera.width_px / 2) ** 2 + (camera.height_px / 2 / camera.pixel_aspect) ** 2
    return np.asarray((dx**2 + dy**2) / corner, np.float64)


def lens_factors(lens: Array, squared: Array) -> Array:
    """Return the factors for pixels at ``r^2`` that compensate the vignetting of a lens with these ``a`` and ``b``."""
    inner = squared.clip(0, 1)
    return np.asarray(np.exp(inner * (lens[0] + inner * lens[1])))


def _read(picture: Planes, side: Patches) -> tuple[Array, Array]:
    """Return mean BGR of each point's patch, shape ``(points, 3)``, and the standard deviation of its luma."""
    rows, columns = side.luma
    luma = picture.y[rows, columns].astype(np.float64)
    down, across = picture.chroma_step
    u, v = (plane[rows // down, columns // across].mean(axis=1) for plane in (picture.u, picture.v))
    yuv = np.stack([luma.mean(axis=1), u, v, np.ones(len(u))])
    return (to_bgr(picture.matrix, picture.is_full_range) @ yuv).T, luma.std(axis=1)


class ExposureControl:
    """Follows the exposure over time, slowly. Owned by one thread.

    It follows the median of some measurements with a time constant and a limited rate. A lorry in an overlap or a
    headlight therefore has no visible effect, whereas a change by a camera's own control is compensated within half a
    minute.

    Args:
        calibration: The placed cameras.
        period_s: Seconds between two measurements, each of which costs some milliseconds.
    """

    def __init__(self, calibration: Calibration, period_s: float = 2.0) -> None:
        self.exposure = Exposure.neutral(len(calibration.cameras))
        """The current correction."""
        self._meter = ExposureMeter(calibration)
        self._period_s = period_s
        self._next_s = -np.inf
        self._recent: deque[Exposure] = deque(maxlen=MEDIAN_OF)
        self._seen: set[int] = set()

    def update(self, pictures: Sequence[Planes | None], now_s: float) -> Exposure:
        """Measure if the period has elapsed.

        Args:
            pictures: One for each camera of the calibration, or ``None`` if the camera is gone.
            now_s: A monotonic clock.

        Returns:
            :attr:`exposure`, which stays the same object while nothing changes.
        """
        if now_s < self._next_s:
            return self.exposure
        self._next_s = now_s + self._period_s
        present = {camera for camera, picture in enumerate(pictures) if picture is not None}
        measured = self._meter.measure(pictures)
        if measured is None:
            return self.exposure
        if not present <= self._seen:
            # Apply a camera's first measurement immediately, even if the camera appears later than the others.
            self._seen |= present
            self._recent.extend([measured] * MEDIAN_OF)
            self.exposure = measured
            return measured
        # Without one of its cameras, a measurement has another mean, and no gain of that camera: ignore it.
        if present == self._seen:
            self._recent.append(measured)
            self.exposure = self._approach()
        return self.exposure

    def _approach(self) -> Exposure:
        gains = np.median([np.log(one.gains) for one in self._recent], axis=0)
        lens = np.median([one.lens for one in self._recent], axis=0)
        now = np.log(self.exposure.gains)
        # Follow logarithms, so that brightening and darkening by the same factor take the same time.
        share = 1 - np.exp(-self._period_s / TIME_CONSTANT_S)
        most = RATE_PER_S * self._period_s
        now += ((gains - now) * share).clip(-most, most)
        step = lens - self.exposure.lens
        return Exposure(np.exp(now), self.exposure.lens if np.abs(step).max() < LENS_STEP else lens)
