"""A camera that is read, with its frames and states."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from av.video.frame import VideoFrame

from services.common.status import Stage
from services.stitcher.capture.camera import CameraReader
from services.stitcher.capture.sender import SenderClocks
from services.stitcher.capture.synchronizer import Timed
from services.stitcher.config import CameraSection, ReconnectSection
from tests.support import PATIENCE_S, wait_until


class Read:
    """A camera that is read, and its frames and states."""

    def __init__(
        self, url: str, senders: SenderClocks | None = None, *, key_frame_wait_s: float = 30.0, **settings: Any
    ) -> None:
        self.frames: list[Timed[VideoFrame]] = []
        self.states: list[str] = []
        section = CameraSection.model_validate({"name": Path(url).stem, "url": url, **settings})
        self.reader = CameraReader(
            section,
            self._take,
            Stage(),
            open_timeout_s=10.0,
            read_timeout_s=5.0,
            reconnect=ReconnectSection(first_s=0.05, max_s=0.2),
            key_frame_wait_s=key_frame_wait_s,
            senders=senders,
        )

    def _take(self, frame: Timed[VideoFrame]) -> None:
        self.frames.append(frame)

    def wait(self, condition: str, holds: Any) -> None:
        def look() -> bool:
            if not self.states or self.states[-1] != self.reader.state:
                self.states.append(self.reader.state)
            return bool(holds(self))

        wait_until(look, condition, detail=lambda: (self.states, len(self.frames)))

    def wait_for_frames(self, count: int) -> None:
        self.wait(f"{count} frames", lambda read: len(read.frames) >= count)


@contextmanager
def reading(url: str, senders: SenderClocks | None = None, **settings: Any) -> Iterator[Read]:
    """Read a camera during the block."""
    read = Read(url, senders, **settings)
    read.reader.start()
    try:
        yield read
    finally:
        read.reader.request_stop()
        assert read.reader.join(PATIENCE_S)
