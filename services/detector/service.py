"""The detector's loop: the newest frame, its tiles, the network, one box an object, to all who listen."""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import cv2
import structlog

from framebus import Frame, LayoutMismatch, Subscriber
from services.common import geometry
from services.common.detections import MAX_DETECTIONS, Detection, DetectionPublisher, Detections
from services.common.follow import follow
from services.common.geometry import PanoramaGeometry
from services.common.service import ServiceError, UnusableSetting
from services.common.status import Stage, StatusServer, status_document
from services.detector.boxes import Boxes, Floats
from services.detector.config import DetectorConfiguration, DetectorSection
from services.detector.merge import Rules, group_labels, merge
from services.detector.models.model import Model, ModelError, load_model
from services.detector.tiles import Pixels, Tile, plan_tiles
from services.detector.track import Tracker

SLICE_S = 0.25
"""Longest wait without a look at whether the service shall stop."""
GONE_AFTER_S = 2.0
"""Without a publisher for so long the detector lets go of the ring, which frees its memory, and waits for another."""
PIXEL_FORMAT = "bgr"

log = structlog.get_logger()


class Stopped(Exception):
    """The service was told to stop while it looked at a frame."""


class Detector:
    """Finds objects in frames of any size. Owned by one thread."""

    def __init__(self, section: DetectorSection, stop: threading.Event) -> None:
        """Load the model.

        Raises:
            ModelError: It cannot be used.
        """
        self.model = load_model(section)
        self.tiles: tuple[Tile, ...] = ()
        self.tile_ms: deque[float] = deque(maxlen=500)
        """Milliseconds that the latest tiles took, resizing included."""
        self._section = section
        self._stop = stop
        self._frame_shape = (0, 0)
        self._rules = Rules(
            section.iou_threshold, section.inside_threshold, group_labels(self.model.labels, section.rivals)
        )

    def detect(self, pixels: Pixels) -> Boxes:
        """Find the objects of a frame.

        Args:
            pixels: uint8 BGR of shape ``(height, width, 3)``; read only, tile by tile, never copied as a whole.

        Returns:
            One box an object, in pixels of the frame, most certain first, at most ``MAX_DETECTIONS``.

        Raises:
            Stopped: The service was told to stop.
        """
        height_px, width_px = pixels.shape[:2]
        if (height_px, width_px) != self._frame_shape:
            self._frame_shape = (height_px, width_px)
            self.tiles = plan_tiles(height_px, width_px, self._section.tile_px, self._section.overlap_px)
        found = []
        for tile in self.tiles:
            self._check()
            started_s = time.perf_counter()
            found += self.model.detect([tile.view(pixels)])
            self.tile_ms.append((time.perf_counter() - started_s) * 1e3)
        return merge(self.tiles, found, self._rules, self._check).boxes.take(slice(MAX_DETECTIONS))

    def _check(self) -> None:
        if self._stop.is_set():
            raise Stopped


def main(configuration: DetectorConfiguration, stop: threading.Event) -> None:
    """Detect until told to stop.

    Raises:
        UnusableSetting: The model cannot be used.
        ServiceError: This instance runs already.
    """
    section, stream = configuration.detector, configuration.stream.name
    cv2.setNumThreads(1)
    try:
        detector = Detector(section, stop)
    except ModelError as error:
        raise UnusableSetting(str(error)) from None
    log.info("model loaded", **_described(detector.model))
    service = _Service(stream, configuration.stream.publisher_uid, section, detector, stop)
    # Only the thread that detects steps back: the status is answered, and a stop is quick, however busy the machine is.
    try:
        with (
            StatusServer(stream, section.status_name, service.status),
            ThreadPoolExecutor(1, "detect", initializer=_step_back, initargs=(section.nice,)) as pool,
        ):
            pool.submit(service.run).result()
    except FileExistsError as error:
        raise ServiceError(str(error)) from None


def check(configuration: DetectorConfiguration) -> None:
    """Load the model.

    Raises:
        UnusableSetting: It cannot be used.
    """
    try:
        Detector(configuration.detector, threading.Event())
    except ModelError as error:
        raise UnusableSetting(str(error)) from None


def _step_back(nice: int | None) -> None:
    """Let other threads and processes go before the calling thread; Linux keeps a nice value for each thread."""
    thread = threading.get_native_id()
    os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + (nice or 0)))


class _Service:
    def __init__(
        self,
        stream: str,
        publisher_uid: int | None,
        section: DetectorSection,
        detector: Detector,
        stop: threading.Event,
    ) -> None:
        self._stream = stream
        self._publisher_uid = publisher_uid
        self._section = section
        self._detector = detector
        self._stop = stop
        self._stage = Stage()
        self._objects = 0
        self._refused = 0
        self._refused_format: object = None
        self._tracker = self._new_tracker()
        self._tracker_epoch = secrets.randbits(63)
        self._epoch: int | None = None

    def run(self) -> None:
        publisher = DetectionPublisher(self._stream, self._section.instance)
        events = follow(
            self._stream,
            self._subscribe,
            self._stop,
            slice_s=SLICE_S,
            retry_s=SLICE_S,
            tolerate=(LayoutMismatch,),  # a stitcher of another version, until one of this version replaces it
        )
        try:
            with closing(events):
                for event in events:
                    if isinstance(event, Frame):
                        self._take(event, publisher)
        except Stopped:
            pass
        finally:
            publisher.close()

    def _subscribe(self) -> Subscriber:
        return Subscriber(
            self._stream,
            name=self._section.instance,
            attach_timeout_s=0,
            gone_after_s=GONE_AFTER_S,
            publisher_uid=self._publisher_uid,
        )

    def _take(self, frame: Frame, publisher: DetectionPublisher) -> None:
        """Detect, publish, and wait until the next frame is due."""
        started_s = time.monotonic()
        with frame:
            detections = self._detect(frame)
        if detections is not None:
            publisher.publish(detections)
        if self._section.max_rate_fps:
            self._stop.wait(max(0.0, started_s + 1 / self._section.max_rate_fps - time.monotonic()))

    def _detect(self, frame: Frame) -> Detections | None:
        pixels = frame.pixels
        if pixels.dtype != "uint8" or pixels.shape[2:] != (3,) or frame.pixel_format != PIXEL_FORMAT:
            self._refuse(shape=pixels.shape, dtype=str(pixels.dtype), pixel_format=frame.pixel_format)
            return None
        if frame.epoch != self._epoch:
            self._epoch = frame.epoch
            self._tracker = self._new_tracker()
            self._tracker_epoch = secrets.randbits(63)
        boxes = self._detector.detect(pixels)
        tracks = self._tracker.update(boxes, frame.captured_ns) if self._tracker else [0] * len(boxes)
        detected_ns = time.monotonic_ns()
        self._stage.record((detected_ns - frame.captured_ns) * 1e-9, frame.skipped)
        self._objects = len(boxes)
        return Detections(
            stream=self._stream,
            instance=self._section.instance,
            epoch=frame.epoch,
            sequence=frame.sequence,
            captured_ns=frame.captured_ns,
            detected_ns=detected_ns,
            frame_height_px=pixels.shape[0],
            frame_width_px=pixels.shape[1],
            objects=_objects(boxes, tracks, self._detector.model.labels, _geometry(frame)),
            model=f"{self._detector.model.name} {self._detector.model.version}".strip(),
            tracker=self._tracker_epoch,
        )

    def _new_tracker(self) -> Tracker | None:
        if not self._section.track_memory_s:
            return None
        return Tracker(self._section.track_threshold, self._section.track_memory_s)

    def _refuse(self, **found: object) -> None:
        """Count a frame that the network cannot see, and say so once for each kind."""
        self._refused += 1
        if found != self._refused_format:
            self._refused_format = found
            log.warning("frame refused", reason="uint8 frames of three channels, bgr, are needed", **found)

    def status(self) -> Mapping[str, Any]:
        tile_ms = sorted(self._detector.tile_ms.copy())
        return status_document(
            self._section.status_name,
            {"detect": self._stage},
            stale_after_s=self._section.stale_after_s,
            details={
                **_described(self._detector.model),
                "rejected_boxes": self._detector.model.rejected_boxes,
                "tile_ms": round(tile_ms[len(tile_ms) // 2], 2) if tile_ms else None,
                "tiles": len(self._detector.tiles),
                "objects": self._objects,
                "refused": self._refused,
            },
        )


def _described(model: Model) -> dict[str, Any]:
    """What the log and the status say of the model."""
    return {
        "model": model.name,
        "model_version": model.version,
        "format": model.format,
        "provider": model.provider,
        "input_px": model.input_px,
        "labels": model.labels,
    }


def _geometry(frame: Frame) -> PanoramaGeometry | None:
    """The frame's geometry; a frame of another publisher has none, or one of another kind."""
    try:
        return geometry.read(frame.metadata)
    except geometry.GeometryError:
        return None


def _angles(corners: Floats, panorama: PanoramaGeometry | None) -> list[tuple[float, float, float, float] | None]:
    """Yaw and pitch of the left upper and of the right lower corner of each box, in rad."""
    if panorama is None:
        return [None] * len(corners)
    # A box's 0 is the frame's edge, the geometry's is the middle of the first pixel.
    angles = panorama.angles(corners.reshape(-1, 2, 2) - 0.5).reshape(-1, 4)
    return [(left, upper, right, lower) for left, upper, right, lower in angles.tolist()]


def _objects(
    boxes: Boxes, tracks: list[int], labels: tuple[str, ...], panorama: PanoramaGeometry | None
) -> tuple[Detection, ...]:
    return tuple(
        Detection(
            label=labels[label],
            score=float(score),
            x_px=float(left),
            y_px=float(upper),
            width_px=float(right - left),
            height_px=float(lower - upper),
            track=track,
            angles=angles,
        )
        for (left, upper, right, lower), score, label, track, angles in zip(
            boxes.corners, boxes.scores, boxes.labels, tracks, _angles(boxes.corners, panorama), strict=True
        )
    )
