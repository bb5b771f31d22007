"""A reader that is written from docs/spec.md alone reads the live streams of framebus."""

from __future__ import annotations

import ast
import fcntl
import os
import re
import stat
from collections.abc import Iterator
from typing import Final

import msgpack
import numpy as np
import pytest

from framebus import FrameFormat, NoFreeSlot, Publisher, Subscriber
from framebus.inspect.streams import inspect
from framebus.ring.admission import read_records
from tests.framebus import plain_reader
from tests.support import ROOT, SHM, files_of

SPEC: Final = (ROOT / "docs/spec.md").read_text()
FORMAT: Final = FrameFormat(4, 6, 3)


def test_the_reader_knows_nothing_of_framebus() -> None:
    source = (ROOT / "tests/framebus/plain_reader.py").read_text()
    imported = {
        name.partition(".")[0]
        for node in ast.walk(ast.parse(source))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported == {
        "__future__", "dataclasses", "fcntl", "math", "mmap", "os", "secrets", "socket", "stat", "struct", "time",
        "typing",
    }  # fmt: skip


@pytest.fixture
def publisher(stream: str, each_steps: None) -> Iterator[Publisher]:
    with Publisher(stream, FORMAT, slots=4, max_loans=2) as opened:
        yield opened


@pytest.fixture
def ring(stream: str, publisher: Publisher) -> Iterator[plain_reader.Ring]:
    opened = plain_reader.Ring(stream)
    yield opened
    opened.close()


def pin_all(ring: plain_reader.Ring) -> None:
    """Read-lock every slot, as no subscriber with its seats does."""
    for slot in range(4):
        assert plain_reader._lock(ring._fd, fcntl.F_RDLCK, plain_reader.SLOT + slot)


class TestReader:
    """A reader written from the page alone, and a publisher of framebus."""

    def test_the_reader_gets_pixels_metadata_and_sequence(self, publisher: Publisher, ring: plain_reader.Ring) -> None:
        assert ring.receive() is None
        for number in (1, 2):
            pixels = np.arange(72, dtype=np.uint8).reshape(4, 6, 3) + number
            metadata = {"number": number, "nested": {"a": [1.5, "b"]}}
            publisher.publish(
                pixels,
                captured_ns=10 * number,
                captured_wall_ns=-20 * number,
                metadata=metadata if number > 1 else None,
            )
            picture = ring.receive()
            assert picture is not None
            assert (picture.sequence, picture.epoch) == (number, publisher.statistics.epoch)
            assert (picture.captured_ns, picture.captured_wall_ns) == (10 * number, -20 * number)
            assert picture.published_ns > 0
            assert (picture.shape, picture.dtype, picture.pixel_format) == ((4, 6, 3), "|u1", "bgr")
            assert picture.pixels == pixels.tobytes()
            assert picture.metadata == (msgpack.packb(metadata) if number > 1 else b"")
            assert ring.receive() is None
        assert (ring.epoch, ring.first_sequence, ring.state) == (publisher.statistics.epoch, 1, 1)

    @pytest.mark.parametrize(
        "other",
        [
            FrameFormat(4, 6, None, "float32", "depth") , FrameFormat(4, 6, 2, "int16", "flow", planar=True),
            FrameFormat(4, 6, 3, pixel_format="nv12"), FrameFormat(4, 6, 3, pixel_format="i420"),
            FrameFormat(2, 2, 2, "float64", "sixteen letters!"),
        ],
    )  # fmt: skip
    def test_the_reader_reads_every_arrangement(
        self, publisher: Publisher, ring: plain_reader.Ring, other: FrameFormat
    ) -> None:
        loan = publisher.loan(other)
        loan.pixels[:] = np.random.default_rng(7).integers(0, 99, other.shape)
        expected = loan.pixels.tobytes()
        loan.publish()
        picture = ring.receive()
        assert picture is not None
        assert (picture.shape, picture.dtype, picture.pixel_format) == (other.shape, other.typestr, other.pixel_format)
        assert picture.pixels == expected

    def test_a_lease_of_the_reader_keeps_the_slot_and_ends(self, publisher: Publisher, ring: plain_reader.Ring) -> None:
        publisher.publish(np.full((4, 6, 3), 1, np.uint8))
        slot = ring.lease()
        assert slot is not None
        assert slot >= 0
        event = ring.event
        for value in range(2, 12):
            publisher.publish(np.full((4, 6, 3), value, np.uint8))
        assert ring.event == event + 10
        assert ring.read(slot).pixels == bytes([1]) * 72
        loans = [publisher.loan(), publisher.loan()]
        assert slot not in [loan._claim.slot for loan in loans]
        for loan in loans:
            loan.abandon()
        ring.release(slot)
        used = set()
        for _ in range(4):
            loan = publisher.loan()
            used.add(loan._claim.slot)
            loan.publish()
        assert used == {0, 1, 2, 3}
        picture = ring.receive()
        assert picture is not None
        assert picture.sequence == 15

    def test_the_readers_locks_conflict_with_the_publishers(
        self, publisher: Publisher, ring: plain_reader.Ring
    ) -> None:
        publisher.publish(np.zeros((4, 6, 3), np.uint8))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ring, "word", lambda *_: 1 << 8)  # slot 0 of sequence 1, whatever it is
            held = publisher.loan()
            patch.setattr(ring, "word", lambda *_: 1 << 8 | held._claim.slot)
            assert ring.lease() == -1, "a loan is write-locked"
        held.abandon()
        pin_all(ring)
        with pytest.raises(NoFreeSlot):
            publisher.loan()

    @pytest.mark.usefixtures("publisher")
    def test_the_readers_seat_counts(self, stream: str, ring: plain_reader.Ring) -> None:
        assert ring.seat == 0
        with pytest.raises(plain_reader.NotReadable, match="no seat"):
            plain_reader.Ring(stream)
        told = inspect(stream)
        assert (told.seats_taken, told.seats) == (1, 1)

    def test_the_reader_reads_frames_in_order(self, stream: str, publisher: Publisher) -> None:
        ring = plain_reader.Ring(stream, in_order=True)
        for first in (1, 3):
            for value in (first, first + 1):
                publisher.publish(np.full((4, 6, 3), value, np.uint8))
            for value in (first, first + 1):
                picture = ring.receive()
                assert picture is not None
                assert (picture.sequence, picture.pixels[0]) == (value, value)
            assert ring.receive() is None
        for value in range(5, 11):
            publisher.publish(np.full((4, 6, 3), value, np.uint8))
        picture = ring.receive()
        ring.close()
        assert picture is not None
        assert picture.sequence == 7, "four slots hold the last four"

    def test_an_adopted_ring_continues(self, stream: str, each_steps: None) -> None:
        with Publisher(stream, FORMAT, keep_ring=True) as first:
            first.publish(np.full((4, 6, 3), 1, np.uint8))
            ring = plain_reader.Ring(stream)
        assert (ring.state, ring.is_live(), ring.is_current()) == (2, False, True)
        event = ring.event
        with Publisher(stream, FORMAT) as second:
            assert second.statistics.adopted
            assert (ring.state, ring.is_live(), ring.is_current()) == (1, True, True)
            assert ring.event == event + 1
            for sequence, epoch in ((1, first.statistics.epoch), (2, second.statistics.epoch)):
                picture = ring.receive()
                assert picture is not None
                assert (picture.sequence, picture.epoch) == (sequence, epoch)
                second.publish(np.full((4, 6, 3), sequence + 1, np.uint8))
            ring.close()

    def test_the_files_are_as_the_page_says(self, stream: str, publisher: Publisher) -> None:
        rows = re.findall(r"^\| `framebus\.NAME\.(\S+)` \| (\d+) \|", SPEC, re.MULTILINE)
        modes = {name: int(mode, 8) for name, mode in rows}
        publisher.publish(np.zeros((4, 6, 3), np.uint8))
        with Subscriber(stream, name="one", mode="every", wake="futex", max_leases=1) as subscriber:
            frame = subscriber.receive(10)
            (record,) = (name for name in files_of(stream) if ".sub." in name)
            assert re.fullmatch(rf"framebus\.{stream}\.sub\.[0-9a-f]{{16}}", record)
            found = {name.removeprefix(f"framebus.{stream}."): (SHM / name).stat() for name in files_of(stream)}
            found["sub.ID"] = found.pop(record.removeprefix(f"framebus.{stream}."))
            assert {name: stat.S_IMODE(status.st_mode) for name, status in found.items()} == {
                name: modes[name] for name in ("lock", "ring", "sock", "sub.ID")
            }
            assert stat.S_ISSOCK(found["sock"].st_mode)
            assert {(status.st_uid, status.st_gid) for status in found.values()} == {(os.geteuid(), os.getegid())}
            assert plain_reader.is_locked(f"/dev/shm/framebus.{stream}.lock")
            told, is_live = plain_reader.read_record(str(SHM / record))
            assert is_live
            assert told == {
                "name": "one", "mode": "every", "wake": "futex", "max_leases": 1,
                "received": 1, "skipped": 0, "sequence": frame.sequence, "leases": 1,
            }  # fmt: skip
            frame.release()

    def test_the_reader_sees_the_end_of_the_stream(self, publisher: Publisher, ring: plain_reader.Ring) -> None:
        assert ring.is_live()
        event = ring.event
        publisher.close()
        assert not ring.is_live()
        assert (ring.state, ring.event) == (2, event + 1)

    def test_a_ring_whose_slots_are_pinned_is_superseded(
        self, stream: str, publisher: Publisher, ring: plain_reader.Ring
    ) -> None:
        publisher.publish(np.zeros((4, 6, 3), np.uint8))
        pin_all(ring)
        assert publisher.publish(np.ones((4, 6, 3), np.uint8), timeout_s=60) == 2
        assert ring.state == 3
        assert not ring.is_live()
        following = plain_reader.Ring(stream)
        assert (following.first_sequence, following.epoch, following.state) == (2, ring.epoch, 1)
        picture = following.receive()
        following.close()
        assert picture is not None
        assert (picture.sequence, picture.pixels) == (2, bytes([1]) * 72)

    @pytest.mark.usefixtures("publisher")
    def test_the_readers_record_is_shown(self, stream: str) -> None:
        written = plain_reader.Record(stream, "spec-reader")
        written.count(5, 9)
        ((path, told, is_alive),) = read_records(stream)
        assert is_alive
        assert path.parent == SHM
        assert told is not None
        assert (told.name, told.mode, told.wake, told.max_leases) == ("spec-reader", "newest", "plain", 1)
        assert (told.received, told.skipped, told.sequence, told.leases) == (5, 0, 9, 1)
        written.close()
        assert not [name for name in files_of(stream) if ".sub." in name]

    def test_the_reader_is_notified(self, stream: str, publisher: Publisher, ring: plain_reader.Ring) -> None:
        listener = plain_reader.Notifications(stream, 10.0)
        publisher.loan().abandon()  # polls: accepts, and greets
        listener.subscribe()
        publisher.loan().abandon()  # polls: takes the subscription
        sequence = publisher.publish(np.zeros((4, 6, 3), np.uint8), captured_ns=-3)
        content = listener.receive()
        listener.close()
        picture = ring.receive()
        assert picture is not None
        assert content.startswith(b"\x9b" + msgpack.packb(stream))
        assert msgpack.unpackb(content) == [
            stream, ring.epoch, sequence, picture.slot, 4, 6, 3, "|u1", "bgr", -3, picture.published_ns,
        ]  # fmt: skip
