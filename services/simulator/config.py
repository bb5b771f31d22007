"""The section ``simulator`` of the configuration, and values derived from it."""

from __future__ import annotations

import math
from pathlib import Path

from pydantic import Field

from services.common.config import CommonConfiguration, Section
from services.simulator.camera import Camera

FRAMES_PER_SECOND = 25
KEY_FRAME_INTERVAL = 25
"""Frames of a closed group of pictures: a client never waits longer than this for its first picture."""
YAWS_DEG = (-72.0, -36.0, 0.0, 36.0, 72.0)
"""Directions of the cameras, to the right of the scene's middle."""
HFOV_DEG = 50.0
"""Horizontal field of view of each camera: neighbours overlap by 14 degrees."""


class SimulatorSection(Section):
    """Five cameras that show one moving scene."""

    cache_dir: Path = Path(".cache/simulator")
    """Folder of the rendered clips; each set of parameters has its own folder in it."""
    host: str = "127.0.0.1"
    """Address on which the clips are served."""
    first_port: int = Field(18081, ge=1, le=65531)
    """Camera i is served at http://HOST:(first_port + i)/cam<i>.ts."""
    duration_s: float = Field(14.0, ge=1.0, le=120.0)
    """Length of the loop, rounded to whole seconds to end with a complete group of pictures."""
    seed: int = Field(7, ge=0)
    """Seed of the leaves, the boards and the people's start."""
    walkers: int = Field(14, ge=0, le=40)
    """Number of people in the scene."""
    width_px: int = Field(1920, ge=320, le=3840, multiple_of=4)
    """Width of each camera's picture."""
    height_px: int = Field(1080, ge=180, le=2160, multiple_of=4)
    """Height of each camera's picture."""
    quality: int = Field(20, ge=0, le=40)
    """Constant rate factor of the encoder: lower is better and larger."""

    @property
    def frames(self) -> int:
        """Frames of the loop, a multiple of the key-frame interval."""
        return round(self.duration_s) * FRAMES_PER_SECOND

    @property
    def cameras(self) -> tuple[Camera, ...]:
        """The poses, from left to right."""
        return tuple(
            Camera(f"cam{i}", math.radians(yaw), math.radians(HFOV_DEG), self.width_px, self.height_px)
            for i, yaw in enumerate(YAWS_DEG)
        )


class SimulatorConfiguration(CommonConfiguration):
    """The sections that the simulator reads."""

    simulator: SimulatorSection = SimulatorSection()
