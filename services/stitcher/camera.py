"""One camera: connect, decode, connect anew. Each camera has a thread of its own, and FFmpeg runs without the GIL."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any

import av
import structlog
from av.container import InputContainer
from av.video.frame import VideoFrame

from services.common.masking import mask_url
from services.common.status import Stage
from services.stitcher.clock import CaptureClock
from services.stitcher.config import CameraSection, ReconnectSection
from services.stitcher.pairing import Timed

NS = 1_000_000_000
STEADY_S = 5.0
"""A connection that lasted so long was a good one: the next wait is the shortest again."""
MAX_BROKEN_PACKETS = 250
"""A connection with so many broken packets one after the other is given up."""


class CameraReader:
    """Reads a camera in a thread until stopped; whatever it does, it is a state, never an end of the service.

    Args:
        section: Name and URL.
        deliver: Called from the camera's thread with each frame.
        stage: Counts the frames; the latency is from the capture to the decoded frame.
        open_timeout_s: Longest wait for an answer.
        read_timeout_s: Longest wait for a packet.
        reconnect: Bounds of the waits between tries.
    """

    def __init__(
        self,
        section: CameraSection,
        deliver: Callable[[Timed[VideoFrame]], None],
        stage: Stage,
        *,
        open_timeout_s: float,
        read_timeout_s: float,
        reconnect: ReconnectSection,
    ) -> None:
        self.state = "connecting"
        """``connecting``, ``connected`` or ``lost: REASON``."""
        self.connections = 0
        """How often the camera was connected."""
        self.broken_packets = 0
        """Packets that could not be decoded."""
        self._section = section
        self._deliver = deliver
        self._stage = stage
        self._timeouts_s = (open_timeout_s, read_timeout_s)
        self._reconnect = reconnect
        self._clock = CaptureClock()
        self._file_start_ns: int | None = None
        self._stop = threading.Event()
        self._log = structlog.get_logger().bind(camera=section.name, url=section.masked_url)
        # A daemon: a read that hangs in FFmpeg ends by its time-out, and must not delay the end of the service.
        self._thread = threading.Thread(target=self._run, name=section.name, daemon=True)

    def start(self) -> None:
        """Connect, from now on."""
        self._thread.start()

    def request_stop(self) -> None:
        """Ask the thread to end after its current packet."""
        self._stop.set()

    def join(self, timeout_s: float) -> bool:
        """Wait for the thread; false when it still hangs in a read."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        failures = 0
        while not self._stop.is_set():
            started_s, before = time.monotonic(), self.connections
            reason = self._read_until_lost()
            if self._stop.is_set():
                return
            good = self.connections > before and time.monotonic() - started_s > STEADY_S
            failures = 0 if good else failures + 1
            wait_s = backoff_s(failures, self._reconnect, random.random())  # noqa: S311  jitter is no secret
            self.state = f"lost: {reason}"
            self._log.warning("camera lost", reason=reason, next_try_s=round(wait_s, 2))
            self._stop.wait(wait_s)

    def _read_until_lost(self) -> str:
        """Read one connection to its end; return why it ended, without the URL."""
        try:
            with _open(self._section.url, self._timeouts_s) as container:
                if not container.streams.video:
                    return "the stream has no video"
                self._clock.reset()
                self._file_start_ns = None
                self._decode(container)
        except av.error.ExitError:
            return "no data in time"
        except Exception as error:  # noqa: BLE001  FFmpeg's errors have many bases, and no fault may end this thread
            # Not str(error): it holds the URL.
            return getattr(error, "strerror", None) or type(error).__name__
        return "the stream ended"

    def _decode(self, container: InputContainer) -> None:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"  # threads of FFmpeg would add a frame of delay each
        paced = _is_file(self._section.url)
        connected = False
        broken = 0
        for packet in container.demux(stream):
            arrival_ns = time.monotonic_ns()
            if self._stop.is_set():
                return
            try:
                frames = packet.decode()
            except av.error.FFmpegError:
                self.broken_packets += 1
                broken += 1
                if broken > MAX_BROKEN_PACKETS:
                    raise
                continue
            broken = 0
            for frame in frames:
                if not isinstance(frame, VideoFrame) or frame.pts is None or frame.time_base is None:
                    continue
                if not connected:
                    connected = True
                    self.connections += 1
                    self.state = "connected"
                    self._log.info(
                        "camera connected",
                        codec=stream.codec_context.name,
                        width_px=frame.width,
                        height_px=frame.height,
                    )
                self._take(frame, arrival_ns, paced)

    def _take(self, frame: VideoFrame, arrival_ns: int, paced: bool) -> None:
        assert frame.pts is not None
        assert frame.time_base is not None
        pts_ns = frame.pts * frame.time_base.numerator * NS // frame.time_base.denominator
        captured_ns = self._clock.captured_ns(pts_ns, arrival_ns)
        if paced:
            captured_ns = arrival_ns = self._pace_file(pts_ns, arrival_ns)
        self._deliver(Timed(captured_ns, arrival_ns, frame))
        self._stage.record((time.monotonic_ns() - captured_ns) / NS)

    def _pace_file(self, pts_ns: int, arrival_ns: int) -> int:
        """Hold a frame of a plain file back until it is due; return when that was."""
        if self._file_start_ns is None:
            self._file_start_ns = arrival_ns - pts_ns
        due_ns = self._file_start_ns + pts_ns
        self._stop.wait(max(0, due_ns - time.monotonic_ns()) / NS)
        return due_ns


def backoff_s(failures: int, section: ReconnectSection, jitter: float) -> float:
    """Wait before the next try: doubles with each failure up to the bound; ``jitter`` of 0 to 1 halves it at most."""
    doubled_s = min(section.max_s, section.first_s * 2.0 ** min(max(0, failures - 1), 32))
    return doubled_s * (0.5 + 0.5 * jitter)


def fault_of_file(url: str) -> str:
    """Why a camera that is a file cannot be read; empty when it can, and for a camera in the network."""
    if not _is_file(url):
        return ""
    try:
        with _open(url, (10.0, 5.0)) as container:
            return "" if container.streams.video else f"{mask_url(url)} has no video"
    except Exception as error:  # noqa: BLE001  FFmpeg's errors have many bases
        return f"{mask_url(url)} cannot be read: {getattr(error, 'strerror', None) or type(error).__name__}"


def _is_file(url: str) -> bool:
    return "://" not in url or url.startswith("file:")


def _open(url: str, timeouts_s: tuple[float, float]) -> InputContainer:
    options: dict[str, Any] = {}
    if url.startswith(("rtsp://", "rtsps://")):
        # Over UDP, lost packets tear the picture. What was read while probing is old news on a live connection, and
        # half a second of probing is enough where the session description names the codec.
        options = {"rtsp_transport": "tcp", "fflags": "nobuffer", "analyzeduration": "500000"}
    return av.open(url, options=options, timeout=timeouts_s, metadata_errors="replace")
