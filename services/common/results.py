"""Read the results of detectors on other hosts: references from the broker, objects from the storage, each once."""

from __future__ import annotations

import asyncio
import inspect
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final

import structlog
from aio_pika.abc import AbstractConnection, AbstractIncomingMessage, AbstractQueue

from services.common.broker_messages import declare_unlimited, open_channel
from services.common.broker_names import Names
from services.common.detections import MAX_MESSAGE_BYTES, Detections, MalformedDetections, unpack
from services.common.reference import BadReference, ResultReference
from services.common.storage import ObjectDamaged, ObjectMissing, Storage, StorageUnavailable

REMEMBERED: Final = 100_000
"""Results that are remembered to detect duplicates; at 25 a second, more than an hour's."""
PREFETCH: Final = 32
TRANSIENT_LENGTH: Final = 64
"""Longest queue of a reader that needs only new results. The broker drops the oldest beyond it."""
RETRY_S: Final = 0.5

Deliver = Callable[[ResultReference, Detections], Awaitable[None] | None]

log = structlog.get_logger()


class ResultReader:
    """Reads the results of a stream. Owned by one event loop.

    Args:
        stream: The stream's name.
        storage: Storage of the results.
        deliver: Called with each result once; duplicates of a frame and model are dropped. A message is acknowledged
            after it returns.
        queue: Name of a durable queue, which keeps results while no reader is connected. None: an exclusive queue of
            bounded length, which ends with this reader.
    """

    def __init__(self, stream: str, storage: Storage, deliver: Deliver, *, queue: str | None = None) -> None:
        self.repeated = 0
        """Duplicates, which were dropped."""
        self.rejected = 0
        """Messages that were not references to results of this stream, and damaged results."""
        self.missing = 0
        """Results that had expired from the storage."""
        self.reason = ""
        """Why the storage cannot be read; empty while it can."""
        self._names = Names(stream)
        self._storage = storage
        self._deliver = deliver
        self._queue_name = queue
        self._seen: OrderedDict[tuple[str, int, int, str], None] = OrderedDict()

    async def read(self, connection: AbstractConnection) -> None:
        """Deliver results until cancelled. Pass it as ``work`` to :func:`services.common.broker.keep_connected`."""
        self.reason = ""
        channel = await open_channel(connection, prefetch=PREFETCH)
        # Declare the exchange as the relay does, so that a reader may connect before the first relay.
        exchange = await channel.declare_exchange(self._names.results, "fanout", durable=True)
        if self._queue_name is None:
            queue: AbstractQueue = await channel.declare_queue(
                exclusive=True, arguments={"x-max-length": TRANSIENT_LENGTH, "x-overflow": "drop-head"}
            )
        else:
            # Each end of a reader returns what it has not delivered, which counts as a delivery.
            queue = await declare_unlimited(connection, channel, self._queue_name, {})
        await queue.bind(exchange)
        arrived: asyncio.Queue[tuple[AbstractIncomingMessage, asyncio.Task[Detections | None]]] = asyncio.Queue()

        async def fetch(delivered: AbstractIncomingMessage) -> None:
            arrived.put_nowait((delivered, asyncio.create_task(self._read(delivered))))

        # Fetch concurrently, but deliver in the order of arrival.
        await queue.consume(fetch)
        try:
            while True:
                delivered, reading = await arrived.get()
                await self._take(delivered, reading)
        finally:
            # Their messages are not acknowledged, so the broker delivers them again.
            while not arrived.empty():
                arrived.get_nowait()[1].cancel()

    async def _take(self, delivered: AbstractIncomingMessage, reading: asyncio.Task[Detections | None]) -> None:
        try:
            detections = await reading
            reference = ResultReference.from_json(delivered.body)
            # Check again: fetches are concurrent, so a duplicate may have been delivered since this one began.
            if detections is None or reference.key in self._seen:
                self.repeated += 1
            else:
                pending = self._deliver(reference, detections)
                if inspect.isawaitable(pending):
                    await pending
                # Remember only what was delivered: a redelivery after an exception must be delivered.
                self._seen[reference.key] = None
                if len(self._seen) > REMEMBERED:
                    self._seen.popitem(last=False)
        except ObjectMissing:
            self.missing += 1
        except (BadReference, MalformedDetections, ObjectDamaged) as error:
            if not self.rejected:
                log.warning("result rejected", reason=str(error))
            self.rejected += 1
        # Acknowledge last, so that a result is redelivered if this process dies before it was delivered. Acknowledge
        # missing and damaged results too: another delivery would find them the same.
        await delivered.ack()

    async def _read(self, delivered: AbstractIncomingMessage) -> Detections | None:
        """Fetch the result that a message refers to. Return None for a duplicate."""
        reference = ResultReference.from_json(delivered.body)
        return None if reference.key in self._seen else await self._fetch(reference)

    async def _fetch(self, reference: ResultReference) -> Detections:
        while True:
            try:
                data = await self._storage.fetch(reference)
                break
            except (ObjectMissing, ObjectDamaged):
                self.reason = ""
                raise
            except StorageUnavailable as error:
                if not self.reason:
                    log.warning("results not read", reason=str(error))
                self.reason = str(error)
                await asyncio.sleep(RETRY_S)
        self.reason = ""
        # One byte more than allowed, so that unpack() rejects a larger result instead of reading a part of it.
        detections = unpack(bytes(data[: MAX_MESSAGE_BYTES + 1]))
        if (self._names.stream, detections.epoch, detections.sequence) != reference.key[:3]:
            raise MalformedDetections("the result is of another frame than its reference says")
        return detections
