"""The viewers, and the state that they share: the newest picture, the newest boxes, and whether the stream is live.

The event loop owns everything here, except :attr:`Hub.demand`, which the frame thread reads.

A viewer is notified of a change and takes the newest picture when it is ready. Pictures are not queued, so a slow
viewer costs no memory and does not delay the others.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from services.common.detections import Detections
from services.common.status import Stage
from services.streamer.frames import Demand, EncodedFrame
from services.streamer.freshness import Freshness, State

MAX_DETECTORS = 32
"""Largest number of detectors; beyond it, the one that has been silent for longest is forgotten."""
KEPT_DETECTIONS = 64
"""Messages by which a viewer may lag before it misses some."""


class TooManyViewers(Exception):
    """The limit of viewers is reached."""


class Viewer(Protocol):
    """A browser or program that watches the stream."""

    changed: asyncio.Event
    """Set when a new picture, detections or state is available."""
    kind: str
    """``websocket``, ``mjpeg`` or ``snapshot``."""

    @property
    def level(self) -> int:
        """Index into ``encode.LEVELS`` of the pictures that suit its line."""

    def watching(self) -> bool:
        """Return whether it would take a new picture soon. While no viewer watches, no picture is encoded."""


class DetectorSeen(NamedTuple):
    """The last sign of life of a detector."""

    captured_ns: int
    """Capture of the newest frame that it processed, CLOCK_MONOTONIC."""
    received_ns: int
    """When its newest detections arrived, CLOCK_MONOTONIC."""


class Hub:
    """Distributes pictures, detections and state to the viewers.

    Args:
        max_clients: Largest number of viewers.
        judge: Returns the current state of the stream's newest frame.
        boxes_max_age_s: Detections of older frames are not sent to the viewers.
    """

    def __init__(self, max_clients: int, judge: Callable[[], Freshness], boxes_max_age_s: float) -> None:
        self.demand = Demand(0, frozenset())
        """Read by the frame thread."""
        self.newest: EncodedFrame | None = None
        """The newest picture; ``None`` if none may be served."""
        self.detectors: dict[str, DetectorSeen] = {}
        """Every detector that sent detections, by its instance."""
        self.freshness = Freshness(State.ABSENT, "the streamer starts", None)
        self.stream_fps = 0.0
        """Frame rate of the stream."""
        self.state_version = 0
        """Increases each second and when the state changes. Every viewer then sends the state."""
        self.sent = Stage()
        """Pictures that a viewer acknowledged (WebSocket), or that its connection took (MJPEG)."""
        self.bytes_per_second = 0.0
        """Bytes per second that are sent to all viewers."""
        self.max_clients = max_clients
        self._judge = judge
        self._boxes_max_age_ns = round(boxes_max_age_s * 1e9)
        self._detections: deque[tuple[int, Detections]] = deque(maxlen=KEPT_DETECTIONS)
        self._detections_count = 0
        self._bytes = 0
        self._bytes_before = 0
        self._measured_s = time.monotonic()
        self._viewers: set[Viewer] = set()

    def count(self, kind: str) -> int:
        """Return the number of viewers of a kind."""
        # A copy, because the status server's thread counts too.
        return sum(viewer.kind == kind for viewer in tuple(self._viewers))

    @property
    def clients(self) -> int:
        """Viewers that count towards the limit."""
        return self.count("websocket") + self.count("mjpeg")

    def join(self, viewer: Viewer) -> None:
        """Add a viewer.

        Raises:
            TooManyViewers: ``max_clients`` viewers are already watching.
        """
        # A snapshot takes one picture and leaves, so it needs no place.
        if viewer.kind != "snapshot" and self.clients >= self.max_clients:
            raise TooManyViewers(f"all {self.max_clients} places are taken (streamer.max_clients)")
        self._viewers.add(viewer)
        viewer.changed.set()  # it takes the current state and picture without waiting for a change
        self.update_demand()

    def leave(self, viewer: Viewer) -> None:
        """Remove a viewer."""
        self._viewers.discard(viewer)
        self.update_demand()

    def update_demand(self) -> None:
        """Update the demand for the frame thread. While no viewer watches, drop the newest picture."""
        levels = frozenset(viewer.level for viewer in self._viewers if viewer.watching())
        number = self.demand.number
        # The frame thread then encodes the current frame for the new level, without waiting for the next frame.
        if levels - self.demand.levels:
            number += 1
        if not levels:
            self.newest = None
        self.demand = Demand(number, levels)

    def set_frame(self, frame: EncodedFrame) -> None:
        """Set the newest picture, and notify the viewers."""
        # The frame thread may deliver once more after the last viewer has left.
        if self.demand.levels:
            self.newest = frame
        self.update_state()
        self._tell()

    def add_detections(self, detections: Detections) -> None:
        """Add new detections of any detector. Those of one detector must be in the order of its frames."""
        now_ns = time.monotonic_ns()
        if detections.instance not in self.detectors and len(self.detectors) >= MAX_DETECTORS:
            del self.detectors[min(self.detectors, key=lambda instance: self.detectors[instance].received_ns)]
        # However old, it is a sign of life; only the boxes expire.
        self.detectors[detections.instance] = DetectorSeen(detections.captured_ns, now_ns)
        if now_ns - detections.captured_ns <= self._boxes_max_age_ns:
            self._detections_count += 1
            self._detections.append((self._detections_count, detections))
            self._tell()

    def detections_after(self, count: int) -> Iterator[tuple[int, Detections]]:
        """Yield the recent detections with a number above ``count``, with their numbers."""
        oldest_ns = time.monotonic_ns() - self._boxes_max_age_ns
        # A copy, because new ones may arrive before the caller takes the next one.
        for number, detections in tuple(self._detections):
            if number > count and detections.captured_ns >= oldest_ns:
                yield number, detections

    def update_state(self) -> None:
        """Judge the freshness of the stream. If the state changed, notify the viewers."""
        before, self.freshness = self.freshness, self._judge()
        if not self.freshness.served:
            # Drop the stale picture, to prevent sending it to viewers that join later.
            self.newest = None
        if (before.state, before.reason) != (self.freshness.state, self.freshness.reason):
            self.tell_state()

    def measure(self, stream_fps: float) -> None:
        """Compute the rates since the last call, and send the state to every viewer."""
        now_s = time.monotonic()
        self.bytes_per_second = (self._bytes - self._bytes_before) / max(now_s - self._measured_s, 1e-3)
        self._bytes_before, self._measured_s = self._bytes, now_s
        self.stream_fps = stream_fps
        self.tell_state()

    def tell_state(self) -> None:
        """Have the state sent to every viewer."""
        self.state_version += 1
        self._tell()

    def count_bytes(self, count: int) -> None:
        """Count bytes that were sent to a viewer."""
        self._bytes += count

    def _tell(self) -> None:
        for viewer in self._viewers:
            viewer.changed.set()
