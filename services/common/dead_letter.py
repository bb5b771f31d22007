"""Dead letters: messages that could not be processed, with the reason."""

from __future__ import annotations

import hashlib
from typing import Any, Final

import aio_pika
from aio_pika.abc import AbstractExchange, AbstractIncomingMessage

from services.common.broker_messages import publish
from services.common.broker_names import GROUP, REASON, WORKER

MAX_REASON: Final = 1000
"""Largest length of a reason, in characters."""
_DEATHS: Final = {
    "delivery_limit": "delivered {count} times without an acknowledgement: its detector died or was killed each time",
    "rejected": "a consumer rejected it",
    "expired": "it was not processed in time",
    "maxlen": "the queue was full",
}
"""Explanations of the reasons in the broker's header x-death."""


async def bury(
    exchange: AbstractExchange, delivered: AbstractIncomingMessage, reason: str, *, group: str, worker: str
) -> None:
    """Publish a message to the dead letters, then acknowledge it.

    If the process dies between the two, the broker redelivers the message, so that it may be buried twice.

    Args:
        exchange: The exchange for dead letters.
        delivered: The message.
        reason: Why the message could not be processed, in one sentence.
        group: Group of the detector that rejects the message.
        worker: Name of that detector.
    """
    # The message's own headers stay: they hold the trace of its frame, and how often it was delivered.
    headers: dict[str, Any] = {**delivered.headers, REASON: reason[:MAX_REASON], GROUP: group, WORKER: worker}
    sent = aio_pika.Message(
        delivered.body,
        headers=headers,
        type=delivered.type,
        message_id=delivered.message_id,
        content_type=delivered.content_type,
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
    )
    # In this order: a death between the two repeats the letter instead of losing it.
    await publish(exchange, sent)
    await delivered.ack()


def reason_of(letter: AbstractIncomingMessage) -> str:
    """Return why a message could not be processed."""
    if isinstance(reason := letter.headers.get(REASON), str):
        return reason
    death = death_of(letter)
    reason = str(death.get("reason", "unknown"))
    return _DEATHS.get(reason, f"the broker says {reason}").format(count=deliveries(letter) or "several")


def death_of(letter: AbstractIncomingMessage) -> dict[str, Any]:
    """Return the newest entry of the broker's header x-death, or an empty map if the broker never moved the message."""
    deaths = letter.headers.get("x-death")
    return dict(deaths[0]) if isinstance(deaths, list) and deaths and isinstance(deaths[0], dict) else {}


def deliveries(letter: AbstractIncomingMessage) -> int:
    """Return how often the message was delivered to detectors."""
    count = letter.headers.get("x-delivery-count")
    return count if isinstance(count, int) else 0


def id_of(letter: AbstractIncomingMessage) -> str:
    """Return the name of a dead letter in commands: the frame's name, or a digest of a body that is not a reference."""
    return letter.message_id or hashlib.sha256(letter.body).hexdigest()[:12]
