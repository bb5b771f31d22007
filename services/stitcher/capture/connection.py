"""Open cameras with FFmpeg, and read their packets."""

from __future__ import annotations

import errno
import struct
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TypeAlias, cast

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from services.common.credentials import MissingPassword, read_password, with_credentials
from services.common.masking import mask_url
from services.stitcher.capture.cause import Cause, Unreadable, cause_of
from services.stitcher.config import CameraSection

NS = 1_000_000_000
PERIODS_OF_PATIENCE = 4
"""A camera is silent if it sent nothing for this many of its own periods, ..."""
PAUSES_OF_PATIENCE = 1.5
"""... and for this many times its longest pause: HLS sends several seconds at once."""
FORGET_PAUSE = 0.999
"""Decay of the longest pause, with each packet."""
FIRST_S = 20.0
"""Age of a connection below which its packet rate is not yet representative."""
PROBING = {
    # Half a second is enough if the stream declares its codec. The default would probe a slow camera for ten seconds:
    # at 0.9 fps the first picture came after 10.7 s instead of 0.1.
    "analyzeduration": "500000",
    "fpsprobesize": "0",
    "probesize": "1000000",
}
_PARSED = ("h264", "hevc", "mpeg4", "mpeg2video", "mpeg1video")
"""Codecs whose frames a parser assembles. It detects the end of a frame by the start of the next one."""
VideoPackets: TypeAlias = "Generator[Packet[VideoStream], None, None]"
_PRFT = struct.Struct("=qi")
"""``AVProducerReferenceTime``: microseconds since 1970, flags."""


class Patience:
    """A read time-out that may change between two calls of ``demux``; PyAV reads it at the start of each call."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __float__(self) -> float:
        return float(self.seconds)


class Connector:
    """Opens one camera, repeatedly. Owned by one thread.

    Args:
        section: The camera.
        open_timeout_s: Longest wait for an answer. It doubles with each time-out up to ``longest_s``, because some
            servers answer only when the next key frame arrives.
        read_timeout_s: Longest wait for a packet, unless the camera's own period is longer.
        longest_s: Longest wait for an answer after several time-outs.
    """

    def __init__(
        self, section: CameraSection, *, open_timeout_s: float, read_timeout_s: float, longest_s: float
    ) -> None:
        self.transport = ""
        """``tcp`` or ``udp`` of an open RTSP camera; empty for others."""
        self._section = section
        self._open_timeout_s = open_timeout_s
        self._read_timeout_s = read_timeout_s
        self._longest_s = max(longest_s, open_timeout_s)
        # The first packets may arrive at any rate, because a demultiplexer holds up to two frames back.
        self._patience = Patience(max(open_timeout_s, read_timeout_s))
        self._timeouts = 0
        self._opened_s = 0.0
        self._bounded = True
        self._order = ["tcp", "udp"]
        self._password: str | None = None

    def open(self) -> InputContainer:
        """Connect.

        Raises:
            Unreadable: The camera cannot be read; the reason does not contain the URL.
        """
        try:
            self._password = read_password(self._section.password_file, self._section.password_env)
        except MissingPassword as error:
            raise Unreadable(Cause.SETTING, str(error)) from None
        url = with_credentials(self._section.url, self._section.username, self._password)
        timeout_s = min(self._open_timeout_s * 2.0**self._timeouts, self._longest_s)
        started_s = time.monotonic()
        self._patience.seconds = max(self._open_timeout_s, self._read_timeout_s)
        try:
            container = self._open(url, timeout_s)
        except Exception as error:  # noqa: BLE001  FFmpeg's errors have many bases
            cause, reason = cause_of(error, url, late=time.monotonic() - started_s >= timeout_s)
            self._timeouts = min(self._timeouts + 1, 16) if cause is Cause.TIMEOUT else 0
            if cause is Cause.DECODING:
                # The stream's parameters may come only after the bounded probing; retry without the bound.
                self._bounded = not self._bounded
            raise Unreadable(cause, reason) from None
        self._timeouts, self._opened_s = 0, time.monotonic()
        if not container.streams.video:
            container.close()
            self._bounded = not self._bounded  # video may start only after the bounded probing; retry without the bound
            raise Unreadable(Cause.UNSUPPORTED, "the stream has no video")
        return container

    def has_new_password(self) -> bool:
        """Return whether the password's file or variable has changed since the last :meth:`open`."""
        try:
            return read_password(self._section.password_file, self._section.password_env) != self._password
        except MissingPassword:
            return False

    def follow_pace(self, silence_ns: float) -> bool:
        """Adapt the read time-out to the camera's usual pauses.

        Returns:
            Whether it has changed significantly.
        """
        shortest_s = self._read_timeout_s
        if time.monotonic() - self._opened_s < FIRST_S:
            shortest_s = max(shortest_s, self._open_timeout_s)  # the camera's packet rate is not known yet
        wanted_s = max(shortest_s, silence_ns / NS)
        # Ignore small changes, because each one starts demux() again.
        if 0.8 < wanted_s / self._patience.seconds < 1.25:
            return False
        self._patience.seconds = wanted_s
        return True

    def _open(self, url: str, timeout_s: float) -> InputContainer:
        if not is_rtsp(url):
            return self._open_by(url, timeout_s, "")
        wanted = self._section.transport
        if wanted != "auto":
            self._order = [wanted]
        try:
            container = self._open_by(url, timeout_s, self._order[0])
        except av.error.FFmpegError as error:
            # The camera answered 461 (unsupported transport), or named another transport in its answer to SETUP.
            if len(self._order) < 2 or error.errno != errno.EPROTONOSUPPORT:
                raise
            self._order.reverse()  # later attempts start with the other transport as well
            container = self._open_by(url, timeout_s, self._order[0])
        self.transport = self._order[0]
        return container

    def _open_by(self, url: str, timeout_s: float, transport: str) -> InputContainer:
        options: dict[str, str] = {}
        if not is_file(url) and self._bounded:
            options |= PROBING
        if transport:
            options["rtsp_transport"] = transport
        options |= self._section.ffmpeg_options
        form = options.pop("format", None)  # an argument of PyAV, not an option of FFmpeg
        timeouts_s = (timeout_s, cast("float", self._patience))
        return av.open(url, format=form, options=options, timeout=timeouts_s, metadata_errors="replace")


def packets_of(
    container: InputContainer,
    stream: VideoStream,
    connector: Connector,
    reading: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Iterator[tuple[Packet[VideoStream], int]]:
    """Yield the packets of a video stream, each with its arrival time, CLOCK_MONOTONIC in ns.

    The read time-out follows the camera's own packet rate.

    Args:
        container: The open camera.
        stream: Its video.
        connector: That which opened it.
        reading: Returns a context in which to read one packet.
    """
    arrivals_ns: deque[int] = deque(maxlen=8)
    pause_ns = 0.0
    running = cast("VideoPackets", container.demux(stream))
    while True:
        with reading():
            packet = next(running, None)
        if packet is None:
            return
        arrival_ns = time.monotonic_ns()  # before the yield, in which the caller decodes
        yield packet, arrival_ns
        if arrivals_ns:
            period_ns = (arrival_ns - arrivals_ns[0]) / len(arrivals_ns)
            # A short mean hides long pauses: HLS sends seconds of packets at once and then nothing.
            pause_ns = max(pause_ns * FORGET_PAUSE, arrival_ns - arrivals_ns[-1])
            if connector.follow_pace(max(PERIODS_OF_PATIENCE * period_ns, PAUSES_OF_PATIENCE * pause_ns)):
                running.close()  # PyAV reads the time-out at the start of a call
                running = cast("VideoPackets", container.demux(stream))
        arrivals_ns.append(arrival_ns)


def held_packets(container: InputContainer, stream: VideoStream) -> int:
    """Return the number of packets by which FFmpeg delays a packet after it has read the packet's beginning."""
    if stream.codec_context.name not in _PARSED:
        return 0
    # In MPEG-TS, a packet ends where the next one begins, and its frame ends when the parser sees the next frame.
    return {"mpegts": 2, "rtsp": 1, "sdp": 1, "rtp": 1, "h264": 1, "hevc": 1}.get(container.format.name, 0)


def sender_ns(packet: Packet[VideoStream]) -> int | None:
    """Return the sender's wall time of a packet, ns since 1970, or ``None`` before the first RTCP sender report."""
    if not packet.has_sidedata("prft"):
        return None
    wall_us, _flags = _PRFT.unpack_from(bytes(packet.get_sidedata("prft")))
    return int(wall_us) * 1000


def is_rtsp(url: str) -> bool:
    """Return whether the URL is an RTSP URL."""
    return url.lower().startswith(("rtsp://", "rtsps://"))


def is_file(url: str) -> bool:
    """Return whether the URL names a file."""
    return "://" not in url or url.startswith("file:")


def faults_of(section: CameraSection) -> list[str]:
    """Return why a camera cannot be read, as far as this can be checked without network access."""
    faults = []
    for kind, file in (("mask", section.mask),):
        if file is not None and not file.is_file():
            faults.append(f"the {kind} {file} is not a file")
    try:
        read_password(section.password_file, section.password_env)
    except MissingPassword as error:
        faults.append(str(error))
    if is_file(section.url):
        faults += _faults_of_file(section)
    elif not knows_protocol(section.url):
        scheme = section.url.partition(":")[0]
        faults.append(
            f"FFmpeg {av.ffmpeg_version_info} in PyAV {av.__version__} cannot read {scheme}:// URLs: "
            "take another URL of the camera, such as rtsp:// or http://, or put a converter before it"
        )
    return faults


def knows_protocol(url: str) -> bool:
    """Return whether this build of FFmpeg can read URLs of that scheme. Opens no connection."""
    if is_rtsp(url):
        return True  # a demultiplexer of FFmpeg, not one of its protocols
    try:
        # The whitelist ensures that nothing is opened: FFmpeg looks up the protocol first, then rejects it.
        av.open(f"{url.partition('://')[0]}://127.0.0.1:9/", options={"protocol_whitelist": "none"}, timeout=1.0)
    except av.error.ProtocolNotFoundError:
        return False
    except (av.error.FFmpegError, OSError, ValueError):
        return True
    return True


def _faults_of_file(section: CameraSection) -> list[str]:
    shown = mask_url(section.url)
    try:
        with Connector(section, open_timeout_s=10.0, read_timeout_s=5.0, longest_s=10.0).open():
            return []
    except Unreadable as error:
        if error.cause is Cause.UNSUPPORTED:
            return [f"{shown} has no video" if "no video" in str(error) else f"{shown} cannot be read: {error}"]
        return [f"{shown} cannot be read: {error}"]
