"""What the detector reads of the configuration: the section ``detector``."""

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
"""What is looked for where nothing says it, as far as the model knows it."""

LONGEST_INSTANCE = 16
QUEUE = "amqp://"
"""The source that is the queue of the broker that the section ``broker`` names."""
_RING = re.compile(STREAM_NAME.replace("^", "^ring://"))


def host_instance() -> str:
    """Return the host's name as an instance's: a long one is shortened, and still differs from its neighbours'."""
    host = socket.gethostname()
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", host).lstrip("_-") or "detector"
    if len(name) <= LONGEST_INSTANCE:
        return name
    return f"{name[: LONGEST_INSTANCE - 7]}-{hashlib.sha256(host.encode()).hexdigest()[:6]}"


class DetectorSection(Section):
    """What to look for, how finely, and how much of the machine it may take."""

    model_config = ConfigDict(populate_by_name=True)

    instance: str = Field(default_factory=host_instance, pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,15}$")
    """Name of this detector, by default the host's; two on one stream need different ones."""
    source: str | None = None
    """Where the frames are: ``ring://STREAM``, by default of the stream that all services share; or a recording,
    ``file:///FOLDER`` or ``file:///VIDEO``, of which every frame is looked at, whole, before the detector ends; or a
    queue of a broker, ``amqp://HOST[:PORT][/VHOST]``, ``amqps://...``, or ``amqp://`` alone for ``broker.url``."""
    group: str = Field("detector", pattern=STREAM_NAME)
    """Of a queue: the group of detectors that share its frames, one of ``relay.groups``."""
    prefetch: int = Field(2, ge=1, le=64)
    """Of a queue: frames that are fetched at a time; 2 fetches one while another is looked at."""
    mode: Literal["newest", "every"] | None = None
    """``newest`` skips the frames that came while one was looked at; ``every`` takes all that the ring still has. null:
    newest of a ring, and every of a recording."""
    model: Path | None = None
    """The model: an ONNX file, or a bundle, which is a directory with ``bundle.yaml``. None: ``models/default`` of the
    checkout or the image."""
    site: Path | None = None
    """A bundle for the site, with the labels and thresholds that hold there."""
    classifier: Path | None = None
    """A second stage, which says more about the objects found: a bundle of the dimension ``classifier``, or an ONNX
    file. None: there is no second stage."""
    classes: Path | None = None
    """A file with the names of the model's classes, one a line in its order; None: what the bundle or the file says, or
    COCO's."""
    format: str | None = None
    """How the model's outputs are read, where they fit several formats; docs/models.md names them."""
    providers: tuple[str, ...] = ()
    """ONNX Runtime's execution providers, the best first, such as CUDAExecutionProvider; those that are not installed
    are skipped, and the CPU is the last."""
    labels: tuple[str, ...] | None = None
    """What to look for, by the model's names. None: what the site or the bundle says, or people, vehicles, cats and
    dogs."""
    score_threshold: float | None = Field(None, gt=0, lt=1)
    """Boxes of which the network is less sure are left out. None: what the site or the bundle says, or 0.35."""
    tile_px: int = Field(688, ge=100, le=4096)
    """Side of the tiles that the frame is cut into. The network sees each at the size of its input: smaller tiles
    find smaller objects, and cost more, by the square."""
    overlap_px: int | None = Field(None, ge=0)
    """What neighbouring tiles have in common, at least: the size of the objects looked for, so that each is whole in
    one. null: a third of a tile, 220 of 688."""
    iou_threshold: float = Field(0.5, gt=0, lt=1)
    """Boxes of one label, or of rivals, that overlap by more (intersection over union) are one object."""
    inside_threshold: float = Field(0.6, gt=0, lt=1)
    """A box that a tile's edge cuts is a piece of another box when more than this of it lies inside that one."""
    rivals: tuple[tuple[str, ...], ...] = (("car", "truck", "bus"),)
    """Groups of labels that pass for each other: an object has one label of a group."""
    track_memory_s: float = Field(2.0, ge=0, le=60, allow_inf_nan=False)
    """How long an object may be unseen and still keep its number; 0 turns tracking off."""
    track_threshold: float = Field(-0.4, gt=-1, lt=1)
    """A box is a tracked object's when its distance-IoU with where that one is expected is at least this."""
    target_fps: float | None = Field(5.0, gt=0, le=1000, validation_alias=AliasChoices("target_fps", "max_rate_fps"))
    """Frames a second for which objects are told, at most; a frame looks at as many tiles as its time allows. null: as
    many frames as the processor allows. ``max_rate_fps`` is its name of before."""
    cpu_share: float | None = Field(0.2, gt=0, le=1)
    """Share of a core that detecting may take: it decides at how many tiles a frame looks. null: all of them."""
    revisit_s: float = Field(2.0, gt=0, le=60, allow_inf_nan=False)
    """Every tile is looked at at least so often, even where the CPU share would not pay for it."""
    nice: int | None = Field(10, ge=0, le=19)
    """How far detecting steps back behind other work on the same cores, 0 to 19, or null for not at all. It counts
    among the processes of one container; between containers their CPU shares decide."""
    stale_after_s: float = Field(5.0, gt=0, allow_inf_nan=False)
    """Without a frame for so long the detector reports itself unhealthy."""

    @field_validator("source")
    @classmethod
    def _known_source(cls, source: str | None) -> str | None:
        if source is None or source.startswith("file:") or _RING.match(source) or source == QUEUE:
            return source
        if source.startswith(("amqp:", "amqps:")):
            return check_broker_url(source)
        raise ValueError(
            f"{mask_url(source)!r} is no source: write ring://STREAM, file:///FOLDER, file:///VIDEO or amqp://HOST"
        )

    @field_validator("labels")
    @classmethod
    def _known_labels(cls, labels: tuple[str, ...] | None, info: ValidationInfo) -> tuple[str, ...] | None:
        if labels is None:
            return None
        # The default model knows COCO's classes; which another one knows is found when it is loaded.
        unknown = [label for label in labels if label not in COCO_80] if info.data.get("model", cls) is None else []
        if unknown:
            raise ValueError(f"not in COCO: {', '.join(unknown)}; there are {', '.join(COCO_80)}")
        if not labels or len(set(labels)) != len(labels):
            raise ValueError("one label at least, and none twice, is needed")
        return labels

    @field_validator("rivals")
    @classmethod
    def _distinct_rivals(cls, rivals: tuple[tuple[str, ...], ...]) -> tuple[tuple[str, ...], ...]:
        names = [label for group in rivals for label in group]
        if len(set(names)) != len(names):
            raise ValueError("a label is in one group of rivals, and only once")
        return rivals

    @model_validator(mode="after")
    def _overlap_fits(self) -> Self:
        if self.overlap_px is not None and self.overlap_px > self.tile_px * 0.75:
            raise ValueError(f"overlap_px {self.overlap_px} is more than three quarters of tile_px {self.tile_px}")
        return self

    @model_validator(mode="after")
    def _mode_fits(self) -> Self:
        if self.mode == "newest" and self.recording is not None:
            raise ValueError("a recording has no newest frame: leave mode out, or set every")
        if self.mode is not None and self.from_queue:
            raise ValueError("which frames of a queue are looked at is relay.policy: leave mode out")
        return self

    def without_budget(self) -> Self:
        """The same, but each frame is looked at whole, whatever it costs."""
        return self.model_copy(update={"cpu_share": None, "target_fps": None})

    def stateless(self) -> Self:
        """The same, but each frame is looked at whole, and nothing is kept for the next one."""
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
        """Whether every object of every frame is to be looked at, whatever it costs."""
        return self.mode == "every" or (self.cpu_share is None and self.target_fps is None)

    @property
    def recording(self) -> str | None:
        """URL of the recording, if the source is one."""
        return self.source if self.source is not None and self.source.startswith("file:") else None

    @property
    def status_name(self) -> str:
        """Name under which the status is served, on this host alone: the host's name is no part of it."""
        if "instance" not in self.model_fields_set:
            return "detector"
        return self.instance if self.instance.startswith("detector") else f"detector-{self.instance}"


class DetectorConfiguration(RemoteConfiguration):
    """The sections that the detector reads."""

    detector: DetectorSection = DetectorSection()

    @property
    def ring(self) -> str:
        """Name of the stream whose frames are looked at, or beside which a recording's detections are told."""
        source = self.detector.source or ""
        return source.removeprefix("ring://") if source.startswith("ring://") else self.stream.name
