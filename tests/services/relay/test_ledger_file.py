"""The ledger's file: of one relay, of one version, and every fault told in a sentence."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from services.common.service import ServiceError
from services.relay.ledger import Ledger
from services.relay.ledger_file import VERSION
from tests.services.relay.frames import frame

ONE = ("detector",)


def test_a_second_relay_on_one_ledger_is_refused(tmp_path: Path) -> None:
    with closing(Ledger(tmp_path / "ledger", ONE)) as ledger:
        ledger.accept(frame(1))
        with pytest.raises(ServiceError, match="another relay uses it: give each a folder of its own") as caught:
            Ledger(tmp_path / "ledger", ONE)
        assert "\n" not in str(caught.value)
        ledger.accept(frame(2))


@pytest.mark.parametrize("content", [b"not a database" * 1000, b"SQLite format 3\0" + b"\xff" * 8000])
def test_a_damaged_file_is_reported(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ledger").write_bytes(content)
    with pytest.raises(ServiceError, match=r"ledger is damaged, or not a ledger: .*: move it away") as caught:
        Ledger(tmp_path / "ledger", ONE)
    assert "\n" not in str(caught.value)


def test_a_missing_folder_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="the ledger cannot be used: unable to open"):
        Ledger(tmp_path / "missing" / "ledger", ONE)


def test_a_ledger_of_another_version_is_reported(tmp_path: Path) -> None:
    with closing(Ledger(tmp_path / "ledger", ONE)):
        pass
    with closing(sqlite3.connect(tmp_path / "ledger")) as database:
        database.execute(f"PRAGMA user_version = {VERSION + 1}")
    with pytest.raises(ServiceError, match=f"of version {VERSION + 1}, and only {VERSION} is understood: move it away"):
        Ledger(tmp_path / "ledger", ONE)
