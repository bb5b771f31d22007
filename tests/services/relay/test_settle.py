"""Settling the outcomes of frames: in batches, each outcome once, with the acknowledgement last."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import closing
from typing import Any

import pytest

from services.common.broker_names import FRAME, RESULT, Names
from services.common.storage import StorageUnavailable
from services.relay import settle
from services.relay.ledger import Ledger
from services.relay.settle import Settler
from tests.services.relay.frames import STREAM, frame, result

NAMES = Names(STREAM)
GROUPS = ("people", "vehicles")


class Channel:
    """Deliveries of one channel, and which of them were acknowledged."""

    def __init__(self) -> None:
        self.delivered = 0
        self.acknowledged = 0
        """All deliveries up to this one are acknowledged."""
        self.acknowledgements = 0
        self.lost = False


class Message:
    """A delivery."""

    def __init__(self, channel: Channel, kind: str, body: bytes, **changed: Any) -> None:
        channel.delivered += 1
        self.delivery_tag = channel.delivered
        self.type = kind
        self.body = body
        self.exchange = changed.get("exchange", NAMES.results)
        self.headers: dict[str, Any] = changed.get("headers", {})
        self._channel = channel

    async def ack(self, multiple: bool = False) -> None:
        if self._channel.lost:
            raise ConnectionError("the connection was lost")
        assert multiple or self._channel.acknowledged == self.delivery_tag - 1
        self._channel.acknowledged = self.delivery_tag
        self._channel.acknowledgements += 1


class Queue:
    """A queue that delivers what is put into it."""

    async def consume(self, deliver: Callable[[Message], Awaitable[None]]) -> None:
        self.deliver = deliver


class FakeStorage:
    """A storage that records which objects are removed."""

    def __init__(self) -> None:
        self.removals: list[list[str]] = []
        self.refused = 0
        self.away = False

    async def delete(self, addresses: Sequence[str]) -> None:
        if self.away:
            self.refused += 1
            raise StorageUnavailable("the storage is away")
        self.removals.append(list(addresses))


def analysed(channel: Channel, sequence: int, group: str = "people") -> Message:
    return Message(channel, RESULT, result(frame(sequence), group).to_json())


def dropped(channel: Channel, sequence: int, group: str) -> Message:
    death = {"queue": NAMES.group(group), "reason": "maxlen"}
    return Message(channel, FRAME, frame(sequence).to_json(), exchange=NAMES.dropped, headers={"x-death": [death]})


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    """A ledger of two groups with four published frames."""
    with closing(Ledger(None, GROUPS)) as opened:
        for sequence in range(1, 5):
            opened.accept(frame(sequence))
        opened.published(opened.pending(0, -1))
        yield opened


def settle_all(
    ledger: Ledger,
    storage: FakeStorage,
    channel: Channel,
    messages: Sequence[Message],
    meanwhile: Callable[[], Awaitable[None]] | None = None,
) -> Settler:
    """Deliver messages, and settle until all are acknowledged."""

    async def work() -> Settler:
        settler, queue = Settler(ledger, storage, NAMES), Queue()  # type: ignore[arg-type]
        running = asyncio.create_task(settler.run(queue))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        for message in messages:
            await queue.deliver(message)
        if meanwhile is not None:
            await meanwhile()
        deadline_s = time.monotonic() + 20
        while channel.acknowledged < messages[-1].delivery_tag and not running.done():
            assert time.monotonic() < deadline_s
            await asyncio.sleep(0.005)
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        return settler

    return asyncio.run(work())


def test_messages_that_come_together_have_one_removal_and_one_acknowledgement(ledger: Ledger) -> None:
    storage, channel = FakeStorage(), Channel()
    messages = [analysed(channel, 2), dropped(channel, 2, "vehicles"), analysed(channel, 1)]
    messages += [analysed(channel, 3, "vehicles"), analysed(channel, 3), analysed(channel, 3)]
    settler = settle_all(ledger, storage, channel, messages)
    assert storage.removals == [[frame(2).address, frame(3).address]]  # the first still waits for vehicles
    assert channel.acknowledgements == 1
    assert ledger.counts() == {"accepted": 4, "published": 4, "analysed": 4, "dropped: too many in the queue": 1}
    assert settler.stage.summary()["frames"] == 6


def test_more_messages_than_a_batch_holds_are_settled_in_their_order(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settle, "AT_ONCE", 2)
    storage, channel = FakeStorage(), Channel()
    messages = [analysed(channel, sequence, group) for sequence in range(1, 5) for group in GROUPS]
    settle_all(ledger, storage, channel, messages)
    assert storage.removals == [[frame(sequence).address] for sequence in range(1, 5)]
    assert channel.acknowledgements == 4


def test_foreign_messages_are_acknowledged_with_the_others_and_remove_nothing(ledger: Ledger) -> None:
    storage, channel = FakeStorage(), Channel()
    other = frame(9, stream="other", address="frames/other/7/9-0.raw")
    messages = [
        Message(channel, FRAME, b"not a reference"),
        dropped(channel, 1, "people"),
        Message(channel, "order.created", b"{}"),
        Message(channel, RESULT, result(other).to_json()),
        Message(channel, RESULT, result(frame(1), frame_address=other.address).to_json()),
        dropped(channel, 1, "vehicles"),
        Message(channel, FRAME, b""),
    ]
    settler = settle_all(ledger, storage, channel, messages)
    assert settler.foreign == 5
    assert storage.removals == [[frame(1).address]]
    assert (channel.acknowledged, channel.acknowledgements) == (7, 1)


def test_nothing_is_acknowledged_while_the_storage_is_away(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settle, "RETRY_S", (0.01, 0.02))
    storage, channel = FakeStorage(), Channel()
    storage.away = True

    async def returns() -> None:
        while storage.refused < 3:
            await asyncio.sleep(0.01)
        assert channel.acknowledged == 0
        storage.away = False

    messages = [analysed(channel, sequence, group) for sequence in (1, 2) for group in GROUPS]
    settle_all(ledger, storage, channel, messages, returns)
    assert storage.removals == [[frame(1).address, frame(2).address]]
    assert channel.acknowledged == 4


def test_what_a_lost_connection_did_not_acknowledge_is_counted_once(ledger: Ledger) -> None:
    storage, channel = FakeStorage(), Channel()
    messages = [analysed(channel, 1), dropped(channel, 1, "vehicles"), analysed(channel, 2)]
    channel.lost = True
    with pytest.raises(ConnectionError):
        settle_all(ledger, storage, channel, messages)
    # The broker delivers them again, before others.
    again = Channel()
    messages = [analysed(again, 1), dropped(again, 1, "vehicles"), analysed(again, 2), analysed(again, 2, "vehicles")]
    settle_all(ledger, storage, again, messages)
    assert again.acknowledged == 4
    assert storage.removals == [[frame(1).address], [frame(1).address, frame(2).address]]
    assert ledger.counts() == {"accepted": 4, "published": 4, "analysed": 3, "dropped: too many in the queue": 1}
