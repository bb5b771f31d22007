"""The processes of the relay's benchmark: a relay, planted detectors and the bare loop."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil

from bench.peers.places import server, wait_until
from framebus import ReceiveTimeout, Subscriber
from services.common.broker import connect
from services.common.broker_messages import message, open_channel, publish
from services.common.broker_names import FRAME, Names
from services.common.config import LogSection
from services.common.detections import Detection, Detections
from services.common.frame_codec import encode
from services.common.logs import set_up_logs
from services.common.recording import RecordedFrame
from services.common.status import read_statuses
from services.common.storage import Storage
from services.detector.config import DetectorConfiguration
from services.detector.worker import Worker
from services.relay.config import RelayConfiguration
from services.relay.take import refer
from services.relay.topology import queue_arguments

ROOT: Final = Path(__file__).resolve().parent.parent
MODEL: Final = "planted 1"
ANSWER_TIMEOUT_S: Final = 120.0
START_TIMEOUT_S: Final = 60.0
SLICE_S: Final = 0.1
"""Longest wait of the bare loop for a frame."""


def cpu_s(pid: int) -> float:
    """Return the CPU time of a process, including that of threads that have ended.

    Source: Linux, ``clock_getcpuclockid(3)``; the clock's number is computed as in glibc.
    """
    return time.clock_gettime((~pid << 3) | 2)


def configured(stream: str, broker: str, folder: Path, policy: str, encoding: str) -> dict[str, Any]:
    """Return the configuration that the relay, the detectors and the bare loop share."""
    return {
        "stream": {"name": stream},
        "broker": {"url": broker},
        "storage": {"url": f"file://{folder / 'objects'}"},
        "relay": {"policy": policy, "encoding": encoding, "spool": str(folder / stream), "max_age_s": 60.0},
    }


def relay_configuration(document: dict[str, Any]) -> RelayConfiguration:
    """Return the parsed configuration."""
    return RelayConfiguration.model_validate(document)


@contextmanager
def running_relay(document: dict[str, Any], folder: Path) -> Iterator[int]:
    """Run a relay in a process of its own. Yields its PID once its queues are declared."""
    stream = document["stream"]["name"]
    path = folder / f"{stream}.json"
    # JSON is YAML.
    path.write_text(json.dumps({**document, "log": {"level": "warning"}}))
    arguments = [sys.executable, "-m", "services.relay", "--config", str(path)]
    environment = {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
    with server(arguments, folder / f"{stream}.log", environment) as pid:

        def is_ready() -> bool:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                raise TimeoutError("the relay has ended")
            status = read_statuses(stream).get("relay")
            return status is not None and not status["details"]["waits_for"]

        wait_until(is_ready, "the relay", START_TIMEOUT_S)
        yield pid


class Child:
    """A process of the benchmark that answers commands."""

    def __init__(self, target: Callable[..., None], *arguments: Any) -> None:
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=target, args=(theirs, *arguments), daemon=True)
        self._process.start()
        theirs.close()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def ask(self, command: Any) -> Any:
        """Send a command, and wait for its answer.

        Raises:
            TimeoutError: There was no answer in time.
            RuntimeError: The command failed, or the process died.
        """
        self._connection.send(command)
        if not self._connection.poll(ANSWER_TIMEOUT_S):
            raise TimeoutError("a process of the benchmark does not answer")
        try:
            answer = self._connection.recv()
        except EOFError:
            raise RuntimeError("a process of the benchmark died") from None
        if isinstance(answer, str):
            raise RuntimeError(answer)  # noqa: TRY004  a text is an error
        return answer

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def detect(connection: Connection[Any, Any], instance: str) -> None:
    """Run a planted detector. A command is the configuration of a stream, or None to leave the stream."""
    set_up_logs("bench", LogSection(level="error"))
    end: Callable[[], None] | None = None
    while True:
        try:
            document = connection.recv()
        except EOFError:
            document, ended = None, True
        else:
            ended = False
        if end is not None:
            end()
        # A new configuration ends the detector of the one before.
        end = None if document is None else _start_detector(document, instance)
        if ended:
            return
        connection.send(True)


def _start_detector(document: dict[str, Any], instance: str) -> Callable[[], None]:
    section = {"instance": instance, "source": "amqp://", "prefetch": 4}
    common = {name: document[name] for name in ("stream", "broker", "storage")}
    detector = DetectorConfiguration.model_validate({**common, "detector": section})
    stop, pool, stream = threading.Event(), ThreadPoolExecutor(1), document["stream"]["name"]
    worker = Worker(
        detector,
        Storage(detector.storage),
        lambda frame: _planted(frame, stream, instance),
        pool,
        model=MODEL,
        stop=stop,
    )
    thread = threading.Thread(target=lambda: asyncio.run(worker.run()), daemon=True)
    thread.start()
    wait_until(lambda: not worker.reason, "a detector")

    def end() -> None:
        stop.set()
        thread.join()
        pool.shutdown()

    return end


def _planted(frame: RecordedFrame, stream: str, instance: str) -> Detections:
    return Detections(
        stream=stream,
        instance=instance,
        epoch=frame.epoch,
        sequence=frame.sequence,
        captured_ns=frame.captured_ns,
        detected_ns=time.monotonic_ns(),
        frame_height_px=frame.pixels.shape[0],
        frame_width_px=frame.pixels.shape[1],
        objects=(Detection("person", 0.9, float(frame.sequence), 1.0, 5.0, 10.0),),
        model=MODEL,
    )


def bare(connection: Connection[Any, Any]) -> None:
    """Run the bare loop. A command is the configuration of a stream, or None to leave it and answer with the stages."""
    set_up_logs("bench", LogSection(level="error"))
    while True:
        try:
            document = connection.recv()
        except EOFError:
            return
        try:
            answer: Any = asyncio.run(_bare(relay_configuration(document), connection))
        except Exception as error:  # noqa: BLE001  the parent raises it
            answer = f"the bare loop: {type(error).__name__}: {error}"
        connection.send(answer)


async def _bare(configuration: RelayConfiguration, parent: Connection[Any, Any]) -> dict[str, Any]:
    """Receive, encode, store and publish frames until the parent sends something."""
    section, storage, names = configuration.relay, Storage(configuration.storage), Names(configuration.stream.name)
    stages_ms: dict[str, list[float]] = {"encode": [], "sha256": [], "put": [], "publish": []}
    connection = await connect(configuration.broker)
    async with connection:
        channel = await open_channel(connection)
        exchange = await channel.declare_exchange(names.frames, "fanout", durable=True)
        queue = await channel.declare_queue(
            names.group("detector"), durable=True, arguments=queue_arguments(names, section)
        )
        await queue.bind(exchange)
        await asyncio.sleep(0.5)
        with Subscriber(names.stream, mode="every", attach_timeout_s=START_TIMEOUT_S) as subscriber:
            parent.send(True)
            while True:
                try:
                    frame = subscriber.receive(timeout_s=SLICE_S)
                except ReceiveTimeout:
                    if parent.poll():
                        break
                    await asyncio.sleep(0)  # for the connection's heartbeats
                    continue
                with frame:
                    at_s = [time.perf_counter()]
                    data = encode(frame.pixels, section.encoding, section.jpeg_quality)
                    at_s.append(time.perf_counter())
                    reference = refer(frame, names.stream, section, data)
                    at_s.append(time.perf_counter())
                    await storage.put(reference.address, data, durable=section.policy == "work")
                    at_s.append(time.perf_counter())
                    await publish(exchange, message(reference.to_json(), FRAME, reference.key), mandatory=True)
                    at_s.append(time.perf_counter())
                    for times_ms, (begun_s, ended_s) in zip(stages_ms.values(), itertools.pairwise(at_s), strict=True):
                        times_ms.append((ended_s - begun_s) * 1e3)
        parent.recv()
        await queue.delete(if_unused=False, if_empty=False)
    return {stage: float(np.median(times_ms)) for stage, times_ms in stages_ms.items()}
