"""The section ``relay`` of the configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from services.common.config import STREAM_NAME, Section
from services.common.remote_config import RemoteConfiguration

Group = Annotated[str, Field(pattern=STREAM_NAME)]
Encoding = Literal["jpeg", "png", "raw", "lz4", "zstd"]


class RelaySection(Section):
    """Which frames leave this host, and how."""

    policy: Literal["live", "work"] = "live"
    """``live`` prefers new frames to old ones; ``work`` never loses an accepted frame."""
    encoding: Encoding = "jpeg"
    """Encoding of frames: ``jpeg`` is lossy; ``png``, ``lz4`` and ``zstd`` are lossless; ``raw`` is uncompressed and,
    with the live policy, written to the storage without a copy."""
    jpeg_quality: int = Field(90, ge=10, le=100)
    """JPEG quality."""
    target_fps: float | None = Field(None, gt=0, le=1000)
    """Largest rate of relayed frames; the others are counted as thinned. null: all frames."""
    groups: tuple[Group, ...] = Field(("detector",), min_length=1, max_length=16)
    """Groups of detectors. Each group gets every frame, and the detectors of a group share them."""
    live_length: int = Field(8, ge=1, le=1000)
    """For ``policy: live``: largest number of frames that wait in the relay, and as many in the broker. A further frame
    drops the oldest one."""
    max_age_s: float = Field(2.0, gt=0, le=3600)
    """For ``policy: live``: age since the capture above which a frame is dropped, and its result is not published."""
    spool: Path = Path("spool")
    """For ``policy: work``: folder on a disk of this host, for accepted frames that are not yet in the storage. It must
    outlive the relay, so a container requires a volume for it."""
    spool_bytes: int = Field(2 << 30, ge=1 << 20)
    """Largest size of the spool. Frames that do not fit are counted and not accepted."""
    queue_length: int = Field(100_000, ge=1)
    """For ``policy: work``: largest number of frames that wait in the broker. Further frames wait in the spool."""
    attempts: int = Field(5, ge=1, le=1000)
    """For ``policy: work``: deliveries of a frame to detectors before it becomes a dead letter."""
    puts: int = Field(4, ge=1, le=64)
    """Number of concurrent writes to the storage."""
    expire_frames_s: float = Field(86_400.0, ge=10, allow_inf_nan=False)
    """Seconds after which a frame is removed from the storage in any case. It must exceed the time that a frame may
    wait in the queue."""
    expire_dead_letters_s: float = Field(7 * 86_400.0, ge=10, allow_inf_nan=False)
    """The same for the frames of dead letters, which are required to reproduce failures."""
    expire_results_s: float = Field(86_400.0, ge=10, allow_inf_nan=False)
    """The same for results."""
    sweep_s: float = Field(60.0, gt=0, allow_inf_nan=False)
    """Seconds between two searches for expired objects."""
    stale_after_s: float = Field(10.0, gt=0, allow_inf_nan=False)
    """Time without an accepted frame, or with waiting frames of which none is published, after which the relay reports
    itself unhealthy."""

    @model_validator(mode="after")
    def _distinct_groups(self) -> Self:
        if len(set(self.groups)) != len(self.groups):
            raise ValueError("a group is named twice")
        return self


class RelayConfiguration(RemoteConfiguration):
    """The sections that the relay reads."""

    relay: RelaySection = RelaySection()
