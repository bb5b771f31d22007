"""The panorama's geometry, which travels with each frame: from pixels to angles and back.

A panorama's pixels mean something else after each calibration, its angles do not. Whatever outlives a calibration, such
as a zone or a track, is therefore kept as angles. A frame of a panorama has its geometry in its metadata, under the key
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
"""Where a frame's metadata holds the geometry."""
CYLINDRICAL: Final = "cylindrical"
TURN_RAD: Final = 2 * math.pi
MAX_SIDE_PX: Final = 1 << 20


class GeometryError(ValueError):
    """A geometry that a publisher would not send; the message names the field."""


@dataclass(frozen=True, slots=True)
class PanoramaGeometry:
    """Which directions a panorama shows.

    Pixel coordinates are those of OpenCV: the middle of the pixel in the upper left corner is ``(0, 0)``.

    Raises:
        GeometryError: A field is not a number, or out of its range.
    """

    scale_px: float
    """Pixels a radian of yaw, and pixels a unit of ``v = tan`` of the angle below the horizon."""
    yaw_min_rad: float
    """Yaw of the left edge: pixel x is at ``yaw_min_rad + (x + 0.5) / scale_px``."""
    v_min: float
    """``v`` of the upper edge, negative above the horizon: pixel y is at ``v_min + (y + 0.5) / scale_px``."""
    width_px: int
    height_px: int
    projection: str = CYLINDRICAL
    """The only one there is."""

    def __post_init__(self) -> None:
        if self.projection != CYLINDRICAL:
            raise GeometryError(f"projection is {self.projection!r:.40}, and only {CYLINDRICAL!r} is understood")
        for name in ("scale_px", "yaw_min_rad", "v_min"):
            value = getattr(self, name)
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
        """Parse and validate what :meth:`to_metadata` returned. Keys that are not known are ignored.

        Raises:
            GeometryError: It is not a map, or a field is missing or wrong.
        """
        if not isinstance(content, Mapping):
            raise GeometryError(f"a panorama's geometry is a map, not {type(content).__name__}")
        if missing := [name for name in cls.__slots__ if name not in content]:
            raise GeometryError(f"the panorama's geometry lacks {', '.join(missing)}")
        return cls(**{name: content[name] for name in cls.__slots__})

    def to_metadata(self) -> dict[str, Any]:
        """The value for a frame's metadata at :data:`KEY`.

        With the key it takes 112 of the 832 bytes that a slot has for metadata, whatever the numbers are, as long as
        the sides are 256 to 65,535 pixels.
        """
        # msgpack packs a whole number in fewer bytes.
        floats = {name: float(getattr(self, name)) for name in ("scale_px", "yaw_min_rad", "v_min")}
        return asdict(self) | floats

    @property
    def width_rad(self) -> float:
        """Width in rad of yaw; more than a turn where there are bars beside a whole circle."""
        return self.width_px / self.scale_px

    def angles(self, pixels: npt.ArrayLike) -> Array:
        """The directions in which pixels lie.

        Args:
            pixels: Of shape ``(..., 2)``: x and y, which may lie between pixels and outside of the panorama.

        Returns:
            float64 of the same shape: yaw in rad, to the right, not reduced to one turn; and pitch in rad, upwards,
            0 at the horizon.
        """
        x, y = np.moveaxis(_points(pixels), -1, 0)
        yaw = self.yaw_min_rad + (x + 0.5) / self.scale_px
        return np.stack([yaw, -np.arctan(self.v_min + (y + 0.5) / self.scale_px)], axis=-1)

    def pixels(self, angles: npt.ArrayLike) -> Array:
        """Where directions lie in the panorama: the inverse of :meth:`angles`.

        Args:
            angles: Of shape ``(..., 2)``: yaw and pitch in rad, as of :meth:`angles`.

        Returns:
            float64 of the same shape: x and y. A yaw that the panorama does not show is taken by whole turns to the
            place nearest to its middle, so that it may come to lie inside. y is NaN at a pitch of a right angle or
            more, which is on no cylinder.
        """
        yaw, pitch = np.moveaxis(_points(angles), -1, 0)
        beyond = yaw - (self.yaw_min_rad + self.width_rad / 2)
        turns = np.where(np.abs(beyond) > self.width_rad / 2, np.round(beyond / TURN_RAD), 0.0)
        x = (yaw - turns * TURN_RAD - self.yaw_min_rad) * self.scale_px - 0.5
        tangent = np.tan(np.where(np.abs(pitch) < math.pi / 2, pitch, np.nan))
        return np.stack([x, (-tangent - self.v_min) * self.scale_px - 0.5], axis=-1)


def read(metadata: Mapping[str, Any] | None) -> PanoramaGeometry | None:
    """The geometry in a frame's metadata; ``None`` where it holds none, as an older stitcher's or another publisher's.

    Raises:
        GeometryError: There is one, and it makes no sense.
    """
    if metadata is None or KEY not in metadata:
        return None
    return PanoramaGeometry.from_metadata(metadata[KEY])


def _points(values: npt.ArrayLike) -> Array:
    points = np.asarray(values, np.float64)
    if points.shape[-1:] != (2,):
        raise ValueError(f"points of shape (..., 2) are needed, not {points.shape}")
    return points
