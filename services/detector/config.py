"""The section ``detector`` of the configuration."""

from __future__ import annotations

import hashlib
import re
import socket
from pathlib import Path
from typing import Literal, Self

from pydantic import AliasChoices, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from services.common.config import STREAM_NAME, Section
from services.common.masking import mask_url
from services.common.remote_config import RemoteConfiguration, check_broker_url
from services.detector.coco import COCO_80

DEFAULT_LABELS = ("person", "bicycle", "car", "motorcycle", "bus", "truck", "cat", "dog")
"""Default labels; those that the model does not know are skipped."""

LONGEST_INSTANCE = 16
QUEUE = "amqp://"
"""Source for the queue of the broker in the section ``broker``."""
_RING = re.compile(STREAM_NAME.replace("^", "^ring://"))


def host_instance() -> str:
    """Return the host's name as an instance name. A long name is shortened, with a digest to keep it unique."""
    host = socket.gethostname()
    # The name becomes part of file names in /dev/shm: a subset of the characters, and at most 16 of them.
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", host).lstrip("_-") or "detector"
    if len(name) <= LONGEST_INSTANCE:
        return name
    return f"{name[: LONGEST_INSTANCE - 7]}-{hashlib.sha256(host.encode()).hexdigest()[:6]}"


class DetectorSection(Section):
    """What to detect, at which resolution, and with how much CPU."""

    model_config = ConfigDict(populate_by_name=True)

    instance: str = Field(default_factory=host_instance, pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,15}$")
    """Name of this detector, by default the host's. Detectors of one stream require different names."""
    source: str | None = None
    """Source of the frames: ``ring://STREAM``, by default the stream that all services share; a recording,
    ``file:///FOLDER`` or ``file:///VIDEO``, of which the detector processes every whole frame and then exits; or a
    broker's queue, ``amqp://HOST[:PORT][/VHOST]``, ``amqps://...``, or ``amqp://`` alone for ``broker.url``."""
    group: str = Field("detector", pattern=STREAM_NAME)
    """For a queue: the group of detectors that share its frames, one of ``relay.groups``."""
    prefetch: int = Field(2, ge=1, le=64)
    """For a queue: frames that are prefetched; 2 fetches one while another is processed."""
    mode: Literal["newest", "every"] | None = None
    """``newest`` skips the frames that arrived while one was processed; ``every`` takes all frames that the ring still
    has. null: newest for a ring, every for a recording."""
    model: Path | None = None
    """The model: an ONNX file, or a bundle, which is a directory with ``bundle.yaml``. None: ``models/default`` of the
    checkout or the image."""
    site: Path | None = None
    """A bundle for the site, with the labels and thresholds to use there."""
    classifier: Path | None = None
    """Second stage, which classifies the objects found: a bundle of the dimension ``classifier``, or an ONNX file.
    None: no second stage."""
    classes: Path | None = None
    """A file with the names of the model's classes, one per line, in the model's order. None: the names in the bundle
    or the model's file, or COCO's."""
    format: str | None = None
    """Format of the model's outputs, if they fit several formats; docs/models.md lists them."""
    providers: tuple[str, ...] = ()
    """ONNX Runtime's execution providers in order of preference, such as CUDAExecutionProvider. Providers that are not
    installed are skipped; the CPU is always the last."""
    labels: tuple[str, ...] | None = None
    """Labels to detect, by the model's names. None: those of the site or the bundle, or people, vehicles, cats and
    dogs."""
    score_threshold: float | None = Field(None, gt=0, lt=1)
    """Boxes with a lower score are dropped. None: the threshold of the site or the bundle, or 0.35."""
    tile_px: int = Field(688, ge=100, le=4096)
    """Side of the tiles into which the frame is split. Each tile is scaled to the network's input, so smaller tiles
    find smaller objects, but the cost grows with the inverse square."""
    overlap_px: int | None = Field(None, ge=0)
    """Least overlap of neighbouring tiles. Set it to the size of the largest object, to ensure that each object is
    complete in one tile. null: a third of a tile, 220 of 688."""
    iou_threshold: float = Field(0.5, gt=0, lt=1)
    """Boxes of one label, or of rival labels, with a larger intersection over union are one object."""
    inside_threshold: float = Field(0.6, gt=0, lt=1)
    """A box cut by a tile's edge is a piece of another box if more than this share of it lies inside that box."""
    rivals: tuple[tuple[str, ...], ...] = (("car", "truck", "bus"),)
    """Groups of labels that the model confuses: an object has one label of a group."""
    track_memory_s: float = Field(2.0, ge=0, le=60, allow_inf_nan=False)
    """Longest time for which an unseen object keeps its number; 0 disables tracking."""
    track_threshold: float = Field(-0.4, gt=-1, lt=1)
    """Least distance-IoU between a box and a tracked object's expected position for the two to be matched."""
    target_fps: float | None = Field(5.0, gt=0, le=1000, validation_alias=AliasChoices("target_fps", "max_rate_fps"))
    """Largest rate of frames for which detections are published; each frame processes as many tiles as its time
    permits. null: as many frames as the processor permits. ``max_rate_fps`` is its former name."""
    cpu_share: float | None = Field(0.2, gt=0, le=1)
    """Share of a core that the detection may use. It limits the tiles of a frame. null: all tiles."""
    revisit_s: float = Field(2.0, gt=0, le=60, allow_inf_nan=False)
    """Longest time between two runs of the model on the same tile, even if this exceeds the CPU share."""
    nice: int | None = Field(10, ge=0, le=19)
    """Nice value of the detection thread, 0 to 19, or null to leave it unchanged. It applies among the processes of one
    container; between containers, their CPU shares decide."""
    stale_after_s: float = Field(5.0, gt=0, allow_inf_nan=False)
    """Time without a frame after which the detector reports itself unhealthy."""

    @field_validator("source")
    @classmethod
    def _known_source(cls, source: str | None) -> str | None:
        if source is None or source.startswith("file:") or _RING.match(source) or source == QUEUE:
            return source
        if source.startswith(("amqp:", "amqps:")):
            return check_broker_url(source)
        raise ValueError(
            f"{mask_url(source)!r} is not a source: write ring://STREAM, file:///FOLDER, file:///VIDEO or amqp://HOST"
        )

    @field_validator("labels")
    @classmethod
    def _known_labels(cls, labels: tuple[str, ...] | None, info: ValidationInfo) -> tuple[str, ...] | None:
        if labels is None:
            return None
        # Only the default model is known to use COCO's classes; those of another model are known once it is loaded.
        unknown = [label for label in labels if label not in COCO_80] if info.data.get("model", cls) is None else []
        if unknown:
            raise ValueError(f"not in COCO: {', '.join(unknown)}; there are {', '.join(COCO_80)}")
        if not labels or len(set(labels)) != len(labels):
            raise ValueError("at least one label is required, and none twice")
        return labels

    @field_validator("rivals")
    @classmethod
    def _distinct_rivals(cls, rivals: tuple[tuple[str, ...], ...]) -> tuple[tuple[str, ...], ...]:
        names = [label for group in rivals for label in group]
        if len(set(names)) != len(names):
            raise ValueError("a label may be in only one group of rivals, and only once")
        return rivals

    @model_validator(mode="after")
    def _overlap_fits(self) -> Self:
        # With more overlap the number of tiles grows without bound: a tile advances by what it does not overlap.
        if self.overlap_px is not None and self.overlap_px > self.tile_px * 0.75:
            raise ValueError(f"overlap_px {self.overlap_px} is more than three quarters of tile_px {self.tile_px}")
        return self

    @model_validator(mode="after")
    def _mode_fits(self) -> Self:
        if self.mode == "newest" and self.recording is not None:
            raise ValueError("a recording has no newest frame: leave mode out, or set every")
        if self.mode is not None and self.from_queue:
            raise ValueError("relay.policy decides which frames of a queue are processed: leave mode out")
        return self

    def without_budget(self) -> Self:
        """Return a copy that processes each frame as a whole, regardless of the cost."""
        return self.model_copy(update={"cpu_share": None, "target_fps": None})

    def stateless(self) -> Self:
        """Return a copy that processes each frame as a whole and keeps no state between frames."""
        return self.without_budget().model_copy(update={"track_memory_s": 0.0})

    @property
    def from_queue(self) -> bool:
        """Whether the source is a queue of a broker."""
        return self.source is not None and self.source.startswith(("amqp:", "amqps:"))

    @property
    def broker_url(self) -> str | None:
        """URL of the queue's broker; None for ``broker.url``."""
        return self.source if self.from_queue and self.source != QUEUE else None

    @property
    def is_without_budget(self) -> bool:
        """Whether to process every object of every frame, regardless of the cost."""
        return self.mode == "every" or (self.cpu_share is None and self.target_fps is None)

    @property
    def recording(self) -> str | None:
        """URL of the recording, if the source is one."""
        return self.source if self.source is not None and self.source.startswith("file:") else None

    @property
    def status_name(self) -> str:
        """Name under which the status is served. It omits the host's name, because it is local to the host."""
        if "instance" not in self.model_fields_set:
            return "detector"
        return self.instance if self.instance.startswith("detector") else f"detector-{self.instance}"


class DetectorConfiguration(RemoteConfiguration):
    """The sections that the detector reads."""

    detector: DetectorSection = DetectorSection()

    @property
    def ring(self) -> str:
        """Name of the stream to read, or under which a recording's detections are published."""
        source = self.detector.source or ""
        return source.removeprefix("ring://") if source.startswith("ring://") else self.stream.name
