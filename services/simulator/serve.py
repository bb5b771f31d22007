"""Serve one clip as an endless live stream over HTTP, by FFmpeg's own one-client server.

Run as a process of its own, one a camera: while FFmpeg listens it holds the interpreter's lock, and Python cannot run
beside it. The process ends on SIGTERM at once, and with the process that started it.

All cameras share one timeline: at the monotonic time t the picture ``(t - t0) modulo the loop`` is shown. A client
starts at the latest key frame and is served in real time from there. Its timestamps are positions on the timeline
that is not folded (``t - t0``), so they grow over the loop's end and are the same for all cameras and all clients.
A timestamp of 90 kHz over 3600 is the frame's number, modulo the loop its index in ``truth.json``.
MPEG-TS counts 33 bits of 90 kHz: after 26.5 hours they begin anew, which readers know how to handle.

Source: FFmpeg's http protocol, option ``listen``; the tee muxer hands protocol options on, which PyAV's own output
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
"""Exit status that tells the starting process why."""
GREATEST_LAG_S = 1.0
"""A client that reads more slowly than this behind real time is moved on to the latest key frame."""
PACKET_TIME_BASE = Fraction(1, 90_000)

log = structlog.get_logger()


@dataclass(frozen=True)
class Loop:
    """A clip in memory, in presentation order, without B-frames."""

    packets: tuple[bytes, ...]
    key_frames: tuple[int, ...]
    """Indices of packets that decoding can start at, ascending, the first is 0."""
    frame_s: Fraction
    """Seconds from a packet to the next."""

    @classmethod
    def read(cls, path: Path) -> Loop:
        """Read a clip.

        Raises:
            OSError: It cannot be read.
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
        """The latest key frame at or before a position on the unfolded timeline, in frames."""
        turns, index = divmod(position, len(self.packets))
        return turns * len(self.packets) + max(key for key in self.key_frames if key <= index)


class Timeline:
    """The clock of all cameras, in frames since a common beginning."""

    def __init__(self, t0_s: float, frame_s: Fraction) -> None:
        self._t0_s = t0_s
        self._frame_s = frame_s

    def position(self) -> int:
        """The frame that is due now."""
        return max(0, int((time.monotonic() - self._t0_s) / self._frame_s))

    def wait_for(self, position: int) -> None:
        """Sleep until a frame is due."""
        time.sleep(max(0.0, self._t0_s + float(position * self._frame_s) - time.monotonic()))


def serve(path: Path, host: str, port: int, t0_s: float) -> None:
    """Serve a clip, one client after the other, for ever.

    Args:
        path: The clip, MPEG-TS; its name is the path of the URL.
        host: Address to listen on.
        port: Port to listen on.
        t0_s: ``time.monotonic()`` at the timeline's beginning.

    Raises:
        av.error.AddressInUseError: Another process listens there.
        OSError: The clip cannot be read, or the address cannot be listened on.
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
    log.info("client came", url=url)
    sent, reason = 0, ""
    try:
        position = loop.latest_key_frame(timeline.position())
        while True:
            packet = av.Packet(loop.packets[position % len(loop.packets)])
            packet.stream = stream
            packet.time_base = PACKET_TIME_BASE
            packet.pts = packet.dts = int(position * loop.frame_s / PACKET_TIME_BASE)
            packet.is_keyframe = position % len(loop.packets) in loop.key_frames
            timeline.wait_for(position)
            output.mux(packet)
            sent += 1
            position += 1
            now = timeline.position()
            if (now - position) * loop.frame_s > GREATEST_LAG_S:
                position = max(position, loop.latest_key_frame(now))
    except OSError as error:
        reason = error.strerror or str(error)
    finally:
        with contextlib.suppress(OSError):
            output.close()
    log.info("client went", url=url, frames=sent, reason=reason)


def main(arguments: list[str] | None = None) -> int:
    """Serve the clip that the command line names; return the exit status."""
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
