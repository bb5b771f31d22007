"""``framebus-stitcher probe URL...``: reports what cameras send, and what to configure for them."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import av.logging
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import PictureType, VideoFrame
from av.video.stream import VideoStream
from pydantic import ValidationError

from services.common.config import message_of
from services.common.masking import mask_text, mask_url
from services.common.service import EXIT_USAGE
from services.stitcher.capture.cause import Cause, Unreadable, cause_of
from services.stitcher.capture.clock import CaptureClock
from services.stitcher.capture.connection import (
    Connector,
    faults_of,
    held_packets,
    is_file,
    knows_protocol,
    packets_of,
    sender_ns,
)
from services.stitcher.capture.loss import MISSED, log_warnings
from services.stitcher.capture.probe_report import NOT_TOLD, Report, advise, show
from services.stitcher.capture.sender import SenderClocks
from services.stitcher.config import CameraSection, StitcherSection

NS = 1_000_000_000
MATRICES = {1: "BT.709", 4: "FCC", 5: "BT.601", 6: "BT.601", 7: "SMPTE 240M", 9: "BT.2020", 10: "BT.2020"}
RANGES = {1: "limited", 2: "full"}


def probe(section: CameraSection, seconds: float) -> Report:
    """Read a camera for some seconds. Failures are part of the report."""
    report = Report(section.masked_url)
    defaults = StitcherSection()
    connector = Connector(
        section,
        open_timeout_s=defaults.open_timeout_s,
        read_timeout_s=defaults.read_timeout_s,
        longest_s=defaults.open_timeout_s + defaults.key_frame_wait_s,
    )
    started_s = time.monotonic()
    try:
        with av.logging.Capture(local=True) as said:
            _check(section)
            with connector.open() as container:
                _Watch(report, section, container, connector).run(started_s, seconds, defaults.key_frame_wait_s)
        report.lost_packets = sum(abs(int(found[1])) for _, _, text in said if (found := MISSED.search(text)))
    except Exception as error:  # noqa: BLE001  FFmpeg's errors have many bases
        cause, report.error = cause_of(error, section.url)
        report.cause = cause.value
    report.transport = connector.transport
    report.settings, report.hints = advise(report, section, defaults)
    return report


def _check(section: CameraSection) -> None:
    if faults := faults_of(section):
        known = is_file(section.url) or knows_protocol(section.url)
        raise Unreadable(Cause.SETTING if known else Cause.UNSUPPORTED, "; ".join(faults))


class _Watch:
    """Reads an open camera into a report."""

    def __init__(self, report: Report, section: CameraSection, container: InputContainer, connector: Connector) -> None:
        self._report = report
        self._container = container
        self._connector = connector
        self._stream = container.streams.video[0]
        self._stream.thread_type = "NONE"  # as in the service: threads would delay the pictures
        self._clock = CaptureClock("sender", senders=(SenderClocks(), section.name))
        self._clock.held_packets = held_packets(container, self._stream)
        self._arrivals_ns: list[int] = []
        self._pts_ns: list[int] = []
        self._keys: list[int] = []
        self._bytes = 0

    def run(self, started_s: float, seconds: float, longest_s: float) -> None:
        """Wait at most ``longest_s`` for the first picture, then watch for ``seconds``."""
        report = self._report
        report.format, report.codec = self._container.format.name, self._stream.codec_context.name
        report.profile = str(self._stream.profile or "")
        end_s: float | None = None
        for packet, arrival_ns in packets_of(self._container, self._stream, self._connector):
            now_s = arrival_ns / NS  # of the clock of time.monotonic(), as started_s
            if now_s > (started_s + longest_s if end_s is None else end_s):
                break
            self._observe(packet, arrival_ns)
            for frame in self._decode(packet):
                if end_s is None:
                    report.first_picture_s = round(now_s - started_s, 2)
                    end_s = now_s + seconds
                self._look(frame, packet, arrival_ns)
        if end_s is None:
            raise Unreadable(Cause.DECODING, f"no picture arrived within {longest_s:g} s")
        self._sum_up()

    def _observe(self, packet: Packet[VideoStream], arrival_ns: int) -> None:
        if not packet.size:
            return
        base = packet.time_base
        pts_ns, dts_ns = (
            None if time_ is None or base is None else time_ * base.numerator * NS // base.denominator
            for time_ in (packet.pts, packet.dts)
        )
        self._clock.observe(arrival_ns, pts_ns, dts_ns, sender_ns(packet))
        if pts_ns is not None:
            self._pts_ns.append(pts_ns)
        if packet.is_keyframe:
            self._keys.append(len(self._arrivals_ns))
        self._arrivals_ns.append(arrival_ns)
        self._bytes += packet.size

    def _decode(self, packet: Packet[VideoStream]) -> list[VideoFrame]:
        try:
            return [frame for frame in packet.decode() if isinstance(frame, VideoFrame)]
        except av.error.FFmpegError:
            self._report.broken_packets += self._report.first_picture_s is not None
            return []

    def _look(self, frame: VideoFrame, packet: Packet[VideoStream], arrival_ns: int) -> None:
        report = self._report
        report.width_px, report.height_px, report.pixel_format = frame.width, frame.height, frame.format.name
        report.range = RANGES.get(int(frame.color_range), NOT_TOLD)
        report.matrix = MATRICES.get(int(frame.colorspace), NOT_TOLD)
        report.b_frames |= frame.pict_type == PictureType.B
        report.damaged_frames += frame.is_corrupt or packet.is_corrupt
        aspect: Fraction | None = self._stream.codec_context.sample_aspect_ratio or self._stream.sample_aspect_ratio
        if aspect:
            report.pixel_aspect = f"{aspect.numerator}:{aspect.denominator}"
        pts_ns = None
        if frame.pts is not None and frame.time_base is not None:
            pts_ns = round(frame.pts * frame.time_base * NS)
        self._clock.captured_ns(pts_ns, arrival_ns)
        report.clock = self._clock.source

    def _sum_up(self) -> None:
        report = self._report
        if is_file(report.url):
            report.fps, report.clock = float(self._stream.average_rate or self._stream.guessed_rate or 0), "pts"
        else:
            # Packets that FFmpeg read while it probed the stream arrive together, so use their own times if possible.
            times_ns = self._arrivals_ns if report.clock == "arrival" else sorted(self._pts_ns)
            lasted_s = (times_ns[-1] - times_ns[0]) / NS
            report.fps = round((len(times_ns) - 1) / lasted_s, 2) if lasted_s > 0 else 0.0
            report.kbit_s = round(self._bytes * 8 / 1000 / lasted_s) if lasted_s > 0 else 0
        if len(self._keys) > 1:
            report.gop_frames = max(later - earlier for earlier, later in pairwise(self._keys))
            report.gop_s = round(report.gop_frames / report.fps, 2) if report.fps else None


def main(arguments: Sequence[str]) -> int:
    """Run the command. Return 0, or 1 if a camera cannot be read."""
    parser = argparse.ArgumentParser(
        prog="framebus-stitcher probe",
        description="Read cameras for some seconds, all at once, and report what they send and what to set for them.",
    )
    parser.add_argument(
        "url", nargs="+", help="URL as in stitcher.cameras; other users see it in the list of processes"
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="how long to watch after the first picture (10)")
    parser.add_argument("--transport", choices=("auto", "tcp", "udp"), default="auto", help="of RTSP (auto)")
    parser.add_argument("--username", help="user of URLs that name none")
    parser.add_argument("--password-file", type=Path, help="file whose first line is the password")
    parser.add_argument("--password-env", help="environment variable with the password")
    parser.add_argument("--json", action="store_true", help="print one JSON object, {cameras: [...]}")
    options = parser.parse_args(arguments)
    if not 0 < options.seconds <= 3600:
        parser.error("--seconds must be more than 0 and at most 3600")
    sections = []
    for index, url in enumerate(options.url):
        try:
            sections.append(_section(f"cam{index}", url, options))
        except ValidationError as error:
            fault = message_of(error.errors(include_url=False, include_input=False)[0])
            sys.stderr.write(f"framebus-stitcher probe: {mask_url(url)}: {mask_text(fault)}\n")
            return EXIT_USAGE
    level = av.logging.get_level()
    log_warnings()
    try:
        with ThreadPoolExecutor(len(sections)) as pool:
            reports = list(pool.map(lambda section: probe(section, options.seconds), sections))
    finally:
        av.logging.set_level(level)
    if options.json:
        sys.stdout.write(json.dumps({"cameras": [asdict(report) for report in reports]}, indent=2) + "\n")
    else:
        sys.stdout.write("\n\n".join(map(show, reports)) + "\n")
    return int(any(report.error for report in reports))


def _section(name: str, url: str, options: argparse.Namespace) -> CameraSection:
    wanted: dict[str, Any] = {"name": name, "url": url, "transport": options.transport}
    for key in ("username", "password_file", "password_env"):
        if (value := getattr(options, key)) is not None:
            wanted[key] = value
    return CameraSection.model_validate(wanted)
