"""Read the results of detectors on other hosts via the broker, in a thread with its own event loop.

The detectors of a group share the frames of one queue, so their results arrive in any order. They are shown as one
detector with the name of the group.

If the broker or the storage is unavailable, the thread retries indefinitely without affecting the rest of the streamer.
"""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import structlog

from services.common.broker import keep_connected
from services.common.config import STREAM_NAME
from services.common.credentials import MissingPassword
from services.common.detections import Detections
from services.common.reference import ResultReference
from services.common.results import ResultReader
from services.common.service import UnusableSetting
from services.common.status import Stage
from services.common.storage import Storage
from services.streamer.config import StreamerConfiguration
from services.streamer.order import DetectionOrder, Place
from services.streamer.thread import StreamerThread
from services.streamer.workers import Workers

AGAIN_S: Final = 5.0
"""Pause after a fault that no library retries by itself."""
MAX_AGE_S: Final = 86_400.0
"""A frame that claims to be older is not of this boot of the host."""
CLOCKS_AGREE_S: Final = 60.0
"""Tolerance between a frame's ages by the two clocks, because the wall clock may be set while the host runs."""
NOTICE: Final = "results of detectors on other hosts do not arrive"
_GROUP: Final = re.compile(STREAM_NAME)

log = structlog.get_logger()


class ResultThread(StreamerThread):
    """Delivers the results of each group in the order of its frames, until stopped.

    Args:
        configuration: The streamer's configuration.
        order: Decides which detections are newer; shared by all threads that deliver detections.
        deliver: Called with the detections, in this thread.
        stop: Ends the thread.
    """

    def __init__(
        self,
        configuration: StreamerConfiguration,
        order: DetectionOrder,
        *,
        deliver: Callable[[Detections], None],
        stop: threading.Event,
    ) -> None:
        super().__init__("results", stop)
        self.received = Stage()
        self.workers = Workers()
        """The detectors that produced the results."""
        self.late = 0
        """Results of an older frame than a previous one."""
        self.repeated = 0
        """Results of the same frame as the previous one."""
        self.foreign = 0
        """Results of frames that are not of this boot of the host, and of groups with an invalid name."""
        self._configuration = configuration
        self._order = order
        self._deliver = deliver
        self._reader: ResultReader | None = None
        self._connected = False
        self._reason = ""
        self._skipped = 0

    @property
    def reason(self) -> str:
        """Why results cannot be read; empty while they can, and until the first attempt has ended."""
        reader = self._reader
        return self._reason or ("" if reader is None else reader.reason)

    def notices(self) -> list[str]:
        """Return the notices for viewers. They omit the reason, which names hosts; only the status contains it."""
        if self._reason:
            return [f"{NOTICE}: there is no connection to the broker"]
        return [f"{NOTICE}: the storage cannot be read"] if self.reason else []

    def details(self) -> dict[str, Any]:
        """Return the details for the status."""
        reader = self._reader
        return {
            "connected": self._connected,
            "reason": self.reason,
            "late": self.late,
            "repeated": self.repeated + (0 if reader is None else reader.repeated),
            "foreign": self.foreign,
            "rejected": 0 if reader is None else reader.rejected,
            "missing": 0 if reader is None else reader.missing,
            "workers": self.workers.summaries(),
        }

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                asyncio.run(self._read())
            except UnusableSetting as error:  # such as a password's file that does not exist yet
                self._say(str(error))
            except Exception as error:  # noqa: BLE001  no exception of a library may stop the pictures
                self._say(f"{type(error).__name__}: {error}", unexpected=True)
            self._stop.wait(AGAIN_S)

    def _say(self, reason: str, *, unexpected: bool = False) -> None:
        if reason != self._reason:
            log.warning("results not read", reason=reason, exc_info=unexpected)
        self._set_reason(reason)

    async def _read(self) -> None:
        # Keep the reader over faults: it remembers which results it has delivered.
        if self._reader is None:
            storage = Storage(self._configuration.storage)
            self._reader = ResultReader(self._configuration.stream.name, storage, self.take)
        await keep_connected(self._configuration.broker, self._reader.read, self._stop, state=self._set_reason)

    def _set_reason(self, reason: str) -> None:
        self._reason = reason
        self._connected = not reason

    def take(self, reference: ResultReference, detections: Detections) -> None:
        """Deliver a result if it is the newest of its group; otherwise count it."""
        if not _GROUP.fullmatch(reference.group) or not _is_of_this_boot(reference, detections):
            self.foreign += 1
            return
        latency_s = (time.monotonic_ns() - detections.captured_ns) / 1e9
        # Before the order: a result that arrives too late to be shown is work of its detector, too.
        self.workers.record(reference.group, reference.instance, reference.model, latency_s)
        # Each detector of the group has its own tracker epoch, which is meaningless if no object has a track.
        tracker = detections.tracker if any(found.track_id for found in detections.objects) else 0
        # By the group's name, the results of several detectors are one detector's, in the order of their frames.
        told = replace(detections, instance=reference.group, tracker=tracker)
        place = self._order.place(told)
        if place is Place.NEWEST:
            self.received.record(latency_s, self._skipped)
            self._skipped = 0
            self._deliver(told)
            return
        # The next newest result reports these as skipped, as a gap in the sequences of a ring would be.
        self._skipped += 1
        self.late += place is Place.LATE
        self.repeated += place is Place.REPEATED
        self.foreign += place is Place.FUTURE


def _is_of_this_boot(reference: ResultReference, detections: Detections) -> bool:
    """Return whether ``captured_ns`` is of this host's CLOCK_MONOTONIC: it and the wall clock give the same age."""
    age_s = (time.monotonic_ns() - detections.captured_ns) * 1e-9
    wall_age_s = (time.time_ns() - reference.captured_wall_ns) * 1e-9
    return 0 <= age_s <= MAX_AGE_S and abs(age_s - wall_age_s) <= CLOCKS_AGREE_S


def check_named(configuration: StreamerConfiguration) -> None:
    """Check that a broker and a storage are configured.

    Raises:
        UnusableSetting: One of them is not.
    """
    for name, url, example in (
        ("broker", configuration.broker.url, "amqp://HOST"),
        ("storage", configuration.storage.url, "file:///FOLDER or s3://BUCKET"),
    ):
        if url is None:
            raise UnusableSetting(
                f"streamer.detections is {configuration.streamer.detections}, and no {name} is named: "
                f"set {name}.url to {example}"
            )


def check(configuration: StreamerConfiguration) -> None:
    """Check that the broker and the storage are configured and usable, without connecting.

    Raises:
        UnusableSetting: One of them is not.
    """
    check_named(configuration)
    try:
        configuration.broker.password()
    except MissingPassword as error:
        raise UnusableSetting(f"broker: {error}") from None
    Storage(configuration.storage)
