"""Track which services and cameras are present, and which have become silent.

The services' status sockets are polled twice a second. A service that has answered once is remembered with its last
document until the streamer ends, so that a missing part is reported by name.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from services.common.status import read_statuses
from services.streamer import stitching

ASK_EVERY_S = 0.5
"""Shortest interval between two polls."""
ANSWER_WITHIN_S = 1.0
"""Time-out of a service's answer."""
MAX_SERVICES = 64
"""Largest number of services. It is bounded because any member of the group can create files in the directory."""


@dataclass(frozen=True, slots=True)
class Absent:
    """A service, camera or worker that is silent or unhealthy."""

    kind: str
    """``service``, ``camera``, or ``worker`` for a detector of a queue."""
    name: str
    silent_s: float
    """Seconds since its last sign of life; 0 for a service that answers but is unhealthy."""
    reason: str
    """The fault, in one phrase without the name."""


@dataclass(slots=True)
class _Seen:
    document: dict[str, Any]
    answered_s: float


class Presence:
    """The services' last status documents, and when they arrived. Owned by the event loop.

    Args:
        stream: Name of the stream.
        silent_after_s: Seconds without a sign of life after which a service or camera is absent.
        own: Name and document of the calling service, which is always current and never absent.
        others: Returns what is absent of the parts that have no status in /dev/shm.
    """

    def __init__(
        self,
        stream: str,
        silent_after_s: float,
        own: tuple[str, Callable[[], dict[str, Any]]] | None = None,
        others: Callable[[], list[Absent]] = list,
    ) -> None:
        self._stream = stream
        self._silent_after_s = silent_after_s
        self._own = own
        self._others = others
        self._seen: dict[str, _Seen] = {}
        self._asked_s = -ASK_EVERY_S
        self._asking = asyncio.Lock()

    async def watch(self) -> None:
        """Poll until cancelled."""
        while True:
            # If the directory cannot be read for lack of file descriptors, retry at the next poll.
            with contextlib.suppress(OSError):
                await self.refresh()
            await asyncio.sleep(ASK_EVERY_S)

    async def refresh(self) -> None:
        """Poll the services in a thread. Concurrent callers share one poll.

        Raises:
            OSError: /dev/shm cannot be read.
        """
        async with self._asking:
            if time.monotonic() - self._asked_s < ASK_EVERY_S:
                return  # another caller has polled just now
            answers = await asyncio.to_thread(read_statuses, self._stream, ANSWER_WITHIN_S)
            self._asked_s = time.monotonic()
            for name, document in answers.items():
                is_own = self._own is not None and name == self._own[0]
                if not is_own and (name in self._seen or len(self._seen) < MAX_SERVICES):
                    self._seen[name] = _Seen(document, self._asked_s)

    async def statuses(self) -> dict[str, dict[str, Any]]:
        """Return the current documents of all known services, by name.

        The document of a silent service is its last one, updated: unhealthy, without rates, older, with ``silent_s``.
        """
        with contextlib.suppress(OSError):
            await self.refresh()
        now_s = time.monotonic()
        own = {} if self._own is None else {self._own[0]: self._own[1]()}
        return own | {
            name: seen.document
            if seen.answered_s == self._asked_s
            else _silenced(seen.document, now_s - seen.answered_s)
            for name, seen in sorted(self._seen.items())
        }

    def absent(self) -> list[Absent]:
        """Return the services, cameras and workers that are silent or unhealthy, those silent for longest first."""
        now_s = time.monotonic()
        found = self._others()
        for name, seen in self._seen.items():
            silent_s = now_s - seen.answered_s
            if silent_s > self._silent_after_s:
                found.append(Absent("service", name, silent_s, "silent"))
                continue
            if seen.document.get("healthy") is not True:
                found.append(Absent("service", name, 0.0, str(seen.document.get("reason") or "not healthy")))
            found.extend(self._absent_cameras(seen))
        return sorted(found, key=lambda one: (-one.silent_s, one.kind, one.name))

    def notices(self) -> list[str]:
        """Return the notices about the panorama from the services that answer, for every viewer."""
        now_s = time.monotonic()
        return [
            sentence
            for seen in self._seen.values()
            if now_s - seen.answered_s <= self._silent_after_s
            for sentence in stitching.notices(seen.document)
        ]

    def _absent_cameras(self, seen: _Seen) -> list[Absent]:
        stages = _mapping(seen.document.get("stages"))
        found = []
        for camera in stitching.cameras(seen.document):
            age_s = _mapping(stages.get(camera.name)).get("age_s")
            if not isinstance(age_s, int | float):
                # No picture since the service started, so there is no instant from which to count the silence.
                found.append(Absent("camera", camera.name, 0.0, camera.trouble or "no picture yet"))
            elif age_s > self._silent_after_s:
                found.append(Absent("camera", camera.name, float(age_s), camera.trouble or "silent"))
            elif camera.placed is False:
                found.append(Absent("camera", camera.name, 0.0, "not placed"))
        return found


def _silenced(document: Mapping[str, Any], silent_s: float) -> dict[str, Any]:
    stages = {}
    for name, stage in _mapping(document.get("stages")).items():
        summary = _mapping(stage)
        age_s = summary.get("age_s")
        stages[name] = summary | {
            "fps": 0.0,
            "latency_p50_ms": None,
            "latency_p99_ms": None,
            # The age at the last answer, and the time since then.
            "age_s": round(age_s + silent_s, 3) if isinstance(age_s, int | float) else None,
        }
    return {
        **document,
        "healthy": False,
        "reason": f"silent for {silent_s:.0f} s",
        "silent": True,
        "silent_s": round(silent_s, 1),
        "stages": stages,
    }


def _mapping(value: object) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}
