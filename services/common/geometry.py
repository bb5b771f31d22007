"""The panorama's geometry, which travels with each frame: from pixels to angles and back.

Each calibration changes what a panorama's pixels mean, but not its angles. Data that outlives a calibration, such as a
zone or a track, is therefore stored as angles. A panorama's frame carries its geometry in its metadata, under the key
:data:`KEY`:

    geometry = read(frame.metadata)
    if geometry is not None:
        yaw_rad, pitch_rad = geometry.angles([[x, y]]).T
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

KEY: Final = "panorama"
"""Key of the geometry in a frame's metadata."""
CYLINDRICAL: Final = "cylindrical"
TURN_RAD: Final = 2 * math.pi
MAX_SIDE_PX: Final = 1 << 20


class GeometryError(ValueError):
    """The geometry is invalid; the message names the field."""


@dataclass(frozen=True, slots=True)
class PanoramaGeometry:
    """Maps a panorama's pixels to directions.

    Pixel coordinates follow OpenCV: the centre of the top left pixel is ``(0, 0)``.

    Raises:
        GeometryError: A field is not a number, or is out of range.
    """

    scale_px: float
    """Pixels per radian of yaw, and pixels per unit of ``v``, the tangent of the angle below the horizon."""
    yaw_min_rad: float
    """Yaw of the left edge: pixel x is at ``yaw_min_rad + (x + 0.5) / scale_px``."""
    v_min: float
    """``v`` of the top edge, negative above the horizon: pixel y is at ``v_min + (y + 0.5) / scale_px``."""
    width_px: int
    height_px: int
    projection: str = CYLINDRICAL
    """Only :data:`CYLINDRICAL` is supported."""

    def __post_init__(self) -> None:
        if self.projection != CYLINDRICAL:
            raise GeometryError(f"projection is {self.projection!r:.40}, and only {CYLINDRICAL!r} is understood")
        for name in ("scale_px", "yaw_min_rad", "v_min"):
            value = getattr(self, name)
            # An int may exceed every float, so compare instead of converting; NaN compares false.
            if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
                raise GeometryError(f"{name} is {value!r:.40}, and not a finite number")
        if self.scale_px <= 0:
            raise GeometryError(f"scale_px is {self.scale_px!r}, and not above 0")
        for name in ("width_px", "height_px"):
            value = getattr(self, name)
            if type(value) is not int or not 0 < value <= MAX_SIDE_PX:
                raise GeometryError(f"{name} is {value!r:.40}, and not a whole number from 1 to {MAX_SIDE_PX}")

    @classmethod
    def from_metadata(cls, content: object) -> PanoramaGeometry:
        """Parse and validate the untrusted output of :meth:`to_metadata`. Unknown keys are ignored.

        Raises:
            GeometryError: The content is not a map, or a field is missing or invalid.
        """
        if not isinstance(content, Mapping):
            raise GeometryError(f"a panorama's geometry is a map, not {type(content).__name__}")
        if missing := [name for name in cls.__slots__ if name not in content]:
            raise GeometryError(f"the panorama's geometry lacks {', '.join(missing)}")
        return cls(**{name: content[name] for name in cls.__slots__})

    def to_metadata(self) -> dict[str, Any]:
        """Return the value for a frame's metadata at :data:`KEY`.

        If the sides are 256 to 65,535 pixels, key and value always take 112 of a slot's 832 bytes for metadata.
        """
        # Convert to float to keep the packed size constant: msgpack packs a whole number into fewer bytes.
        floats = {name: float(getattr(self, name)) for name in ("scale_px", "yaw_min_rad", "v_min")}
        return asdict(self) | floats

    @property
    def width_rad(self) -> float:
        """Width in rad of yaw. It exceeds a turn if a full circle has bars beside it."""
        return self.width_px / self.scale_px

    def angles(self, pixels: npt.ArrayLike) -> Array:
        """Return the directions of pixels.

        Args:
            pixels: Of shape ``(..., 2)``: x and y, which may lie between pixels and outside the panorama.

        Returns:
            float64 of the same shape: yaw in rad, to the right, not reduced to one turn; and pitch in rad, upwards,
            0 at the horizon.
        """
        x, y = np.moveaxis(_points(pixels), -1, 0)
        yaw = self.yaw_min_rad + (x + 0.5) / self.scale_px
        return np.stack([yaw, -np.arctan(self.v_min + (y + 0.5) / self.scale_px)], axis=-1)

    def pixels(self, angles: npt.ArrayLike) -> Array:
        """Return the pixels of directions: the inverse of :meth:`angles`.

        Args:
            angles: Of shape ``(..., 2)``: yaw and pitch in rad, as returned by :meth:`angles`.

        Returns:
            float64 of the same shape: x and y. A yaw outside the panorama is shifted by whole turns to the position
            nearest to the middle, which may lie inside. y is NaN for a pitch of a right angle or more, because the
            cylinder has no such point.
        """
        yaw, pitch = np.moveaxis(_points(angles), -1, 0)
        # Whole turns away from the middle, for a yaw outside of the panorama only: one inside must not move.
        beyond = yaw - (self.yaw_min_rad + self.width_rad / 2)
        turns = np.where(np.abs(beyond) > self.width_rad / 2, np.round(beyond / TURN_RAD), 0.0)
        x = (yaw - turns * TURN_RAD - self.yaw_min_rad) * self.scale_px - 0.5
        tangent = np.tan(np.where(np.abs(pitch) < math.pi / 2, pitch, np.nan))
        return np.stack([x, (-tangent - self.v_min) * self.scale_px - 0.5], axis=-1)


def read(metadata: Mapping[str, Any] | None) -> PanoramaGeometry | None:
    """Return the geometry in a frame's metadata, or ``None`` if the publisher does not send one.

    Raises:
        GeometryError: The geometry is invalid.
    """
    if metadata is None or KEY not in metadata:
        return None
    return PanoramaGeometry.from_metadata(metadata[KEY])


def _points(values: npt.ArrayLike) -> Array:
    points = np.asarray(values, np.float64)
    if points.shape[-1:] != (2,):
        raise ValueError(f"points of shape (..., 2) are needed, not {points.shape}")
    return points
