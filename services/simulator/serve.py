"""Serve one clip as an endless live stream over HTTP, with FFmpeg's built-in server, which takes one client at a time.

Each camera is served by a separate process, because FFmpeg holds the interpreter's lock while it listens. The process
ends immediately on SIGTERM, and when the process that started it ends.

All cameras share one timeline: at the monotonic time t, they show the picture ``(t - t0) modulo the loop``. A client
starts at the latest key frame and is served in real time from there. Its timestamps are times since t0, not modulo the
loop. Therefore they increase across the loop's end, and are equal for all cameras and clients. A timestamp in units of
1/90000 s, divided by 3600, is the frame's number; modulo the loop, that is its index in ``truth.json``. MPEG-TS has 33
bits for a timestamp, so it wraps around after 26.5 hours, which readers handle.

Source: FFmpeg's http protocol, option ``listen``. The tee muxer passes protocol options on, which PyAV's own output
does not.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import sys
import time
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import structlog

from services.common.config import LogSection
from services.simulator import child

EXIT_PORT_IN_USE = 3
"""Exit status if the port is in use, for the parent process."""
GREATEST_LAG_S = 1.0
"""A client that is further behind real time than this continues at the latest key frame."""
PACKET_TIME_BASE = Fraction(1, 90_000)
"""Unit of a timestamp in MPEG-TS, in seconds."""

log = structlog.get_logger()


@dataclass(frozen=True)
class Loop:
    """A clip in memory, in presentation order, without B-frames."""

    packets: tuple[bytes, ...]
    key_frames: tuple[int, ...]
    """Indices of the packets at which decoding can start, ascending; the first is 0."""
    frame_s: Fraction
    """Seconds from one packet to the next."""

    @classmethod
    def read(cls, path: Path) -> Loop:
        """Read a clip.

        Raises:
            OSError: The clip cannot be read, or has no frame rate.
        """
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            if stream.average_rate is None:
                raise OSError(f"{path} has no frame rate")
            packets = [packet for packet in container.demux(stream) if packet.size]
            return cls(
                packets=tuple(bytes(packet) for packet in packets),
                key_frames=tuple(i for i, packet in enumerate(packets) if packet.is_keyframe),
                frame_s=1 / Fraction(stream.average_rate),
            )

    def latest_key_frame(self, position: int) -> int:
        """Return the latest key frame at or before a position, in frames since the timeline's beginning."""
        turns, index = divmod(position, len(self.packets))
        return turns * len(self.packets) + max(key for key in self.key_frames if key <= index)


class Timeline:
    """The clock of all cameras, in frames since a common beginning."""

    def __init__(self, t0_s: float, frame_s: Fraction) -> None:
        self._t0_s = t0_s
        self._frame_s = frame_s

    def position(self) -> int:
        """Return the frame that is due now."""
        return max(0, int((time.monotonic() - self._t0_s) / self._frame_s))

    def wait_for(self, position: int) -> None:
        """Sleep until a frame is due."""
        time.sleep(max(0.0, self._t0_s + float(position * self._frame_s) - time.monotonic()))


def serve(path: Path, host: str, port: int, t0_s: float) -> None:
    """Serve a clip forever, one client after the other.

    Args:
        path: The clip, MPEG-TS; its name is the path of the URL.
        host: Address to listen on.
        port: Port to listen on.
        t0_s: ``time.monotonic()`` at the timeline's beginning.

    Raises:
        av.error.AddressInUseError: Another process listens on that port.
        OSError: The clip cannot be read, or the process cannot listen on that address.
    """
    loop = Loop.read(path)
    timeline = Timeline(t0_s, loop.frame_s)
    url = f"http://{host}:{port}/{path.name}"
    log.info("listening", url=url)
    while True:
        _serve_client(path, url, loop, timeline)


def _serve_client(path: Path, url: str, loop: Loop, timeline: Timeline) -> None:
    with av.open(str(path)) as source:
        output = av.open(f"[f=mpegts:listen=1]{url}", "w", format="tee")
        stream = output.add_stream_from_template(source.streams.video[0])
        output.start_encoding()
    log.info("client connected", url=url)
    sent, reason = 0, ""
    try:
        position = loop.latest_key_frame(timeline.position())
        while True:
            packet = av.Packet(loop.packets[position % len(loop.packets)])
            packet.stream = stream
            packet.time_base = PACKET_TIME_BASE
            # Fractions are exact, so that timestamps do not drift from the frames' numbers over days.
            packet.pts = packet.dts = int(position * loop.frame_s / PACKET_TIME_BASE)
            packet.is_keyframe = position % len(loop.packets) in loop.key_frames
            # The frames since the key frame are due already, so a new client gets them at once.
            timeline.wait_for(position)
            output.mux(packet)
            sent += 1
            position += 1
            # A slow client blocks mux(): skip to a key frame, so that its pictures do not get older and older.
            now = timeline.position()
            if (now - position) * loop.frame_s > GREATEST_LAG_S:
                position = max(position, loop.latest_key_frame(now))
    except OSError as error:
        reason = error.strerror or str(error)
    finally:
        with contextlib.suppress(OSError):
            output.close()
    log.info("client disconnected", url=url, frames=sent, reason=reason)


def main(arguments: list[str] | None = None) -> int:
    """Serve the clip named on the command line. Return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m services.simulator.serve", description="Serve one clip over HTTP.")
    parser.add_argument("clip", type=Path)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--t0", type=float, required=True, help="monotonic time of the timeline's beginning, seconds")
    parser.add_argument(
        "--log", type=LogSection.model_validate_json, default=LogSection(), help="the log section, JSON"
    )
    options = parser.parse_args(arguments)
    child.set_up(options.log)
    try:
        serve(options.clip, options.host, options.port, options.t0)
    except OSError as error:
        in_use = error.errno == errno.EADDRINUSE
        log.error("cannot serve", clip=options.clip.name, port=options.port, reason=error.strerror or str(error))  # noqa: TRY400  one sentence
        return EXIT_PORT_IN_USE if in_use else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
