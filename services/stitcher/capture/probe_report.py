"""The report of a probed camera: what it sent, and the configuration that follows from it."""

from __future__ import annotations

from dataclasses import dataclass, field

from services.stitcher.capture.connection import is_file
from services.stitcher.config import CameraSection, StitcherSection

NOT_TOLD = "not told"


@dataclass
class Report:
    """What a camera sent."""

    url: str
    """Masked."""
    error: str = ""
    """Why the camera cannot be read; empty if it can. The other fields then hold the values up to the failure."""
    cause: str = ""
    format: str = ""
    transport: str = ""
    codec: str = ""
    profile: str = ""
    width_px: int = 0
    height_px: int = 0
    pixel_aspect: str = NOT_TOLD
    """Pixel aspect ratio."""
    range: str = NOT_TOLD
    matrix: str = NOT_TOLD
    pixel_format: str = ""
    fps: float = 0.0
    """Measured by the packets' own times, or by their arrival if the clock is ``arrival``; for a file, as declared."""
    kbit_s: int = 0
    first_picture_s: float | None = None
    """Time from the first attempt to connect."""
    gop_frames: int | None = None
    """Longest interval between two key frames; ``None`` if fewer than two arrived."""
    gop_s: float | None = None
    b_frames: bool = False
    clock: str = "arrival"
    """``sender``, ``pts`` or ``arrival``."""
    lost_packets: int = 0
    """Lost RTP packets, by sequence number."""
    broken_packets: int = 0
    """Packets after the first picture that could not be decoded."""
    damaged_frames: int = 0
    settings: list[str] = field(default_factory=list)
    """Lines for the list ``stitcher.cameras``."""
    hints: list[str] = field(default_factory=list)


def advise(report: Report, section: CameraSection, defaults: StitcherSection) -> tuple[list[str], list[str]]:
    """Return the lines of the camera's configuration, and further hints."""
    lines = [f"- name: {section.name}", f'  url: "{section.masked_url}"']
    hints = []
    if "***" in section.masked_url:
        hints.append("the URL is shown without its secrets; a password may come from password_file")
    if report.error:
        return [], hints
    if report.transport == "udp":
        lines.append("  transport: udp       # it refuses TCP")
    if report.pixel_aspect == NOT_TOLD and report.width_px * 4 < report.height_px * 5:
        lines.append('  # aspect: "2:1"      # the stream declares none: set it if the picture looks too narrow')
    elif report.pixel_aspect == NOT_TOLD and (report.width_px, report.height_px) in ((704, 576), (720, 576)):
        lines.append('  # aspect: "16:11"    # the stream declares none: 16:11 or 12:11 are usual for this size')
    if report.clock == "arrival":
        hints.append("its pictures have no usable clock: their arrival gives the time of capture, to some 0.1 s")
    elif report.clock == "pts" and not is_file(report.url):
        hints.append("its stream does not contain the time of capture: if it is later than the others, set delay_s")
    if report.damaged_frames or report.lost_packets:
        hints.append("pictures arrive damaged: TCP, a lower bit rate or another cable may help; see the key damaged")
    gop_s = report.gop_s if report.gop_frames else None
    if report.codec != "mjpeg" and (gop_s is None or gop_s > 5) and not is_file(report.url):
        shown = "there was no second one" if gop_s is None else f"they are {gop_s:g} s apart"
        hints.append(f"key frames are rare ({shown}): after a loss there is no picture until the next one")
    if gop_s is not None and gop_s > defaults.key_frame_wait_s * 0.8:
        hints.append(f"set stitcher.key_frame_wait_s to {round(gop_s * 2)}")
    if report.fps and report.fps < 1 / defaults.gone_after_s:
        hints.append("it is slow: its picture is fresh in few panoramas")
    return lines, hints


def show(report: Report) -> str:
    """Return the report as text."""
    if report.error:
        return f"{report.url}\n  cannot be read ({report.cause}): {report.error}"
    aspect = "" if report.pixel_aspect == "1:1" else f", pixel aspect {report.pixel_aspect}"
    gop = f"{report.gop_frames} frames, {report.gop_s:g} s" if report.gop_s is not None else "longer than was watched"
    rows = {
        "video": f"{report.codec} {report.profile}".strip() + (", with B-frames" if report.b_frames else ""),
        "carried by": " over ".join(filter(None, (report.format, report.transport.upper()))),
        "picture": f"{report.width_px}x{report.height_px}{aspect}",
        "colours": f"{report.pixel_format}, range {report.range}, matrix {report.matrix}",
        "rate": f"{report.fps:g} fps, {report.kbit_s} kbit/s, first picture after {report.first_picture_s} s",
        "key frames": gop,
        "clock": report.clock,
        "faults": f"{report.lost_packets} packets lost, {report.broken_packets} broken, "
        f"{report.damaged_frames} pictures damaged",
    }
    lines = [report.url, *(f"  {name:<11}{text}" for name, text in rows.items())]
    lines += [f"  note       {hint}" for hint in report.hints]
    return "\n".join([*lines, "  to set, under stitcher.cameras:", *(f"    {line}" for line in report.settings)])
