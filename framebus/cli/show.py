"""``list``, ``inspect`` and ``top``: the current state of the streams."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np

from framebus.cli.output import columns, control, flush, table, wrap, write, write_json
from framebus.inspect.streams import StreamInfo, UnreadableStream, inspect, survey
from framebus.ring.frame_header import FrameHeader
from framebus.ring.record import SubscriberRecord
from framebus.shm.directory import check_directory

MIB: Final = 1 << 20
CLOCK_TIMEOUT_S: Final = 0.3
"""How long to wait for a frame that shows whether the publisher has the same clock."""
MAX_LATENCY_NS: Final = 60_000_000_000
"""A latency that is longer, or not positive, is the difference between two clocks."""


def run_list(options: argparse.Namespace) -> int:
    """Print a line for each stream."""
    check_directory()
    found = survey(timeout_s=CLOCK_TIMEOUT_S)
    if options.json:
        write_json([to_json(stream) for stream in found])
        return 0
    header = ("STREAM", "PUBLISHER", "FRAME", "SEQUENCE", "AGE", "SLOTS", "RING", "SUBSCRIBERS")
    readable, unreadable = _divide(found)
    rows = [
        (
            stream.name,
            _publisher(stream),
            _describe(stream.frame),
            str(stream.sequence),
            _age(stream.age_s, stream.age_unknown),
            f"{stream.slots_held}/{stream.slots} held",
            f"{stream.ring_bytes / MIB:.0f} MiB",
            str(_living(stream)),
        )
        for stream in readable
    ]
    if rows:
        write(table(header, rows, columns(), title=3))
    _write_notes((stream.name, stream.age_unknown) for stream in readable if stream.age_unknown)
    _write_unreadable(unreadable)
    if not found:
        write("no streams\n")
    return 0


def run_inspect(options: argparse.Namespace) -> int:
    """Print all details of one stream."""
    check_directory()
    stream = inspect(options.name, timeout_s=CLOCK_TIMEOUT_S)
    if options.json:
        write_json(to_json(stream))
        return 0
    newest = f"sequence {stream.sequence}, {_describe(stream.frame)}, "
    if stream.frame is None:
        newest = f"sequence {stream.sequence}"
    elif stream.age_unknown:
        newest += f"age unknown: {stream.age_unknown}"
    else:
        newest += f"{_age(stream.age_s)} old"
    fields = [
        ("stream", stream.name),
        ("publisher", f"{_publisher(stream)}, epoch {stream.epoch}"),
        ("newest", newest),
        ("ring", f"{stream.slots} slots of {stream.slot_bytes / MIB:.2f} MiB, {stream.ring_bytes / MIB:.1f} MiB"),
        ("held", f"{stream.slots_held} slots now; {stream.seats_taken} of {stream.seats} leases promised"),
        ("subscribers", str(_living(stream))),
    ]
    width = columns()
    for name, text in fields:
        for line in wrap(f"{name:11}  {text}", width, " " * 13):
            write(line + "\n")
    for subscriber in stream.subscribers:
        record = subscriber.record
        line = (
            f"  {record.name}: {record.mode}, wake {record.wake}, {record.received} received, "
            f"{record.skipped} skipped, {record.leases} of {record.max_leases} leases"
            f"{'' if subscriber.alive else ', dead'}"
        )
        for part in wrap(line, width, "    "):
            write(part + "\n")
    return 0


def run_top(options: argparse.Namespace) -> int:
    """Print the live table repeatedly, or once."""
    check_directory()
    before = _sample()
    while True:
        time.sleep(options.interval)
        after = _sample()
        rows = _rates(before, after)
        if options.json:
            write_json([*rows, *(_unreadable_row(stream) for stream in after.unreadable)])
        else:
            if sys.stdout is not None and sys.stdout.isatty() and not options.once:
                # Redraw in place on a terminal; elsewhere each table follows the last.
                control("\x1b[H\x1b[J")
            if rows:
                write(_top_table(rows))
            _write_unreadable(after.unreadable)
            if not rows and not after.unreadable:
                write("no streams\n")
        flush()
        if options.once:
            return 0
        before = after


def to_json(stream: StreamInfo | UnreadableStream) -> dict[str, Any]:
    """Convert a stream to a JSON object, as specified in docs/cli.schema.json."""
    if isinstance(stream, UnreadableStream):
        return {**dataclasses.asdict(stream), "readable": False, "live": None}
    fields = {field.name: getattr(stream, field.name) for field in dataclasses.fields(stream)}
    frame = stream.frame
    return {
        **fields,
        "readable": True,
        "frame": None if frame is None else {**frame._asdict(), "shape": list(frame.shape)},
        "subscribers": [
            {"record": dataclasses.asdict(subscriber.record), "alive": subscriber.alive}
            for subscriber in stream.subscribers
        ],
    }


@dataclasses.dataclass(frozen=True, slots=True)
class _Sample:
    taken_s: float
    streams: dict[str, StreamInfo]
    unreadable: list[UnreadableStream]


def _sample() -> _Sample:
    taken_s = time.monotonic()
    readable, unreadable = _divide(survey(timeout_s=CLOCK_TIMEOUT_S))
    return _Sample(taken_s, {stream.name: stream for stream in readable}, unreadable)


def _divide(found: Iterable[StreamInfo | UnreadableStream]) -> tuple[list[StreamInfo], list[UnreadableStream]]:
    readable, unreadable = [], []
    for stream in found:
        if isinstance(stream, StreamInfo):
            readable.append(stream)
        else:
            unreadable.append(stream)
    return readable, unreadable


def _rates(before: _Sample, after: _Sample) -> list[dict[str, Any]]:
    """Frames a second and lag of every stream and subscriber between two measurements."""
    elapsed_s = after.taken_s - before.taken_s
    rows = []
    for name, stream in after.streams.items():
        old = before.streams.get(name)
        # A new publisher may have started a new ring, whose sequences are unrelated to the old ones.
        since = old.sequence if old is not None and old.epoch == stream.epoch else stream.sequence
        # A name alone may be used by two subscribers, or again after a restart.
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
                    "latency_ms": _latency_ms(record),
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
                "readable": True,
                "live": stream.live,
                "fps": round((stream.sequence - since) / elapsed_s, 2),
                "sequence": stream.sequence,
                "age_s": stream.age_s,
                "age_unknown": stream.age_unknown,
                "slots": stream.slots,
                "slots_held": stream.slots_held,
                "subscribers": subscribers,
            }
        )
    return rows


def _unreadable_row(stream: UnreadableStream) -> dict[str, Any]:
    row = to_json(stream)
    return {"stream": row.pop("name"), **row}


def _latency_ms(record: SubscriberRecord) -> float | None:
    """Return the latency of the last frame; ``None`` without a frame, or if the clocks differ."""
    if not record.received or not 0 < record.latency_ns <= MAX_LATENCY_NS:
        return None
    return round(record.latency_ns / 1e6, 3)


def _top_table(rows: list[dict[str, Any]]) -> str:
    header = ("STREAM", "SUBSCRIBER", "FPS", "LATENCY", "LAG", "AGE", "LEASES", "SKIPPED", "WAKE")
    lines: list[Sequence[str]] = []
    for row in rows:
        state = "publisher" if row["live"] else "no publisher"
        held = f"{row['slots_held']}/{row['slots']} held"
        age = _age(row["age_s"], row["age_unknown"])
        lines.append((row["stream"], f"({state})", f"{row['fps']:.1f}", "", "", age, held, "", ""))
        for subscriber in row["subscribers"]:
            latency_ms = subscriber["latency_ms"]
            lines.append(
                (
                    "",
                    subscriber["name"],
                    f"{subscriber['fps']:.1f}",
                    "" if latency_ms is None else f"{latency_ms:.2f} ms",
                    f"{subscriber['lag']} frames",
                    "",
                    f"{subscriber['leases']}/{subscriber['max_leases']}",
                    str(subscriber["skipped"]),
                    subscriber["wake"],
                )
            )
    return table(header, lines, columns())


def _write_notes(notes: Iterable[tuple[str, str]]) -> None:
    for name, reason in notes:
        for line in wrap(f"{name}: age unknown: {reason}", columns(), "  "):
            write(line + "\n")


def _write_unreadable(unreadable: Iterable[UnreadableStream]) -> None:
    for stream in unreadable:
        for line in wrap(f"{stream.name}: {stream.reason}", columns(), "  "):
            write(line + "\n")


def _publisher(stream: StreamInfo) -> str:
    return "live" if stream.live else "closed" if stream.state == "closed" else "gone"


def _living(stream: StreamInfo) -> int:
    return sum(subscriber.alive for subscriber in stream.subscribers)


def _describe(frame: FrameHeader | None) -> str:
    if frame is None:
        return "-"
    return f"{frame.width}x{frame.height}x{frame.channels} {np.dtype(frame.dtype).name} {frame.pixel_format}"


def _age(age_s: float | None, unknown: str = "") -> str:
    if age_s is None:
        return "unknown" if unknown else "-"
    return f"{age_s:.2f} s"
