"""docs/spec.md: each of its tables is what the code does, and nothing of the code's layout is left out of them."""

from __future__ import annotations

import re
import struct
from typing import Final, NamedTuple

import msgpack
import pytest

from framebus.errors import InvalidName
from framebus.notify import server, zmtp
from framebus.notify.notification import notification_message, topic
from framebus.ring import frame_header, layout, record, words
from framebus.ring.admission import UNFINISHED
from framebus.ring.frame_header import Arrangement, Description, FrameHeader
from framebus.ring.layout import Geometry, RingHeader
from framebus.ring.record import SubscriberRecord
from framebus.shm import locks, segment
from framebus.shm.paths import check_name
from tests.support import ROOT

SPEC: Final = (ROOT / "docs/spec.md").read_text()
CODES: Final = {"u32": "I", "u64": "Q", "i64": "q"}
TYPES: Final = {"I": ("u32", 4), "Q": ("u64", 8), "q": ("i64", 8)}


def tables(heading: str) -> list[list[list[str]]]:
    """Return the tables of a section, each as its rows below the head, each row as its cells."""
    section = re.split(rf"^##+ {re.escape(heading)}$", SPEC, flags=re.MULTILINE)[1]
    section = re.split(r"^##+ ", section, flags=re.MULTILINE)[0]
    found = re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE)
    return [
        [[cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]
        for table in found
        if (lines := table.splitlines())
    ]


class Field(NamedTuple):
    """A row of a table of bytes."""

    offset: int
    size: int
    type: str
    name: str


def fields(heading: str) -> list[Field]:
    """Return the rows of the table of bytes in a section."""
    return [Field(int(row[0]), int(row[1]), row[2], row[3]) for row in tables(heading)[0]]


def packed(names: list[str], *formats: tuple[int, str]) -> list[Field]:
    """Return the fields that structs of these offsets and formats have, in order."""
    found = []
    for start, form in formats:
        at = start
        for count, code in re.findall(r"(\d*)([IQqs])", form):
            name, size = (f"char[{count}]", int(count)) if code == "s" else TYPES[code]
            found.append((at, size, name))
            at += size
        assert at == start + struct.calcsize(form)
    return [Field(*place, name) for place, name in zip(found, names, strict=True)]


def value_of(field: Field, content: bytes, start: int = 0) -> int | str:
    """Return the value of a field as its type says."""
    raw = content[start + field.offset : start + field.offset + field.size]
    if field.type.startswith("char"):
        return raw.rstrip(b"\0").decode()
    found: int = struct.unpack(f"<{CODES[field.type]}", raw)[0]
    return found


def limit(name: str) -> int:
    """Return a number of the table of limits."""
    return {row[0]: int(row[1]) for row in tables("The ring")[0]}[name]


class TestTables:
    """What the tables say is what the constants and structs of the code are, and nothing of these is left out."""

    def test_every_number_of_the_layout_is_in_the_tables(self) -> None:
        header, slot = {f.name: f for f in fields("Ring header")}, {f.name: f for f in fields("Slot headers")}
        word = {f.name: f for f in fields("Words")}
        states = {row[1]: int(row[0]) for row in tables("Words")[1]}
        lock_bytes = {row[1]: int(row[0].partition(" ")[0]) for row in tables("Locks")[0]}
        specified = {
            "VERSION": int(re.findall(r"version (\d+) of the format", SPEC)[0]),
            "PAGE_BYTES": limit("page"),
            "MIN_SLOTS": limit("least slots"),
            "MAX_SLOTS": limit("most slots"),
            "MAX_LOANS": limit("most loans"),
            "MAX_RING_BYTES": limit("most bytes"),
            "MAX_SEQUENCE": limit("most sequence"),
            "TAIL": word["tail"].offset,
            "EVENT": word["event"].offset,
            "STATE": word["state"].offset,
            "OPEN": states["open"],
            "CLOSED": states["closed"],
            "SUPERSEDED": states["superseded"],
            "SLOT_TABLE": limit("slot table"),
            "SLOT_HEADER_BYTES": limit("slot header"),
            "SLOT_FIELDS": slot["epoch"].offset,
            "METADATA": slot["metadata"].offset,
            "MAX_METADATA_BYTES": slot["metadata"].size,
            "LOCK_LIVE": lock_bytes["live"],
            "LOCK_SLOTS": lock_bytes["slot i"],
            "LOCK_SEATS": lock_bytes["seat k"],
        }
        assert specified == {
            name: value for name, value in vars(layout).items() if name.isupper() and type(value) is int
        }
        assert len(word) == len(states) == len(lock_bytes) == 3
        assert header["version"].offset == len(layout.MAGIC)

    def test_the_table_of_the_ring_header_matches_the_code(self) -> None:
        names = ["magic", "version", "slots", "slot_bytes", "first_sequence", "epoch", "created_wall_ns", "max_loans"]
        assert fields("Ring header") == packed(names, (0, layout.HEADER.format))
        ring = RingHeader(Geometry(9, 8192, 4), 5, 6, 7)
        told = {field.name: value_of(field, ring.pack()) for field in fields("Ring header")}
        assert (told.pop("magic"), told.pop("version")) == (layout.MAGIC.decode(), layout.VERSION)
        for name, value in told.items():
            assert value == getattr(ring, name, None) or value == getattr(ring.geometry, name, None), name
        assert sorted(told.values(), key=int) == [4, 5, 6, 7, 9, 8192]

    def test_the_table_of_words_matches_the_code(self) -> None:
        assert fields("Words") == [
            Field(layout.TAIL, 8, "u64", "tail"),
            Field(layout.EVENT, 4, "u32", "event"),
            Field(layout.STATE, 4, "u32", "state"),
        ]

    def test_the_table_of_the_slot_header_matches_the_code(self) -> None:
        seq, *packed_fields, metadata = fields("Slot headers")
        names = list(FrameHeader._fields[:-1])  # the shape follows from the others
        head = frame_header.SLOT.format.rpartition(str(frame_header.DESCRIPTION.size))[0]
        assert packed_fields == packed(
            names,
            (layout.SLOT_FIELDS, head),
            (frame_header.SLOT_DESCRIPTION, frame_header.DESCRIPTION.format),
        )
        assert seq == Field(0, 8, "u64", "seq")
        assert metadata == Field(layout.METADATA, layout.MAX_METADATA_BYTES, "u8[832]", "metadata")
        assert metadata.offset + metadata.size == layout.SLOT_HEADER_BYTES
        (metadata_bytes,) = (field for field in packed_fields if field.name == "metadata_bytes")
        assert metadata_bytes.offset == frame_header.METADATA_BYTES
        described = Description(3, 5, 7, "<u2", "odd", Arrangement.PLANAR).pack()
        content = bytes(layout.SLOT_FIELDS) + struct.pack("<QQqqq", 11, 12, -13, 14, 15) + described
        header = FrameHeader.unpack_from(content, 0, layout.PAGE_BYTES)
        assert {field.name: value_of(field, content) for field in packed_fields} == {
            name: getattr(header, name) for name in names
        }

    def test_the_table_of_the_subscriber_record_matches_the_code(self) -> None:
        names = ["magic", "version", "max_leases", "since_wall_ns", "name", "mode", "wake"]
        names += list(SubscriberRecord.__dataclass_fields__)[-record.RECORD_COUNTERS :]
        table = fields("Subscriber records")
        counters = (record.RECORD_RECEIVED, record.RECORD_WORDS.format.replace("6Q", "QQQQQQ"))
        assert table == packed(names, (0, record.RECORD.format), counters)
        told = SubscriberRecord("viewer", "every", "futex", 3, 4, 5, 6, 7, 8, 9, 10)
        content = told.pack().ljust(record.RECORD_RECEIVED, b"\0") + struct.pack("<6Q", 5, 6, 7, 8, 9, 10)
        values = {field.name: value_of(field, content) for field in table}
        assert (values.pop("magic"), values.pop("version")) == (record.RECORD_MAGIC.decode(), layout.VERSION)
        assert values == {name: getattr(told, name) for name in values}
        assert set(values) == set(SubscriberRecord.__dataclass_fields__)
        assert re.findall(r"The file has (\d+)\s+bytes", SPEC) == [str(record.RECORD_BYTES)]

    def test_fields_are_aligned_and_do_not_overlap(self) -> None:
        for heading in ("Ring header", "Words", "Slot headers", "Subscriber records"):
            end = 0
            for field in fields(heading):
                assert field.offset >= end, field
                assert field.type[0] not in "ui" or field.type.startswith("u8") or field.offset % field.size == 0, field
                end = field.offset + field.size

    def test_the_tables_of_arrangements_and_types_match_the_code(self) -> None:
        arrangements, types = tables("Pixels")
        assert {int(code): name for code, name, _ in arrangements} == {
            one.value: one.name.lower() for one in Arrangement
        }
        for code, _, shape in arrangements:
            written = re.match(r"\(.*?\)", shape)
            assert written is not None
            meant = eval(written[0].replace("/", "//"), {"height": 6, "width": 4, "channels": 3})
            assert meant == Arrangement(int(code)).shape(6, 4, 3)
        assert {name.strip("`"): int(size) for name, size, _ in types} == frame_header.DTYPES

    def test_the_table_of_files_matches_the_code(self) -> None:
        rows = {
            row[0].strip("`").removeprefix("framebus.NAME."): (int(row[1], 8), row[2]) for row in tables("Files")[0]
        }
        assert rows == {
            "lock": (locks.LOCK_MODE, "publisher"),
            "ring": (segment.RING_MODE, "publisher"),
            "ring.ID": (segment.RING_MODE, "publisher"),
            "sock": (server.SOCKET_MODE, "publisher"),
            "sub.ID": (segment.RING_MODE, "subscriber"),
            f"sub.ID{UNFINISHED}": (segment.RING_MODE, "subscriber"),
        }

    def test_the_steps_of_the_page_are_those_of_the_code(self) -> None:
        rows = tables("The steps")[0]
        for side, letter, count in ((0, "P", 8), (1, "R", 6)):
            written = [row[side] for row in rows if row[side]]
            assert [step.split(".")[0] for step in written] == [f"{letter}{number}" for number in range(1, count + 1)]

    @pytest.mark.parametrize("large", [False, True])
    def test_the_table_of_the_notification_matches_the_code(self, large: bool) -> None:
        rows = tables("Notifications")[-1]
        assert [int(row[0]) for row in rows] == list(range(len(rows)))
        side = 70_000 if large else 2
        described = Description(side, side, 3, "|u1", "bgr")
        message = notification_message("a-stream", 1 << 52, described)
        content = message.render(9, 4, -5, 6)[zmtp.FRAME_HEADER_BYTES :]
        told = dict(zip([row[2] for row in rows], msgpack.unpackb(content), strict=True))
        assert told == {
            "stream": "a-stream", "epoch": 1 << 52, "sequence": 9, "slot": 4, "captured_ns": -5, "published_ns": 6,
            **{name: getattr(described, name) for name in ("height", "width", "channels", "dtype", "pixel_format")},
        }  # fmt: skip
        marks = {"uint 64": b"\xcf", "uint 8": b"\xcc", "int 64": b"\xd3"}
        expected = bytes([0x90 | len(rows)])
        for _, encoding, name, *_ in rows:
            if encoding in marks:
                bits = int(encoding.rpartition(" ")[2])
                expected += marks[encoding] + (told[name] % (1 << bits)).to_bytes(bits // 8, "big")
            else:
                expected += msgpack.packb(told[name])
        assert content == expected
        assert content.startswith(topic("a-stream"))
        assert f"the byte `{topic('a-stream')[:1].hex()}`" in SPEC


def test_bounds_in_words_are_those_of_the_tables() -> None:
    for pattern, expected in (
        (r"u32 \| version \| (\d+) \|", [layout.VERSION] * 2),
        (r"number of slots, (\d+) to", [layout.MIN_SLOTS]),
        (r"number of slots, \d+ to (\d+)", [layout.MAX_SLOTS]),
        (r"positive multiple of (\d+)", [layout.PAGE_BYTES]),
        (r"size of the metadata, 0 to (\d+)", [layout.MAX_METADATA_BYTES]),
        (r"metadata_bytes is at\s+most (\d+)", [layout.MAX_METADATA_BYTES]),
        (r"has at least (\d+) bytes", [layout.PAGE_BYTES]),
        (r"byte of slot (\d+) belongs to no slot", [words.NO_SLOT]),
        (r"NAME is 1 to (\d+) ASCII letters", [48]),
    ):
        assert [int(found) for found in re.findall(pattern, SPEC)] == expected, pattern
    powers = re.findall(r"That is (2\^40), (2\^40 \+ \d+) and (2\^40 \+ \d+)\.", SPEC)[0]
    assert [eval(power.replace("^", "**")) for power in powers] == [
        layout.LOCK_LIVE,
        layout.LOCK_SLOTS,
        layout.LOCK_SEATS,
    ]
    assert check_name("a" * 48)
    with pytest.raises(InvalidName):
        check_name("a" * 49)


def joined(cell: str) -> bytes:
    """Return the bytes that a cell of the table of the handshake stands for."""
    content = b""
    for part in cell.split(" || "):
        if zeros := re.fullmatch(r"(\d+) zero bytes", part):
            content += bytes(int(zeros[1]))
            continue
        piece = b""
        for token in re.findall(r"`([^`]*)`", part):
            piece += bytes.fromhex(token) if re.fullmatch(r"[0-9a-f]{2}( [0-9a-f]{2})*", token) else token.encode()
        padded = re.search(r"NUL-padded to (\d+)", part)
        content += piece.ljust(int(padded[1]) if padded else 0, b"\0")
    return content


def test_the_table_of_the_handshake_matches_the_bytes() -> None:
    greeting, publisher, subscriber, subscription = [
        (who, joined(content)) for who, content, *_ in tables("Notifications")[0]
    ]
    assert greeting == ("both", zmtp.GREETING)
    assert publisher == ("publisher", zmtp.hello(b"XPUB")[zmtp.GREETING_BYTES :])
    assert subscriber == ("subscriber", zmtp.hello(b"SUB")[zmtp.GREETING_BYTES :])
    assert subscription == ("subscriber", zmtp.SUBSCRIBE_TO_ALL)
    assert len(tables("Notifications")[0]) == 4


def test_every_link_of_the_page_leads_somewhere() -> None:
    anchors = [heading.lower().replace(" ", "-") for heading in re.findall(r"^##+ (.*)$", SPEC, re.MULTILINE)]
    links = re.findall(r"\]\(([^)]+)\)", SPEC)
    assert len(links) > 20
    for link in links:
        if link.startswith("#"):
            assert link[1:] in anchors
        else:
            assert (ROOT / "docs" / link).exists(), link
