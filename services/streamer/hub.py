"""What all viewers see, and who they are: the newest picture, the newest boxes, and whether the stream is live.

Everything here belongs to the event loop, except :attr:`Hub.demand`, which the frame thread reads.

The newest picture wins: a viewer is told that something has changed and takes what is newest when it is ready. Pictures
are not queued, so a slow viewer costs neither memory nor the others' time.
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
"""Detectors that are remembered; the one that was silent for longest makes room."""
KEPT_DETECTIONS = 64
"""Messages that a viewer may be behind before it misses some."""


class TooManyViewers(Exception):
    """As many viewers as are allowed are watching already."""


class Viewer(Protocol):
    """One browser or program that watches."""

    changed: asyncio.Event
    """Set when there is something new to take."""
    kind: str
    """``websocket``, ``mjpeg`` or ``snapshot``."""

    @property
    def level(self) -> int:
        """Index into ``encode.LEVELS`` of the pictures that its line can take."""

    def watching(self) -> bool:
        """Whether a new picture would be taken soon; while no viewer watches, none is encoded."""


class DetectorSeen(NamedTuple):
    """The last sign of a detector."""

    captured_ns: int
    """Capture of the newest frame in which it has looked for objects, CLOCK_MONOTONIC."""
    received_ns: int
    """When its newest detections came, CLOCK_MONOTONIC."""


class Hub:
    """The viewers' common ground.

    Args:
        max_clients: Viewers at a time.
        judge: The state of the stream's newest frame now.
        boxes_max_age_s: Detections of older frames are not handed to the viewers.
    """

    def __init__(self, max_clients: int, judge: Callable[[], Freshness], boxes_max_age_s: float) -> None:
        self.demand = Demand(0, frozenset())
        """Read by the frame thread."""
        self.newest: EncodedFrame | None = None
        """The newest picture; ``None`` when there is none that may be served."""
        self.detectors: dict[str, DetectorSeen] = {}
        """Every detector that was heard, by its instance."""
        self.freshness = Freshness(State.ABSENT, "the streamer starts", None)
        self.stream_fps = 0.0
        """Frames a second that the stream delivers."""
        self.beat = 0
        """Counts the moments at which every viewer is told the state: each second, and when it changes."""
        self.sent = Stage()
        """Pictures that a viewer acknowledged (WebSocket), or that its connection took (MJPEG)."""
        self.bytes_per_second = 0.0
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
        """How many viewers of a kind there are."""
        return sum(viewer.kind == kind for viewer in tuple(self._viewers))

    @property
    def clients(self) -> int:
        """Viewers that count towards the limit."""
        return self.count("websocket") + self.count("mjpeg")

    def join(self, viewer: Viewer) -> None:
        """Let a viewer in.

        Raises:
            TooManyViewers: ``max_clients`` are watching already.
        """
        if viewer.kind != "snapshot" and self.clients >= self.max_clients:
            raise TooManyViewers(f"all {self.max_clients} places are taken (streamer.max_clients)")
        self._viewers.add(viewer)
        viewer.changed.set()
        self.update_demand()

    def leave(self, viewer: Viewer) -> None:
        """Forget a viewer."""
        self._viewers.discard(viewer)
        self.update_demand()

    def update_demand(self) -> None:
        """Tell the frame thread which pictures are wanted; what was encoded before a pause is not kept."""
        levels = frozenset(viewer.level for viewer in self._viewers if viewer.watching())
        number = self.demand.number
        if levels - self.demand.levels:
            number += 1
        if not levels:
            self.newest = None
        self.demand = Demand(number, levels)

    def set_frame(self, frame: EncodedFrame) -> None:
        """Take a new picture."""
        if self.demand.levels:
            self.newest = frame
        self.update_state()
        self._tell()

    def add_detections(self, detections: Detections) -> None:
        """Take new detections: any number of detectors, each in the order of its frames."""
        now_ns = time.monotonic_ns()
        if detections.instance not in self.detectors and len(self.detectors) >= MAX_DETECTORS:
            del self.detectors[min(self.detectors, key=lambda instance: self.detectors[instance].received_ns)]
        self.detectors[detections.instance] = DetectorSeen(detections.captured_ns, now_ns)
        if now_ns - detections.captured_ns <= self._boxes_max_age_ns:
            self._detections_count += 1
            self._detections.append((self._detections_count, detections))
            self._tell()

    def detections_after(self, count: int) -> Iterator[tuple[int, Detections]]:
        """Yield the kept detections that are not too old and have a number above ``count``, with their numbers."""
        oldest_ns = time.monotonic_ns() - self._boxes_max_age_ns
        for number, detections in tuple(self._detections):
            if number > count and detections.captured_ns >= oldest_ns:
                yield number, detections

    def update_state(self) -> None:
        """See how fresh the stream is; tell the viewers when that has changed."""
        before, self.freshness = self.freshness, self._judge()
        if not self.freshness.served:
            # An old picture must not be handed to viewers that come later.
            self.newest = None
        if (before.state, before.reason) != (self.freshness.state, self.freshness.reason):
            self.tell_state()

    def measure(self, stream_fps: float) -> None:
        """Take the rates of the time since the last call, and remind every viewer of the state."""
        now_s = time.monotonic()
        self.bytes_per_second = (self._bytes - self._bytes_before) / max(now_s - self._measured_s, 1e-3)
        self._bytes_before, self._measured_s = self._bytes, now_s
        self.stream_fps = stream_fps
        self.tell_state()

    def tell_state(self) -> None:
        """Have the state sent to every viewer."""
        self.beat += 1
        self._tell()

    def count_bytes(self, count: int) -> None:
        """Count what was sent to a viewer."""
        self._bytes += count

    def _tell(self) -> None:
        for viewer in self._viewers:
            viewer.changed.set()
