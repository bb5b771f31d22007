"""Run the relay's stages, take, upload, settle and sweep, until told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Any, Final

from aio_pika.abc import AbstractConnection

from services.common.broker import keep_connected, stopped, together
from services.common.broker_messages import open_channel
from services.common.broker_names import Names
from services.common.service import ServiceError, UnusableSetting
from services.common.status import StatusServer, status_document
from services.common.storage import Storage
from services.relay.config import RelayConfiguration, RelaySection
from services.relay.ledger import Ledger
from services.relay.settle import AT_ONCE, Settler
from services.relay.spool import Spool
from services.relay.sweep import Sweeper
from services.relay.take import Taker
from services.relay.topology import declare
from services.relay.upload import Uploader

MISSED_TOLD: Final = 100
"""Number of ranges of missed frames in the status."""
MEMORY_BYTES: Final = 1 << 30
"""Memory limit for frames of the live policy; ``live_length`` is usually reached first."""


def main(configuration: RelayConfiguration, stop: threading.Event) -> None:
    """Relay until ``stop`` is set.

    Raises:
        UnusableSetting: The broker, the storage or the spool is unusable.
        ServiceError: A part has failed.
    """
    storage = _open_storage(configuration)
    spool = _open_spool(configuration.relay)
    try:
        asyncio.run(_Relay(configuration, storage, spool, stop).run())
    finally:
        spool.close()


def check(configuration: RelayConfiguration) -> None:
    """Check the settings of the broker and the storage, without connecting.

    Raises:
        UnusableSetting: The broker or the storage is not configured, or is unusable.
    """
    _open_storage(configuration)


def _open_storage(configuration: RelayConfiguration) -> Storage:
    if configuration.broker.url is None:
        raise UnusableSetting("no broker is named: set broker.url to amqp://HOST, or amqps://HOST with TLS")
    return Storage(configuration.storage)


def _open_spool(section: RelaySection) -> Spool:
    if section.policy == "live":
        return Spool(None, MEMORY_BYTES, section.groups)
    return Spool(section.spool, section.spool_bytes, section.groups)


class _Relay:
    def __init__(
        self, configuration: RelayConfiguration, storage: Storage, spool: Spool, stop: threading.Event
    ) -> None:
        self._configuration = configuration
        self._section = configuration.relay
        self._storage = storage
        self._spool = spool
        self._stop = stop
        self._names = Names(configuration.stream.name)
        self._settler = Settler(spool.ledger, storage, self._names)
        self._sweeper = Sweeper(spool.ledger, storage, configuration.stream.name, self._section)
        self._broker_reason = "not connected to the broker yet"
        self._begun_s = time.monotonic()

    async def run(self) -> None:
        self._uploader = Uploader(self._spool, self._storage, self._section)
        # The taker has an event of its own, because it must also stop when another part fails.
        ending = threading.Event()
        self._taker = Taker(
            self._configuration,
            self._spool,
            put=self._uploader.put_now,
            put_encoded=self._uploader.put_encoded,
            accepted=self._uploader.accepted,
            stop=ending,
        )
        with StatusServer(self._configuration.stream.name, "relay", self.status):
            taking = asyncio.create_task(asyncio.to_thread(self._taker.run))
            async with _running(
                taking,
                self._keep_connected(),
                self._sweeper.run(),
                *([self._uploader.trim()] if self._section.policy == "live" else []),
                ending=ending,
            ) as tasks:
                done, _ = await asyncio.wait(
                    [*tasks, asyncio.ensure_future(stopped(self._stop, None))], return_when=asyncio.FIRST_COMPLETED
                )
                # Each part runs until told to stop, so one that has ended has failed, or must not have ended.
                for task in done:
                    task.result()
                if not self._stop.is_set():
                    raise ServiceError("a part of the relay has ended unexpectedly")

    async def _keep_connected(self) -> None:
        await keep_connected(self._configuration.broker, self._work, self._stop, state=self._set_broker_reason)

    async def _work(self, connection: AbstractConnection) -> None:
        """Publish and settle, on separate channels, so that a full queue does not delay results."""
        channel = await open_channel(connection, prefetch=AT_ONCE)
        _, settled = await declare(connection, channel, self._names, self._section)
        publishing = await open_channel(connection)
        frames = await publishing.get_exchange(self._names.frames, ensure=False)  # declare() has just declared it
        self._broker_reason = ""
        await together(self._uploader.run(frames), self._settler.run(settled))

    def _set_broker_reason(self, reason: str) -> None:
        self._broker_reason = reason or "the broker's queues are not declared yet"

    def status(self) -> dict[str, Any]:
        """Return the status document. Called by the status server's thread."""
        ledger: Ledger = self._spool.ledger
        spooled, unsettled, oldest_wall_ns = ledger.waiting()
        oldest_age_s = 0.0 if oldest_wall_ns is None else max(0.0, time.time() - oldest_wall_ns * 1e-9)
        document = status_document(
            "relay",
            {"take": self._taker.stage, "publish": self._uploader.stage, "settle": self._settler.stage},
            stale_after_s=self._section.stale_after_s,
            optional=("publish", "settle"),
            details={
                "policy": self._section.policy,
                "encoding": self._section.encoding,
                "oldest_unprocessed_age_s": round(oldest_age_s, 3),
                "spooled": spooled,
                "spooled_bytes": ledger.spooled_bytes,
                "unsettled": unsettled,
                "waits_for": self._broker_reason or self._uploader.reason,
                "counts": ledger.counts(),
                "missed": [list(one) for one in ledger.missed()[-MISSED_TOLD:]],
                "longest_hold_ms": round(self._taker.longest_hold_s * 1e3, 1),
                "expired_objects": self._sweeper.removed,
                "foreign_messages": self._settler.foreign,
            },
        )
        # Without frames nothing is published, which is healthy. Frames that wait too long, or no broker, are not.
        published_s = self._uploader.stage.summary()["age_s"]
        resting_s = time.monotonic() - self._begun_s if published_s is None else published_s
        waits = self._broker_reason or self._uploader.reason
        if waits and resting_s > self._section.stale_after_s and (spooled or self._broker_reason):
            document.update(healthy=False, reason=waits)
        return document


@contextlib.asynccontextmanager
async def _running(
    taking: asyncio.Task[None], *work: Coroutine[Any, Any, None], ending: threading.Event
) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Run tasks beside a thread. At the end, stop the thread first, because its writes require the event loop."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        yield [taking, *tasks]
    finally:
        ending.set()
        with contextlib.suppress(Exception):  # already reported
            await taking
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
