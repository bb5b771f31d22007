"""What a calibration is, and its file."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

Matrix = npt.NDArray[np.float64]
Row = tuple[float, float, float]
Rows = tuple[Row, Row, Row]


class CalibrationError(Exception):
    """The cameras could not be placed; the message names them and what to do."""


class CameraPose(BaseModel):
    """One placed camera: a pinhole without distortion."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    width_px: int = Field(gt=0)
    """Width of the picture that the rest refers to."""
    height_px: int = Field(gt=0)
    focal_px: float = Field(gt=0, allow_inf_nan=False)
    center_x_px: float = Field(allow_inf_nan=False)
    """Where the optical axis meets the picture."""
    center_y_px: float = Field(allow_inf_nan=False)
    rotation: Rows
    """From the camera's axes (x right, y down, z ahead) to the panorama's (the same; y is plumb)."""
    confidence: float = Field(ge=0)
    """Of its best match with another camera, as OpenCV's stitcher counts it: above 1 is sure."""

    @field_validator("rotation")
    @classmethod
    def _check_rotation(cls, rotation: Rows) -> Rows:
        matrix = np.array(rotation)
        if not np.allclose(matrix @ matrix.T, np.eye(3), atol=1e-3) or np.linalg.det(matrix) < 0:
            raise ValueError("it is no rotation matrix")
        return rotation

    @property
    def k(self) -> Matrix:
        """The 3x3 matrix from rays to pixels."""
        return np.array(
            [[self.focal_px, 0.0, self.center_x_px], [0.0, self.focal_px, self.center_y_px], [0.0, 0.0, 1.0]]
        )

    @property
    def r(self) -> Matrix:
        """:attr:`rotation` as an array."""
        return np.array(self.rotation)

    @property
    def yaw_rad(self) -> float:
        """Direction of the optical axis, to the right of the panorama's middle."""
        return math.atan2(self.rotation[0][2], self.rotation[2][2])


@dataclass(frozen=True, slots=True)
class Calibration:
    """The placed cameras, from left to right."""

    cameras: tuple[CameraPose, ...]
    unplaced: tuple[str, ...] = ()
    """Names of the cameras that could not be placed."""


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid")

    version: int = Field(1, ge=1, le=1)
    cameras: tuple[CameraPose, ...] = Field(min_length=2)


def save(calibration: Calibration, path: Path) -> None:
    """Write the calibration as JSON, all or nothing.

    Raises:
        OSError: The file cannot be written.
    """
    text = _Document(cameras=calibration.cameras).model_dump_json(indent=2)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text + "\n", encoding="utf-8")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def load(path: Path, names: Sequence[str]) -> Calibration:
    """Read a calibration that :func:`save` wrote; cameras that are not in ``names`` are left out.

    Raises:
        CalibrationError: It is no such file, or places fewer than two of ``names``.
        FileNotFoundError: There is none.
    """
    try:
        document = _Document.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise CalibrationError(f"{path} is no saved calibration: {place}: {first['msg']}; delete it") from None
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CalibrationError(f"{path} cannot be read: {error.strerror}") from None
    poses = sorted((pose for pose in document.cameras if pose.name in names), key=lambda pose: pose.yaw_rad)
    if len(poses) < 2 or len({pose.name for pose in poses}) != len(poses):
        raise CalibrationError(f"{path} places {len(poses)} of the cameras {', '.join(names)}; delete it")
    placed = {pose.name for pose in poses}
    return Calibration(tuple(poses), tuple(name for name in names if name not in placed))
