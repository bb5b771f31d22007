"""Read the cameras' known properties from the configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping

import cv2
import numpy as np

from services.common.pictures import read_picture
from services.stitcher.calibration.poses import CameraPrior, Image, PointPair
from services.stitcher.config import CameraSection, StitcherSection

Shape = tuple[int, int]
"""Height and width of a picture, in pixels."""


def priors_of(
    section: StitcherSection, shapes: Mapping[str, Shape], aspects: Mapping[str, float]
) -> dict[str, CameraPrior]:
    """Return the known properties of the cameras that have a picture.

    Args:
        section: The stitcher's configuration.
        shapes: Sizes of the cameras' pictures, by name; a camera may be missing in the configuration.
        aspects: Width of a pixel over its height, as declared by the streams; the configuration overrides it.

    Raises:
        ServiceError: A mask cannot be read.
    """
    sections = {camera.name: camera for camera in section.cameras}
    return {name: _prior(section, sections.get(name), shape, aspects.get(name, 1.0)) for name, shape in shapes.items()}


def point_pairs(section: StitcherSection) -> tuple[PointPair, ...]:
    """Return the points marked by the operator."""
    return tuple(PointPair(pair.cameras, pair.points_px) for pair in section.calibration.points)


def read_mask(camera: CameraSection) -> Image | None:
    """Read the camera's mask, uint8 of shape ``(height, width)``. Return ``None`` if it has none.

    Raises:
        ServiceError: The file cannot be read, or is not a picture.
    """
    if camera.mask is None:
        return None
    return read_picture(
        camera.mask, f"the mask {camera.mask}", "give PNG, black where to ignore", flags=cv2.IMREAD_GRAYSCALE
    )


def _prior(section: StitcherSection, camera: CameraSection | None, shape: Shape, aspect: float) -> CameraPrior:
    hfov_deg = section.calibration.hfov_deg
    if section.calibration.focal_px is not None:  # a configuration gives one of the two, not both
        hfov_deg = 2 * math.degrees(math.atan(shape[1] / 2 / section.calibration.focal_px))
    if camera is None:
        return CameraPrior(hfov_deg=hfov_deg, pixel_aspect=aspect)
    mask = read_mask(camera)
    if mask is not None and mask.shape != shape:
        mask = np.asarray(cv2.resize(mask, (shape[1], shape[0]), interpolation=cv2.INTER_NEAREST), np.uint8)
    pose = camera.pose
    roll_deg = camera.rotation_deg + (pose.roll_deg if pose else 0.0)
    return CameraPrior(
        hfov_deg=hfov_deg if camera.hfov_deg is None else camera.hfov_deg,
        pixel_aspect=aspect if camera.pixel_aspect is None else camera.pixel_aspect,
        yaw_deg=pose.yaw_deg if pose else None,
        pitch_deg=pose.pitch_deg if pose else None,
        # The sum of both rotations may exceed half a turn.
        roll_deg=(roll_deg + 180) % 360 - 180 if pose or camera.rotation_deg else None,
        mask=mask,
    )
