"""The detector's status: the counts of its frames, and the status document."""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Any

from services.common.detections import DetectionPublisher, Detections
from services.common.status import Stage, status_document
from services.detector.config import DetectorSection
from services.detector.detector import Detector
from services.detector.models.classifier import Classifier
from services.detector.models.model import Model

if TYPE_CHECKING:
    from services.detector.worker import Worker


class DetectorStatus:
    """Counts the frames of a detector, and describes its state. Written by one thread, read by any.

    Args:
        section: The detector's configuration.
        model: Its model.
        detector: Detects the objects.
        second: Classifier of the second stage, or the reason why there is none; ``None`` if none is configured.
    """

    def __init__(
        self, section: DetectorSection, model: Model, detector: Detector, second: Classifier | str | None
    ) -> None:
        self.stage = Stage()
        self.refused = 0
        """Frames of an unsupported format."""
        self._section = section
        self._model = model
        self._detector = detector
        self._second = second
        self._objects = 0
        self._looked: deque[int] = deque(maxlen=100)  # tiles that the model ran on, in each of the latest frames

    def record(self, detections: Detections, skipped: int, *, is_live: bool = True) -> None:
        """Count a result.

        Args:
            detections: The result.
            skipped: Frames that were skipped since the previous one.
            is_live: Whether the frame was captured by this host's clock, so that its latency is known.
        """
        latency_s = (detections.detected_ns - detections.captured_ns) * 1e-9
        self.stage.record(latency_s if is_live else math.nan, skipped)
        self._objects = len(detections.objects)
        self._looked.append(self._detector.looked)

    def document(self, publisher: DetectionPublisher | None, worker: Worker | None) -> dict[str, Any]:
        """Return the status document.

        Args:
            publisher: Publisher of the detections of a ring or recording.
            worker: Worker on a queue.
        """
        detector = self._detector
        looked = self._looked.copy()  # the detection thread may append to the deque while this thread iterates
        document = status_document(
            self._section.status_name,
            {"detect": self.stage} if worker is None else {"detect": self.stage, **worker.stages},
            stale_after_s=self._section.stale_after_s,
            # A queue may be empty for any time, so no stage of a worker must pass frames regularly.
            optional=() if worker is None else ("detect", *worker.stages),
            details={
                **describe(self._model),
                "rejected_boxes": self._model.rejected_boxes,
                "tile_ms": _median_ms(detector.tile_ms),
                "tiles": len(detector.tiles),
                "tiles_a_frame": round(sum(looked) / len(looked), 2) if looked else None,
                "longest_tile_age_s": round(detector.longest_age_s, 3),
                "revisit_s": self._section.revisit_s,
                "late_frames": detector.late,
                "boxes_dropped": publisher.dropped if publisher else 0,
                "objects": self._objects,
                "refused": self.refused,
                **({} if worker is None else worker.details()),
                **self._second_stage_details(),
            },
        )
        if worker is not None and worker.reason:  # an empty queue is healthy, an unreadable one is not
            document.update(healthy=False, reason=worker.reason)
        return document

    def _second_stage_details(self) -> dict[str, Any]:
        """Return the status of the second stage, or an empty map if none is configured."""
        stage, second = self._detector.second_stage, self._second
        if isinstance(second, str):
            return {"classifier": None, "classifier_fault": second}
        if stage is None or second is None:
            return {}
        return {
            "classifier": f"{second.name} {second.version}".strip(),
            "classifier_fault": stage.fault,
            "crops": stage.crops,
            "crop_ms": _median_ms(stage.crop_ms),
            "rejected_crops": second.rejected_crops,
        }


def _median_ms(times_ms: deque[float]) -> float | None:
    """Return the median, or ``None`` of no times. The detection thread may append to them meanwhile."""
    ordered = sorted(times_ms.copy())
    return round(ordered[len(ordered) // 2], 2) if ordered else None


def describe(model: Model) -> dict[str, Any]:
    """Describe a model, for the log and the status."""
    return {
        "model": model.name,
        "model_version": model.version,
        "format": model.format,
        "provider": model.provider,
        "input_px": model.input_px,
        "labels": model.labels,
    }
