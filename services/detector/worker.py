"""The detector on a queue: receive a frame's reference, have the frame processed, publish the result, acknowledge.

A worker keeps no state between frames, so any number of workers can share a queue. It acknowledges a frame only after
the broker has confirmed the result's reference, so that the frame of a worker that dies is redelivered to another one.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from concurrent.futures import Executor
from typing import Final

import structlog
from aio_pika.abc import AbstractConnection, AbstractExchange, AbstractIncomingMessage

from services.common.broker import BROKER_ERRORS, keep_connected
from services.common.broker_messages import BrokerRefused, deliveries_before, message, open_channel, publish
from services.common.broker_names import FRAME, RESULT, Names
from services.common.dead_letter import bury
from services.common.frame_codec import CannotDecode
from services.common.reference import BadReference, FrameReference, ResultReference, trace_id
from services.common.status import Stage
from services.common.storage import ObjectDamaged, ObjectMissing, Storage
from services.detector.config import DetectorConfiguration
from services.detector.frame_processor import RETRY_S, FrameProcessor, Look, TooLate, check_deadline

DRAIN_S: Final = 1.5
"""Time for the current frames to finish when the detector is told to stop; the rest is redelivered to other workers.
Containers are killed after two seconds."""

log = structlog.get_logger()


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
        self.published = Stage()
        self.late = self.dead = 0
        """Frames rejected as too old, and buried as dead letters."""
        self._section = configuration.detector
        self._broker = configuration.broker
        self._names = Names(configuration.ring)
        self._processor = FrameProcessor(self._section, storage, look, executor, model=model)
        self._stop = stop
        self._set_reason("not connected to the broker yet")

    @property
    def reason(self) -> str:
        """Why no frame can be processed; empty while frames can be."""
        return self._processor.reason

    @property
    def repeated(self) -> int:
        """Frames that were processed before."""
        return self._processor.repeated

    @property
    def stages(self) -> dict[str, Stage]:
        """The stages of the status."""
        return {"fetch": self._processor.fetched, "publish": self.published}

    def details(self) -> dict[str, int]:
        """Return the counts for the status."""
        return {"too_late": self.late, "dead_letters": self.dead, "repeated": self.repeated}

    async def run(self) -> None:
        """Process frames until ``stop`` is set. Reconnect whenever the connection is lost."""
        await keep_connected(self._broker, self._work, self._stop, url=self._section.broker_url, state=self._set_reason)

    def _set_reason(self, reason: str) -> None:
        self._processor.reason = reason

    async def _work(self, connection: AbstractConnection) -> None:
        publishing = await open_channel(connection)
        results = await publishing.get_exchange(self._names.results)
        dead = await publishing.get_exchange(self._names.dead)
        channel = await open_channel(connection, prefetch=self._section.prefetch)
        queue = await channel.get_queue(self._names.group(self._section.group))
        # An exception that a frame's task does not handle ends the work on this connection; the broker redelivers what
        # was not acknowledged.
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
                # Stop the deliveries first, so that only the frames at hand are waited for.
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
        """Process a message, and settle it: by a result, as too late, by another attempt, or as a dead letter."""
        section = self._section
        try:
            reference = _reference(delivered, self._names.stream)
            with structlog.contextvars.bound_contextvars(frame=reference.key, trace_id=trace_id(reference.key)):
                result = await self._processor.result(reference, redelivered=bool(delivered.redelivered))
                await self._send(result, results, reference)
            # Acknowledge last: until here, the broker redelivers the frame to another worker if this one dies.
            await delivered.ack()
            self.published.record(time.time() - reference.captured_wall_ns * 1e-9)
        except TooLate:
            # A queue with deadlines dead-letters to the exchange for dropped frames, from which the relay counts this
            # one.
            self.late += 1
            await delivered.reject(requeue=False)
        except (BadReference, CannotDecode, ObjectDamaged, ObjectMissing) as error:
            await self._bury(delivered, dead, str(error))
        except (asyncio.CancelledError, *BROKER_ERRORS):
            raise  # without a connection the message cannot be settled, and the broker redelivers it
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            log.exception("frame failed", message=delivered.message_id)
            # The broker counts the deliveries, so the limit holds across the workers of a group.
            if deliveries_before(delivered) + 1 < _attempts(delivered):
                await delivered.reject(requeue=True)
            else:
                await self._bury(delivered, dead, f"the detector {section.instance} fails: {reason}")

    async def _bury(self, delivered: AbstractIncomingMessage, dead: AbstractExchange, reason: str) -> None:
        self.dead += 1
        log.warning("dead letter", reason=reason, message=delivered.message_id)
        await bury(dead, delivered, reason, group=self._section.group, worker=self._section.instance)

    async def _send(self, result: ResultReference, results: AbstractExchange, reference: FrameReference) -> None:
        wait_s = RETRY_S[0]
        while True:
            check_deadline(reference)
            try:
                return await publish(results, message(result.to_json(), RESULT, reference.key))
            except BrokerRefused as error:  # the queue of a reader is full
                self._set_reason(str(error))
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, RETRY_S[1])


def _reference(delivered: AbstractIncomingMessage, stream: str) -> FrameReference:
    if delivered.type not in (None, FRAME):
        raise BadReference(f"the message is of type {delivered.type!r:.40}, and {FRAME} is wanted")
    reference = FrameReference.from_json(delivered.body)
    if reference.stream != stream:
        raise BadReference(f"the frame is of stream {reference.stream}, and {stream} is wanted")
    return reference


def _attempts(delivered: AbstractIncomingMessage) -> int:
    try:
        return FrameReference.from_json(delivered.body).attempts
    except BadReference:
        return 0  # no attempt repairs the reference
