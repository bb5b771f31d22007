"""Dead letters: messages that could not be worked on, with the reason."""

from __future__ import annotations

import hashlib
from typing import Any, Final

import aio_pika
from aio_pika.abc import AbstractExchange, AbstractIncomingMessage

from services.common.broker import GROUP, REASON, WORKER, publish

MAX_REASON: Final = 1000
_DEATHS: Final = {
    "delivery_limit": "delivered {count} times without an acknowledgement: its detector died or was killed each time",
    "rejected": "a consumer rejected it",
    "expired": "it was not worked on in time",
    "maxlen": "the queue was full",
}
"""What the broker writes into the header x-death, and what it means."""


async def bury(
    exchange: AbstractExchange, delivered: AbstractIncomingMessage, reason: str, *, group: str, worker: str
) -> None:
    """Publish a message to the dead letters, then acknowledge it. A death between the two makes two of it.

    Args:
        exchange: That for dead letters.
        delivered: The message.
        reason: Why, in one sentence.
        group: Group of the detector that says so.
        worker: Its name.
    """
    headers: dict[str, Any] = {**delivered.headers, REASON: reason[:MAX_REASON], GROUP: group, WORKER: worker}
    sent = aio_pika.Message(
        delivered.body,
        headers=headers,
        type=delivered.type,
        message_id=delivered.message_id,
        content_type=delivered.content_type,
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
    )
    await publish(exchange, sent)
    await delivered.ack()


def reason_of(letter: AbstractIncomingMessage) -> str:
    """Why a message could not be worked on."""
    if isinstance(reason := letter.headers.get(REASON), str):
        return reason
    death = death_of(letter)
    reason = str(death.get("reason", "unknown"))
    return _DEATHS.get(reason, f"the broker says {reason}").format(count=deliveries(letter) or "several")


def death_of(letter: AbstractIncomingMessage) -> dict[str, Any]:
    """The newest entry of the broker's header x-death; empty where the broker has not moved the message."""
    deaths = letter.headers.get("x-death")
    return dict(deaths[0]) if isinstance(deaths, list) and deaths and isinstance(deaths[0], dict) else {}


def deliveries(letter: AbstractIncomingMessage) -> int:
    """How often it was delivered to detectors."""
    count = letter.headers.get("x-delivery-count")
    return count if isinstance(count, int) else 0


def id_of(letter: AbstractIncomingMessage) -> str:
    """The name by which commands know a dead letter: the frame's, or a digest of what is not a reference of ours."""
    return letter.message_id or hashlib.sha256(letter.body).hexdigest()[:12]
