"""Align a solved rig with the world: level and centred, or as configured."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from services.stitcher.calibration.poses import CameraPrior
from services.stitcher.calibration.rays import nearest_rotation, rotation_of

Matrix = npt.NDArray[np.float64]


def rotation_from(prior: CameraPrior) -> Matrix | None:
    """Return the rotation of a prior, from the camera's axes to the panorama's, or ``None`` without a yaw."""
    if prior.yaw_deg is None:
        return None
    # With y down, positive rotations about y, x and z are to the right, upwards and clockwise, as the prior has them.
    yaw, pitch, roll = (math.radians(angle or 0.0) for angle in (prior.yaw_deg, prior.pitch_deg, prior.roll_deg))
    about_y, about_x, about_z = (
        rotation_of(vector) for vector in (np.array([0, yaw, 0.0]), np.array([pitch, 0, 0.0]), np.array([0, 0, roll]))
    )
    return np.asarray(about_y @ about_x @ about_z)


def align(rotations: Mapping[str, Matrix], priors: Mapping[str, CameraPrior]) -> Matrix | None:
    """Return the rotation of the rig that best fits the configured directions, or ``None`` without any."""
    wanted = {name: rotation_from(priors[name]) for name in rotations if name in priors}
    total = np.zeros((3, 3))
    for name, target in wanted.items():
        if target is not None:
            # The rotation nearest to the sum of the single ones is their least-squares mean.
            total += target @ rotations[name].T
    return nearest_rotation(total) if total.any() else None


def straighten(rotations: Mapping[str, Matrix]) -> Matrix:
    """Return the rotation of the rig that levels the horizon and centres all cameras at yaw 0.

    The vertical is the direction most perpendicular to the cameras' horizontal axes. A camera's horizontal axis is its
    x axis, or its y axis if the camera is rolled by about 90 degrees.

    Source: M. Brown and D. Lowe, "Automatic Panoramic Image Stitching using Invariant Features", IJCV 2007.
    """
    stack = np.stack(list(rotations.values()))
    # Begin with the normal of the plane of the optical axes, because it does not depend on how the cameras are rolled.
    plumb = _least(stack[:, :, 2]) if _is_fan(stack[:, :, 2]) else _least(stack[:, :, 0])
    for _ in range(8):
        level = [r[:, 0] if abs(r[:, 0] @ plumb) <= abs(r[:, 1] @ plumb) else r[:, 1] for r in stack]
        plumb = _least(np.stack(level))
    # The eigenvector's sign is arbitrary: let it point down, as the y axes of most cameras do.
    votes = stack[:, :, 1] @ plumb
    if abs(votes).max() < 0.5:
        votes = stack[:, :, 0] @ plumb  # all cameras are rolled by 90 degrees: assume clockwise
    if votes.sum() < 0:
        plumb = -plumb
    ahead = stack[:, :, 2].sum(axis=0) + 1e-6 * stack[0, :, 2]
    ahead -= (ahead @ plumb) * plumb
    if np.linalg.norm(ahead) < 1e-3:
        # The axes of cameras on a full circle cancel each other out: any direction will do.
        ahead = stack[0, :, 2] - (stack[0, :, 2] @ plumb) * plumb
    ahead /= np.linalg.norm(ahead)
    upright = np.stack([np.cross(plumb, ahead), plumb, ahead])
    axes = stack[:, :, 2] @ upright.T
    yaws = np.sort(np.arctan2(axes[:, 0], axes[:, 2]))
    # The middle is opposite the widest gap between two neighbours.
    gaps = np.diff(np.append(yaws, yaws[0] + 2 * math.pi))
    widest = int(gaps.argmax())
    middle = yaws[widest] + gaps[widest] / 2 + math.pi
    return np.asarray(rotation_of(np.array([0.0, -math.remainder(float(middle), 2 * math.pi), 0.0])) @ upright)


def _least(vectors: Matrix) -> Matrix:
    """Return the direction most perpendicular to the vectors."""
    _, directions = np.linalg.eigh(vectors.T @ vectors)
    return np.asarray(directions[:, 0])


def _is_fan(axes: Matrix) -> bool:
    """Return whether the optical axes differ enough to span a plane."""
    values = np.linalg.eigvalsh(axes.T @ axes)
    return bool(values[1] > 0.03 * values[2])
