"""``list``, ``inspect`` and ``top``: what the streams do now."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from framebus.directory import StreamInfo, inspect, streams
from framebus.layout import FrameHeader

MIB = 1 << 20


def run_list(options: argparse.Namespace) -> int:
    """Print a line for each stream."""
    found = streams()
    if options.json:
        _print_json([dataclasses.asdict(stream) for stream in found])
        return 0
    header = ("STREAM", "PUBLISHER", "FRAME", "SEQUENCE", "AGE", "SLOTS", "RING", "SUBSCRIBERS")
    rows = [
        (
            stream.name,
            _publisher(stream),
            _describe(stream.frame),
            str(stream.sequence),
            _age(stream.age_s),
            f"{stream.slots_held}/{stream.slots} held",
            f"{stream.ring_bytes / MIB:.0f} MiB",
            str(_living(stream)),
        )
        for stream in found
    ]
    sys.stdout.write(_table(header, rows) if rows else "no streams\n")
    return 0


def run_inspect(options: argparse.Namespace) -> int:
    """Print everything about one stream."""
    stream = inspect(options.name)
    if options.json:
        _print_json(dataclasses.asdict(stream))
        return 0
    sys.stdout.write(
        f"stream       {stream.name}\n"
        f"publisher    {_publisher(stream)}, epoch {stream.epoch}\n"
        f"newest       sequence {stream.sequence}, {_describe(stream.frame)}, {_age(stream.age_s)} old\n"
        f"ring         {stream.slots} slots of {stream.slot_bytes / MIB:.2f} MiB, {stream.ring_bytes / MIB:.1f} MiB\n"
        f"held         {stream.slots_held} slots now; {stream.seats_taken} of {stream.seats} leases promised\n"
        f"subscribers  {_living(stream)}\n"
    )
    for subscriber in stream.subscribers:
        record = subscriber.record
        sys.stdout.write(
            f"  {record.name}: {record.mode}, wake {record.wake}, {record.received} received, "
            f"{record.skipped} skipped, {record.leases} of {record.max_leases} leases"
            f"{'' if subscriber.alive else ', dead'}\n"
        )
    return 0


def run_top(options: argparse.Namespace) -> int:
    """Print the live table again and again, or once."""
    before = _sample()
    while True:
        time.sleep(options.interval)
        after = _sample()
        rows = _rates(before, after)
        if options.json:
            _print_json(rows)
        else:
            clear = "\x1b[H\x1b[J" if sys.stdout.isatty() and not options.once else ""
            sys.stdout.write(clear + _top_table(rows))
        sys.stdout.flush()
        if options.once:
            return 0
        before = after


Sample = tuple[float, dict[str, StreamInfo]]


def _sample() -> Sample:
    return time.monotonic(), {stream.name: stream for stream in streams()}


def _rates(before: Sample, after: Sample) -> list[dict[str, Any]]:
    """Frames a second and lag of every stream and subscriber between two looks."""
    elapsed_s = after[0] - before[0]
    rows = []
    for name, stream in after[1].items():
        old = before[1].get(name)
        since = old.sequence if old is not None and old.epoch == stream.epoch else stream.sequence
        counted = {(s.record.name, s.record.since_wall_ns): s.record.received for s in old.subscribers} if old else {}
        subscribers = []
        for subscriber in stream.subscribers:
            if not subscriber.alive:
                continue
            record = subscriber.record
            received = counted.get((record.name, record.since_wall_ns), record.received)
            subscribers.append(
                {
                    "name": record.name,
                    "fps": round((record.received - received) / elapsed_s, 2),
                    "latency_ms": round(record.latency_ns / 1e6, 3) if record.received else None,
                    "lag": max(stream.sequence - record.sequence, 0),
                    "leases": record.leases,
                    "max_leases": record.max_leases,
                    "received": record.received,
                    "skipped": record.skipped,
                    "mode": record.mode,
                    "wake": record.wake,
                }
            )
        rows.append(
            {
                "stream": name,
                "live": stream.live,
                "fps": round((stream.sequence - since) / elapsed_s, 2),
                "sequence": stream.sequence,
                "age_s": stream.age_s,
                "slots": stream.slots,
                "slots_held": stream.slots_held,
                "subscribers": subscribers,
            }
        )
    return rows


def _top_table(rows: list[dict[str, Any]]) -> str:
    header = ("STREAM", "SUBSCRIBER", "FPS", "LATENCY", "LAG", "LEASES", "SKIPPED", "WAKE")
    lines: list[Sequence[str]] = []
    for row in rows:
        state = "publisher" if row["live"] else "no publisher"
        held = f"{row['slots_held']}/{row['slots']} held"
        lines.append((row["stream"], f"({state})", f"{row['fps']:.1f}", "", _age(row["age_s"]), held, "", ""))
        for subscriber in row["subscribers"]:
            latency_ms = subscriber["latency_ms"]
            lines.append(
                (
                    "",
                    subscriber["name"],
                    f"{subscriber['fps']:.1f}",
                    "" if latency_ms is None else f"{latency_ms:.2f} ms",
                    f"{subscriber['lag']} frames",
                    f"{subscriber['leases']}/{subscriber['max_leases']}",
                    str(subscriber["skipped"]),
                    subscriber["wake"],
                )
            )
    return _table(header, lines) if lines else "no streams\n"


def _publisher(stream: StreamInfo) -> str:
    return "live" if stream.live else "closed" if stream.state == "closed" else "gone"


def _living(stream: StreamInfo) -> int:
    return sum(subscriber.alive for subscriber in stream.subscribers)


def _describe(frame: FrameHeader | None) -> str:
    return "-" if frame is None else f"{frame.width}x{frame.height}x{frame.channels} {frame.dtype} {frame.pixel_format}"


def _age(age_s: float | None) -> str:
    return "-" if age_s is None else f"{age_s:.2f} s"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n"
        for row in (header, *rows)
    )


def _print_json(content: object) -> None:
    sys.stdout.write(json.dumps(content) + "\n")
