"""The relay's last stage: record the outcome of each frame, and remove objects that are no longer required."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Final

import structlog
from aio_pika.abc import AbstractIncomingMessage, AbstractQueue

from services.common.broker_names import FRAME, GROUP, REASON, RESULT, Names
from services.common.dead_letter import death_of
from services.common.reference import FRAMES, BadReference, FrameReference, ResultReference
from services.common.status import Stage
from services.common.storage import Storage, StorageUnavailable
from services.relay.ledger import ANALYSED, DEAD, Fate, Ledger

RETRY_S: Final = (0.2, 5.0)
"""Shortest and longest wait before a retry."""
GATHER_S: Final = 0.1
"""Time for which messages are gathered before they are settled together."""
AT_ONCE: Final = 256
"""Largest number of messages that are settled together, and that the broker delivers before an acknowledgement."""

log = structlog.get_logger()


class Settler:
    """Reads results, dropped frames and dead letters. Owned by one event loop."""

    def __init__(self, ledger: Ledger, storage: Storage, names: Names) -> None:
        self.stage = Stage()
        self.foreign = 0
        """Messages that were not about frames of this stream."""
        self._ledger = ledger
        self._storage = storage
        self._names = names

    async def run(self, queue: AbstractQueue) -> None:
        """Settle messages until cancelled or the connection is lost."""
        arrived: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()
        await queue.consume(arrived.put)
        while True:
            messages = [await arrived.get()]
            # Settle several messages together, because each transaction, removal and acknowledgement takes CPU time,
            # and each transaction is a write to the disk.
            await asyncio.sleep(GATHER_S)
            while not arrived.empty() and len(messages) < AT_ONCE:
                messages.append(arrived.get_nowait())
            await self.settle(messages)

    async def settle(self, messages: Sequence[AbstractIncomingMessage]) -> None:
        """Record the outcomes in messages, remove the objects, then acknowledge.

        Args:
            messages: All unacknowledged deliveries of their channel up to the last of these, in the order of delivery.
        """
        fates = [fate for fate in map(self._fate_of, messages) if fate is not None]
        if self._ledger.on_disk:
            removable = await asyncio.to_thread(self._ledger.settle, fates)
        else:
            removable = self._ledger.settle(fates)
        # Name each object once, because several groups may settle a frame in one batch.
        await self._remove(
            list(dict.fromkeys(fate.address for fate, unused in zip(fates, removable, strict=True) if unused))
        )
        for fate in fates:
            self.stage.record(time.time() - fate.reference.captured_wall_ns * 1e-9)
        # Acknowledge last: after a death or a lost connection, the outcomes are delivered again. The ledger ignores
        # those it has, and the storage ignores objects that are removed. One acknowledgement includes all earlier
        # deliveries, each of which was settled in this batch or in an earlier one.
        await messages[-1].ack(multiple=True)

    def _fate_of(self, delivered: AbstractIncomingMessage) -> Fate | None:
        try:
            if delivered.type == RESULT:
                result = ResultReference.from_json(delivered.body)
                self._check_stream(result.stream)
                self._check_own(result.frame_address)
                return Fate(result, result.group, ANALYSED)
            if delivered.type == FRAME:
                frame = FrameReference.from_json(delivered.body)
                self._check_stream(frame.stream)
                self._check_own(frame.address)
                return Fate(frame, *self._group_and_outcome(delivered))
        except BadReference:
            pass  # a dead letter that is not a reference has no object
        self.foreign += 1  # it is acknowledged with the others: another delivery would change nothing
        return None

    def _check_stream(self, stream: str) -> None:
        if stream != self._names.stream:
            raise BadReference(f"the message is of stream {stream}")

    def _check_own(self, address: str) -> None:
        """Reject a message that would make the relay remove an object of another stream."""
        if not address.startswith(f"{FRAMES}/{self._names.stream}/"):
            raise BadReference(f"{address} is not a frame of stream {self._names.stream}")

    def _group_and_outcome(self, delivered: AbstractIncomingMessage) -> tuple[str, str]:
        """Return the group of detectors that a frame was for, and its outcome."""
        death = death_of(delivered)
        # A detector that buries a frame writes the headers; the broker itself writes x-death only.
        if REASON in delivered.headers:
            return str(delivered.headers.get(GROUP, "")), DEAD
        group = str(death.get("queue", "")).removeprefix(f"{self._names.frames}.")
        if delivered.exchange == self._names.dead:
            return group, DEAD
        return group, f"dropped: {_DROPS.get(str(death.get('reason')), 'by the broker')}"

    async def _remove(self, addresses: Sequence[str]) -> None:
        """Remove objects, retrying until it succeeds. Meanwhile, further messages wait in the broker."""
        wait_s = RETRY_S[0]
        said = False
        while addresses:
            try:
                await self._storage.delete(addresses)
            except StorageUnavailable as error:
                if not said:
                    said = True
                    log.warning("objects not removed", reason=str(error))
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, RETRY_S[1])
            else:
                self._ledger.removed(addresses)
                return


_DROPS: Final = {
    "expired": "too old in the queue",
    "maxlen": "too many in the queue",
    "rejected": "too old at the detector",
    "delivery_limit": "its detectors died",
}
