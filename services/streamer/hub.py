"""What all viewers see, and who they are: the newest picture, the newest boxes, and whether the stream is live.

Everything here belongs to the event loop, except :attr:`Hub.demand`, which the frame thread reads.

The newest wins: a viewer is told that something has changed and takes what is newest when it is ready. Nothing is
queued for it, so a slow viewer costs neither memory nor the others' time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from services.common.detections import Detections
from services.common.status import Stage
from services.streamer.frames import EncodedFrame


class TooManyViewers(Exception):
    """As many viewers as are allowed are watching already."""


class Viewer(Protocol):
    """One who watches."""

    changed: asyncio.Event
    """Set when there is something new to take."""
    kind: str
    """``websocket``, ``mjpeg`` or ``snapshot``."""

    def watching(self) -> bool:
        """Whether a new picture would be taken soon; when nobody watches, none is encoded."""


class Hub:
    """The viewers' common ground.

    Args:
        max_clients: Viewers at a time.
        absence: Why there is no live picture now, in one sentence; empty when there is.
    """

    def __init__(self, max_clients: int, absence: Callable[[], str]) -> None:
        self.demand = 0
        """0 while nobody watches, else a number that is another one after each pause; read by the frame thread."""
        self.newest: EncodedFrame | None = None
        self.detections: Detections | None = None
        self.absence = "the streamer starts"
        """Why there is no live picture; empty when there is."""
        self.stream_fps = 0.0
        """Frames a second that the stream delivers."""
        self.beat = 0
        """Counts the moments at which every viewer is told the state, changed or not."""
        self.sent = Stage()
        """Pictures that a viewer acknowledged (WebSocket), or that its connection took (MJPEG)."""
        self.bytes_per_second = 0.0
        self.max_clients = max_clients
        self._absence = absence
        self._demands = 0
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
        self.look_who_watches()

    def leave(self, viewer: Viewer) -> None:
        """Forget a viewer."""
        self._viewers.discard(viewer)
        self.look_who_watches()

    def look_who_watches(self) -> None:
        """Tell the frame thread whether pictures are wanted; what was encoded before a pause is not kept."""
        if not any(viewer.watching() for viewer in self._viewers):
            self.demand = 0
            self.newest = None
        elif not self.demand:
            self._demands += 1
            self.demand = self._demands

    def show(self, frame: EncodedFrame) -> None:
        """A new picture has been encoded."""
        if self.demand:
            self.newest = frame
        self.look_at_stream()
        self._tell()

    def mark(self, detections: Detections) -> None:
        """New detections have come."""
        self.detections = detections
        self._tell()

    def look_at_stream(self) -> None:
        """See whether the stream is live; tell the viewers when that has changed."""
        absence = self._absence()
        if absence != self.absence:
            self.absence = absence
            self._tell()
        if absence:
            # An old picture must not pass for a live one to those who come later.
            self.newest = None
            self.detections = None

    def measure(self, stream_fps: float) -> None:
        """Take the rates of the time since the last call, and remind every viewer of the state."""
        now_s = time.monotonic()
        self.bytes_per_second = (self._bytes - self._bytes_before) / max(now_s - self._measured_s, 1e-3)
        self._bytes_before, self._measured_s = self._bytes, now_s
        self.stream_fps = stream_fps
        self.beat += 1
        self._tell()

    def count_bytes(self, count: int) -> None:
        """Count what was sent to a viewer."""
        self._bytes += count

    def _tell(self) -> None:
        for viewer in self._viewers:
            viewer.changed.set()
