"""Drawings of a ring's bytes, from framebus/ring/layout.py."""

from __future__ import annotations

import itertools
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from framebus.ring import frame_header, layout
from framebus.ring.frame_header import FrameHeader
from website.svg import MARK, MONO, PALE, Picture, figure

HEADER_NAMES: Final = (
    "magic", "version", "slots", "slot_bytes", "first_sequence", "epoch", "created_wall_ns", "max_loans",
)  # fmt: skip
LINE_BYTES: Final = 32
"""Bytes of one row of a drawing."""
CELL_PX: Final = 21.5
ROW_PX: Final = 34.0
LEFT_PX: Final = 46.0


@dataclass(frozen=True, slots=True)
class Field:
    """Some bytes with a name."""

    offset: int
    size: int
    name: str
    is_word: bool = False
    """Whether it may be read at any time, without a lock."""


def header_fields() -> list[Field]:
    """Return the fields of the header's page, in order."""
    words = [Field(layout.TAIL, 8, "tail", True), Field(layout.EVENT, 4, "event", True)]
    words.append(Field(layout.STATE, 4, "state", True))
    return [*_packed(0, layout.HEADER.format, HEADER_NAMES), *words]


def slot_fields() -> list[Field]:
    """Return the fields of a slot's header, in order."""
    names = FrameHeader._fields[:-1]  # the shape follows from the others
    numbers = _packed(layout.SLOT_FIELDS, f"<{frame_header.NUMBERS}", names[: len(frame_header.NUMBERS)])
    description = _packed(
        frame_header.SLOT_DESCRIPTION, frame_header.DESCRIPTION.format, names[len(frame_header.NUMBERS) :]
    )
    metadata = Field(layout.METADATA, layout.MAX_METADATA_BYTES, "metadata")
    return [Field(0, 8, "seq", True), *numbers, *description, metadata]


def drawing() -> str:
    """Return the drawings of the file, its header and a slot's header, as Markdown."""
    header = _rows("Header of the ring", header_fields(), layout.PAGE_BYTES)
    slot = _rows("Header of a slot", slot_fields(), layout.SLOT_HEADER_BYTES)
    return "\n".join(
        [
            figure(_file(), "The file of a ring with N slots, and the lock bytes far beyond its end."),
            figure(header, "The header, 32 bytes a row. Words with a coloured frame may be read without a lock."),
            figure(slot, "The header of a slot, to the same scale. All but seq is read under the slot's lock."),
        ]
    )


def _packed(offset: int, form: str, names: tuple[str, ...]) -> list[Field]:
    """Return the fields of a struct's format, which begins at ``offset``."""
    fields = []
    codes = re.findall(r"\d+s|[A-Za-z]", form)
    for code, name in zip(codes, names, strict=True):
        size = struct.calcsize(f"<{code}")
        fields.append(Field(offset, size, name))
        offset += size
    return fields


def _file() -> Picture:
    slots_begin = f"{layout.SLOT_TABLE} + {layout.SLOT_HEADER_BYTES} N, rounded up to {layout.PAGE_BYTES}"
    parts = (
        ("0", "header", "geometry, epoch; tail, event, state"),
        (f"{layout.SLOT_TABLE}", "header of slot 0", "seq, the frame's fields, metadata"),
        (f"{layout.SLOT_TABLE + layout.SLOT_HEADER_BYTES}", "headers of slots 1 to N - 1", ""),
        (slots_begin, "pixels of slot 0", "slot_bytes bytes, in whole pages"),
        ("then", "pixels of slots 1 to N - 1", ""),
        ("end of the file", "", ""),
        (f"{layout.LOCK_LIVE}", "lock byte: a publisher lives", "2^40"),
        (f"{layout.LOCK_SLOTS}", "lock bytes of the slots", "one each, for loans and leases"),
        (f"{layout.LOCK_SEATS}", "lock bytes of the seats", "one for each lease that is promised"),
    )
    picture = Picture(736, len(parts) * 34 + 10, "The parts of a ring's file")
    for index, (offset, name, meaning) in enumerate(parts):
        y = 6 + index * 34
        picture.text(290, y + 20, offset, size=12, anchor="end", ink=PALE, font=MONO)
        if name:
            picture.box(300, y, 200, 30, line=MARK if name.startswith("lock") else "currentColor")
            picture.text(310, y + 20, name)
            picture.text(510, y + 20, meaning, size=11, ink=PALE)
        else:
            picture.path(f"M300 {y + 15}H500", arrow=False, dashed=True)
    return picture


def _rows(title: str, fields: list[Field], total: int) -> Picture:
    """Draw fields byte by byte; rows that hold no beginning of a field are left out."""
    starts = sorted({field.offset // LINE_BYTES for field in fields})
    ends = {(field.offset + min(field.size, LINE_BYTES) - 1) // LINE_BYTES for field in fields}
    rows = sorted({*starts, *ends})
    gaps = sum(later - earlier > 1 for earlier, later in itertools.pairwise(rows))
    height = (len(rows) + 1) * ROW_PX + gaps * 14 + 8
    picture = Picture(LEFT_PX + LINE_BYTES * CELL_PX + 2, height, title)
    y, before = 4.0, -1
    for row in rows:
        if row - before > 1:
            y += 14
        _row(picture, y, row, fields)
        y, before = y + ROW_PX, row
    last = max(fields, key=lambda field: field.offset)
    rest = f"metadata, to {total - 1}" if last.name == "metadata" else f"zero, to {total - 1}"
    picture.text(LEFT_PX + 4, y + 20, f"… {rest}", size=12, ink=PALE)
    return picture


def _row(picture: Picture, y: float, row: int, fields: list[Field]) -> None:
    begin = row * LINE_BYTES
    picture.text(LEFT_PX - 8, y + 21, str(begin), size=12, anchor="end", ink=PALE, font=MONO)
    picture.path(f"M{LEFT_PX} {y + 30}h{LINE_BYTES * CELL_PX}", ink=PALE, width=0.5, arrow=False, dashed=True)
    for field, first, size in _parts(fields, begin):
        x, width = LEFT_PX + (first - begin) * CELL_PX, size * CELL_PX
        picture.box(x, y, width, 30, line=MARK if field.is_word else "currentColor")
        picture.lines(x + width / 2, y + 15, _label(field.name, width), size=11)


def _parts(fields: list[Field], begin: int) -> Iterator[tuple[Field, int, int]]:
    """Yield the fields that have bytes in the row, with the first of them and their number."""
    for field in fields:
        first, end = max(field.offset, begin), min(field.offset + field.size, begin + LINE_BYTES)
        if first < end:
            yield field, first, end - first


def _label(name: str, width_px: float) -> list[str]:
    if len(name) * 6.2 <= width_px or "_" not in name:
        return [name]
    head, _, tail = name.partition("_")
    return [f"{head}_", tail]
