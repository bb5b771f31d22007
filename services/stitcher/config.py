"""The section ``stitcher`` of the configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from services.common.config import CommonConfiguration, Section
from services.common.masking import mask_url

Seconds = Annotated[float, Field(gt=0, le=3600)]
Multiple4 = Annotated[int, Field(multiple_of=4, ge=64, le=16384)]


class CameraSection(Section):
    """One camera."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$")
    """Name in logs, status, metadata and the calibration's file."""
    url: str = Field(min_length=1, repr=False)
    """What FFmpeg reads: rtsp://, http://, a file... It may hold a password, so show :attr:`masked_url` instead."""

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        if any(ord(character) < 0x21 for character in url):
            raise ValueError("the URL has a space or control character; write it percent-encoded")
        try:
            parts = urlsplit(url)
            _ = parts.port
        except ValueError:
            raise ValueError("the URL cannot be parsed: its host or port is malformed") from None
        if parts.scheme in ("rtsp", "rtsps", "http", "https", "rtmp", "srt") and not parts.hostname:
            raise ValueError(f"the {parts.scheme} URL names no host")
        return url

    @property
    def masked_url(self) -> str:
        """The URL without what may be secret in it, for people to read."""
        return mask_url(self.url)


class ReconnectSection(Section):
    """How soon a lost camera is tried again: exponential, with jitter, up to a bound."""

    first_s: Seconds = 0.5
    """Wait before the first new try; each failure doubles it."""
    max_s: Seconds = 15.0
    """Longest wait."""

    @model_validator(mode="after")
    def _check_order(self) -> ReconnectSection:
        if self.max_s < self.first_s:
            raise ValueError("max_s must be at least first_s")
        return self


class PairingSection(Section):
    """How frames of the cameras are put together."""

    tolerance_s: Seconds = 0.04
    """Largest distance in time between frames of one panorama; a camera beyond it shows its previous picture."""
    max_wait_s: Seconds = 0.12
    """How long a frame waits for the other cameras' before it goes without them: the bound of the added latency."""


class CalibrationSection(Section):
    """How the cameras' directions become known."""

    file: Path | None = None
    """JSON file with the calibration: read at the start if it is there, written once all cameras are placed."""
    focal_px: float | None = Field(None, gt=0)
    """Roughly the focal length of the cameras, in pixels of their pictures: a hint that helps in poor scenes."""
    hfov_deg: float | None = Field(None, gt=1, lt=170)
    """The same hint as the horizontal field of view, in degrees."""
    min_confidence: float = Field(1.0, gt=0, le=3)
    """Least confidence of a match between two cameras, as OpenCV's stitcher counts it."""
    wait_s: Seconds = 10.0
    """How long to wait for all cameras before a first calibration without the missing ones."""
    retry_s: Seconds = 10.0
    """Wait between tries while cameras are not placed."""

    @model_validator(mode="after")
    def _check_hint(self) -> CalibrationSection:
        if self.focal_px is not None and self.hfov_deg is not None:
            raise ValueError("give focal_px or hfov_deg, not both")
        return self


def _default_cameras() -> tuple[CameraSection, ...]:
    return tuple(
        CameraSection(name=f"cam{index}", url=f"http://127.0.0.1:{18081 + index}/cam{index}.ts") for index in range(5)
    )


class StitcherSection(Section):
    """What the stitcher reads and makes."""

    cameras: tuple[CameraSection, ...] = Field(default_factory=_default_cameras, min_length=2, max_length=16)
    """The cameras, in any order: the calibration finds which is left of which."""
    width_px: Multiple4 = 4896
    """Width of the panorama."""
    height_px: Multiple4 = 688
    """Height of the panorama."""
    feather_px: int = Field(16, ge=0, le=256, multiple_of=2)
    """Width of the strip at a seam in which one camera fades into the next, in steps of 4; 0 cuts hard."""
    open_timeout_s: Seconds = 10.0
    """Longest wait for a camera to answer."""
    read_timeout_s: Seconds = 5.0
    """Longest wait for a camera's next packet before it is connected anew."""
    gone_after_s: Seconds = 2.0
    """A camera without a frame for so long is marked in the panorama."""
    threads: int = Field(2, ge=1, le=64)
    """Threads that render one panorama."""
    reconnect: ReconnectSection = ReconnectSection()
    pairing: PairingSection = PairingSection()
    calibration: CalibrationSection = CalibrationSection()

    @model_validator(mode="after")
    def _check_names(self) -> StitcherSection:
        names = [camera.name for camera in self.cameras]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"each camera needs a name of its own: {', '.join(twice)}")
        return self


class StitcherConfiguration(CommonConfiguration):
    """The sections that the stitcher reads."""

    stitcher: StitcherSection = StitcherSection()
