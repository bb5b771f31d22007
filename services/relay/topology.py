"""Declare the relay's exchanges and queues at the broker.

Source: RabbitMQ's guides "Quorum Queues", "Queue Length Limit" and "Dead Letter Exchanges".
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractExchange, AbstractQueue
from aio_pika.exceptions import ChannelNotFoundEntity

from services.common.broker_messages import declare_unlimited, open_channel
from services.common.broker_names import Names
from services.relay.config import RelaySection

NEW_QUEUE_S: Final = 2.0
"""Time in which RabbitMQ writes the name of a new quorum queue to the disk. If it is killed before, the queue becomes
permanently unusable, and confirmed messages are lost (observed with 3.10.8)."""
SETTLED_LENGTH: Final = 1_000_000
"""Largest number of messages for a disconnected relay. It prevents a relay that never returns from filling the disk."""


async def declare(
    connection: AbstractConnection, channel: AbstractChannel, names: Names, section: RelaySection
) -> tuple[AbstractExchange, AbstractQueue]:
    """Declare a stream's exchanges and queues.

    Returns:
        The exchange for frames, and the queue of their outcomes.

    Raises:
        ChannelLockedResource: Another relay is connected for this stream.
        ChannelPreconditionFailed: A queue or exchange exists with other settings.
    """
    # Lock out a second relay of the same stream, which would consume the first one's results and remove its frames. A
    # single connection can own an exclusive queue, which ends with the connection.
    await channel.declare_queue(names.relay, exclusive=True)
    # The last group's queue is declared last: if it exists, an earlier start has declared all of them.
    new = not await _exists(connection, names.group(section.groups[-1]))
    frames, results, dropped, dead = [
        await channel.declare_exchange(name, "fanout", durable=True)
        for name in (names.frames, names.results, names.dropped, names.dead)
    ]
    settled = await declare_unlimited(
        connection, channel, names.settled, {"x-max-length": SETTLED_LENGTH, "x-overflow": "drop-head"}
    )
    for exchange in (results, dropped, dead):
        await settled.bind(exchange)
    # Do not use a quorum queue: reading the letters requeues them, which counts as a delivery there, and RabbitMQ 4
    # drops a message after 20 deliveries. Name the type, because the default of a virtual host may be another one.
    letters = await channel.declare_queue(names.dead, durable=True, arguments={"x-queue-type": "classic"})
    await letters.bind(dead)
    for group in section.groups:
        queue = await channel.declare_queue(names.group(group), durable=True, arguments=queue_arguments(names, section))
        await queue.bind(frames)
    if new:  # publish nothing into a queue that does not survive a kill yet
        await asyncio.sleep(NEW_QUEUE_S)
    return frames, settled


async def _exists(connection: AbstractConnection, queue: str) -> bool:
    channel = await open_channel(connection)  # a separate channel: the broker closes it if the queue does not exist
    try:
        await channel.declare_queue(queue, passive=True)
    except ChannelNotFoundEntity:
        return False
    await channel.close()
    return True


def queue_arguments(names: Names, section: RelaySection) -> dict[str, Any]:
    """Return the arguments of a group's queue."""
    common = {"x-queue-type": "quorum", "x-delivery-limit": section.attempts}
    if section.policy == "live":
        return {
            **common,
            "x-max-length": section.live_length,
            "x-overflow": "drop-head",  # the oldest frame is the least useful one
            "x-dead-letter-exchange": names.dropped,
        }
    # The default strategy may lose a dead letter when a node dies between the two queues.
    return {
        **common,
        "x-max-length": section.queue_length,
        "x-overflow": "reject-publish",  # refuse instead of dropping, so that the spool keeps the frame
        "x-dead-letter-exchange": names.dead,
        "x-dead-letter-strategy": "at-least-once",
    }
