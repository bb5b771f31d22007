"""The detector's loop: read frames, detect objects, publish the detections."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from contextlib import closing
from typing import TYPE_CHECKING, Any

import cv2
import structlog

from framebus import Frame, LayoutMismatch, Subscriber
from services.common.detections import DetectionPublisher, Detections, to_map
from services.common.follow import follow
from services.common.recording import RecordedFrame, Recording, RecordingError
from services.common.reference import BadReference
from services.common.service import ServiceError
from services.common.status import StatusServer
from services.detector.config import DetectorConfiguration, DetectorSection
from services.detector.detector import Detector, Seen, Stopped
from services.detector.interval import FrameInterval
from services.detector.loading import load_second_stage, open_source, open_storage
from services.detector.memory import Memory
from services.detector.message import geometry_of, objects_of, tile_ages
from services.detector.models.classifier import Classifier
from services.detector.models.model import Model
from services.detector.status import DetectorStatus, describe

if TYPE_CHECKING:
    from services.detector.worker import Worker

SLICE_S = 0.25
"""Longest wait without checking whether the service must stop."""
GONE_AFTER_S = 2.0
"""Time without a publisher after which the detector detaches from the ring, to free its memory, and waits for a new
one."""
PIXEL_FORMAT = "bgr"
SEEN = "uint8 frames of three channels, bgr, are needed"

log = structlog.get_logger()


def main(configuration: DetectorConfiguration, stop: threading.Event) -> None:
    """Detect until told to stop, or until the recording ends.

    Raises:
        UnusableSetting: The model or the recording is unusable.
        ServiceError: This instance is already running, or a frame of the recording cannot be read.
    """
    service = load_service(configuration, stop)
    section = service.section
    # Lower the priority of the detection thread only, so that the status is answered, and a stop is quick, even on a
    # busy machine.
    try:
        with (
            StatusServer(configuration.stream.name, section.status_name, service.status),
            ThreadPoolExecutor(1, "detect", initializer=_step_back, initargs=(section.nice,)) as pool,
        ):
            if section.from_queue:
                service.work(configuration, pool)
            else:
                running = pool.submit(service.run)
                # Wait in slices: a signal that arrives just before an unbounded wait would be handled only after it.
                while not wait([running], SLICE_S).done:
                    pass
                running.result()
    except (FileExistsError, RecordingError) as error:
        raise ServiceError(str(error)) from None


def load_service(configuration: DetectorConfiguration, stop: threading.Event) -> DetectorService:
    """Load the model, the classifier and the recording, and return a service that has not started yet.

    Raises:
        UnusableSetting: The model or the recording is unusable.
    """
    section = configuration.detector
    # The budget measures the CPU time of the detection thread, which the work of OpenCV's own threads would escape.
    cv2.setNumThreads(1)
    model, recording = open_source(section)
    log.info("model loaded", **describe(model))
    second = load_second_stage(section, model)
    if recording is not None:
        section = section.without_budget()
    elif section.from_queue:
        section = section.stateless()
    return DetectorService(configuration, section, model, stop, second=second, recording=recording)


def _step_back(nice: int | None) -> None:
    """Raise the nice value of the calling thread; Linux keeps one for each thread."""
    thread = threading.get_native_id()
    os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + (nice or 0)))


class DetectorService:
    """The detector's loop, for all sources of frames."""

    def __init__(
        self,
        configuration: DetectorConfiguration,
        section: DetectorSection,
        model: Model,
        stop: threading.Event,
        *,
        second: Classifier | str | None,
        recording: Recording | None,
    ) -> None:
        self._stream = configuration.ring
        self._publisher_uid = configuration.stream.publisher_uid
        self._recording = recording
        self.section = section
        self._model = model
        # With a queue, a stop lets the current frame finish while the worker waits for it (worker.DRAIN_S).
        self._detector_stop = threading.Event() if section.from_queue else stop
        classifier = None if isinstance(second, str) else second
        self._detector = Detector(section, model, self._detector_stop, classifier=classifier)
        self._status = DetectorStatus(section, model, self._detector, second)
        self._memory = Memory(self._stream, section.instance)
        self._stop = stop
        self._refused_format: object = None
        self._publisher: DetectionPublisher | None = None
        self._worker: Worker | None = None
        self._model_name = f"{model.name} {model.version}".strip()
        self._moves = section.track_memory_s > 0 and not section.is_without_budget
        """Whether results are moved to the frame with which they are published."""
        self._unsaid: Detections | None = None
        """The newest result, until it is published."""
        self._interval = FrameInterval()
        self._skipped = 0
        """Frames that were skipped since the last publication."""
        self._due_s = 0.0
        """When the model may run again, by time.monotonic()."""

    def run(self) -> None:
        """Process the frames of a recording or a ring until it ends, or until told to stop."""
        # Frames that must all be processed must not lose their messages either, so let publishing wait for slow
        # subscribers.
        every = self._recording is not None or self.section.mode == "every"
        publisher = self._publisher = DetectionPublisher(
            self._stream, self.section.instance, stop=self._stop if every else None
        )
        try:
            if self._recording is not None:
                self._read(self._recording, publisher)
            else:
                self._follow(publisher)
        except Stopped:
            pass
        finally:
            publisher.close()

    def work(self, configuration: DetectorConfiguration, pool: Executor) -> None:
        """Process the frames of a queue until told to stop."""
        from services.detector.worker import Worker  # noqa: PLC0415  imported lazily: a ring requires no broker client

        worker = self._worker = Worker(
            configuration, open_storage(configuration), self.look, pool, model=self._model_name, stop=self._stop
        )
        try:
            asyncio.run(worker.run())
        finally:
            # End a detection that outlasted the worker's wait, because leaving the pool waits for its thread.
            self._detector_stop.set()

    def look(self, frame: RecordedFrame) -> Detections:
        """Process a frame of a queue, independently of previous frames.

        Raises:
            BadReference: The network does not support such frames.
        """
        # Successive frames of a queue are unrelated: other detectors of the group process those in between.
        self._detector.forget()
        detections = self._detect(frame)
        if detections is None:
            raise BadReference(
                f"{SEEN}, and this one is {frame.pixels.dtype} {frame.pixel_format} {frame.pixels.shape}"
            )
        self._status.record(detections, 0, is_live=False)
        return detections

    def _read(self, recording: Recording, publisher: DetectionPublisher) -> None:
        """Process each frame of a recording. Also print its detections, as one line of JSON per frame."""
        for frame in recording.frames():
            if (detections := self._detect(frame)) is not None:
                self._status.record(detections, 0, is_live=False)
                publisher.publish(detections)
                try:
                    print(json.dumps(to_map(detections)), flush=True)
                except BrokenPipeError:
                    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # avoid an error when the interpreter flushes at exit
                    return
            if self._stop.is_set():
                return
        log.info("recording ended", frames=self._status.stage.summary()["frames"])

    def _follow(self, publisher: DetectionPublisher) -> None:
        """Process the frames of a ring until told to stop."""
        if (state := self._memory.load()) is not None:
            self._detector.succeed(state)
        events = follow(
            self._stream,
            self._subscribe,
            self._stop,
            slice_s=SLICE_S,
            retry_s=SLICE_S,
            tolerate=(LayoutMismatch,),  # during an upgrade, the stitcher may still have another version
        )
        with closing(events):
            for event in events:
                if isinstance(event, Frame):
                    self._take(event, publisher)
                else:
                    self._say(publisher)
        self._say(publisher)

    def _subscribe(self) -> Subscriber:
        return Subscriber(
            self._stream,
            name=self.section.instance,
            mode=self.section.mode or "newest",
            # follow() waits for a publisher by itself, and notices a stop meanwhile.
            attach_timeout_s=0,
            gone_after_s=GONE_AFTER_S,
            publisher_uid=self._publisher_uid,
        )

    def _take(self, frame: Frame, publisher: DetectionPublisher) -> None:
        """Publish where the known objects are in a frame, run the model on it, and wait until the next one is due.

        While the model runs, newer frames arrive. Its result is published with the next one, to which it is moved.
        """
        self._interval.observe(frame)
        self._skipped += frame.skipped
        # Release the slot before the wait, so that the publisher can reuse it.
        with frame:
            is_told = self._unsaid is not None
            if is_told:
                self._unsaid = self._moved(frame) or self._unsaid
                self._say(publisher)
            # If there is time until the model may run again, let it see a newer frame than this one.
            if not is_told or time.monotonic() >= self._due_s:
                self._due_s = time.monotonic() + (1 / self.section.target_fps if self.section.target_fps else 0.0)
                self._unsaid = self._detect(frame)
                if self._moves and (is_told or self._interval.has_passed_since(frame)):
                    return
        self._say(publisher)
        self._stop.wait(max(0.0, self._due_s - time.monotonic()))

    def _say(self, publisher: DetectionPublisher) -> None:
        """Publish the result that waits for it, if there is one."""
        detections, self._unsaid = self._unsaid, None
        if detections is None:
            return
        self._status.record(detections, self._skipped)
        self._skipped = 0
        if self.section.track_memory_s:
            # Save before publishing, to prevent a successor from reusing a published track number.
            self._memory.save(self._detector.to_state())
        publisher.publish(detections)

    def _moved(self, frame: Frame) -> Detections | None:
        """Return the result that waits for its publication, moved to a newer frame, if that is possible."""
        if not _is_readable(frame):
            return None
        seen = self._detector.follow(frame.pixels, frame.captured_ns, frame.epoch)
        return None if seen is None else self._detections(frame, seen)

    def _detect(self, frame: Frame | RecordedFrame) -> Detections | None:
        if not _is_readable(frame):
            pixels = frame.pixels
            self._refuse(shape=pixels.shape, dtype=str(pixels.dtype), pixel_format=frame.pixel_format)
            return None
        return self._detections(frame, self._detector.detect(frame.pixels, frame.captured_ns, frame.epoch))

    def _detections(self, frame: Frame | RecordedFrame, seen: Seen) -> Detections:
        return Detections(
            stream=self._stream,
            instance=self.section.instance,
            epoch=frame.epoch,
            sequence=frame.sequence,
            captured_ns=frame.captured_ns,
            detected_ns=time.monotonic_ns(),
            frame_height_px=frame.pixels.shape[0],
            frame_width_px=frame.pixels.shape[1],
            objects=objects_of(seen, self._model.labels, geometry_of(frame), tracked=self.section.track_memory_s > 0),
            model=self._model_name,
            tracker=self._detector.tracker.epoch,
            tiles=tile_ages(seen),
        )

    def _refuse(self, **found: object) -> None:
        """Count an unsupported frame, and log it once for each kind."""
        self._status.refused += 1
        if found != self._refused_format:
            self._refused_format = found
            log.warning("frame refused", reason=SEEN, **found)

    def status(self) -> Mapping[str, Any]:
        """Return the status document. Called by the status server's thread."""
        return self._status.document(self._publisher, self._worker)


def _is_readable(frame: Frame | RecordedFrame) -> bool:
    pixels = frame.pixels
    return pixels.dtype == "uint8" and pixels.shape[2:] == (3,) and frame.pixel_format == PIXEL_FORMAT
