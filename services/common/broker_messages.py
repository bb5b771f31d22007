"""Channels, queues and messages of the broker. Messages have the trace of their frame, and are published without loss.

Source: RabbitMQ's guides "Quorum Queues", "Consumer Acknowledgements and Publisher Confirms" and "Consumer Cancel
Notifications".
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from typing import Any, Final

import aio_pika
import structlog
from aio_pika.abc import (
    AbstractChannel,
    AbstractConnection,
    AbstractExchange,
    AbstractIncomingMessage,
    AbstractQueue,
)
from aio_pika.exceptions import ChannelPreconditionFailed, DeliveryError
from pamqp.commands import Basic

from services.common.reference import trace_id

CONFIRM_TIMEOUT_S: Final = 15.0
"""Longest wait for a confirmation. An expiry counts as a lost connection."""
NO_DELIVERY_LIMIT: Final = 1_000_000
"""Delivery limit of a quorum queue whose messages must never be dropped. Without one, RabbitMQ 4 drops a message after
20 deliveries. The number -1 removes the limit there, but RabbitMQ 3.10 would drop a message after the first one."""

log = structlog.get_logger()


class BrokerRefused(Exception):
    """The broker rejected a message, for example because a queue is full. A retry may succeed."""


class NoQueue(BrokerRefused):
    """The exchange has no queue to route the message to."""


def message(body: bytes, kind: str, key: str, *, headers: Mapping[str, Any] | None = None, **properties: Any) -> Any:
    """Return a persistent message, with the trace context of its frame.

    Args:
        body: A reference.
        kind: :data:`FRAME` or :data:`RESULT`.
        key: The frame's name, from which the trace id is derived.
        headers: Further headers.
        **properties: Further properties of ``aio_pika.Message``.

    Source: W3C Trace Context, "traceparent".
    """
    trace = {"traceparent": f"00-{trace_id(key)}-{secrets.token_hex(8)}-01"}
    return aio_pika.Message(
        body,
        type=kind,
        message_id=key,
        content_type="application/json",
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        headers={**trace, **(headers or {})},
        **properties,
    )


async def publish(exchange: AbstractExchange, sent: Any, routing_key: str = "", *, mandatory: bool = False) -> None:
    """Publish a message, and wait until the broker confirms that it is stored.

    Raises:
        BrokerRefused: A queue is full.
        NoQueue: ``mandatory`` is set, and the exchange has no queue for the message.
        AMQPError, OSError: The connection was lost. The broker may or may not have the message.
    """
    try:
        confirmed = await exchange.publish(sent, routing_key, mandatory=mandatory, timeout=CONFIRM_TIMEOUT_S)
    except DeliveryError as error:
        raise BrokerRefused(f"a queue of {exchange.name or routing_key} is full") from error
    # The broker returns a mandatory message that no queue takes. aio-pika then gives it in place of the confirmation.
    if not isinstance(confirmed, Basic.Ack):
        raise NoQueue(f"{exchange.name or routing_key} has no queue: the relay declares them when it connects")


async def open_channel(connection: AbstractConnection, *, prefetch: int = 0) -> AbstractChannel:
    """Open a channel with publisher confirms, limited to ``prefetch`` unacknowledged deliveries if that is not 0.

    If the broker cancels a consumer of the channel, the connection is closed.
    """
    channel = await connection.channel(publisher_confirms=True)
    if prefetch:
        await channel.set_qos(prefetch_count=prefetch)
    loop, closing = asyncio.get_running_loop(), set[asyncio.Task[None]]()

    def cancelled(_frame: object) -> None:
        # The broker cancels a consumer if its queue is deleted, and from RabbitMQ 4.3 on also if a message was not
        # acknowledged for half an hour. A consumer that does not know it would wait for deliveries forever. In a task,
        # because the channel that calls this must not wait for its own end.
        log.warning("the broker has cancelled a consumer: its queue was deleted, or a message took too long")
        closing.add(loop.create_task(connection.close()))

    (await channel.get_underlay_channel()).on_consumer_cancel_callbacks.add(cancelled)
    return channel


async def declare_unlimited(
    connection: AbstractConnection, channel: AbstractChannel, name: str, arguments: Mapping[str, Any]
) -> AbstractQueue:
    """Declare a durable quorum queue that keeps its messages however often they are delivered.

    Args:
        connection: The connection of the channel.
        channel: Declares the queue.
        name: Name of the queue.
        arguments: Further arguments.

    Raises:
        ChannelPreconditionFailed: The queue exists with other arguments.
    """
    wanted = {"x-queue-type": "quorum", **arguments}
    limited = {**wanted, "x-delivery-limit": NO_DELIVERY_LIMIT}
    # Earlier versions declared the queue without the limit, which cannot be changed. Accept such a queue. In a channel
    # of its own, because the broker closes the channel of a failed declaration.
    trial = await open_channel(connection)
    try:
        await trial.declare_queue(name, durable=True, arguments=limited)
    except ChannelPreconditionFailed:
        return await channel.declare_queue(name, durable=True, arguments=wanted)
    await trial.close()
    return await channel.declare_queue(name, durable=True, arguments=limited)


def deliveries_before(delivered: AbstractIncomingMessage) -> int:
    """Return how often a quorum queue delivered the message before without an acknowledgement."""
    count = delivered.headers.get("x-delivery-count", 0)  # absent at the first delivery
    return count if isinstance(count, int) else 0
