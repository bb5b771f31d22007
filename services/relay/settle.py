"""The relay's last stage: what has become of each frame; the objects that are not needed any more are removed."""

from __future__ import annotations

import asyncio
import time
from typing import Final

import structlog
from aio_pika.abc import AbstractIncomingMessage, AbstractQueue

from services.common.broker import FRAME, GROUP, REASON, RESULT, Names
from services.common.dead_letter import death_of
from services.common.reference import BadReference, FrameReference, ResultReference
from services.common.status import Stage
from services.common.storage import Storage, StorageUnavailable
from services.relay.ledger import ANALYSED, DEAD, Ledger

RETRY_S: Final = (0.2, 5.0)

log = structlog.get_logger()


class Settler:
    """Reads results, dropped frames and dead letters. Owned by one event loop."""

    def __init__(self, ledger: Ledger, storage: Storage, names: Names) -> None:
        self.stage = Stage()
        self.foreign = 0
        """Messages that were not of this stream's frames."""
        self._ledger = ledger
        self._storage = storage
        self._names = names

    async def run(self, queue: AbstractQueue) -> None:
        """Settle what comes, until cancelled or the connection is lost."""
        async with queue.iterator() as deliveries:
            async for delivered in deliveries:
                await self._take(delivered)

    async def _take(self, delivered: AbstractIncomingMessage) -> None:
        try:
            address, removable, captured_wall_ns = await asyncio.to_thread(self._settle, delivered)
        except BadReference:
            self.foreign += 1  # of a dead letter that is not a reference at all: nothing of it is here
        else:
            if removable:
                await self._remove(address)
            self.stage.record(time.time() - captured_wall_ns * 1e-9)
        await delivered.ack()

    def _settle(self, delivered: AbstractIncomingMessage) -> tuple[str, bool, int]:
        if delivered.type == RESULT:
            result = ResultReference.from_json(delivered.body)
            self._check_stream(result.stream)
            removable = self._ledger.settle(result, result.group, ANALYSED)
            return result.frame_address, removable, result.captured_wall_ns
        if delivered.type != FRAME:
            raise BadReference("the message is neither of a frame nor of a result")
        frame = FrameReference.from_json(delivered.body)
        self._check_stream(frame.stream)
        group, outcome = self._fate(delivered)
        return frame.address, self._ledger.settle(frame, group, outcome), frame.captured_wall_ns

    def _check_stream(self, stream: str) -> None:
        if stream != self._names.stream:
            raise BadReference(f"the message is of stream {stream}")

    def _fate(self, delivered: AbstractIncomingMessage) -> tuple[str, str]:
        """The group of detectors that a frame was for, and what has become of it."""
        death = death_of(delivered)
        if REASON in delivered.headers:
            return str(delivered.headers.get(GROUP, "")), DEAD
        group = str(death.get("queue", "")).removeprefix(f"{self._names.frames}.")
        if delivered.exchange == self._names.dead:
            return group, DEAD
        return group, f"dropped: {_DROPS.get(str(death.get('reason')), 'by the broker')}"

    async def _remove(self, address: str) -> None:
        """Remove an object, however often it must be tried: what waits for it waits in the broker."""
        wait_s = RETRY_S[0]
        said = False
        while True:
            try:
                await self._storage.delete([address])
            except StorageUnavailable as error:
                if not said:
                    said = True
                    log.warning("object not removed", reason=str(error))
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, RETRY_S[1])
            else:
                self._ledger.removed(address)
                return


_DROPS: Final = {
    "expired": "too old in the queue",
    "maxlen": "too many in the queue",
    "rejected": "too old at the detector",
    "delivery_limit": "its detectors died",
}
