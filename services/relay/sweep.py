"""Remove expired objects: those that were not removed after their use."""

from __future__ import annotations

import asyncio
import time

import structlog

from services.common.reference import FRAMES, RESULTS
from services.common.storage import Storage, StorageUnavailable
from services.relay.config import RelaySection
from services.relay.ledger import Ledger

log = structlog.get_logger()


class Sweeper:
    """Searches the storage for leftovers of relays, detectors and readers that died. Owned by one event loop."""

    def __init__(self, ledger: Ledger, storage: Storage, stream: str, section: RelaySection) -> None:
        self.removed = 0
        """Number of removed objects."""
        self._ledger = ledger
        self._storage = storage
        self._stream = stream
        self._section = section

    async def run(self) -> None:
        """Sweep periodically, until cancelled."""
        while True:
            try:
                removed = await self.sweep()
            except StorageUnavailable as error:  # the next sweep finds the same objects
                log.warning("expired objects not removed", reason=str(error))
            else:
                if removed:
                    log.info("expired objects removed", objects=removed)
            await asyncio.sleep(self._section.sweep_s)

    async def sweep(self) -> int:
        """Remove expired objects. Return their number.

        Raises:
            StorageUnavailable: The storage failed. Objects removed until then are counted.
        """
        section, now_s = self._section, time.time()
        removed = await self._sweep(FRAMES, now_s - section.expire_frames_s)
        removed += await self._sweep(RESULTS, now_s - section.expire_results_s)
        # Their objects are removed, so drop the frames that still wait for a detector.
        await asyncio.to_thread(self._ledger.expire, round((now_s - section.expire_frames_s) * 1e9))
        for kind in (FRAMES, RESULTS):
            removed += await self._storage.remove_staged(f"{kind}/{self._stream}", section.sweep_s)
        return removed

    async def _sweep(self, kind: str, before_s: float) -> int:
        removed = 0
        dead_before_s = time.time() - self._section.expire_dead_letters_s
        async for found in self._storage.list(f"{kind}/{self._stream}/"):
            if found.modified_s >= before_s:
                continue
            # The frame of a dead letter is kept for longer, to reproduce the failure.
            if kind == FRAMES and self._ledger.is_dead(found.address):
                if found.modified_s >= dead_before_s:
                    continue
                self._ledger.removed(found.address)
            await self._storage.delete([found.address])
            removed += 1
            self.removed += 1
        return removed
