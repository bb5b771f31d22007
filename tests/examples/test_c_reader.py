"""The reader in C with a live publisher: its output, and the effect of its lease."""

from __future__ import annotations

import fcntl
import itertools
import os
import re
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Final

import numpy as np
import pytest

from framebus import FrameFormat, NoFreeSlot, Publisher, streams
from tests.examples.runs import page
from tests.examples.terminals import Desk, Terminal, blocks, has_compiler, terminal_commands
from tests.support import ROOT, lacks, wait_until

pytestmark = pytest.mark.slow

FOLDER: Final = ROOT / "examples/c-reader"
FORMAT: Final = FrameFormat(64, 64)
SLOTS: Final = 4
LINE: Final = re.compile(r"frame (\d+): 64x64x3 \|u1 bgr, sum (\d+), skipped (\d+)(?:, (unchanged|changed))?")
LEASE: Final = "if (!set_lock(fd, F_RDLCK, SLOT(slot))) continue;"
Build = Callable[[str], Path]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Return a function that builds the reader from a source text with the example's Makefile; warnings are errors."""
    if not has_compiler():
        lacks("no C compiler with make here: apt-get install gcc libc6-dev make")

    def build_from(source: str) -> Path:
        folder = tmp_path_factory.mktemp("c-reader")
        shutil.copy(FOLDER / "Makefile", folder)
        (folder / "reader.c").write_text(source)
        done = subprocess.run(
            ["make", "-C", str(folder), "CFLAGS=-O2 -Werror -std=c11 -Wall -Wextra -Wpedantic"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return folder / "reader"

    return build_from


@pytest.fixture(scope="module")
def reader(build: Build) -> Path:
    """Return the reader, built from its own source."""
    return build((FOLDER / "reader.c").read_text())


@contextmanager
def publishing(stream: str) -> Iterator[Publisher]:
    """Publish frames without a pause, each of one value, in a thread."""
    ended, opened = Event(), Event()
    publishers: list[Publisher] = []

    def run() -> None:
        with Publisher(stream, FORMAT, slots=SLOTS) as publisher:
            publishers.append(publisher)
            picture = np.zeros(FORMAT.shape, np.uint8)
            while not ended.is_set():
                picture[:] = (publisher.statistics.sequence + 1) % 251
                with suppress(NoFreeSlot):
                    publisher.publish(picture)
                opened.set()
                ended.wait(0.001)

    thread = Thread(target=run)
    thread.start()
    try:
        assert opened.wait(30)
        yield publishers[0]
    finally:
        ended.set()
        thread.join()


def value_of(sequence: int) -> int:
    """Return the sum of the bytes of a frame."""
    return 64 * 64 * 3 * (sequence % 251)


def check(lines: list[str], word: str | None) -> list[int]:
    """Check each line against the frame that it names, and return the sequences."""
    sequences: list[int] = []
    for line in lines:
        found = LINE.fullmatch(line)
        assert found is not None, line
        sequence, total, skipped = map(int, found.groups()[:3])
        assert total == value_of(sequence)
        assert skipped == (sequence - sequences[-1] - 1 if sequences else 0)
        assert found[4] == word
        sequences.append(sequence)
    assert sequences == sorted(set(sequences))
    return sequences


def test_the_reader_prints_the_publishers_frames_and_ends_with_it(reader: Path, stream: str, desk: Desk) -> None:
    with publishing(stream):
        terminal = desk.open(f"{reader} {stream}")
        lines = terminal.lines(20)
    *more, last = terminal.ended()[0].splitlines()
    check(lines + more, None)
    assert last == "the publisher is gone"


def test_ctrl_c_ends_the_reader_and_frees_its_seat(reader: Path, stream: str, desk: Desk) -> None:
    def seats() -> int:
        (info,) = (one for one in streams() if one.name == stream)
        return info.seats_taken

    with publishing(stream):
        terminal = desk.open(f"{reader} {stream}")
        terminal.line()
        assert seats() == 1
        terminal.interrupt()
        assert seats() == 0


def test_the_publisher_does_not_overwrite_a_leased_slot(reader: Path, stream: str, desk: Desk) -> None:
    with publishing(stream) as publisher:
        terminal = desk.open(f"{reader} {stream} 200")
        sequences = check(terminal.lines(4), "unchanged")
        # The publisher went around the ring several times while each frame was held, and dropped none.
        assert all(later - earlier > 3 * SLOTS for earlier, later in itertools.pairwise(sequences))
        assert publisher.statistics.dropped == 0
        terminal.interrupt()


def test_without_the_lease_the_slot_is_overwritten(build: Build, stream: str, desk: Desk) -> None:
    # What the test above would find for a reader that takes no lease.
    source = (FOLDER / "reader.c").read_text()
    assert source.count(LEASE) == 1
    broken = build(source.replace(LEASE, ""))
    with publishing(stream):
        terminal = desk.open(f"{broken} {stream} 200")
        assert any(line.endswith(", changed") for line in terminal.lines(3))
        terminal.interrupt()


@contextmanager
def pinning_all_slots(stream: str) -> Iterator[None]:
    """Read-lock all slots of the ring without a seat, as no honest subscriber does."""
    descriptor = os.open(f"/dev/shm/framebus.{stream}.ring", os.O_RDONLY)
    try:
        for slot in range(SLOTS):
            lock = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, (1 << 40) + 256 + slot, 1, 0)
            wait_until(lambda lock=lock: locked(descriptor, lock), "the lock of a slot")  # type: ignore[misc]
        yield
    finally:
        os.close(descriptor)


def locked(descriptor: int, lock: bytes) -> bool:
    """Take a lock, unless another description holds one that conflicts."""
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, lock)
    except BlockingIOError:
        return False
    return True


def test_the_reader_follows_to_the_ring_that_supersedes_the_first(reader: Path, stream: str, desk: Desk) -> None:
    with publishing(stream) as publisher:
        terminal = desk.open(f"{reader} {stream}")
        lines = terminal.lines(3)
        with pinning_all_slots(stream):
            wait_until(lambda: publisher.statistics.replaced, "another ring")
            newest = publisher.statistics.sequence
            while int(lines[-1].split()[1].rstrip(":")) <= newest:
                lines.append(terminal.line())
        terminal.interrupt()
    check(lines, None)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("no-such-stream", "no such stream, or not for this user"),
        ("a/b", "a stream's name is letters, digits, '-' and '_'"),
        ("", "usage: reader STREAM [HOLD_MS]"),
    ],
)
def test_a_wrong_call_prints_one_sentence(reader: Path, arguments: str, sentence: str, desk: Desk) -> None:
    assert desk.open(f"{reader} {arguments}").ended(status=1) == ("", f"reader: {sentence}\n")


def test_a_ring_without_a_free_seat_refuses_the_reader(reader: Path, stream: str, desk: Desk) -> None:
    with publishing(stream):  # four slots: two seats
        held: list[Terminal] = [desk.open(f"{reader} {stream}") for _ in range(2)]
        for terminal in held:
            terminal.line()
        _, errors = desk.open(f"{reader} {stream}").ended(status=1)
        assert errors == "reader: no seat is free: close a subscriber, or give the ring more slots\n"


def test_the_reader_rejects_a_damaged_ring(reader: Path, stream: str, desk: Desk) -> None:
    path = Path(f"/dev/shm/framebus.{stream}.ring")
    with publishing(stream) as publisher:
        wait_until(lambda: publisher.statistics.sequence > 3, "a few frames")
        with path.open("r+b") as ring:
            ring.seek(12)
            ring.write((200).to_bytes(4, "little"))
        _, errors = desk.open(f"{reader} {stream}").ended(status=1)
    assert errors == "reader: the ring is damaged\n"


def test_the_commands_of_the_readers_page_work(reader: Path, desk: Desk) -> None:
    (build_command,) = (block.strip() for block in blocks(page("c-reader"), "sh") if block.startswith("make"))
    assert build_command == "make -C examples/c-reader"
    publish, read = terminal_commands(page("c-reader"))
    publisher = desk.open(publish, "camera")
    publisher.line()
    assert read.startswith("examples/c-reader/reader ")
    terminal = desk.open(read.replace("examples/c-reader/reader", str(reader)), "camera")
    # A column of white.
    assert all(f"720x1280x3 |u1 bgr, sum {720 * 3 * 255}, " in line for line in terminal.lines(5))
    terminal.interrupt()
    publisher.interrupt()
