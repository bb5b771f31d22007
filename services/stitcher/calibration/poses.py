"""The calibration and its file format.

A camera is a pinhole with radial distortion (Brown 1971, as in OpenCV): a ray ``(x, y, 1)`` in the camera's axes meets
the picture at ``center + focal * (x, y) * (1 + k1 r^2 + k2 r^4)``, where ``r^2 = x^2 + y^2``.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from services.common.config import message_of

Image = npt.NDArray[np.uint8]
Matrix = npt.NDArray[np.float64]
Row = tuple[float, float, float]
Rows = tuple[Row, Row, Row]


class CalibrationError(Exception):
    """The cameras could not be placed; the message names them and what to do."""


class CameraPose(BaseModel):
    """One placed camera."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    width_px: int = Field(gt=0)
    """Width of the picture that the rest refers to."""
    height_px: int = Field(gt=0)
    focal_px: float = Field(gt=0, allow_inf_nan=False)
    """Focal length, in pixel widths."""
    pixel_aspect: float = Field(1.0, gt=0.1, lt=10, allow_inf_nan=False)
    """Width of a pixel over its height: the sample aspect ratio."""
    k1: float = Field(0.0, allow_inf_nan=False)
    """Radial distortion; negative in lenses that bend straight lines outwards (barrel)."""
    k2: float = Field(0.0, allow_inf_nan=False)
    center_x_px: float = Field(allow_inf_nan=False)
    """Where the optical axis meets the picture, from the middle of the first pixel."""
    center_y_px: float = Field(allow_inf_nan=False)
    rotation: Rows
    """From the camera's axes (x right, y down, z ahead) to the panorama's (the same, with y vertical)."""
    confidence: float = Field(ge=0)
    """Confidence of its best match with another camera, as defined by OpenCV's stitcher: above 1 is reliable."""
    rms_px: float | None = Field(None, ge=0)
    """Residual of the matched points in its overlaps, root mean square; ``None`` if it was not measured."""

    @field_validator("rotation")
    @classmethod
    def _check_rotation(cls, rotation: Rows) -> Rows:
        matrix = np.array(rotation)
        if not np.allclose(matrix @ matrix.T, np.eye(3), atol=1e-3) or np.linalg.det(matrix) < 0:
            raise ValueError("it is not a rotation matrix")
        return rotation

    @property
    def k(self) -> Matrix:
        """The 3x3 matrix from rays to pixels, without the distortion."""
        focal_y_px = self.focal_px * self.pixel_aspect
        return np.array([[self.focal_px, 0.0, self.center_x_px], [0.0, focal_y_px, self.center_y_px], [0.0, 0.0, 1.0]])

    @property
    def r(self) -> Matrix:
        """:attr:`rotation` as an array."""
        return np.array(self.rotation)

    @property
    def yaw_rad(self) -> float:
        """Direction of the optical axis, to the right of the panorama's middle."""
        return math.atan2(self.rotation[0][2], self.rotation[2][2])

    @property
    def pitch_rad(self) -> float:
        """Direction of the optical axis above the horizon."""
        return math.asin(max(-1.0, min(1.0, -self.rotation[1][2])))

    @property
    def roll_rad(self) -> float:
        """Turn about the optical axis, clockwise as seen from behind the camera."""
        return math.atan2(self.rotation[1][0], self.rotation[1][1])

    def project(self, directions: Matrix) -> Matrix:
        """Return the pixels of directions; NaN if the lens cannot see them.

        Args:
            directions: float64 of shape ``(..., 3)`` in the panorama's axes, of any length.

        Returns:
            float64 of shape ``(..., 2)``: x and y, which may lie outside the picture.
        """
        rays = directions @ self.r
        ahead = rays[..., 2] > 1e-6
        plane = rays[..., :2] / np.where(ahead, rays[..., 2], np.nan)[..., None]
        bent = distort(plane, self.k1, self.k2)
        scale = np.array([self.focal_px, self.focal_px * self.pixel_aspect])
        return np.asarray(bent * scale + np.array([self.center_x_px, self.center_y_px]))

    def directions(self, pixels: Matrix) -> Matrix:
        """Return the directions of pixels: the inverse of :meth:`project`.

        Args:
            pixels: float64 of shape ``(..., 2)``: x and y.

        Returns:
            float64 of shape ``(..., 3)``, unit vectors in the panorama's axes; NaN where no ray meets the pixel.
        """
        scale = np.array([self.focal_px, self.focal_px * self.pixel_aspect])
        plane = undistort((pixels - np.array([self.center_x_px, self.center_y_px])) / scale, self.k1, self.k2)
        rays = np.concatenate([plane, np.ones((*plane.shape[:-1], 1))], axis=-1)
        return np.asarray(rays / np.linalg.norm(rays, axis=-1, keepdims=True) @ self.r.T)


def max_radius(k1: float, k2: float) -> float:
    """Return the largest ``r`` up to which ``r (1 + k1 r^2 + k2 r^4)`` increases. Beyond it, the model is invalid."""
    # The derivative's zeros in s = r^2: 1 + 3 k1 s + 5 k2 s^2.
    if abs(k2) < 1e-12:
        return math.sqrt(-1 / (3 * k1)) if k1 < 0 else math.inf
    discriminant = 9 * k1**2 - 20 * k2
    if discriminant < 0:
        return math.inf
    roots = [(-3 * k1 + sign * math.sqrt(discriminant)) / (10 * k2) for sign in (-1, 1)]
    return math.sqrt(min((root for root in roots if root > 0), default=math.inf))


def distort(plane: Matrix, k1: float, k2: float) -> Matrix:
    """Apply the distortion to positions of shape ``(..., 2)`` on the plane ``z = 1``; NaN outside the lens' view."""
    squared = (plane**2).sum(axis=-1)
    # Beyond the largest radius the polynomial turns back, and would map rays into the picture that the lens cannot see.
    squared = np.where(squared < max_radius(k1, k2) ** 2, squared, np.nan)
    return np.asarray(plane * (1 + squared * (k1 + squared * k2))[..., None])


def undistort(plane: Matrix, k1: float, k2: float) -> Matrix:
    """Remove the distortion from positions of shape ``(..., 2)`` on the plane ``z = 1``; NaN without a solution."""
    if k1 == 0 and k2 == 0:
        return plane
    bent = np.sqrt((plane**2).sum(axis=-1))
    limit = max_radius(k1, k2)
    radius = np.minimum(bent, limit)
    for _ in range(20):  # Newton's method; the function increases up to the limit
        squared = radius**2
        # At the limit the slope is 0, so bound it, and keep the radius where the function increases.
        slope = np.maximum(1 + squared * (3 * k1 + 5 * k2 * squared), 1e-3)
        step = (radius * (1 + squared * (k1 + k2 * squared)) - bent) / slope
        last, radius = radius, np.minimum(np.maximum(radius - step, 0.0), limit)
        if not (np.abs(radius - last) > 1e-8).any():  # each step squares the error: the last one left about 1e-16
            break
    squared = radius**2
    # A position beyond the image of the largest radius has no solution: the iteration ends at the limit.
    reached = np.abs(radius * (1 + squared * (k1 + k2 * squared)) - bent) < 1e-6 * np.maximum(bent, 1)
    factor = np.where(bent > 1e-12, radius / np.maximum(bent, 1e-12), 1.0)
    return np.asarray(plane * np.where(reached, factor, np.nan)[..., None])


class PairResidual(BaseModel):
    """How well two neighbours agree in their overlap."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cameras: tuple[str, str]
    matches: int = Field(ge=0)
    """Matched points that agree with the placement."""
    rms_px: float = Field(ge=0, allow_inf_nan=False)
    """Their root mean square distance, in pixels of the camera whose pixels are coarser."""
    points_px: tuple[tuple[float, float, float, float], ...] = ()
    """Some of them, for drawings of the calibration: x and y in the first picture, then in the second."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """The placed cameras, from left to right."""

    cameras: tuple[CameraPose, ...]
    unplaced: tuple[str, ...] = ()
    """Names of the cameras that could not be placed."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """Why each could not be placed, in one sentence, by name."""
    pairs: tuple[PairResidual, ...] = ()
    """Residuals of the overlapping pairs, if they were measured."""


@dataclass(frozen=True, slots=True)
class CameraPrior:
    """Known properties of a camera before the calibration."""

    hfov_deg: float | None = None
    """Horizontal field of view, to about 10 %."""
    pixel_aspect: float = 1.0
    """Width of a pixel over its height."""
    yaw_deg: float | None = None
    """Direction to the right of the panorama's middle, to some degrees. Together with ``pitch_deg`` and ``roll_deg``,
    it places a camera without a usable match."""
    pitch_deg: float | None = None
    """Upwards, above the horizon."""
    roll_deg: float | None = None
    """Turn about the optical axis, clockwise as seen from behind the camera."""
    mask: Image | None = None
    """uint8 of the picture's shape ``(height, width)``; areas where it is 0 are not matched."""


@dataclass(frozen=True, slots=True)
class PointPair:
    """A point that two cameras see, marked by the operator."""

    cameras: tuple[str, str]
    points_px: tuple[tuple[float, float], tuple[float, float]]
    """x and y in each picture."""


VERSION = 2
"""Version of the file. Version 1 had no lens, residuals, pairs or date; these fields are optional, to support it."""


class SavedView(BaseModel):
    """The visible part of the panorama, and the renderer's choices."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    projection: str = "cylinder"
    rectangle: tuple[float, float, float, float] | None = None
    """Left, top, right and bottom: yaw in rad, and ``v = tan(pitch)`` downwards."""
    gains: dict[str, tuple[float, float, float]] = Field(default_factory=dict)
    """Gains of blue, green and red, by camera."""


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid")

    version: int = Field(VERSION, ge=1, le=VERSION)
    date: datetime | None = None
    """When it was saved, UTC."""
    cameras: tuple[CameraPose, ...] = Field(min_length=2)
    pairs: tuple[PairResidual, ...] = ()
    view: SavedView | None = None


def save(calibration: Calibration, path: Path, view: SavedView | None = None) -> None:
    """Write the calibration as JSON, atomically.

    Args:
        calibration: The placed cameras.
        path: The file.
        view: The renderer's choices, to save with it.

    Raises:
        OSError: The file cannot be written.
    """
    now = datetime.now(UTC).replace(microsecond=0)
    document = _Document(date=now, cameras=calibration.cameras, pairs=calibration.pairs, view=view)
    text = document.model_dump_json(indent=2)
    # Rename a complete file, so that a reader, or a start after a crash, never finds a part of one.
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text + "\n", encoding="utf-8")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def load(path: Path, names: Sequence[str]) -> Calibration:
    """Read a calibration that :func:`save` wrote. Cameras that are not in ``names`` are dropped.

    Raises:
        CalibrationError: The file is not a calibration, or places fewer than two of ``names``.
        FileNotFoundError: The file does not exist.
    """
    try:
        content = path.read_bytes()
        # Check the version first: a later one has fields that the validation would report instead.
        version = _version(content)
        if version > VERSION:
            raise CalibrationError(
                f"{path} is a calibration of version {version}, this program reads up to version {VERSION}:"
                " update it, or delete the file"
            )
        document = _Document.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise CalibrationError(f"{path} is not a saved calibration: {place}: {message_of(first)}; delete it") from None
    except FileNotFoundError:
        raise  # expected at the first start, so the caller has to distinguish it
    except OSError as error:
        raise CalibrationError(f"{path} cannot be read: {error.strerror}") from None
    poses = sorted((pose for pose in document.cameras if pose.name in names), key=lambda pose: pose.yaw_rad)
    if len(poses) < 2 or len({pose.name for pose in poses}) != len(poses):
        raise CalibrationError(f"{path} places {len(poses)} of the cameras {', '.join(names)}; delete it")
    placed = {pose.name for pose in poses}
    unplaced = tuple(name for name in names if name not in placed)
    pairs = tuple(pair for pair in document.pairs if set(pair.cameras) <= placed)
    return Calibration(tuple(poses), unplaced, dict.fromkeys(unplaced, f"{path} does not place it"), pairs)


def _version(content: bytes) -> int:
    """Return the version that a file declares, or 0 if it declares none."""
    try:
        document = json.loads(content)
    except ValueError:
        return 0
    version = document.get("version") if isinstance(document, dict) else None
    return version if isinstance(version, int) else 0
