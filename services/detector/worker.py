"""The detector on a queue: fetch a frame by reference, process it, store the result, acknowledge the message.

A worker keeps no state between frames, so any number of workers can share a queue. It acknowledges a frame only after
the broker has confirmed the result's reference, so that the frame of a worker that dies is redelivered to another one.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, Final

import numpy.typing as npt
import structlog
from aio_pika.abc import AbstractConnection, AbstractExchange, AbstractIncomingMessage

from services.common import geometry
from services.common.broker import (
    BROKER_ERRORS,
    FRAME,
    RESULT,
    BrokerRefused,
    Names,
    deliveries_before,
    keep_connected,
    message,
    open_channel,
    publish,
)
from services.common.dead_letter import bury
from services.common.detections import MAX_MESSAGE_BYTES, Detections, pack
from services.common.frame_codec import CannotDecode, decode
from services.common.recording import RecordedFrame
from services.common.reference import (
    RESULTS,
    BadReference,
    FrameReference,
    ResultReference,
    check_address,
    result_prefix,
    trace_id,
)
from services.common.status import Stage
from services.common.storage import (
    ObjectDamaged,
    ObjectMissing,
    Storage,
    StorageUnavailable,
    another_address,
)
from services.detector.config import DetectorConfiguration

RETRY_S: Final = (0.2, 5.0)
DRAIN_S: Final = 1.5
"""Time for the current frames to finish when the detector is told to stop; the rest is redelivered to other workers.
Containers are killed after two seconds."""

_RESULT_NAME: Final = re.compile(r"([0-9a-f]{16})(\.\d+)?")
"""Last part of a result's address: a prefix of its SHA-256, and a number if the first addresses failed."""

Look = Callable[[RecordedFrame], Detections]

log = structlog.get_logger()


class TooLate(Exception):
    """The deadline for this frame's result has passed."""


class Worker:
    """Processes the frames of a queue. Owned by one event loop.

    Args:
        configuration: The detector's configuration.
        storage: Storage of frames and results.
        look: Detects the objects of a frame; called by the executor.
        executor: Runs ``look``, one frame at a time.
        model: Name and version of the model.
        stop: Ends the worker.
    """

    def __init__(
        self,
        configuration: DetectorConfiguration,
        storage: Storage,
        look: Look,
        executor: Executor,
        *,
        model: str,
        stop: threading.Event,
    ) -> None:
        self.fetched, self.published = Stage(), Stage()
        self.reason = "not connected to the broker yet"
        """Why no frame can be processed; empty while frames can be."""
        self.late = self.dead = self.repeated = 0
        """Frames rejected as too old, buried as dead letters, and processed before."""
        self._section = configuration.detector
        self._broker = configuration.broker
        self._names = Names(configuration.ring)
        self._storage = storage
        self._look = look
        self._executor = executor
        self._model = model
        self._stop = stop

    @property
    def stages(self) -> dict[str, Stage]:
        """The stages of the status."""
        return {"fetch": self.fetched, "publish": self.published}

    def details(self) -> dict[str, int]:
        """Return the counts for the status."""
        return {"too_late": self.late, "dead_letters": self.dead, "repeated": self.repeated}

    async def run(self) -> None:
        """Process frames until ``stop`` is set. Reconnect whenever the connection is lost."""
        await keep_connected(self._broker, self._work, self._stop, url=self._section.broker_url, state=self._set_reason)

    def _set_reason(self, reason: str) -> None:
        self.reason = reason

    async def _work(self, connection: AbstractConnection) -> None:
        publishing = await open_channel(connection)
        results = await publishing.get_exchange(self._names.results)
        dead = await publishing.get_exchange(self._names.dead)
        channel = await open_channel(connection, prefetch=self._section.prefetch)
        queue = await channel.get_queue(self._names.group(self._section.group))
        failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        tasks: set[asyncio.Task[None]] = set()

        async def take(delivered: AbstractIncomingMessage) -> None:
            task = asyncio.ensure_future(self._take(delivered, results, dead))
            tasks.add(task)
            task.add_done_callback(ended)

        def ended(task: asyncio.Task[None]) -> None:
            tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None and not failed.done():
                failed.set_exception(error)

        tag = await queue.consume(take)
        try:
            await failed
        finally:
            if self._stop.is_set():
                with contextlib.suppress(*BROKER_ERRORS):
                    await queue.cancel(tag)
                if tasks:
                    await asyncio.wait(tasks, timeout=DRAIN_S)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _take(
        self, delivered: AbstractIncomingMessage, results: AbstractExchange, dead: AbstractExchange
    ) -> None:
        """Process a message and settle it in one of four ways: result, duplicate, too late, or dead letter."""
        section = self._section
        try:
            reference = _reference(delivered, self._names.stream)
            with structlog.contextvars.bound_contextvars(frame=reference.key, trace_id=trace_id(reference.key)):
                result = await self._result(reference, delivered)
                await self._send(result, results, reference)
            await delivered.ack()
            self.published.record(time.time() - reference.captured_wall_ns * 1e-9)
        except TooLate:
            self.late += 1
            await delivered.reject(requeue=False)
        except (BadReference, CannotDecode, ObjectDamaged, ObjectMissing) as error:
            await self._bury(delivered, dead, str(error))
        except (asyncio.CancelledError, *BROKER_ERRORS):
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            log.exception("frame failed", message=delivered.message_id)
            if deliveries_before(delivered) + 1 < _attempts(delivered):
                await delivered.reject(requeue=True)
            else:
                await self._bury(delivered, dead, f"the detector {section.instance} fails: {reason}")

    async def _bury(self, delivered: AbstractIncomingMessage, dead: AbstractExchange, reason: str) -> None:
        self.dead += 1
        log.warning("dead letter", reason=reason, message=delivered.message_id)
        await bury(dead, delivered, reason, group=self._section.group, worker=self._section.instance)

    async def _result(self, reference: FrameReference, delivered: AbstractIncomingMessage) -> ResultReference:
        """Return the reference to a frame's result, after the result has been stored."""
        if delivered.redelivered and (found := await self._found_before(reference)) is not None:
            return found
        _check_deadline(reference)
        try:
            data = await self._patiently(reference, self._storage.fetch)
        except ObjectMissing:
            # The relay removes a frame's object once it has seen the result. A duplicate reference, sent by a relay
            # that was killed before the first one was confirmed, then arrives too late.
            if (found := await self._found_before(reference)) is not None:
                return found
            raise
        self.fetched.record(time.time() - reference.captured_wall_ns * 1e-9)
        loop = asyncio.get_running_loop()
        pixels = await loop.run_in_executor(None, decode, data, reference)
        _check_deadline(reference)
        detections = await loop.run_in_executor(self._executor, self._look, frame_of(pixels, reference))
        _check_deadline(reference)
        body = pack(detections)
        sha256 = hashlib.sha256(body).hexdigest()
        prefix = result_prefix(reference.stream, reference.epoch, reference.sequence, self._model)
        address = f"{prefix}{sha256[:16]}"
        refusals = 0

        async def put(_reference: FrameReference) -> str:
            nonlocal refusals
            chosen = another_address(address, refusals)
            try:
                await self._storage.put(chosen, body, durable=True)
            except StorageUnavailable as error:
                refusals += error.answered
                raise
            return chosen

        return self._result_reference(reference, await self._patiently(reference, put), len(body), sha256)

    async def _found_before(self, reference: FrameReference) -> ResultReference | None:
        """Return the result that another worker stored before it died without publishing it, or None."""
        prefix = result_prefix(reference.stream, reference.epoch, reference.sequence, self._model)

        async def find(_reference: FrameReference) -> tuple[str, memoryview] | None:
            async for found in self._storage.list(prefix):
                # Some servers list objects that are being written, or that a dead worker left incomplete.
                name = _RESULT_NAME.fullmatch(found.address.removeprefix(prefix))
                if name is None:
                    continue
                with contextlib.suppress(ObjectMissing, ObjectDamaged):
                    body = await self._storage.get(found.address, max_bytes=MAX_MESSAGE_BYTES)
                    if hashlib.sha256(body).hexdigest().startswith(name[1]):
                        return found.address, body
            return None

        found = await self._patiently(reference, find)
        if found is None:
            return None
        self.repeated += 1
        address, body = found
        return self._result_reference(
            reference, check_address(address, RESULTS), len(body), hashlib.sha256(body).hexdigest()
        )

    def _result_reference(
        self, reference: FrameReference, address: str, size_bytes: int, sha256: str
    ) -> ResultReference:
        return ResultReference(
            address=address,
            size_bytes=size_bytes,
            sha256=sha256,
            stream=reference.stream,
            epoch=reference.epoch,
            sequence=reference.sequence,
            captured_ns=reference.captured_ns,
            captured_wall_ns=reference.captured_wall_ns,
            model=self._model,
            group=self._section.group,
            instance=self._section.instance,
            frame_address=reference.address,
        )

    async def _send(self, result: ResultReference, results: AbstractExchange, reference: FrameReference) -> None:
        wait_s = RETRY_S[0]
        while True:
            _check_deadline(reference)
            try:
                return await publish(results, message(result.to_json(), RESULT, reference.key))
            except BrokerRefused as error:  # the queue of a reader is full
                self.reason = str(error)
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, RETRY_S[1])

    async def _patiently(self, reference: FrameReference, request: Any) -> Any:
        """Retry while the storage is unavailable, so that an outage of the storage loses no frame."""
        wait_s = RETRY_S[0]
        while True:
            try:
                answer = await request(reference)
            except StorageUnavailable as error:
                if not self.reason:
                    log.warning("storage unavailable", reason=str(error))
                self.reason = str(error)
                _check_deadline(reference)
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, RETRY_S[1])
            else:
                self.reason = ""
                return answer


def _reference(delivered: AbstractIncomingMessage, stream: str) -> FrameReference:
    if delivered.type not in (None, FRAME):
        raise BadReference(f"the message is of type {delivered.type!r:.40}, and {FRAME} is wanted")
    reference = FrameReference.from_json(delivered.body)
    if reference.stream != stream:
        raise BadReference(f"the frame is of stream {reference.stream}, and {stream} is wanted")
    return reference


def frame_of(pixels: npt.NDArray[Any], reference: FrameReference) -> RecordedFrame:
    """Return a frame that was fetched by reference."""
    return RecordedFrame(
        pixels,
        reference.sequence,
        reference.epoch,
        reference.captured_ns,
        None if reference.geometry is None else {geometry.KEY: reference.geometry},
        reference.pixel_format,
    )


def _check_deadline(reference: FrameReference) -> None:
    if reference.deadline_wall_ns is not None and time.time_ns() > reference.deadline_wall_ns:
        raise TooLate


def _attempts(delivered: AbstractIncomingMessage) -> int:
    try:
        return FrameReference.from_json(delivered.body).attempts
    except BadReference:
        return 0
