"""The state that a detector leaves to its successor: read as a whole or not at all, and never in the way."""

from __future__ import annotations

import os
from pathlib import Path

import msgpack
import pytest
from structlog.testing import capture_logs

from framebus import companion_path
from services.detector.memory import MAX_BYTES, Memory
from tests.support import files_of

STATE = {"labels": ["person"], "frame": [688, 4896, 7]}


def test_the_last_saved_state_is_loaded(stream: str) -> None:
    memory = Memory(stream, "day")
    assert memory.load() is None
    for number in range(3):
        memory.save({**STATE, "tracker": number})
    assert Memory(stream, "day").load() == {"version": 1, **STATE, "tracker": 2}
    assert Memory(stream, "night").load() is None
    assert files_of(stream) == [f"framebus.{stream}.state.day"]
    assert memory.path.stat().st_mode & 0o777 == 0o600


def test_a_detector_killed_while_saving_does_not_block_its_successor(stream: str) -> None:
    companion_path(stream, "state.day.new").write_bytes(b"half")
    memory = Memory(stream, "day")
    memory.save(STATE)
    assert memory.load() == {"version": 1, **STATE}
    assert files_of(stream) == [f"framebus.{stream}.state.day"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"half a messa",
        msgpack.packb(3),
        msgpack.packb({"version": 2, **STATE}),
        msgpack.packb(STATE),
        b"\xc1",
        b"\x91" * 3000,
        bytes(MAX_BYTES + 1),
    ],
)
def test_an_invalid_state_file_is_ignored(stream: str, content: bytes) -> None:
    memory = Memory(stream, "day")
    memory.path.write_bytes(content)
    assert memory.load() is None


def test_a_symbolic_link_is_not_followed(stream: str, tmp_path: Path) -> None:
    memory = Memory(stream, "day")
    memory.save(STATE)
    (tmp_path / "elsewhere").write_bytes(msgpack.packb({"version": 1, **STATE}))
    memory.path.unlink()
    memory.path.symlink_to(tmp_path / "elsewhere")
    assert memory.load() is None
    memory.save(STATE)
    assert not memory.path.is_symlink()
    assert memory.load() == {"version": 1, **STATE}


@pytest.mark.root
def test_the_state_of_another_user_is_not_read(stream: str) -> None:
    memory = Memory(stream, "day")
    memory.save(STATE)
    os.chown(memory.path, 54321, 54321)
    assert memory.load() is None


def test_a_failure_to_save_is_logged_once(stream: str) -> None:
    memory = Memory(stream, "day")
    memory.path.mkdir()
    with capture_logs() as logs:
        memory.save(STATE)
        memory.save(STATE)
    (told,) = logs
    assert (told["event"], told["log_level"]) == ("tracks not kept", "warning")
    assert memory.load() is None
    memory.path.rmdir()
