"""Queues of a real broker: those that never drop a message, and a consumer that the broker cancels."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import aio_pika
import pytest
from aio_pika.abc import AbstractConnection, AbstractIncomingMessage
from aio_pika.exceptions import ChannelPreconditionFailed

from services.common.broker import keep_connected
from services.common.broker_messages import NO_DELIVERY_LIMIT, declare_unlimited, open_channel
from services.common.broker_names import Names
from services.common.remote_config import BrokerSection
from services.relay.config import RelaySection
from services.relay.topology import declare
from tests.rabbitmq import RabbitMq

pytestmark = pytest.mark.slow
OF_EARLIER_VERSIONS: dict[str, Any] = {"x-queue-type": "quorum"}


def test_a_queue_without_a_limit_is_declared_and_one_of_earlier_versions_is_accepted(rabbitmq: RabbitMq) -> None:
    async def work() -> None:
        async with await aio_pika.connect(rabbitmq.url) as connection:
            channel = await open_channel(connection)
            await channel.declare_queue("earlier", durable=True, arguments=OF_EARLIER_VERSIONS)
            for name in ("earlier", "new", "new"):
                queue = await declare_unlimited(connection, channel, name, {})
                assert queue.name == name
            limited = {**OF_EARLIER_VERSIONS, "x-delivery-limit": NO_DELIVERY_LIMIT}
            await channel.declare_queue("new", durable=True, arguments=limited)
            with pytest.raises(ChannelPreconditionFailed):
                await declare_unlimited(connection, channel, "new", {"x-max-length": 5})

    asyncio.run(work())


def test_a_message_outlives_more_deliveries_than_rabbitmq_4_allows_by_default(rabbitmq: RabbitMq) -> None:
    async def work() -> None:
        async with await aio_pika.connect(rabbitmq.url) as connection:
            channel = await open_channel(connection)
            queue = await declare_unlimited(connection, channel, "often", {})
            await channel.default_exchange.publish(aio_pika.Message(b"x"), "often")
            for _ in range(25):
                await (await queue.get(timeout=5)).reject(requeue=True)
            await (await queue.get(timeout=5)).ack()

    asyncio.run(work())


def test_what_earlier_versions_declared_is_taken_over(rabbitmq: RabbitMq) -> None:
    names = Names("upgraded")

    async def work() -> None:
        async with await aio_pika.connect(rabbitmq.url) as connection:
            channel = await open_channel(connection)
            settled = {**OF_EARLIER_VERSIONS, "x-max-length": 1_000_000, "x-overflow": "drop-head"}
            await channel.declare_queue(names.settled, durable=True, arguments=settled)
            await channel.declare_queue(names.dead, durable=True)
            await declare(connection, channel, names, RelaySection())

    asyncio.run(work())


def test_a_consumer_that_the_broker_cancels_connects_again(rabbitmq: RabbitMq) -> None:
    stop, reasons = threading.Event(), list[str]()

    async def ignore(_delivered: AbstractIncomingMessage) -> None:
        pass

    async def consume(connection: AbstractConnection) -> None:
        channel = await open_channel(connection)
        queue = await channel.declare_queue("deleted", durable=True, arguments=OF_EARLIER_VERSIONS)
        await queue.consume(ignore)
        if reasons.count("") > 1:
            stop.set()
        else:
            await (await open_channel(connection)).queue_delete("deleted")
        await asyncio.Event().wait()

    asyncio.run(
        asyncio.wait_for(keep_connected(BrokerSection(url=rabbitmq.url), consume, stop, state=reasons.append), 20)
    )
    assert reasons[0] == reasons[2] == ""
    assert reasons[1]
