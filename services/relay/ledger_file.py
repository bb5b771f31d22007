"""The ledger's file: its schema, its version, its lock, and transactions that are on the disk when they return.

Source: sqlite.org, "Write-Ahead Logging" and "PRAGMA synchronous".
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from services.common.service import ServiceError

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS epochs (epoch TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS frames (
  id INTEGER PRIMARY KEY AUTOINCREMENT, stream TEXT, epoch TEXT, sequence INTEGER, reference BLOB, address TEXT,
  size_bytes INTEGER, captured_wall_ns INTEGER, published INTEGER DEFAULT 0, UNIQUE (stream, epoch, sequence));
CREATE INDEX IF NOT EXISTS frames_waiting ON frames (published, id);
CREATE TABLE IF NOT EXISTS waiting (id INTEGER, consumers TEXT, PRIMARY KEY (id, consumers)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS missed (
  id INTEGER PRIMARY KEY AUTOINCREMENT, epoch TEXT, first INTEGER, last INTEGER, reason TEXT);
CREATE TABLE IF NOT EXISTS dead (address TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counts (name TEXT PRIMARY KEY, value INTEGER);
"""
VERSION: Final = 1
"""Version of the schema, in the file's ``user_version``. A new file has 0."""


class LedgerFull(ServiceError):
    """The disk is full. The transaction was rolled back."""


def open_file(path: Path | None) -> tuple[sqlite3.Connection, set[str], dict[str, int]]:
    """Open a ledger, or create it. Return its database, its epochs and its counts.

    Args:
        path: The file; ``None`` for a ledger in memory.

    Raises:
        ServiceError: The file is unusable, or another relay uses it.
    """
    try:
        # Without an isolation level, so that sqlite3 begins no transaction by itself. The ledger's lock serialises the
        # threads.
        database = sqlite3.connect(
            ":memory:" if path is None else path, timeout=1.0, isolation_level=None, check_same_thread=False
        )
        try:
            _set_up(database, path)
            epochs = {epoch for (epoch,) in database.execute("SELECT epoch FROM epochs")}
            counts = dict(database.execute("SELECT name, value FROM counts"))
        except BaseException:
            database.close()
            raise
    except sqlite3.OperationalError as error:
        reason = "another relay uses it: give each a folder of its own" if "locked" in str(error) else str(error)
        raise ServiceError(f"{path}: the ledger cannot be used: {reason}") from None
    except sqlite3.DatabaseError as error:
        raise ServiceError(f"{path} is damaged, or not a ledger: {error}: move it away") from None
    return database, epochs, counts


@contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """Change a database atomically.

    Raises:
        LedgerFull: The disk is full.
        ServiceError: The change is not possible.
    """
    try:
        database.execute("BEGIN IMMEDIATE")  # take the write lock now, not at the first change
        yield
        database.execute("COMMIT")
    except BaseException as error:
        if database.in_transaction:  # after some errors, such as a full disk, SQLite rolls back by itself
            database.execute("ROLLBACK")
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            raise LedgerFull("the relay's ledger cannot be written: the disk is full") from None
        if isinstance(error, sqlite3.Error):
            raise ServiceError(f"the relay's ledger cannot be written: {error}") from None
        raise


def _set_up(database: sqlite3.Connection, path: Path | None) -> None:
    # Lock out a second relay on the same spool, which would publish the same frames.
    database.execute("PRAGMA locking_mode = EXCLUSIVE")
    database.execute("PRAGMA journal_mode = WAL")
    # Ensure that a transaction is on the disk when it returns.
    database.execute("PRAGMA synchronous = FULL")
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version not in (0, VERSION):
        raise ServiceError(f"{path} is of version {version}, and only {VERSION} is understood: move it away")
    database.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;")
