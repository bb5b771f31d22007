"""What the relay reads of the configuration: the section ``relay``."""

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
    """``live`` prefers new frames to old ones; ``work`` loses none that it has accepted."""
    encoding: Encoding = "jpeg"
    """How a frame is written: ``jpeg`` loses a little; ``png``, ``lz4`` and ``zstd`` lose nothing; ``raw`` is as it is,
    and of a live policy goes to the storage without a copy."""
    jpeg_quality: int = Field(90, ge=10, le=100)
    """Quality of JPEG."""
    target_fps: float | None = Field(None, gt=0, le=1000)
    """Frames a second to take, at most; the others are counted as thinned. null: every one."""
    groups: tuple[Group, ...] = Field(("detector",), min_length=1, max_length=16)
    """Groups of detectors: each group gets every frame, and the detectors of one share them."""
    live_length: int = Field(8, ge=1, le=1000)
    """Of ``policy: live``: frames that wait in the relay, and as many in the broker; one more drops the oldest."""
    max_age_s: float = Field(2.0, gt=0, le=3600)
    """Of ``policy: live``: age, since its capture, from which a frame is dropped, and so is its result."""
    spool: Path = Path("spool")
    """Of ``policy: work``: folder for the frames that are accepted and not in the storage yet, on a disk of this host.
    It must outlive the relay, so a container needs a volume here."""
    spool_bytes: int = Field(2 << 30, ge=1 << 20)
    """Bytes that the spool may take; frames that have no place are counted, and not taken."""
    queue_length: int = Field(100_000, ge=1)
    """Of ``policy: work``: frames that wait in the broker; while they are as many, frames wait in the spool."""
    attempts: int = Field(5, ge=1, le=1000)
    """Of ``policy: work``: times that a frame is delivered to detectors before it becomes a dead letter."""
    puts: int = Field(4, ge=1, le=64)
    """Frames that are written to the storage at a time."""
    expire_frames_s: float = Field(86_400.0, ge=10, allow_inf_nan=False)
    """Seconds after which a frame is removed from the storage, whatever has become of it. It must be longer than a
    frame may wait in the queue."""
    expire_dead_letters_s: float = Field(7 * 86_400.0, ge=10, allow_inf_nan=False)
    """The same for the frames of dead letters, which are wanted to reproduce what failed."""
    expire_results_s: float = Field(86_400.0, ge=10, allow_inf_nan=False)
    """The same for results."""
    sweep_s: float = Field(60.0, gt=0, allow_inf_nan=False)
    """Seconds between two searches for what has expired."""
    stale_after_s: float = Field(10.0, gt=0, allow_inf_nan=False)
    """Without a frame taken, or a frame published that waits, for so long the relay reports itself unhealthy."""

    @model_validator(mode="after")
    def _distinct_groups(self) -> Self:
        if len(set(self.groups)) != len(self.groups):
            raise ValueError("a group is named twice")
        return self


class RelayConfiguration(RemoteConfiguration):
    """The sections that the relay reads."""

    relay: RelaySection = RelaySection()
