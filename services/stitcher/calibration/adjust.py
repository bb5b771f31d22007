"""Bundle adjustment: rotations and lenses that align matched points, by robust least squares.

Levenberg-Marquardt on the reprojection error in working pixels; Cauchy loss by reweighting, with an analytic Jacobian.

Source: B. Triggs et al., "Bundle Adjustment: A Modern Synthesis", 2000.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from services.stitcher.calibration.poses import max_radius, undistort
from services.stitcher.calibration.rays import Points, Rig, cross, nearest_rotation, rotation_of

Matrix = npt.NDArray[np.float64]

FAR_PX = 200.0
"""Error assigned to a point that the other camera cannot see."""
MAX_K1, MAX_K2 = 0.7, 0.7
ITERATIONS = 40
MOST_MULTIPLICATIONS = 200_000
"""Of a product of matrices that OpenBLAS computes in the calling thread."""


@dataclass(frozen=True, slots=True)
class Free:
    """Parameters to solve for, besides the rotations."""

    focal: bool = True
    k1: bool = True
    k2: bool = False
    centers: bool = False


@dataclass(frozen=True, slots=True)
class Prior:
    """Prior of the lenses. Focal lengths have a value and a deviation by kind; a deviation of 0 means no prior.

    Distortion and the offset of the centre have a prior of 0.
    """

    log_focal: Matrix
    log_focal_deviation: Matrix
    k1_deviation: float = 0.5
    k2_deviation: float = 0.2
    center_deviation_px: float = 10.0


@dataclass(frozen=True, slots=True)
class Layout:
    """Layout of the Jacobian's columns: rotations by camera, lenses by kind, and centres by camera."""

    cameras: int
    kinds: int
    free: Free

    @property
    def lens(self) -> list[str]:
        """The lens's parameters, in the order of each kind's columns."""
        return [name for name in ("focal", "k1", "k2") if getattr(self.free, name)]

    @property
    def lens_start(self) -> int:
        """Column of the first kind's first parameter."""
        return 3 * self.cameras

    @property
    def center_start(self) -> int:
        """Column of the first camera's centre."""
        return self.lens_start + len(self.lens) * self.kinds

    @property
    def width(self) -> int:
        """Number of columns."""
        return self.center_start + (2 * self.cameras if self.free.centers else 0)


def no_prior(rig: Rig) -> Prior:
    """Return an empty prior."""
    return Prior(np.log(rig.focal), np.zeros(len(rig.focal)))


def residuals(rig: Rig, points: Points) -> Matrix:
    """Return the errors in working pixels, shape ``(n, 2)``; NaN if the other camera cannot see the point."""
    return np.asarray(_Linear(rig, points).residual)


def distances(rig: Rig, points: Points) -> Matrix:
    """Return the errors' lengths; :data:`FAR_PX` if the other camera cannot see the point."""
    return _Linear(rig, points).distances()


def adjust(
    rig: Rig,
    points: Points,
    free: Free,
    scale_px: float,
    *,
    prior: Prior | None = None,
    iterations: int = ITERATIONS,
) -> Rig:
    """Move the cameras until the points agree. The first camera keeps its rotation.

    Args:
        rig: Initial estimate.
        points: Points that two cameras see.
        free: Parameters to solve for.
        scale_px: Scale of the Cauchy loss: points with larger errors lose weight.
        prior: Prior of the lenses.
        iterations: Maximum number of steps.
    """
    prior = prior or no_prior(rig)
    layout = Layout(len(rig.rotations), len(rig.focal), free)
    linear = _Linear(rig, points)
    damping, cost = 1e-3, _cost(linear, scale_px, prior, free)
    for _ in range(iterations):
        hessian, gradient = _normal(linear, scale_px, prior, layout)
        is_better = False
        while damping < 1e8:
            # Marquardt: damp by the diagonal, because the columns have different units (rad, logarithm, px).
            # The constant keeps the system solvable if a parameter has no influence on any point.
            damped = hessian + damping * np.diag(np.diag(hessian) + 1e-9)
            step = np.asarray(np.linalg.solve(damped, -gradient), np.float64)
            moved = _Linear(_move(linear.rig, step, layout), points)
            new = _cost(moved, scale_px, prior, free)
            if new < cost:
                is_better = True
                break
            damping *= 6
        if not is_better:
            break
        gain, linear, cost = cost - new, moved, new
        damping = max(damping / 6, 1e-9)
        if gain < 1e-7 * max(cost, 1e-6):
            break
    return linear.rig


def covariance(rig: Rig, points: Points, free: Free, scale_px: float, prior: Prior) -> tuple[Matrix, Layout]:
    """Return the parameters' covariance, for points with a deviation of 1 px, and the layout of its columns."""
    layout = Layout(len(rig.rotations), len(rig.focal), free)
    hessian, _ = _normal(_Linear(rig, points), scale_px, prior, layout)
    return np.asarray(np.linalg.inv(hessian + 1e-12 * np.eye(len(hessian))), np.float64), layout


def jacobian(rig: Rig, points: Points, layout: Layout) -> Matrix:
    """Return the residuals' derivatives, shape ``(n, 2, columns)``; 0 if the other camera cannot see the point."""
    return _Linear(rig, points).jacobian(layout)


def _cost(linear: _Linear, scale_px: float, prior: Prior, free: Free) -> float:
    # Cauchy's loss grows with the logarithm, so that a false match cannot outweigh many true ones.
    rig = linear.rig
    squared = (linear.distances() / scale_px) ** 2
    cost = float((linear.points.weight * scale_px**2 * np.log1p(squared)).sum())
    known = prior.log_focal_deviation > 0
    # Without a prior, divide by infinity: the term is then 0.
    off = (np.log(rig.focal) - prior.log_focal) / np.where(known, prior.log_focal_deviation, np.inf)
    cost += float((off**2).sum())
    cost += float(((rig.k1 / prior.k1_deviation) ** 2).sum()) if free.k1 else 0.0
    cost += float(((rig.k2 / prior.k2_deviation) ** 2).sum()) if free.k2 else 0.0
    cost += float(((rig.centers / prior.center_deviation_px) ** 2).sum()) if free.centers else 0.0
    return cost


def _normal(linear: _Linear, scale_px: float, prior: Prior, layout: Layout) -> tuple[Matrix, Matrix]:
    rig = linear.rig
    residual = np.nan_to_num(linear.residual)
    # The derivative of Cauchy's loss, as a weight of the squares. The factor 2 of all terms is left out: it cancels.
    weight = linear.points.weight / (1 + (residual**2).sum(axis=1) / scale_px**2)
    rows = linear.jacobian(layout)
    weighted = (rows * weight[:, None, None]).reshape(-1, layout.width)
    hessian = _product(rows.reshape(-1, layout.width), weighted)
    gradient = (weighted * residual.reshape(-1, 1)).sum(axis=0)

    def add(column: int, value: float, deviation: float) -> None:
        hessian[column, column] += deviation**-2
        gradient[column] += value * deviation**-2

    for kind in range(layout.kinds):
        values = {
            "focal": (float(np.log(rig.focal[kind]) - prior.log_focal[kind]), float(prior.log_focal_deviation[kind])),
            "k1": (float(rig.k1[kind]), prior.k1_deviation),
            "k2": (float(rig.k2[kind]), prior.k2_deviation),
        }
        for number, name in enumerate(layout.lens):
            value, deviation = values[name]
            if deviation > 0:
                add(layout.lens_start + len(layout.lens) * kind + number, value, deviation)
    if layout.free.centers:
        for number, value in enumerate(rig.centers.reshape(-1).tolist()):
            add(layout.center_start + number, value, prior.center_deviation_px)
    # The rig as a whole can rotate freely, so keep the first camera fixed.
    gradient[:3] = 0
    hessian[:3, :], hessian[:, :3] = 0, 0
    hessian[range(3), range(3)] = 1e12
    return hessian, gradient


def _product(a: Matrix, b: Matrix) -> Matrix:
    """Return ``a.T @ b``, the sum of products of a few rows each.

    OpenBLAS shares a large product among threads that wait busily for each other. If the other cores have work to do,
    as they have while cameras are decoded, this takes more CPU time than the rest of the calibration.
    """
    width = a.shape[1]
    step = max(1, MOST_MULTIPLICATIONS // width**2)
    whole = len(a) // step * step
    blocks = [side[:whole].reshape(-1, step, width) for side in (a, b)]
    return np.asarray((blocks[0].transpose(0, 2, 1) @ blocks[1]).sum(axis=0) + a[whole:].T @ b[whole:])


def _move(rig: Rig, step: Matrix, layout: Layout) -> Rig:
    turns = step[: 3 * layout.cameras].reshape(-1, 3)
    # Rotate about the camera's own axes (R exp(t)), as the Jacobian assumes. The projection removes rounding errors,
    # which would accumulate over the steps.
    rotations = np.stack([nearest_rotation(r @ rotation_of(t)) for r, t in zip(rig.rotations, turns, strict=True)])
    lens = step[layout.lens_start : layout.center_start].reshape(layout.kinds, -1)
    changes = {name: lens[:, number] for number, name in enumerate(layout.lens)}
    # The focal length is solved for as a logarithm, which keeps it positive. A single step may not change it by more
    # than a third, because the linear model does not hold that far.
    focal = rig.focal * np.exp(np.clip(changes["focal"], -0.3, 0.3)) if "focal" in changes else rig.focal
    k1 = np.clip(rig.k1 + changes["k1"], -MAX_K1, MAX_K1) if "k1" in changes else rig.k1
    k2 = np.clip(rig.k2 + changes["k2"], -MAX_K2, MAX_K2) if "k2" in changes else rig.k2
    centers = rig.centers + step[layout.center_start :].reshape(-1, 2) if layout.free.centers else rig.centers
    return replace(rig, rotations=rotations, focal=focal, k1=k1, k2=k2, centers=centers)


class _Linear:
    """Residuals of a rig, and their derivatives.

    A measured point ``b`` on the plane ``z = 1`` of camera i is ``x (1 + k1 |x|^2 + k2 |x|^4)``, where ``x`` is the
    point without distortion. In the axes of camera j its ray is ``v = Rj' Ri (x, 1)``, which meets that camera's plane
    at ``u = v / v_z`` and is distorted likewise.
    """

    def __init__(self, rig: Rig, points: Points) -> None:
        self.rig, self.points = rig, points
        self.kind_i, self.kind_j = rig.kinds[points.i], rig.kinds[points.j]
        self.focal_i, self.focal_j = rig.focal[self.kind_i], rig.focal[self.kind_j]
        self.k_i = np.stack([rig.k1[self.kind_i], rig.k2[self.kind_i]], axis=1)
        self.k_j = np.stack([rig.k1[self.kind_j], rig.k2[self.kind_j]], axis=1)
        self.b = (points.p - rig.centers[points.i]) / self.focal_i[:, None]
        self.x = np.empty_like(self.b)
        limit = np.empty(len(points))
        for kind in range(len(rig.focal)):
            k1, k2 = float(rig.k1[kind]), float(rig.k2[kind])
            self.x[self.kind_i == kind] = undistort(self.b[self.kind_i == kind], k1, k2)
            limit[self.kind_j == kind] = max_radius(k1, k2)
        self.ray = np.concatenate([self.x, np.ones((len(points), 1))], axis=1)
        self.turn = np.einsum("nba,nbc->nac", rig.rotations[points.j], rig.rotations[points.i])
        self.v = np.einsum("nab,nb->na", self.turn, self.ray)
        # A ray from behind camera j would be projected through the centre to a plausible position: mark it as unseen.
        depth = np.where(self.v[:, 2] > 1e-3, self.v[:, 2], np.nan)
        self.u = self.v[:, :2] / depth[:, None]
        # Keep clear of the largest radius, where the derivative of the distortion is 0.
        is_seen = (self.u**2).sum(axis=1) < (0.999 * limit) ** 2
        self.u[~is_seen] = np.nan
        squared = (self.u**2).sum(axis=1)
        self.factor_j = 1 + squared * (self.k_j[:, 0] + squared * self.k_j[:, 1])
        bent = self.u * self.factor_j[:, None]
        self.bent = bent
        self.residual = bent * self.focal_j[:, None] + rig.centers[points.j] - points.q

    def distances(self) -> Matrix:
        """Return the residuals' lengths; :data:`FAR_PX` if the other camera cannot see the point."""
        return np.asarray(np.nan_to_num(np.linalg.norm(self.residual, axis=1), nan=FAR_PX))

    def jacobian(self, layout: Layout) -> Matrix:
        """Return the derivatives by all columns of the layout."""
        count = len(self.points)
        rows = np.zeros((count, 2, layout.width))
        along_u = self.focal_j[:, None, None] * _bending(self.u, self.k_j)
        depth = self.v[:, 2][:, None, None]
        eye = np.broadcast_to(np.eye(2), (count, 2, 2))
        along_v = np.concatenate([along_u @ (eye / depth), along_u @ (-self.u[:, :, None] / depth)], axis=2)
        each = np.arange(count)
        # For R exp(t), the derivative is the cross product of the axis with the ray: in camera i before the rotation to
        # camera j, in camera j after it. Below, cameras of one kind share the columns of their lens. Add to a column in
        # separate statements, because one assignment with a repeated index would keep only the last value.
        turned = -cross(along_v @ self.turn, self.ray[:, None]), cross(along_v, self.v[:, None])
        for cameras, by_axis in zip((self.points.i, self.points.j), turned, strict=True):
            rows[each[:, None], :, 3 * cameras[:, None] + np.arange(3)] = by_axis.swapaxes(1, 2)
        # Camera i's distortion is removed from the point, so the inverse of its derivative applies. The small constant
        # prevents an exception for points without a solution, whose matrix is 0.
        along_x = along_v @ self.turn[:, :, :2]
        along_b = along_x @ np.linalg.inv(np.nan_to_num(_bending(self.x, self.k_i)) + 1e-9 * np.eye(2))
        radius_i, radius_j = (self.x**2).sum(axis=1)[:, None], (self.u**2).sum(axis=1)[:, None]
        focal_j = self.focal_j[:, None]
        by_lens = {
            "focal": (-self.b, self.bent * focal_j),
            "k1": (-self.x * radius_i, self.u * radius_j * focal_j),
            "k2": (-self.x * radius_i**2, self.u * radius_j**2 * focal_j),
        }
        for number, name in enumerate(layout.lens):
            by_i, by_j = by_lens[name]
            start, stride = layout.lens_start + number, len(layout.lens)
            rows[each, :, start + stride * self.kind_i] += np.einsum("nab,nb->na", along_b, by_i)
            rows[each, :, start + stride * self.kind_j] += by_j
        if layout.free.centers:
            by_center = -along_b / self.focal_i[:, None, None]
            for a in range(2):
                rows[each, :, layout.center_start + 2 * self.points.i + a] += by_center[:, :, a]
                rows[each, a, layout.center_start + 2 * self.points.j + a] += 1
        # A point that camera j cannot see has a constant error (FAR_PX), so it does not pull in any direction.
        rows[np.isnan(rows).any(axis=(1, 2)) | np.isnan(self.residual).any(axis=1)] = 0
        return rows


def _bending(plane: Matrix, k: Matrix) -> Matrix:
    """Return the derivative of the distorted position by the undistorted one, shape ``(n, 2, 2)``."""
    squared = (plane**2).sum(axis=1)
    factor = 1 + squared * (k[:, 0] + squared * k[:, 1])
    slope = 2 * k[:, 0] + 4 * k[:, 1] * squared
    outer = plane[:, :, None] * plane[:, None, :]
    return np.asarray(factor[:, None, None] * np.eye(2) + slope[:, None, None] * outer)
