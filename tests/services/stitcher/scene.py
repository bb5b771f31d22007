"""A textured world on a cylinder, seen by pinhole cameras of known poses, for the stitcher's tests."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path

import av
import cv2
import numpy as np
import numpy.typing as npt

from services.stitcher.calibration.poses import Calibration, CameraPose
from services.stitcher.rendering.convert import Converter, Planes

Image = npt.NDArray[np.uint8]
Matrix = npt.NDArray[np.float64]

SCALE_PX = 800.0
"""Pixels of the world's picture a radian."""
YAW_LIMIT_RAD, V_LIMIT = 2.0, 0.6
YAWS_DEG = (-72.0, -36.0, 0.0, 36.0, 72.0)
HFOV_DEG = 50.0


@functools.cache
def paint_world(seed: int = 5) -> Image:
    """The world as a cylindrical picture, BGR, read-only; every region has features of its own."""
    random = np.random.default_rng(seed)
    height, width = round(2 * V_LIMIT * SCALE_PX), round(2 * YAW_LIMIT_RAD * SCALE_PX)
    shades = np.full((height, width, 3), 120, np.float32)
    for cell, strength in ((5, 8), (24, 22), (90, 30)):
        noise = random.standard_normal((height // cell + 2, width // cell + 2, 3)).astype(np.float32)
        shades += strength * cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    picture = np.clip(shades, 20, 235).astype(np.uint8)
    for _ in range(900):
        x, y, size = (int(random.integers(0, limit)) for limit in (width, height, 16))
        colour = [int(value) for value in random.integers(20, 235, 3)]
        corners = np.array([x, y]) + random.integers(-6 - size, 7 + size, (int(random.integers(3, 6)), 2))
        cv2.fillPoly(picture, [corners.astype(np.int32)], colour, cv2.LINE_AA)
    world = cv2.GaussianBlur(picture, (0, 0), 0.8).astype(np.uint8)
    world.setflags(write=False)
    return world


def rotation(yaw_deg: float, pitch_deg: float = 0.0, roll_deg: float = 0.0) -> Matrix:
    """Return the rotation from the camera's axes to those of the world."""
    yaw, pitch, roll = (math.radians(angle) for angle in (yaw_deg, pitch_deg, roll_deg))
    about_y = cv2.Rodrigues(np.array([0.0, yaw, 0.0]))[0]
    about_x = cv2.Rodrigues(np.array([pitch, 0.0, 0.0]))[0]
    about_z = cv2.Rodrigues(np.array([0.0, 0.0, roll]))[0]
    return np.asarray(about_y @ about_x @ about_z, np.float64)


def pose(
    name: str, turned: Matrix, width_px: int = 640, height_px: int = 360, hfov_deg: float = HFOV_DEG
) -> CameraPose:
    """Return a camera with this horizontal field of view."""
    return CameraPose(
        name=name,
        width_px=width_px,
        height_px=height_px,
        focal_px=width_px / 2 / math.tan(math.radians(hfov_deg) / 2),
        center_x_px=(width_px - 1) / 2,
        center_y_px=(height_px - 1) / 2,
        rotation=turned.tolist(),
        confidence=2.0,
    )


def rig(yaws_deg: Sequence[float] = YAWS_DEG, width_px: int = 640, height_px: int = 360) -> Calibration:
    """Return the true calibration of level cameras."""
    return Calibration(tuple(pose(f"cam{i}", rotation(yaw), width_px, height_px) for i, yaw in enumerate(yaws_deg)))


def photograph(world: Image, camera: CameraPose) -> Image:
    """Return the picture that the camera sees."""
    x, y = np.meshgrid(np.arange(camera.width_px, dtype=np.float64), np.arange(camera.height_px, dtype=np.float64))
    rays = camera.directions(np.stack([x, y], axis=-1))
    yaw, v = np.arctan2(rays[..., 0], rays[..., 2]), rays[..., 1] / np.hypot(rays[..., 0], rays[..., 2])
    return _sample(world, yaw, v)


def planes(picture: Image) -> Planes:
    """Return the planes that a decoder would give for the BGR picture."""
    frame = av.VideoFrame.from_ndarray(picture, format="bgr24")
    return Converter().planes(frame, frame.width, frame.height)


def true_panorama(
    world: Image, width_px: int, height_px: int, yaw_min_rad: float, scale_px: float, v_min: float
) -> Image:
    """Return the panorama of a perfect stitcher for this part of the world."""
    yaw = yaw_min_rad + (np.arange(width_px) + 0.5) / scale_px
    v = v_min + (np.arange(height_px) + 0.5) / scale_px
    return _sample(world, *np.meshgrid(yaw, v))


def _sample(world: Image, yaw: Matrix, v: Matrix) -> Image:
    columns = ((yaw + YAW_LIMIT_RAD) * SCALE_PX - 0.5).astype(np.float32)
    rows = ((v + V_LIMIT) * SCALE_PX - 0.5).astype(np.float32)
    return np.asarray(cv2.remap(world, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), np.uint8)


def psnr_db(a: Image, b: Image) -> float:
    """Peak signal-to-noise ratio."""
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return float(10 * np.log10(255.0**2 / max(error, 1e-9)))


def encode(path: Path, pictures: Sequence[Image], *, rate: int = 25, codec: str = "libx264") -> None:
    """Write the pictures as a video whose container follows from the path's suffix."""
    height, width = pictures[0].shape[:2]
    with av.open(str(path), "w") as container:
        options = {"preset": "ultrafast", "tune": "zerolatency", "g": str(rate), "crf": "18"}
        stream = container.add_stream(codec, rate=rate, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
        container.mux(stream.encode(None))
