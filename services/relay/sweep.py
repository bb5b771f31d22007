"""Remove expired objects: those that were not removed after their use.

A sweep costs what expires, not what exists. The addresses contain the minute of the capture, so a sweep lists the
names of the minutes, and the objects of only those minutes in which an object may have expired.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

import structlog

from services.common.reference import FRAMES, RESULTS, slice_start_s
from services.common.storage import Listed, Storage, StorageUnavailable
from services.relay.config import RelaySection
from services.relay.ledger import Ledger

CLOCK_SET_S: Final = 3600.0
"""Time from now after which a slice is of a wall clock that was wrong."""

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
        self._due_s: dict[str, float] = {}  # by the prefix of a slice that was searched: when its next object expires
        self._unpublished: set[str] = set()

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
        # Searched once for each sweep: the object of a frame that is accepted from now on has not expired.
        self._unpublished = await asyncio.to_thread(self._ledger.unpublished_addresses)
        removed = await self._sweep(FRAMES, section.expire_frames_s, now_s)
        removed += await self._sweep(RESULTS, section.expire_results_s, now_s)
        # Their objects are removed, so drop the frames that still wait for a detector.
        await asyncio.to_thread(self._ledger.expire, round((now_s - section.expire_frames_s) * 1e9))
        return removed

    async def _sweep(self, kind: str, expire_s: float, now_s: float) -> int:
        slices, objects = await self._storage.folders(f"{kind}/{self._stream}/")
        removed = 0
        for one in objects:  # of another program: the relay and the detectors write none here
            removed += (await self._remove_expired(one, kind, expire_s, now_s)) is None
        for prefix in slices:
            if self._is_due(prefix, expire_s, now_s):
                removed += await self._search(prefix, kind, expire_s, now_s)
        # Forget the slices that are gone. If one returns with a late result, it is searched anew.
        remaining = set(slices)
        for prefix in [known for known in self._due_s if known.startswith(f"{kind}/") and known not in remaining]:
            del self._due_s[prefix]
        return removed

    def _is_due(self, prefix: str, expire_s: float, now_s: float) -> bool:
        """Return whether an object of a slice may have expired."""
        if (due_s := self._due_s.get(prefix)) is not None:
            return now_s >= due_s
        start_s = slice_start_s(prefix.split("/")[2])
        # An object is written after its frame was captured, so it does not expire before this time after the slice's
        # start. A prefix without a time is that of an epoch, as in addresses of earlier versions.
        return start_s is None or not now_s - expire_s < start_s < now_s + CLOCK_SET_S

    async def _search(self, prefix: str, kind: str, expire_s: float, now_s: float) -> int:
        """Remove the expired objects of a slice, and note when the next one expires. Return their number."""
        removed, left = 0, False
        # What is written from now on does not expire before this time; the frames of dead letters may expire later.
        due_s = now_s + expire_s
        async for found in self._storage.list(prefix):
            expires_s = await self._remove_expired(found, kind, expire_s, now_s)
            if expires_s is None:
                removed += 1
            else:
                left, due_s = True, min(due_s, expires_s)
        removed += await self._storage.remove_staged(prefix, expire_s)
        if left:
            self._due_s[prefix] = due_s
        else:
            self._due_s.pop(prefix, None)  # gone, or with a file of a writer: search it again
        return removed

    async def _remove_expired(self, found: Listed, kind: str, expire_s: float, now_s: float) -> float | None:
        """Remove an object if it has expired. Return None if it was removed, else when it expires."""
        if (expires_s := found.modified_s + expire_s) > now_s:
            return expires_s
        # An accepted frame that waits for the broker may be nowhere else.
        if found.address in self._unpublished:
            return now_s
        # The frame of a dead letter is kept for longer, to reproduce the failure.
        if kind == FRAMES and self._ledger.is_dead(found.address):
            if (expires_s := found.modified_s + self._section.expire_dead_letters_s) > now_s:
                return expires_s
            self._ledger.removed([found.address])
        await self._storage.delete([found.address])
        self.removed += 1
        return None
