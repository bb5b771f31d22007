"""The section ``stitcher`` of the configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from services.common.config import CommonConfiguration, Section
from services.common.credentials import check_credentials
from services.common.masking import mask_url

Seconds = Annotated[float, Field(gt=0, le=3600)]
Damaged = Literal["hold", "mark"]
Multiple4 = Annotated[int, Field(multiple_of=4, ge=64, le=16384)]


class PoseSection(Section):
    """Approximate direction of a camera: a hint for the calibration, and its result if the pictures allow none."""

    yaw_deg: float = Field(ge=-180, le=180)
    """To the right of the panorama's middle."""
    pitch_deg: float = Field(0.0, ge=-90, le=90)
    """Upwards."""
    roll_deg: float = Field(0.0, ge=-180, le=180)
    """Clockwise, as seen from behind the camera, in addition to :attr:`CameraSection.rotation_deg`."""


class CameraSection(Section):
    """One camera."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$")
    """Name in logs, status, metadata and the calibration file."""
    url: str = Field(min_length=1, repr=False)
    """Input of FFmpeg: rtsp://, http://, a file... It may hold a password, so display :attr:`masked_url` instead."""
    username: str | None = Field(None, min_length=1, repr=False)
    """User, if the URL names none."""
    password_file: Path | None = None
    """File whose first line is the password. It is read at each connection."""
    password_env: str | None = Field(None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Environment variable that holds the password."""
    transport: Literal["auto", "tcp", "udp"] = "auto"
    """Transport of RTSP. ``auto`` takes TCP, and falls back to UDP if the camera rejects TCP."""
    delay_s: float = Field(0.0, ge=0, le=60)
    """Additional delay of this camera's pictures, compared with the other cameras. It is subtracted from their capture
    time, and the other cameras' pictures wait for them that much longer."""
    clock: Literal["auto", "pts", "arrival"] = "auto"
    """Best clock to use for the capture time. ``auto`` uses the sender's clock if the stream has one, otherwise the
    presentation times if they advance like a wall clock, otherwise the arrival."""
    damaged: Damaged | None = None
    """Overrides :attr:`StitcherSection.damaged` for this camera."""
    aspect: str | None = Field(None, pattern=r"^[1-9][0-9]{0,4}:[1-9][0-9]{0,4}$")
    """Pixel aspect ratio, such as ``16:11``. Default: that of the stream, or ``1:1`` if the stream has none."""
    rotation_deg: Literal[0, 90, 180, 270] = 0
    """Clockwise rotation of the mounted camera about its optical axis."""
    mask: Path | None = None
    """Picture that is black where the camera's picture must be ignored, such as at a clock or a logo."""
    hfov_deg: float | None = Field(None, gt=1, lt=180)
    """Horizontal field of view of this camera; overrides :attr:`CalibrationSection.hfov_deg`."""
    pose: PoseSection | None = None
    """Approximate direction."""
    ffmpeg_options: Mapping[str, str] = Field({}, repr=False)
    """Options of FFmpeg's demultiplexer, such as ``probesize``; they override those of this service. ``format`` selects
    the demultiplexer."""

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        if any(ord(character) < 0x21 for character in url):
            raise ValueError("the URL has a space or control character; write it percent-encoded")
        check_credentials(url)
        try:
            parts = urlsplit(url)
            _ = parts.port  # a port is only checked when it is read
        except ValueError:
            raise ValueError("the URL cannot be parsed: its host or port is malformed") from None
        if parts.scheme in ("rtsp", "rtsps", "http", "https", "rtmp", "srt") and not parts.hostname:
            raise ValueError(f"the {parts.scheme} URL names no host")
        return url

    @field_validator("ffmpeg_options", mode="before")
    @classmethod
    def _write_options(cls, options: object) -> object:
        """Convert options to text: YAML reads ``probesize: 32768`` as a number, but FFmpeg requires text."""
        if not isinstance(options, Mapping):
            return options
        return {
            name: str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
            for name, value in options.items()
        }

    @model_validator(mode="after")
    def _check_log_in(self) -> CameraSection:
        secret = self.password_file is not None or self.password_env is not None
        if self.password_file is not None and self.password_env is not None:
            raise ValueError("give password_file or password_env, not both")
        if not secret and self.username is None:
            return self
        parts = urlsplit(self.url)
        if not parts.hostname:
            raise ValueError("a log-in needs a URL with a host")
        if parts.password is not None and secret:
            raise ValueError("the password is given twice: in the URL and beside it")
        if (parts.username is None) == (self.username is None):
            raise ValueError("name the user once: as username or in the URL")
        if self.username is not None and not secret:
            raise ValueError("username needs password_file or password_env")
        return self

    @property
    def masked_url(self) -> str:
        """The URL with its secrets masked, for display."""
        return mask_url(self.url)

    @property
    def pixel_aspect(self) -> float | None:
        """:attr:`aspect` as a number."""
        if self.aspect is None:
            return None
        width, height = self.aspect.split(":")
        return int(width) / int(height)


class ReconnectSection(Section):
    """Backoff before a lost camera is retried: exponential, with jitter, up to a bound."""

    first_s: Seconds = 0.5
    """Wait before the first retry; each failure doubles it."""
    max_s: Seconds = 15.0
    """Longest wait."""
    refused_first_s: Seconds = 120.0
    """Wait after a rejected log-in (401, 403), which doubles as well. It is long because many cameras lock the account
    after a few failures."""
    refused_max_s: Seconds = 900.0
    """Longest wait after a rejected log-in."""

    @model_validator(mode="after")
    def _check_order(self) -> ReconnectSection:
        if self.max_s < self.first_s:
            raise ValueError("max_s must be at least first_s")
        if self.refused_max_s < self.refused_first_s:
            raise ValueError("refused_max_s must be at least refused_first_s")
        return self


class SynchronizerSection(Section):
    """How the cameras' frames are combined into frame sets."""

    tolerance_s: Seconds = 0.04
    """Largest distance in time between the frames of a set; a camera beyond it shows its previous picture."""
    max_wait_s: Seconds = 0.12
    """Longest time that a frame waits for the other cameras' frames, in addition to the largest ``delay_s``. It bounds
    the added latency."""


Point = tuple[float, float]


class PointPairSection(Section):
    """One point of the scene in the pictures of two cameras, marked by the operator."""

    cameras: tuple[str, str]
    """Names of the two cameras."""
    points_px: tuple[Point, Point]
    """Its position ``[x, y]`` in the picture of the first and of the second camera."""

    @model_validator(mode="after")
    def _check_cameras(self) -> PointPairSection:
        if self.cameras[0] == self.cameras[1]:
            raise ValueError("points need two different cameras")
        if not all(math.isfinite(value) and value >= 0 for point in self.points_px for value in point):
            raise ValueError("points_px are pixels of the pictures: numbers from 0 on")
        return self


class CalibrationSection(Section):
    """How the cameras' directions are found."""

    file: Path | None = None
    """JSON file with the calibration. It is read at the start if it exists, and written once all cameras are placed."""
    focal_px: float | None = Field(None, gt=0)
    """Approximate focal length of the cameras, in pixels of their pictures: a hint for scenes with little texture."""
    hfov_deg: float | None = Field(None, gt=1, lt=170)
    """The same hint as the horizontal field of view, in degrees."""
    min_confidence: float = Field(1.0, gt=0, le=3)
    """Least confidence of a match between two cameras, as defined by OpenCV's stitcher."""
    wait_s: Seconds = 10.0
    """Longest wait for all cameras before a first calibration without the missing ones."""
    retry_s: Seconds = 10.0
    """Wait after the first attempt while cameras are not placed; each attempt doubles it, up to 32 times this."""
    points: tuple[PointPairSection, ...] = ()
    """Point pairs marked by the operator, in addition to those that the calibration finds."""

    @model_validator(mode="after")
    def _check_hint(self) -> CalibrationSection:
        if self.focal_px is not None and self.hfov_deg is not None:
            raise ValueError("give focal_px or hfov_deg, not both")
        return self


class QualitySection(Section):
    """How the calibration is monitored against live pictures."""

    interval_s: Seconds = 60.0
    """Seconds between two measurements, in a thread of low priority."""
    limit_px: float = Field(3.0, gt=0)
    """Residual of two neighbours above which, in two consecutive measurements, a warning is logged."""


def _default_cameras() -> tuple[CameraSection, ...]:
    return tuple(
        CameraSection(name=f"cam{index}", url=f"http://127.0.0.1:{18081 + index}/cam{index}.ts") for index in range(5)
    )


class StitcherSection(Section):
    """The stitcher's input and output."""

    cameras: tuple[CameraSection, ...] = Field(default_factory=_default_cameras, min_length=2, max_length=16)
    """The cameras, in any order; the calibration finds their order."""
    width_px: Multiple4 = 4896
    """Width of the panorama."""
    height_px: Multiple4 = 688
    """Height of the panorama."""
    view: Literal["fit", "crop"] = "crop"
    """``fit`` shows everything that the cameras see, with bars around it; ``crop`` shows the largest part of the given
    shape that needs no bars."""
    damaged: Damaged = "hold"
    """Handling of damaged pictures: ``hold`` shows the camera's previous picture until the next intact one; ``mark``
    shows the damaged picture and marks it in the frame's metadata."""
    exposure: Literal["auto", "as_is"] = "auto"
    """``auto`` equalises the cameras' brightness, colours and vignetting, to hide the seams; ``as_is`` leaves the
    colours unchanged."""
    renderer: Literal["auto", "opencv"] = "auto"
    """Renderer of the panoramas. ``auto`` takes the compiled renderer if it was built and the processor has AVX2, and
    OpenCV otherwise."""
    feather_px: int = Field(16, ge=0, le=256, multiple_of=2)
    """Width of the strip at a seam in which one camera fades into the next, in steps of 4; 0 for a hard cut."""
    open_timeout_s: Seconds = 10.0
    """Longest wait for a camera to answer. Each time-out doubles it, up to its sum with ``key_frame_wait_s``."""
    read_timeout_s: Seconds = 5.0
    """Longest wait for a camera's next packet before reconnecting; for a slow camera, at least four of its periods."""
    key_frame_wait_s: Seconds = 30.0
    """Longest wait for a picture that can be decoded while packets arrive. The default exceeds the usual intervals of
    key frames, which go up to 20 s."""
    gone_after_s: Seconds = 2.0
    """A camera without a frame for this long, and for three of its own periods, is marked as gone in the panorama."""
    threads: int = Field(2, ge=1, le=64)
    """Threads that render one panorama."""
    reconnect: ReconnectSection = ReconnectSection()
    pairing: SynchronizerSection = SynchronizerSection()
    calibration: CalibrationSection = CalibrationSection()
    quality: QualitySection = QualitySection()

    @model_validator(mode="after")
    def _check_names(self) -> StitcherSection:
        names = [camera.name for camera in self.cameras]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"each camera needs a name of its own: {', '.join(twice)}")
        unknown = sorted({name for pair in self.calibration.points for name in pair.cameras} - set(names))
        if unknown:
            raise ValueError(f"calibration.points must name configured cameras, not: {', '.join(unknown)}")
        return self


class StitcherConfiguration(CommonConfiguration):
    """The sections that the stitcher reads."""

    stitcher: StitcherSection = StitcherSection()
