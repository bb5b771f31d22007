"""Read one camera: connect, decode, reconnect. Each camera has its own thread; FFmpeg runs without the GIL."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

import av
import structlog
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from services.common.status import Stage
from services.stitcher.capture.cause import Cause, Unreadable, backoff_s, cause_of
from services.stitcher.capture.clock import CaptureClock, Source
from services.stitcher.capture.connection import (
    Connector,
    held_packets,
    is_file,
    packets_of,
    sender_ns,
)
from services.stitcher.capture.damage import DamageFilter, Verdict
from services.stitcher.capture.loss import LossDetector
from services.stitcher.capture.sender import SenderClocks
from services.stitcher.capture.synchronizer import Timed
from services.stitcher.config import CameraSection, Damaged, ReconnectSection

NS = 1_000_000_000
STEADY_S = 5.0
"""Least duration of a connection that resets the backoff."""
DAMAGED_S = 2.0
"""Time without an intact picture after which the camera's state is damaged."""
PASSWORD_CHECK_S = 1.0
FILE_FPS = 25.0
"""Frame rate of a file that declares none."""


class CameraReader:
    """Reads a camera in a thread until stopped. A fault of the camera becomes a state and never ends the service.

    Args:
        section: The camera.
        deliver: Called from the camera's thread with each frame.
        stage: Counts the frames, with the latency from capture to decoded frame.
        open_timeout_s: Longest wait for an answer.
        read_timeout_s: Longest wait for a packet, unless the camera's own period is longer.
        reconnect: Bounds of the backoff.
        key_frame_wait_s: Longest wait for a picture that can be decoded while packets arrive.
        damaged: Handling of damaged pictures, unless the camera's section overrides it.
        senders: Shared by all cameras. If it is None, the sender's clock is not used.
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
        key_frame_wait_s: float = 30.0,
        damaged: Damaged = "hold",
        senders: SenderClocks | None = None,
    ) -> None:
        self.connections = 0
        """Number of connections."""
        self.broken_packets = 0
        """Packets that could not be decoded, not counting those before the first picture of a connection."""
        self._cause: Cause | None = None
        self._state = "connecting"
        self._waiting_since_ns: int | None = None
        self._stream_aspect = 1.0
        self._section = section
        self._deliver = deliver
        self._stage = stage
        self._reconnect = reconnect
        self._key_frame_wait_s = key_frame_wait_s
        self._connector = Connector(
            section,
            open_timeout_s=open_timeout_s,
            read_timeout_s=read_timeout_s,
            longest_s=open_timeout_s + key_frame_wait_s,
        )
        best: Source = "sender" if section.clock == "auto" else section.clock
        self._clock = CaptureClock(
            best,
            delay_ns=round(section.delay_s * NS),
            senders=None if senders is None else (senders, section.name),
        )
        self._damage = DamageFilter(hold=(section.damaged or damaged) == "hold", longest_s=key_frame_wait_s)
        self._file_start_ns: int | None = None
        self._file_frames = 0
        self._newest_frame_ns = 0
        self._stop = threading.Event()
        self._log = structlog.get_logger().bind(camera=section.name, url=section.masked_url)
        # A daemon thread, because a read that hangs in FFmpeg until its time-out must not delay the shutdown.
        self._thread = threading.Thread(target=self._run, name=section.name, daemon=True)

    @property
    def state(self) -> str:
        """State of the camera, in words.

        ``connecting``, ``waiting for a key frame, N s``, ``connected``, ``damaged: no whole picture for N s``,
        ``lost: REASON`` or ``refused: REASON``.
        """
        now_ns = time.monotonic_ns()
        if damaged_ns := self._damaged_ns(now_ns):
            return f"damaged: no whole picture for {damaged_ns // NS} s"
        since_ns = self._waiting_since_ns
        return self._state if since_ns is None else f"waiting for a key frame, {(now_ns - since_ns) // NS} s"

    @property
    def cause(self) -> Cause | None:
        """Why the camera is lost or its pictures are unusable; ``None`` while it works."""
        return Cause.DAMAGED if self._damaged_ns(time.monotonic_ns()) else self._cause

    def _damaged_ns(self, now_ns: int) -> int:
        """Return for how long pictures have been damaged, or 0 if that is below the threshold."""
        # Read it once: the camera's thread may change it meanwhile.
        since_ns = self._damage.since_ns
        is_open = self._waiting_since_ns is not None or self._state == "connected"
        return now_ns - since_ns if is_open and since_ns is not None and now_ns - since_ns > DAMAGED_S * NS else 0

    @property
    def damaged_frames(self) -> int:
        """Number of damaged pictures, held back or marked."""
        return self._damage.frames

    @property
    def clock(self) -> Source:
        """Clock that gave the newest frame's capture time."""
        return self._clock.source

    @property
    def transport(self) -> str:
        """``tcp`` or ``udp`` of an RTSP camera; empty for others and before the first connection."""
        return self._connector.transport

    @property
    def pixel_aspect(self) -> float:
        """Pixel aspect ratio: the configured one, or the stream's, or 1."""
        return self._section.pixel_aspect or self._stream_aspect

    def start(self) -> None:
        """Start the thread, which connects."""
        self._thread.start()

    def request_stop(self) -> None:
        """Ask the thread to end after its current packet."""
        self._stop.set()

    def join(self, timeout_s: float) -> bool:
        """Wait for the thread to end. Return False if it still hangs in a read."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        failures, was_refused = 0, False
        while not self._stop.is_set():
            started_s, before = time.monotonic(), self.connections
            cause, reason = self._read_until_lost()
            if self._stop.is_set():
                return
            refused = cause is Cause.REFUSED
            # A connection that opens and fails at once must not reset the backoff. A rejected log-in has its own one.
            good = self.connections > before and time.monotonic() - started_s > STEADY_S
            failures = 0 if good else 1 if refused != was_refused else failures + 1
            was_refused = refused
            wait_s = backoff_s(failures, self._reconnect, random.random(), cause)  # noqa: S311  jitter needs no secrecy
            self._cause = cause
            self._state = f"refused: {reason}" if refused else f"lost: {reason}"
            self._waiting_since_ns = None
            self._log.warning("camera lost", reason=reason, cause=cause.value, next_try_s=round(wait_s, 2))
            self._wait(wait_s, refused=refused)

    def _wait(self, wait_s: float, *, refused: bool) -> None:
        """Wait for the next attempt, or until the rejected password has changed."""
        until_s = time.monotonic() + wait_s
        while (left_s := until_s - time.monotonic()) > 0:
            if self._stop.wait(min(left_s, PASSWORD_CHECK_S) if refused else left_s):
                return
            # The operator may correct the password long before a wait of minutes is over.
            if refused and self._connector.has_new_password():
                return

    def _read_until_lost(self) -> tuple[Cause, str]:
        """Read one connection to its end. Return why it ended, without the URL."""
        try:
            with self._connector.open() as container:
                self._clock.reset()
                self._damage.reset()
                self._file_start_ns, self._file_frames = None, 0
                self._read(container)
        except Exception as error:  # noqa: BLE001  FFmpeg's errors have many bases, and no fault may end this thread
            return cause_of(error)
        return Cause.ENDED, "the stream ended"

    def _read(self, container: InputContainer) -> None:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"  # each decoder thread of FFmpeg would add a frame of delay
        paced = is_file(self._section.url)
        self._clock.held_packets = held_packets(container, stream)
        # The wait for a key frame begins with the connection.
        self._newest_frame_ns = time.monotonic_ns()
        self._waiting_since_ns = self._newest_frame_ns
        losses = LossDetector(container, stream, self.transport, is_file=paced)
        connected = False
        for packet, arrival_ns in packets_of(container, stream, self._connector, losses.reading):
            if self._stop.is_set():
                return
            self._observe(packet, arrival_ns)
            if losses.misses(packet) and connected:
                self._damage.lose(arrival_ns)
            for frame in self._decode(packet, arrival_ns, connected=connected):
                self._newest_frame_ns = arrival_ns
                verdict = self._damage.judge(
                    corrupt=losses.is_incomplete(frame), key_frame=frame.key_frame, now_ns=arrival_ns
                )
                if verdict is Verdict.HELD:
                    continue
                # A camera whose pictures are all held back shows nothing, so it does not count as connected.
                if not connected:
                    connected = True
                    losses.connected()
                    self._connected(frame, stream)
                self._take(frame, arrival_ns, self._file_period_ns(stream) if paced else 0, verdict)

    def _observe(self, packet: Packet[VideoStream], arrival_ns: int) -> None:
        base = packet.time_base
        if packet.size:  # an empty one ends a file
            pts_ns, dts_ns = (
                None if time_ is None or base is None else time_ * base.numerator * NS // base.denominator
                for time_ in (packet.pts, packet.dts)
            )
            self._clock.observe(arrival_ns, pts_ns, dts_ns, sender_ns(packet))

    def _decode(self, packet: Packet[VideoStream], arrival_ns: int, *, connected: bool) -> list[VideoFrame]:
        try:
            frames = [frame for frame in packet.decode() if isinstance(frame, VideoFrame)]
        except av.error.FFmpegError:
            frames = []
            # Before the first key frame nothing can be decoded: with key frames 20 s apart, 251 packets failed.
            if connected:
                self.broken_packets += 1
                self._damage.lose(arrival_ns)
        # Packets arrive, so the read time-out does not apply. Damaged pictures count as decoded here.
        if not frames and arrival_ns - self._newest_frame_ns > self._key_frame_wait_s * NS:
            raise Unreadable(Cause.DECODING, f"no picture could be decoded for {self._key_frame_wait_s:g} s")
        return frames

    def _connected(self, frame: VideoFrame, stream: VideoStream) -> None:
        self.connections += 1
        self._stream_aspect = float(stream.codec_context.sample_aspect_ratio or stream.sample_aspect_ratio or 1)
        self._cause = None
        self._state, self._waiting_since_ns = "connected", None
        self._log.info(
            "camera connected",
            codec=stream.codec_context.name,
            width_px=frame.width,
            height_px=frame.height,
            **({"transport": self.transport} if self.transport else {}),
        )

    def _take(self, frame: VideoFrame, arrival_ns: int, file_period_ns: int, verdict: Verdict) -> None:
        pts_ns = None
        if frame.pts is not None and frame.time_base is not None:
            pts_ns = frame.pts * frame.time_base.numerator * NS // frame.time_base.denominator
        if file_period_ns:
            pts_ns = self._file_frames * file_period_ns if pts_ns is None else pts_ns
            # A file is decoded faster than it plays, so its pictures arrive when they are due.
            captured_ns = arrival_ns = self._pace_file(pts_ns, arrival_ns)
        else:
            captured_ns = self._clock.captured_ns(pts_ns, arrival_ns)
        self._deliver(Timed(captured_ns, arrival_ns, frame, verdict is Verdict.DAMAGED))
        self._stage.record((time.monotonic_ns() - captured_ns) / NS)

    def _pace_file(self, pts_ns: int, arrival_ns: int) -> int:
        """Hold a frame of a plain file back until it is due. Return when that was, CLOCK_MONOTONIC."""
        self._file_frames += 1
        if self._file_start_ns is None:
            self._file_start_ns = arrival_ns - pts_ns
        due_ns = self._file_start_ns + pts_ns
        self._stop.wait(max(0, due_ns - time.monotonic_ns()) / NS)
        return due_ns

    def _file_period_ns(self, stream: VideoStream) -> int:
        return round(NS / float(stream.average_rate or stream.guessed_rate or FILE_FPS))
