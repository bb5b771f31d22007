"""The relay's second stage: write accepted frames to the storage, then publish their references, in order."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

import structlog
from aio_pika.abc import AbstractExchange

from services.common.broker import together
from services.common.broker_messages import BrokerRefused, NoQueue, message, publish
from services.common.broker_names import FRAME
from services.common.reference import trace_id
from services.common.status import Stage
from services.common.storage import Storage, StorageUnavailable, another_address
from services.relay.config import RelaySection
from services.relay.ledger import Entry
from services.relay.spool import Lost, Spool

QUICK_S: Final = 0.03
"""Longest write to the storage in the thread that takes frames. Slower writes run concurrently, in other threads."""
SPOOL_FACTOR: Final = 1.5
"""A write may also take this many times as long as one to the spool, because that would be the alternative."""
OUTDATED: Final = 0.98
"""Factor by which the known time of a write to the spool decreases with each frame that is not written there."""
TRIM_S: Final = 0.02
"""Interval of the search for frames of the live policy to drop."""
GATHER_S: Final = 0.1
"""Time for which confirmed frames are gathered before the ledger records them together."""
TOO_OLD, TOO_MANY = "too old in the relay", "too many in the relay"
"""Reasons for which this stage drops frames of the live policy."""
RETRY_S: Final = (0.1, 2.0)
"""Shortest and longest wait before a retry."""

log = structlog.get_logger()


class TooOld(Exception):
    """A frame of the live policy is too old to be useful."""


class Uploader:
    """Stores and publishes the spool's frames. Owned by one event loop.

    The taker's thread calls :meth:`put_now`, :meth:`put_encoded` and :meth:`accepted`.
    """

    def __init__(self, spool: Spool, storage: Storage, section: RelaySection) -> None:
        self.stage = Stage()
        self.reason = ""
        """Why frames wait; empty while none does."""
        self._spool = spool
        self._storage = storage
        self._section = section
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._excess_possible = asyncio.Event()
        self._stored: set[str] = set()
        """Addresses of objects that are written and not yet published. Two threads change it, by atomic operations."""
        self._unaccepted = ""
        """Address of the object that the taker's thread wrote, until its frame is accepted."""
        self._in_flight: set[int] = set()
        """Entries of the window, and those that are confirmed and not recorded, which :meth:`trim` must not drop."""
        self._confirmed: list[Entry] = []
        """Published frames that the ledger has not recorded yet."""
        self._newly_confirmed = asyncio.Event()
        self._quick = True
        """Whether the newest write to the storage succeeded, and quickly."""
        self._writer = ThreadPoolExecutor(1, "put")
        self._writing: Future[None] | None = None

    def accepted(self) -> None:
        """Wake the uploader after a frame was accepted. Thread-safe."""
        self._unaccepted = ""
        self._loop.call_soon_threadsafe(self._notice)

    def _notice(self) -> None:
        self._wake.set()  # first, so that the uploader takes the frames that it can before trim() looks
        self._excess_possible.set()

    def put_now(self, address: str, data: memoryview, timeout_s: float) -> bool:
        """Write an object from the caller's memory. Call it from another thread than the loop's.

        The memory may still be in use after a time-out, and its slot stays leased until then. That is a moment with an
        S3 server, and at most one slot with a folder.

        Returns:
            Whether the object was written in time.
        """
        if self._storage.is_folder:
            return self.put_encoded(address, data, timeout_s)
        request = asyncio.run_coroutine_threadsafe(self._storage.put(address, data), self._loop)
        try:
            request.result(max(0.0, timeout_s))
        except (TimeoutError, StorageUnavailable, asyncio.CancelledError):
            request.cancel()
            return False
        self._add_stored(address)
        return True

    def put_encoded(self, address: str, data: memoryview, timeout_s: float) -> bool:
        """Write an object before its frame is accepted, if the storage is a folder that is quick.

        This avoids hand-overs between threads and, with the work policy, a second copy of the frame on the disk. Call
        it from another thread than the loop's. If the write times out, the memory may be in use for long afterwards.

        Returns:
            Whether the object was written in time.
        """
        # While references cannot be published, frames wait in the spool, and not in the storage that others share.
        if not self._storage.is_folder or not self._quick or len(self._stored) >= self._section.puts:
            return False
        if self._writing is not None and not self._writing.done():
            return False
        begun_s = time.monotonic()
        # In a thread of its own, because a folder on a file server that is unavailable blocks its caller without end.
        self._writing = self._writer.submit(self._storage.write, address, data, durable=self._section.policy == "work")
        try:
            self._writing.result(timeout_s)
        except (TimeoutError, StorageUnavailable):
            self._quick = False
            return False
        self._quick = self._is_quick(begun_s)
        self._spool.write_s *= OUTDATED
        self._add_stored(address)
        return True

    def _is_quick(self, begun_s: float) -> bool:
        return time.monotonic() - begun_s < max(QUICK_S, SPOOL_FACTOR * self._spool.write_s)

    def _add_stored(self, address: str) -> None:
        # If the ledger's disk was full, the previous frame was not accepted. The sweep removes its object.
        self._stored.discard(self._unaccepted)
        self._stored.add(address)
        self._unaccepted = address

    async def run(self, exchange: AbstractExchange) -> None:
        """Store and publish until cancelled. Frames that the broker has not confirmed by then stay in the spool."""
        try:
            await together(self._upload(exchange), self._record())
        finally:
            await self._commit()

    async def _upload(self, exchange: AbstractExchange) -> None:
        window: deque[tuple[Entry, asyncio.Task[Entry] | None]] = deque()
        newest = 0
        try:
            while True:
                self._wake.clear()  # before the look, so that a frame accepted meanwhile wakes the wait below
                for entry in self._spool.ledger.pending(newest, self._section.puts - len(window)):
                    newest = entry.id
                    self._in_flight.add(entry.id)
                    stored = entry.reference.address in self._stored
                    window.append((entry, None if stored else asyncio.create_task(self._store(entry))))
                if not window:
                    self.reason = ""
                    await self._wake.wait()
                    continue
                # Objects are written concurrently, but references are published one by one, in the order of the frames.
                entry, storing = window.popleft()
                try:
                    if storing is not None:
                        entry = await storing
                    await self._publish(exchange, entry)
                except TooOld:
                    await self._drop(entry, TOO_OLD)
                except Lost as error:
                    log.error("frame lost", reason=str(error), frame=entry.reference.key)  # noqa: TRY400
                    await self._drop(entry, "lost from the spool")
                else:
                    self._confirmed.append(entry)
                    self._newly_confirmed.set()
                    self.stage.record(time.time() - entry.reference.captured_wall_ns * 1e-9)
                    self._stored.discard(entry.reference.address)
        finally:
            tasks = [storing for _entry, storing in window if storing is not None]
            for storing in tasks:
                storing.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._in_flight = {entry.id for entry in self._confirmed}
            self._excess_possible.set()  # the frames of the window wait again

    async def _record(self) -> None:
        """Record confirmed frames in the ledger, several in one transaction, until cancelled.

        After a death before that, the next relay publishes them again, and readers drop the repeated results.
        """
        while True:
            await self._newly_confirmed.wait()
            await asyncio.sleep(GATHER_S)
            await self._commit()

    async def _commit(self) -> None:
        self._newly_confirmed.clear()
        confirmed, self._confirmed = self._confirmed, []
        if self._spool.ledger.on_disk and confirmed:
            await asyncio.to_thread(self._spool.published, confirmed)
        else:
            self._spool.published(confirmed)
        self._in_flight.difference_update(entry.id for entry in confirmed)

    async def trim(self) -> None:
        """Drop excess and old frames of the live policy, even without a broker connection, until cancelled."""
        while True:
            await self._excess_possible.wait()
            self._excess_possible.clear()
            while len(self._spool) > len(self._in_flight):
                # The uploader takes the oldest frames first, so those that wait have higher numbers.
                waiting = self._spool.ledger.pending(max(self._in_flight, default=0), -1)
                excess = len(waiting) - self._section.live_length
                for number, entry in enumerate(waiting):
                    if entry.id in self._in_flight:
                        continue  # the uploader has taken it while _drop() removed the object of another frame
                    if is_late(entry):
                        await self._drop(entry, TOO_OLD)
                    elif number < excess:
                        await self._drop(entry, TOO_MANY)
                await asyncio.sleep(TRIM_S)

    async def _drop(self, entry: Entry, reason: str) -> None:
        self._spool.drop(entry, reason)
        self._in_flight.discard(entry.id)
        if entry.reference.address in self._stored:
            self._stored.discard(entry.reference.address)
            with contextlib.suppress(StorageUnavailable):  # the sweep removes it later
                await self._storage.delete([entry.reference.address])

    async def _store(self, entry: Entry) -> Entry:
        """Write a frame's object, retrying until it succeeds. Return the entry with its address.

        Raises:
            TooOld: The frame became too old before it was written.
            Lost: The spool no longer has the frame.
        """
        wait_s = RETRY_S[0]
        wanted, refusals = entry.reference.address, 0
        while entry.reference.address not in self._stored:
            _check_age(entry)
            begun_s = time.monotonic()
            try:
                if (data := await self._read(entry)) is not None:
                    await self._storage.put(entry.reference.address, data, durable=self._section.policy == "work")
            except StorageUnavailable as error:
                self._quick = False
                self._wait_for("frame not stored", str(error), entry)
                refusals += error.answered
                if (address := another_address(wanted, refusals)) != entry.reference.address:
                    # Before the write: the reference in the ledger must name the object that exists.
                    entry = await asyncio.to_thread(self._spool.ledger.move, entry, address)
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, RETRY_S[1])
            else:
                self._quick = self._is_quick(begun_s)
                self._stored.add(entry.reference.address)
        return entry

    async def _read(self, entry: Entry) -> bytes | memoryview | None:
        """Return a frame's data, or None if a relay that died wrote it to the storage and not to the spool."""
        # A thread for a spool in memory cost about a tenth of the CPU time of a frame, 5.7 instead of 5.1 ms.
        if not self._spool.ledger.on_disk:
            return self._spool.read(entry)
        try:
            return await asyncio.to_thread(self._spool.read, entry)
        except Lost:
            if await self._storage.has(entry.reference.address, entry.reference.size_bytes):
                return None
            raise

    async def _publish(self, exchange: AbstractExchange, entry: Entry) -> None:
        wait_s = RETRY_S[0]
        reference = entry.reference
        while True:
            _check_age(entry)
            expiration_s = None
            if reference.deadline_wall_ns is not None:
                # Let the broker drop the message at its deadline. An expiration must not be negative.
                expiration_s = max(0.001, reference.deadline_wall_ns * 1e-9 - time.time())
            sent = message(entry.body, FRAME, reference.key, expiration=expiration_s)
            try:
                await publish(exchange, sent, mandatory=True)
            except NoQueue as error:
                # The exchange or queue was deleted, so reconnect to declare it again.
                raise ConnectionError(str(error)) from None
            except BrokerRefused as error:
                self._wait_for("frame not published", str(error), entry)
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, RETRY_S[1])
            else:
                if self.reason:
                    log.info("frames are published again", trace_id=trace_id(reference.key))
                self.reason = ""
                return

    def _wait_for(self, event: str, reason: str, entry: Entry) -> None:
        if not self.reason:
            log.warning(event, reason=reason, frame=entry.reference.key, trace_id=trace_id(entry.reference.key))
        self.reason = reason


def is_late(entry: Entry) -> bool:
    """Return whether a frame is too old to be useful."""
    deadline_wall_ns = entry.reference.deadline_wall_ns
    return deadline_wall_ns is not None and time.time_ns() > deadline_wall_ns


def _check_age(entry: Entry) -> None:
    if is_late(entry):
        raise TooOld
