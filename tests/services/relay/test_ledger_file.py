"""The ledger's file belongs to one relay and one version, and every fault is reported in one sentence."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from services.common.service import ServiceError
from services.relay.ledger import Ledger
from services.relay.ledger_file import VERSION

ONE = ("detector",)


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
