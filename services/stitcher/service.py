"""The stitcher's loop: cameras -> frame sets -> panorama -> ring."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from typing import Any

import cv2
import structlog
from av.video.frame import VideoFrame

from framebus import FrameFormat, NoFreeSlot, Publisher
from services.common.geometry import KEY as GEOMETRY_KEY
from services.common.service import ServiceError
from services.common.status import Stage, StatusServer, status_document
from services.stitcher.calibration.poses import CalibrationError, CameraPose, load
from services.stitcher.capture.camera import NS, CameraReader
from services.stitcher.capture.connection import faults_of
from services.stitcher.capture.sender import SenderClocks
from services.stitcher.capture.synchronizer import FrameSet, FrameSynchronizer, Timed
from services.stitcher.config import StitcherConfiguration
from services.stitcher.inspection.quality_thread import QualityThread
from services.stitcher.placement import Placement
from services.stitcher.rendering.choice import choose
from services.stitcher.rendering.convert import Converter, Planes
from services.stitcher.rendering.stitch import Stitcher
from services.stitcher.rendering.warp import NotInPlace

STALE_AFTER_S = 5.0
"""Age of the newest panorama above which the service is not healthy."""
POLL_S = 0.02
"""Longest wait for a frame. It is short because a frame set can become due by time alone."""
STOP_S = 0.5
"""Longest wait for the cameras' threads at the end. Those that hang in a read are daemons."""


class _Inbox:
    """Passes frames from the cameras' threads to the rendering thread."""

    def __init__(self, synchronizer: FrameSynchronizer[VideoFrame]) -> None:
        self._synchronizer = synchronizer
        self._changed = threading.Condition()

    def deliver(self, camera: int, frame: Timed[VideoFrame]) -> None:
        with self._changed:
            self._synchronizer.add(camera, frame)
            self._changed.notify()

    def next(self, timeout_s: float) -> FrameSet[VideoFrame] | None:
        with self._changed:
            frame_set = self._synchronizer.next(time.monotonic_ns())
            if frame_set is None and self._changed.wait(timeout_s):
                frame_set = self._synchronizer.next(time.monotonic_ns())
            return frame_set


class _Publishing:
    """Renders frame sets into slots. Owned by the rendering thread."""

    def __init__(
        self, publisher: Publisher, names: Sequence[str], stage: Stage, pool: Executor, quality: QualityThread
    ) -> None:
        self.full = 0
        """Panoramas that were dropped because no slot was free."""
        self.skew_ns: tuple[int | None, ...] = (None,) * len(names)
        """How much later than the panorama's instant each camera's newest picture was captured."""
        self.quality = quality
        self._publisher = publisher
        self._names = names
        self._converters = {name: Converter() for name in names}
        self._stage = stage
        self._pool = pool
        self._misshapen: set[str] = set()
        self._log = structlog.get_logger()

    def publish(self, frame_set: FrameSet[VideoFrame], stitcher: Stitcher) -> None:
        """Render and publish one panorama. If no slot is free, drop and count it."""
        by_name = dict(zip(self._names, frame_set.pictures, strict=True))
        self.skew_ns = frame_set.skew_ns

        def convert(pose: CameraPose) -> Planes | None:
            picture = by_name[pose.name]
            if picture is None:
                return None
            if picture.width * pose.height_px != picture.height * pose.width_px and pose.name not in self._misshapen:
                self._misshapen.add(pose.name)
                self._log.warning(
                    "camera has another shape than it was calibrated with, delete the calibration's file",
                    camera=pose.name,
                    now=f"{picture.width}x{picture.height}",
                    calibrated=f"{pose.width_px}x{pose.height_px}",
                )
            return self._converters[pose.name].planes(picture, pose.width_px, pose.height_px)

        # A conversion of an unusual format or size takes milliseconds, so run those of several cameras at once.
        pictures = list(self._pool.map(convert, stitcher.calibration.cameras))
        stitcher.adapt(pictures, time.monotonic())
        placed = {pose.name for pose in stitcher.calibration.cameras}
        present = [index for index, name in enumerate(self._names) if frame_set.fresh[index] and name in placed]
        try:
            with self._publisher.loan() as loan:
                stitcher.render(pictures, loan.pixels)
                loan.captured_ns = frame_set.captured_ns
                loan.captured_wall_ns = time.time_ns() - (time.monotonic_ns() - frame_set.captured_ns)
                loan.metadata = self._metadata(frame_set, present, stitcher)
        except NoFreeSlot:
            self.full += 1
            self._stage.record(skipped=1 + frame_set.skipped)
            if self.full & (self.full - 1) == 0:  # log at powers of two only, to avoid a line for each panorama
                self._log.warning("no free slot", dropped=self.full)
            return
        except NotInPlace as error:
            raise ServiceError(str(error)) from None
        self._stage.record((time.monotonic_ns() - frame_set.captured_ns) / NS, skipped=frame_set.skipped)
        # Decoded pictures are never written to again, so the thread may read them without a copy.
        if self.quality.wants_pictures:
            whole = {self._names[index] for index in present if not frame_set.damaged[index]}
            planes = zip(stitcher.calibration.cameras, pictures, strict=True)
            self.quality.offer(
                stitcher.calibration,
                stitcher.panorama,
                {pose.name: picture.y for pose, picture in planes if picture is not None and pose.name in whole},
            )

    def _metadata(self, frame_set: FrameSet[VideoFrame], present: Sequence[int], stitcher: Stitcher) -> dict[str, Any]:
        """Return the panorama's metadata.

        It names the cameras whose picture is of this instant and gives their skews in the same order; damaged pictures
        are indexes into that list. This compact form fits a slot even for sixteen cameras with the longest names.
        """
        metadata: dict[str, Any] = {
            "cameras": [self._names[index] for index in present],
            "skew_ms": [round((frame_set.skew_ns[index] or 0) / 1e6) for index in present],
            GEOMETRY_KEY: stitcher.geometry,
        }
        if damaged := [place for place, index in enumerate(present) if frame_set.damaged[index]]:
            metadata["damaged"] = damaged
        return metadata


def main(configuration: StitcherConfiguration, stop: threading.Event) -> None:
    """Run the stitcher until ``stop`` is set."""
    section = configuration.stitcher
    cv2.setNumThreads(1)  # the service's own pool renders parts of the panorama, which costs less than OpenCV's
    names = [camera.name for camera in section.cameras]
    stages = {name: Stage() for name in (*names, "publish")}
    synchronizer: FrameSynchronizer[VideoFrame] = FrameSynchronizer(
        len(names),
        tolerance_ns=round(section.pairing.tolerance_s * NS),
        # Wait for configured delays in any case; the limit applies to what exceeds them.
        max_wait_ns=round((section.pairing.max_wait_s + max(camera.delay_s for camera in section.cameras)) * NS),
        gone_after_ns=round(section.gone_after_s * NS),
    )
    inbox = _Inbox(synchronizer)
    senders = SenderClocks()
    cameras = [
        CameraReader(
            camera,
            partial(inbox.deliver, index),
            stages[camera.name],
            open_timeout_s=section.open_timeout_s,
            read_timeout_s=section.read_timeout_s,
            reconnect=section.reconnect,
            key_frame_wait_s=section.key_frame_wait_s,
            damaged=section.damaged,
            senders=senders,
        )
        for index, camera in enumerate(section.cameras)
    ]
    pool = ThreadPoolExecutor(section.threads, "render")
    renderer = choose(section.renderer)
    if renderer.reason is not None:
        structlog.get_logger().warning("rendering with OpenCV, which takes twice as long", reason=renderer.reason)
    placement = Placement(section, names, pool, renderer.kind)
    quality = QualityThread(section.quality.limit_px, section.quality.interval_s)
    try:
        publisher = Publisher(
            configuration.stream.name,
            FrameFormat(section.height_px, section.width_px, 3),
            slots=configuration.stream.slots,
            keep_ring=configuration.stream.keep_ring,
        )
    except OSError as error:
        raise ServiceError(str(error)) from None

    with publisher:
        publishing = _Publishing(publisher, names, stages["publish"], pool, quality)

        def collect() -> dict[str, Any]:
            return _describe(configuration, cameras, stages, placement, publishing)

        with StatusServer(configuration.stream.name, "stitcher", collect):
            for camera in cameras:
                camera.start()
            try:
                while not stop.is_set():
                    frame_set = inbox.next(POLL_S)
                    if frame_set is None:
                        continue
                    # A damaged picture is shown, if so configured, but never calibrated from.
                    whole = [
                        None if damaged else picture
                        for picture, damaged in zip(frame_set.pictures, frame_set.damaged, strict=True)
                    ]
                    aspects = {name: camera.pixel_aspect for name, camera in zip(names, cameras, strict=True)}
                    fresh = [name for name, is_fresh in zip(names, frame_set.fresh, strict=True) if is_fresh]
                    stitcher = placement.stitcher(dict(zip(names, whole, strict=True)), fresh, aspects)
                    if stitcher is not None:
                        publishing.publish(frame_set, stitcher)
            finally:
                quality.close()
                placement.close()
                _end(cameras)


def _end(cameras: Sequence[CameraReader]) -> None:
    # Ask all of them to stop first, so that they end at the same time.
    for camera in cameras:
        camera.request_stop()
    deadline_s = time.monotonic() + STOP_S
    for camera in cameras:
        camera.join(max(0.0, deadline_s - time.monotonic()))


def _describe(
    configuration: StitcherConfiguration,
    cameras: Sequence[CameraReader],
    stages: dict[str, Stage],
    placement: Placement,
    publishing: _Publishing,
) -> dict[str, Any]:
    """Return the status. A lost camera is a detail, not a fault: the service renders without it."""
    # Health is that of the panorama; the cameras' stages are shown beside it.
    publish = {"publish": stages["publish"]}
    health = status_document("stitcher", publish, stale_after_s=STALE_AFTER_S)
    document = status_document("stitcher", stages, stale_after_s=STALE_AFTER_S)
    document["healthy"], document["reason"] = health["healthy"], health["reason"]
    if (progress := _progress(cameras, placement)) is not None:
        document["progress"] = progress
    document["details"] = {
        "calibration": placement.describe() | {"quality": publishing.quality.describe()},
        "cameras": {
            section.name: {
                "url": section.masked_url,
                "state": camera.state,
                "cause": None if camera.cause is None else camera.cause.value,
                "clock": camera.clock,
                "skew_ms": None if skew_ns is None else round(skew_ns / 1e6, 1),
                "transport": camera.transport or None,
                "pixel_aspect": round(camera.pixel_aspect, 6),
                "connections": camera.connections,
                "broken_packets": camera.broken_packets,
                "damaged_frames": camera.damaged_frames,
            }
            for section, camera, skew_ns in zip(
                configuration.stitcher.cameras, cameras, publishing.skew_ns, strict=True
            )
        },
        "dropped_no_free_slot": publishing.full,
        "renderer": placement.renderer,
    }
    return document


def _progress(cameras: Sequence[CameraReader], placement: Placement) -> dict[str, Any] | None:
    """Return the current step of the start, or ``None`` once there is a panorama."""
    if placement.is_placed:
        return None
    connected = sum(camera.state == "connected" for camera in cameras)
    if (calibrating := placement.progress) is not None:
        done, total = calibrating
        return {"what": "calibrating the cameras", "done": done, "total": total, "unit": "steps"}
    return {"what": "connecting the cameras", "done": connected, "total": len(cameras), "unit": "cameras"}


def check(configuration: StitcherConfiguration) -> None:
    """Read the saved calibration, masks, passwords, and cameras that are files. Does not access the network.

    Raises:
        ServiceError: Something is unusable; the message has one line for each fault.
    """
    section, faults = configuration.stitcher, []
    file = section.calibration.file
    if file is not None:
        try:
            load(file, [camera.name for camera in section.cameras])
        except FileNotFoundError:
            # The file is written later, which should not fail then.
            if not file.absolute().parent.is_dir():
                faults.append(f"the calibration cannot be written to {file}: there is no folder {file.parent}")
        except CalibrationError as error:
            faults.append(str(error))
    faults += [f"camera {camera.name}: {reason}" for camera in section.cameras for reason in faults_of(camera)]
    if faults:
        raise ServiceError("\n".join(faults))
