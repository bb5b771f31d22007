"""The rig of cameras during the calibration, and the projection of points between pictures.

Positions are in working pixels from a picture's centre (:mod:`services.stitcher.calibration.prepare`). Cameras of one
*kind* share focal length and distortion.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from services.stitcher.calibration.poses import distort, undistort

Matrix = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Rig:
    """Cameras, by index."""

    rotations: Matrix
    """Shape ``(n, 3, 3)``: from each camera's axes to the rig's."""
    kinds: Indices
    """Index of each camera's lens."""
    focal: Matrix
    """Focal length by lens, in working pixels."""
    k1: Matrix
    k2: Matrix
    centers: Matrix
    """Shape ``(n, 2)``: where the optical axis meets each picture."""

    @property
    def camera_focal(self) -> Matrix:
        """Focal length by camera."""
        return np.asarray(self.focal[self.kinds])

    def rays(self, camera: int, points: Matrix) -> Matrix:
        """Return unit vectors in the camera's axes, shape ``(n, 3)``; NaN outside the lens' model."""
        kind = self.kinds[camera]
        return lens_rays(points - self.centers[camera], self.focal[kind], self.k1[kind], self.k2[kind])

    def directions(self, camera: int, points: Matrix) -> Matrix:
        """Return unit vectors in the rig's axes."""
        return np.asarray(self.rays(camera, points) @ self.rotations[camera].T)

    def project(self, camera: int, directions: Matrix) -> Matrix:
        """Return the positions of the rig's directions in a picture; NaN if the camera cannot see them."""
        kind = self.kinds[camera]
        rays = directions @ self.rotations[camera]
        ahead = rays[..., 2] > 1e-6  # a ray from behind would be projected through the centre
        plane = rays[..., :2] / np.where(ahead, rays[..., 2], np.nan)[..., None]
        bent = distort(plane, float(self.k1[kind]), float(self.k2[kind]))
        return np.asarray(bent * self.focal[kind] + self.centers[camera])

    def only(self, cameras: Indices) -> Rig:
        """Return the rig of some of its cameras."""
        return replace(
            self, rotations=self.rotations[cameras], kinds=self.kinds[cameras], centers=self.centers[cameras]
        )


@dataclass(frozen=True, slots=True)
class Points:
    """Points that two cameras see: ``p`` in camera ``i`` is ``q`` in camera ``j``."""

    i: Indices
    j: Indices
    p: Matrix
    q: Matrix
    weight: Matrix
    """1 for measured points; points marked by the operator have a larger weight."""

    def __len__(self) -> int:
        return len(self.i)

    def __getitem__(self, keep: Indices | npt.NDArray[np.bool_]) -> Points:
        return Points(self.i[keep], self.j[keep], self.p[keep], self.q[keep], self.weight[keep])

    def between(self, i: int, j: int) -> npt.NDArray[np.bool_]:
        """Return which points belong to a pair of cameras, in either order."""
        return np.asarray(((self.i == i) & (self.j == j)) | ((self.i == j) & (self.j == i)))


def points_of(i: int, j: int, p: Matrix, q: Matrix, weight: float = 1.0) -> Points:
    """Return the points of one pair, half of them in the other direction, so that neither picture is preferred."""
    swap = np.arange(len(p)) % 2 == 1
    first, second = np.where(swap, j, i).astype(np.intp), np.where(swap, i, j).astype(np.intp)
    here, there = np.where(swap[:, None], q, p), np.where(swap[:, None], p, q)
    return Points(first, second, here, there, np.full(len(p), weight))


def join(several: list[Points]) -> Points:
    """Concatenate points."""
    if not several:
        nothing = np.zeros(0, np.intp)
        return Points(nothing, nothing, np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0))
    names = ("i", "j", "p", "q", "weight")
    return Points(*(np.concatenate([getattr(points, name) for points in several]) for name in names))


def lens_rays(points: Matrix, focal: float, k1: float, k2: float) -> Matrix:
    """Return unit vectors of positions relative to the optical centre."""
    plane = undistort(points / focal, float(k1), float(k2))
    rays = np.concatenate([plane, np.ones((*plane.shape[:-1], 1))], axis=-1)
    return np.asarray(rays / np.linalg.norm(rays, axis=-1, keepdims=True))


def cross(a: Matrix, b: Matrix) -> Matrix:
    """Return the cross products of vectors in the last axis: ``np.cross`` takes twice as long for some hundred."""
    return a[..., [1, 2, 0]] * b[..., [2, 0, 1]] - a[..., [2, 0, 1]] * b[..., [1, 2, 0]]


def rotation_of(vector: Matrix) -> Matrix:
    """Return the matrix of the rotation about a vector by its length (Rodrigues)."""
    angle = float(np.linalg.norm(vector))
    x, y, z = vector / max(angle, 1e-15)  # any axis will do for an angle of 0
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.asarray(np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross)


def nearest_rotation(matrix: Matrix) -> Matrix:
    """Return the rotation nearest to a matrix (Kabsch)."""
    u, _, vt = np.linalg.svd(matrix)
    # The determinant of the product is -1 for a reflection: turn the sign of the weakest axis.
    return np.asarray(u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt)
