"""What the detector reads of the configuration: the section ``detector``."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, field_validator, model_validator

from services.common.config import CommonConfiguration, Section
from services.detector.coco import COCO_COLUMNS, DEFAULT_MODEL


class DetectorSection(Section):
    """What to look for, how finely, and how much of the machine it may take."""

    instance: str = Field("detector", pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,15}$")
    """Name of this detector; two on one stream need different ones."""
    model: Path = DEFAULT_MODEL
    """The network, an ONNX file; the one that comes with the detector where none is named."""
    labels: tuple[str, ...] = ("person", "bicycle", "car", "motorcycle", "bus", "truck", "cat", "dog")
    """What to look for, by COCO's names."""
    score_threshold: float = Field(0.35, gt=0, lt=1)
    """Boxes of which the network is less sure are left out."""
    tile_px: int = Field(688, ge=100, le=4096)
    """Side of the tiles that the frame is cut into. The network sees each as 300 x 300 pixels: smaller tiles find
    smaller objects, and cost more, by the square."""
    overlap_px: int = Field(220, ge=0)
    """What neighbouring tiles have in common, at least: the size of the objects looked for, so that each is whole in
    one."""
    iou_threshold: float = Field(0.5, gt=0, lt=1)
    """Boxes of one label that overlap by more (intersection over union) are one object."""
    inside_threshold: float = Field(0.6, gt=0, lt=1)
    """A box that a tile's edge cuts is a piece of another box when more than this of it lies inside that one."""
    track_memory_s: float = Field(2.0, ge=0, le=60, allow_inf_nan=False)
    """How long an object may be unseen and still keep its number; 0 turns tracking off."""
    track_threshold: float = Field(-0.4, gt=-1, lt=1)
    """A box is a tracked object's when its distance-IoU with where that one is expected is at least this."""
    max_rate_fps: float | None = Field(5.0, gt=0, le=1000)
    """Most frames a second that are looked at; null: as many as the processor allows."""
    nice: int | None = Field(10, ge=0, le=19)
    """How far detecting steps back behind other work on the same cores, 0 to 19, or null for not at all. It counts
    among the processes of one container; between containers their CPU shares decide."""
    stale_after_s: float = Field(5.0, gt=0, allow_inf_nan=False)
    """Without a frame for so long the detector reports itself unhealthy."""

    @field_validator("labels")
    @classmethod
    def _known_labels(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [label for label in labels if label not in COCO_COLUMNS]
        if unknown:
            raise ValueError(f"not in COCO: {', '.join(unknown)}; there are {', '.join(COCO_COLUMNS)}")
        if not labels or len(set(labels)) != len(labels):
            raise ValueError("one label at least, and none twice, is needed")
        return labels

    @model_validator(mode="after")
    def _overlap_fits(self) -> Self:
        if self.overlap_px > self.tile_px * 0.75:
            raise ValueError(f"overlap_px {self.overlap_px} is more than three quarters of tile_px {self.tile_px}")
        return self

    @property
    def status_name(self) -> str:
        """Name under which the status is served."""
        return self.instance if self.instance.startswith("detector") else f"detector-{self.instance}"


class DetectorConfiguration(CommonConfiguration):
    """The sections that the detector reads."""

    detector: DetectorSection = DetectorSection()
