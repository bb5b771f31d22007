"""A relay and detectors that run in threads of the test; the detectors give planted answers."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from framebus import FrameFormat, Publisher
from services.common.broker import keep_connected
from services.common.detections import Detection, Detections
from services.common.recording import RecordedFrame
from services.common.reference import ResultReference
from services.common.results import ResultReader
from services.common.status import read_statuses
from services.common.storage import Storage
from services.detector.config import DetectorConfiguration
from services.detector.worker import Worker
from services.relay.config import RelayConfiguration
from services.relay.service import main
from tests.support import wait_until

HEIGHT_PX, WIDTH_PX = 48, 64
MODEL = "planted 1"


def configuration(stream: str, broker: str, storage: Path | dict[str, Any], **relay: Any) -> RelayConfiguration:
    """Return a relay's configuration; ``storage`` is a folder, or a section."""
    section = {"url": f"file://{storage}"} if isinstance(storage, Path) else storage
    return RelayConfiguration.model_validate(
        {"stream": {"name": stream}, "broker": {"url": broker}, "storage": section, "relay": relay}
    )


def publish_frames(publisher: Publisher, count: int, interval_s: float = 0.0) -> int:
    """Publish frames with the sequence as first pixel, for the planted detector; return the last sequence."""
    sequence = 0
    for _ in range(count):
        with publisher.loan() as loan:
            loan.pixels[:] = 0
            loan.pixels[0, 0] = 1
        assert loan.sequence is not None
        sequence = loan.sequence
        time.sleep(interval_s)
    return sequence


def open_publisher(stream: str, slots: int = 16) -> Publisher:
    """A publisher of small frames."""
    return Publisher(stream, FrameFormat(HEIGHT_PX, WIDTH_PX), slots=slots)


@contextmanager
def running_relay(configured: RelayConfiguration) -> Iterator[Callable[[], dict[str, Any]]]:
    """Run a relay; yield a function that reads its status."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            main(configured, stop)
        except BaseException as error:  # noqa: BLE001  told by the test
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    stream = configured.stream.name

    def status() -> dict[str, Any]:
        if failures:
            raise failures[0]
        return read_statuses(stream).get("relay", {})

    try:
        wait_until(status, "the relay's status")
        yield status
    finally:
        stop.set()
        thread.join()
    if failures:
        raise failures[0]


def planted(frame: RecordedFrame, stream: str, instance: str) -> Detections:
    """A detection whose left edge is the frame's sequence."""
    found = Detection("person", 0.9, float(frame.sequence), 1.0, 5.0, 10.0)
    return Detections(
        stream=stream,
        instance=instance,
        epoch=frame.epoch,
        sequence=frame.sequence,
        captured_ns=frame.captured_ns,
        detected_ns=time.monotonic_ns(),
        frame_height_px=frame.pixels.shape[0],
        frame_width_px=frame.pixels.shape[1],
        objects=(found,),
        model=MODEL,
    )


@contextmanager
def running_detector(
    configured: RelayConfiguration,
    *,
    instance: str = "one",
    look: Callable[[RecordedFrame], Detections] | None = None,
    **section: Any,
) -> Iterator[Worker]:
    """Run a detector on the relay's queue, in a thread."""
    common = configured.model_dump(include={"stream", "broker", "storage"})
    detector = DetectorConfiguration.model_validate(
        {**common, "detector": {"instance": instance, "source": "amqp://", **section}}
    )
    stop = threading.Event()
    stream = configured.stream.name
    with ThreadPoolExecutor(1) as pool, ThreadPoolExecutor(1) as runner:
        worker = Worker(
            detector,
            Storage(detector.storage),
            look or (lambda frame: planted(frame, stream, instance)),
            pool,
            model=MODEL,
            stop=stop,
        )
        running = runner.submit(lambda: asyncio.run(worker.run()))
        try:
            yield worker
        finally:
            stop.set()
            running.result()


@contextmanager
def reading_results(
    configured: RelayConfiguration, queue: str | None = None
) -> Iterator[list[tuple[ResultReference, Detections]]]:
    """Collect results, in a thread."""
    stop = threading.Event()
    results: list[tuple[ResultReference, Detections]] = []
    reader = ResultReader(
        configured.stream.name,
        Storage(configured.storage),
        lambda reference, detections: results.append((reference, detections)),
        queue=queue,
    )
    connected = threading.Event()

    async def read() -> None:
        def state(reason: str) -> None:
            if not reason:
                connected.set()

        await keep_connected(configured.broker, reader.read, stop, state=state)

    with ThreadPoolExecutor(1) as runner:
        running = runner.submit(lambda: asyncio.run(read()))
        try:
            assert connected.wait(20)
            time.sleep(0.2)  # until the queue is bound
            yield results
        finally:
            stop.set()
            running.result()


def objects_in(folder: Path, kind: str) -> list[str]:
    """Return the addresses of the objects in a storage's folder."""
    # An S3 server may remove an empty folder while it is searched. os.walk() passes over it, Path.rglob() raises.
    files = (Path(parent, name) for parent, _, names in os.walk(folder / kind) for name in names)
    return sorted(str(path.relative_to(folder)) for path in files)


def pixels_of(value: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A frame's pixels."""
    return np.full((HEIGHT_PX, WIDTH_PX, 3), value, np.uint8)
