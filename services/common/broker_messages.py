"""Messages of the broker: made with the trace of their frame, and published without loss.

Source: RabbitMQ's guides "Quorum Queues" and "Consumer Acknowledgements and Publisher Confirms".
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any, Final

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractExchange, AbstractIncomingMessage
from aio_pika.exceptions import DeliveryError
from pamqp.commands import Basic

from services.common.reference import trace_id

CONFIRM_TIMEOUT_S: Final = 15.0
"""Longest wait for a confirmation. An expiry counts as a lost connection."""


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
    """Open a channel with publisher confirms, limited to ``prefetch`` unacknowledged deliveries if that is not 0."""
    channel = await connection.channel(publisher_confirms=True)
    if prefetch:
        await channel.set_qos(prefetch_count=prefetch)
    return channel


def deliveries_before(delivered: AbstractIncomingMessage) -> int:
    """Return how often a quorum queue delivered the message before without an acknowledgement."""
    count = delivered.headers.get("x-delivery-count", 0)  # absent at the first delivery
    return count if isinstance(count, int) else 0
