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
    """Roughly where a camera looks: a hint for the calibration, and its answer where the pictures hold none."""

    yaw_deg: float = Field(ge=-180, le=180)
    """To the right of the panorama's middle."""
    pitch_deg: float = Field(0.0, ge=-90, le=90)
    """Upwards."""
    roll_deg: float = Field(0.0, ge=-180, le=180)
    """Clockwise, as the camera sees it, beside :attr:`CameraSection.rotation_deg`."""


class CameraSection(Section):
    """One camera."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$")
    """Name in logs, status, metadata and the calibration's file."""
    url: str = Field(min_length=1, repr=False)
    """What FFmpeg reads: rtsp://, http://, a file... It may hold a password, so show :attr:`masked_url` instead."""
    username: str | None = Field(None, min_length=1, repr=False)
    """User of the log-in, where the URL names none."""
    password_file: Path | None = None
    """File whose first line is the password. It is read at each connection."""
    password_env: str | None = Field(None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Environment variable that holds the password."""
    transport: Literal["auto", "tcp", "udp"] = "auto"
    """What carries RTSP's pictures. ``auto`` takes TCP, and UDP where the camera refuses TCP."""
    delay_s: float = Field(0.0, ge=0, le=60)
    """How much later than the others' this camera's pictures arrive: they count as captured earlier by it, and the
    others' pictures wait for them so much longer."""
    clock: Literal["auto", "pts", "arrival"] = "auto"
    """Best clock to take for the instant of capture. ``auto`` takes the sender's where the stream has it, else the
    presentation times where they run like the wall's clock, else the arrival."""
    damaged: Damaged | None = None
    """Overrides :attr:`StitcherSection.damaged` for this camera."""
    aspect: str | None = Field(None, pattern=r"^[1-9][0-9]{0,4}:[1-9][0-9]{0,4}$")
    """Width to height of one pixel, such as ``16:11``; without it, what the stream says, else ``1:1``."""
    rotation_deg: Literal[0, 90, 180, 270] = 0
    """How far the camera is turned clockwise about its own axis, as it is mounted."""
    mask: Path | None = None
    """Picture that is black where the camera's picture is to be left out, such as a clock or a logo."""
    hfov_deg: float | None = Field(None, gt=1, lt=180)
    """Horizontal field of view of this camera; overrides :attr:`CalibrationSection.hfov_deg`."""
    pose: PoseSection | None = None
    """Roughly where it looks."""
    ffmpeg_options: Mapping[str, str] = Field({}, repr=False)
    """Options of FFmpeg's reader, such as ``probesize``; they override what this service sets. ``format`` names the
    demultiplexer."""

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        if any(ord(character) < 0x21 for character in url):
            raise ValueError("the URL has a space or control character; write it percent-encoded")
        check_credentials(url)
        try:
            parts = urlsplit(url)
            _ = parts.port
        except ValueError:
            raise ValueError("the URL cannot be parsed: its host or port is malformed") from None
        if parts.scheme in ("rtsp", "rtsps", "http", "https", "rtmp", "srt") and not parts.hostname:
            raise ValueError(f"the {parts.scheme} URL names no host")
        return url

    @field_validator("ffmpeg_options", mode="before")
    @classmethod
    def _write_options(cls, options: object) -> object:
        """YAML reads ``probesize: 32768`` as a number; FFmpeg takes text."""
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
        """The URL without what may be secret in it, for people to read."""
        return mask_url(self.url)

    @property
    def pixel_aspect(self) -> float | None:
        """:attr:`aspect` as a number."""
        if self.aspect is None:
            return None
        width, height = self.aspect.split(":")
        return int(width) / int(height)


class ReconnectSection(Section):
    """How soon a lost camera is tried again: exponential, with jitter, up to a bound."""

    first_s: Seconds = 0.5
    """Wait before the first new try; each failure doubles it."""
    max_s: Seconds = 15.0
    """Longest wait."""
    refused_first_s: Seconds = 120.0
    """Wait after a refused log-in (401, 403), which doubles as well: cameras lock after a few of them."""
    refused_max_s: Seconds = 900.0
    """Longest wait after a refused log-in."""

    @model_validator(mode="after")
    def _check_order(self) -> ReconnectSection:
        if self.max_s < self.first_s:
            raise ValueError("max_s must be at least first_s")
        if self.refused_max_s < self.refused_first_s:
            raise ValueError("refused_max_s must be at least refused_first_s")
        return self


class PairingSection(Section):
    """How frames of the cameras are put together."""

    tolerance_s: Seconds = 0.04
    """Largest distance in time between frames of one panorama; a camera beyond it shows its previous picture."""
    max_wait_s: Seconds = 0.12
    """How long a frame waits for the other cameras' before it goes without them: the bound of the added latency."""


Point = tuple[float, float]


class PointPairSection(Section):
    """The same thing in the pictures of two cameras, found by eye."""

    cameras: tuple[str, str]
    """Names of the two cameras."""
    points_px: tuple[Point, Point]
    """Where it is, ``[x, y]``, in the picture of the first and of the second camera."""

    @model_validator(mode="after")
    def _check_cameras(self) -> PointPairSection:
        if self.cameras[0] == self.cameras[1]:
            raise ValueError("points need two different cameras")
        if not all(math.isfinite(value) and value >= 0 for point in self.points_px for value in point):
            raise ValueError("points_px are pixels of the pictures: numbers from 0 on")
        return self


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
    points: tuple[PointPairSection, ...] = ()
    """Pairs of points, found by eye, beside those that the calibration finds."""

    @model_validator(mode="after")
    def _check_hint(self) -> CalibrationSection:
        if self.focal_px is not None and self.hfov_deg is not None:
            raise ValueError("give focal_px or hfov_deg, not both")
        return self


class QualitySection(Section):
    """How it is watched whether the cameras still fit."""

    interval_s: Seconds = 60.0
    """Seconds between two measurements, in a thread of low priority."""
    limit_px: float = Field(3.0, gt=0)
    """A residual of two neighbours above this, in two measurements one after the other, is a warning."""


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
    view: Literal["fit", "crop"] = "crop"
    """``fit`` shows all that the cameras see, with bars around it; ``crop`` shows the largest part of that shape which
    has no bars."""
    damaged: Damaged = "hold"
    """What becomes of a damaged picture: ``hold`` shows the camera's previous one until the next whole one, ``mark``
    shows it, and its frame says that it is damaged."""
    exposure: Literal["auto", "as_is"] = "auto"
    """``auto`` evens out the cameras' brightness, colours and vignetting, so that no seam shows; ``as_is`` leaves
    their colours as they come."""
    renderer: Literal["auto", "opencv"] = "auto"
    """What fills the panoramas. ``auto`` takes the compiled renderer where it was built and the processor has AVX2,
    else OpenCV."""
    feather_px: int = Field(16, ge=0, le=256, multiple_of=2)
    """Width of the strip at a seam in which one camera fades into the next, in steps of 4; 0 cuts hard."""
    open_timeout_s: Seconds = 10.0
    """Longest wait for a camera to answer."""
    read_timeout_s: Seconds = 5.0
    """Longest wait for a camera's next packet before it is connected anew; four periods of a slow camera if those are
    longer."""
    key_frame_wait_s: Seconds = 30.0
    """Longest wait for a picture that can be decoded while packets come: longer than the usual distances of key frames,
    which go up to 20 s."""
    gone_after_s: Seconds = 2.0
    """A camera without a frame for so long, and for three periods of its own, is marked in the panorama."""
    threads: int = Field(2, ge=1, le=64)
    """Threads that render one panorama."""
    reconnect: ReconnectSection = ReconnectSection()
    pairing: PairingSection = PairingSection()
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
            raise ValueError(f"calibration.points name cameras that there are not: {', '.join(unknown)}")
        return self


class StitcherConfiguration(CommonConfiguration):
    """The sections that the stitcher reads."""

    stitcher: StitcherSection = StitcherSection()
