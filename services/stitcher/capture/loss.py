"""Find pictures that are decoded from incomplete data, where FFmpeg's decoder does not flag them.

The decoder of H.264 flags a picture of which a part is missing, but not those that refer to one that is missing as a
whole. That of H.265 flags the latter, but not a picture with a hole: of 40 pictures with missing or wrong bytes, it
flagged none.
"""

from __future__ import annotations

import logging
import re
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import av.logging
from av.codec.context import Flags
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from services.stitcher.capture.h264 import FrameNumbers

MISSED: Final = re.compile(r"missed (-?\d+) packets")
"""What FFmpeg logs about lost RTP packets, at the level of warnings. It reports them in no other way."""
_WITH_START_CODES: Final = ("rtsp", "sdp", "rtp", "mpegts", "h264")
"""Formats whose packets have start codes (Annex B), and not lengths as in MP4."""
_REMEMBERED: Final = 64
"""Number of incomplete packets that are remembered. A decoder delays pictures by at most 16."""


class LossDetector:
    """Finds losses in one connection. Owned by the thread that reads it.

    Args:
        container: The open camera.
        stream: Its video.
        transport: ``udp`` if packets may be lost.
        is_file: Whether it is a file, which loses nothing, but may have been cut.
    """

    def __init__(self, container: InputContainer, stream: VideoStream, transport: str, *, is_file: bool) -> None:
        codec = stream.codec_context.name
        self._stream = stream
        self._numbers: FrameNumbers | None = None
        if codec == "h264" and container.format.name in _WITH_START_CODES and not is_file:
            self._numbers = FrameNumbers()
            self._numbers.misses(bytes(stream.codec_context.extradata or b""))  # some cameras send these only before
        self._captures = codec == "hevc" and transport == "udp"
        if self._captures:
            log_warnings()
        self._missed = self._is_incomplete = False
        self._incomplete: deque[int] = deque(maxlen=_REMEMBERED)

    def connected(self) -> None:
        """Report, from the first whole picture on, all pictures, those with missing references too.

        Without this, FFmpeg discards those of H.265, and the camera seems to stand still.
        """
        if self._stream.codec_context.name == "hevc":
            self._stream.codec_context.flags |= Flags.output_corrupt

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Read a packet from the container during this block."""
        self._is_incomplete = False
        if not self._captures:
            yield
            return
        with av.logging.Capture() as messages:
            yield
        # FFmpeg may have read the beginning of the next packet, and noticed a loss in it, before it returns this one.
        before, self._missed = self._missed, any(MISSED.search(text) for _level, _name, text in messages)
        self._is_incomplete = before or self._missed

    def misses(self, packet: Packet[VideoStream]) -> bool:
        """Take the packet that was read. Return whether data of it is missing, or a picture before it."""
        self._is_incomplete |= packet.is_corrupt
        if self._is_incomplete and packet.pts is not None:
            self._incomplete.append(packet.pts)
        return self._is_incomplete | (self._numbers is not None and self._numbers.misses(bytes(packet)))

    def is_incomplete(self, frame: VideoFrame) -> bool:
        """Return whether a decoded picture lacks data. Call it before the next packet is read."""
        # A decoder may return a picture some packets later, with the time stamp of its own packet.
        return frame.is_corrupt or (self._is_incomplete if frame.pts is None else frame.pts in self._incomplete)


def log_warnings() -> None:
    """Make FFmpeg log warnings, which PyAV discards by default. Without a capture, they are still discarded."""
    logging.getLogger("libav").setLevel(logging.CRITICAL + 1)
    av.logging.set_skip_repeated(False)  # the messages of several cameras are equal
    av.logging.set_level(av.logging.WARNING)
