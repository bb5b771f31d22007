"""What has become of each frame: which were accepted, which were missed and why, and which still wait.

The ledger is a SQLite database beside the spool, so that a frame is accepted, or counted as missed, by one transaction,
and nothing is forgotten or counted twice when the relay is killed. Without a path it is in memory.

Source: sqlite.org, "Write-Ahead Logging" and "PRAGMA synchronous".
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from services.common.reference import FrameReference, ResultReference
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
KEPT_RANGES: Final = 10_000
"""Ranges of missed frames that are kept by name; all are counted."""
_SQLITE_MAX: Final = (1 << 63) - 1
"""Biggest whole number in SQLite."""
LAST, SPOOLED = "last sequence", "spooled bytes"
ACCEPTED, PUBLISHED, ANALYSED, DEAD = "accepted", "published", "analysed", "dead letters"


class LedgerFull(ServiceError):
    """The disk is full, and nothing was changed."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An accepted frame that is not published yet."""

    id: int
    reference: FrameReference


@dataclass(frozen=True, slots=True)
class Fate:
    """What has become of a published frame in a group of detectors."""

    reference: FrameReference | ResultReference
    """Of the frame, or of its result."""
    group: str
    outcome: str
    """What is counted: :data:`ANALYSED`, :data:`DEAD`, or ``dropped: REASON``."""

    @property
    def address(self) -> str:
        """Where the frame's object is."""
        reference = self.reference
        return reference.frame_address if isinstance(reference, ResultReference) else reference.address


class Ledger:
    """The frames of one stream. Any thread may use it.

    Raises:
        ServiceError: The file cannot be used, or another relay uses it.
    """

    def __init__(self, path: Path | None, groups: Sequence[str]) -> None:
        self._groups = tuple(groups)
        self._lock = threading.Lock()
        try:
            self._database = sqlite3.connect(
                ":memory:" if path is None else path, timeout=1.0, isolation_level=None, check_same_thread=False
            )
            try:
                self._set_up(path)
            except BaseException:
                self._database.close()
                raise
        except sqlite3.OperationalError as error:
            reason = "another relay uses it: give each a folder of its own" if "locked" in str(error) else str(error)
            raise ServiceError(f"{path}: the ledger cannot be used: {reason}") from None
        except sqlite3.DatabaseError as error:
            raise ServiceError(f"{path} is damaged, or not a ledger: {error}: move it away") from None

    def _set_up(self, path: Path | None) -> None:
        # A second relay on the same spool is refused: it would publish the same frames.
        self._database.execute("PRAGMA locking_mode = EXCLUSIVE")
        self._database.execute("PRAGMA journal_mode = WAL")
        # A transaction is on the disk when it returns.
        self._database.execute("PRAGMA synchronous = FULL")
        (version,) = self._database.execute("PRAGMA user_version").fetchone()
        if version not in (0, VERSION):
            raise ServiceError(f"{path} is of version {version}, and only {VERSION} is understood: move it away")
        self._counts: dict[str, int] = {}
        self._new_epoch: str | None = None
        self._database.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;")
        self._epochs = {epoch for (epoch,) in self._database.execute("SELECT epoch FROM epochs")}
        self._counts = dict(self._database.execute("SELECT name, value FROM counts"))

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()

    def is_new(self, epoch: int, sequence: int) -> bool:
        """Whether a frame of the ring was neither accepted nor counted as missed yet."""
        return sequence > self._counts.get(LAST, 0) or str(epoch) not in self._epochs

    def accept(self, reference: FrameReference) -> None:
        """Accept a new frame, whose data is in the spool; what the ring had between it and the last one is missed."""
        with self._lock, self._transaction() as counts:
            self._advance(counts, reference.epoch, reference.sequence)
            added = self._database.execute(
                "INSERT INTO frames (stream, epoch, sequence, reference, address, size_bytes, captured_wall_ns) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    reference.stream,
                    str(reference.epoch),
                    reference.sequence,
                    reference.to_json(),
                    reference.address,
                    reference.size_bytes,
                    reference.captured_wall_ns,
                ),
            )
            self._database.executemany(
                "INSERT INTO waiting VALUES (?, ?)", [(added.lastrowid, group) for group in self._groups]
            )
            _count(counts, ACCEPTED)
            _count(counts, SPOOLED, reference.size_bytes)

    def miss(self, epoch: int, sequence: int, reason: str) -> None:
        """Count a new frame that is not accepted, and what the ring had between it and the last one."""
        with self._lock, self._transaction() as counts:
            self._advance(counts, epoch, sequence)
            self._miss(counts, epoch, sequence, sequence, reason)

    def pending(self, after: int, limit: int) -> list[Entry]:
        """The oldest frames that are not published, of those with a number above ``after``."""
        with self._lock:
            rows = self._database.execute(
                "SELECT id, reference FROM frames WHERE published = 0 AND id > ? ORDER BY id LIMIT ?", (after, limit)
            ).fetchall()
        return [Entry(number, FrameReference.from_json(reference)) for number, reference in rows]

    def move(self, entry: Entry, address: str) -> Entry:
        """Give a frame that is not published another address; return its new entry."""
        reference = replace(entry.reference, address=address)
        with self._lock:
            self._database.execute(
                "UPDATE frames SET address = ?, reference = ? WHERE id = ?", (address, reference.to_json(), entry.id)
            )
        return Entry(entry.id, reference)

    def published(self, entry: Entry) -> None:
        """The broker has confirmed the reference; the frame's data may leave the spool."""
        with self._lock, self._transaction() as counts:
            changed = self._database.execute(
                "UPDATE frames SET published = 1 WHERE id = ? AND published = 0", (entry.id,)
            )
            if changed.rowcount:  # else a detector was faster
                _count(counts, PUBLISHED)
                counts[SPOOLED] -= entry.reference.size_bytes

    def drop(self, entry: Entry, reason: str) -> None:
        """Give up a frame that is not published."""
        with self._lock, self._transaction() as counts:
            if not self._one("SELECT count(*) FROM frames WHERE id = ? AND published = 0", entry.id):
                return  # detectors were faster, and all of them have settled
            _count(counts, f"dropped: {reason}", self._one("SELECT count(*) FROM waiting WHERE id = ?", entry.id))
            self._forget(entry.id)
            counts[SPOOLED] -= entry.reference.size_bytes

    def settle(self, fates: Sequence[Fate]) -> list[bool]:
        """Note what has become of published frames in groups of detectors: once, however often it is told.

        Returns:
            For each, whether the frame's object is not needed any more: all groups have settled, or the frame is not
            known here. That of a dead letter is needed, to reproduce the failure.
        """
        with self._lock, self._transaction() as counts:
            return [self._settle(counts, fate) for fate in fates]

    def _settle(self, counts: dict[str, int], fate: Fate) -> bool:
        reference = fate.reference
        if reference.sequence > _SQLITE_MAX:
            return False  # of no ring: a message that another program made
        row = self._database.execute(
            "SELECT id, address, published, size_bytes FROM frames WHERE stream = ? AND epoch = ? AND sequence = ?",
            (reference.stream, str(reference.epoch), reference.sequence),
        ).fetchone()
        if row is None:
            return fate.outcome != DEAD
        number, address, published, size_bytes = row
        if self._database.execute("DELETE FROM waiting WHERE (id, consumers) = (?, ?)", (number, fate.group)).rowcount:
            _count(counts, fate.outcome)
            if fate.outcome == DEAD:
                self._database.execute("INSERT OR IGNORE INTO dead VALUES (?)", (address,))
        if self._one("SELECT count(*) FROM waiting WHERE id = ?", number):
            return False
        self._forget(number)
        if not published:  # the detector was faster than the broker's confirmation, or that was lost
            _count(counts, PUBLISHED)
            counts[SPOOLED] -= size_bytes
        return not self._is_dead(address)

    def is_dead(self, address: str) -> bool:
        """Whether an object is of a dead letter."""
        with self._lock:
            return self._is_dead(address)

    def removed(self, address: str) -> None:
        """Forget the object of a dead letter, which was removed."""
        with self._lock:
            self._database.execute("DELETE FROM dead WHERE address = ?", (address,))

    def expire(self, before_wall_ns: int) -> int:
        """Give up the published frames that were captured before an instant; return how many there were."""
        with self._lock, self._transaction() as counts:
            rows = self._database.execute(
                "SELECT id FROM frames WHERE published = 1 AND captured_wall_ns < ?", (before_wall_ns,)
            ).fetchall()
            for (number,) in rows:
                waiting = self._one("SELECT count(*) FROM waiting WHERE id = ?", number)
                _count(counts, "dropped: expired in the storage", waiting)
                self._forget(number)
            return len(rows)

    def counts(self) -> dict[str, int]:
        """All counts: of frames, and of a frame and group what became of it."""
        return {name: value for name, value in sorted(self._counts.items()) if name not in (LAST, SPOOLED)}

    @property
    def spooled_bytes(self) -> int:
        """Size of the frames that are not published yet."""
        return self._counts.get(SPOOLED, 0)

    def missed(self) -> list[tuple[int, int, int, str]]:
        """The newest ranges of frames that were missed: epoch, first and last sequence, and why."""
        with self._lock:
            rows = self._database.execute("SELECT epoch, first, last, reason FROM missed ORDER BY id").fetchall()
        return [(int(epoch), first, last, reason) for epoch, first, last, reason in rows]

    def waiting(self) -> tuple[int, int, int | None]:
        """Frames in the spool; frames published and not settled; when the oldest of both was captured, in ns."""
        with self._lock:
            spooled = self._one("SELECT count(*) FROM frames WHERE published = 0")
            unsettled = self._one("SELECT count(*) FROM frames WHERE published = 1")
            (oldest,) = self._database.execute("SELECT min(captured_wall_ns) FROM frames").fetchone()
        return spooled, unsettled, oldest

    def _advance(self, counts: dict[str, int], epoch: int, sequence: int) -> None:
        last = counts.get(LAST)
        if last is not None and sequence <= last:
            last = 0  # of a new ring, whose sequences begin at 1
        if last is not None and sequence > last + 1:
            self._miss(counts, epoch, last + 1, sequence - 1, "overwritten")
        if str(epoch) not in self._epochs:
            self._database.execute("INSERT INTO epochs VALUES (?)", (str(epoch),))
            self._new_epoch = str(epoch)
        counts[LAST] = sequence

    def _miss(self, counts: dict[str, int], epoch: int, first: int, last: int, reason: str) -> None:
        _count(counts, f"missed: {reason}", last - first + 1)
        newest = self._database.execute(
            "SELECT id, epoch, last, reason FROM missed ORDER BY id DESC LIMIT 1"
        ).fetchone()
        if newest is not None and newest[1:] == (str(epoch), first - 1, reason):
            self._database.execute("UPDATE missed SET last = ? WHERE id = ?", (last, newest[0]))
            return
        self._database.execute(
            "INSERT INTO missed (epoch, first, last, reason) VALUES (?, ?, ?, ?)", (str(epoch), first, last, reason)
        )
        if newest is not None:
            self._database.execute("DELETE FROM missed WHERE id <= ?", (newest[0] - KEPT_RANGES,))

    def _is_dead(self, address: str) -> bool:
        return self._database.execute("SELECT 1 FROM dead WHERE address = ?", (address,)).fetchone() is not None

    def _forget(self, number: int) -> None:
        self._database.execute("DELETE FROM waiting WHERE id = ?", (number,))
        self._database.execute("DELETE FROM frames WHERE id = ?", (number,))

    def _one(self, query: str, *values: int) -> int:
        (value,) = self._database.execute(query, values).fetchone()
        return int(value)

    @contextmanager
    def _transaction(self) -> Iterator[dict[str, int]]:
        """Change the database and a copy of the counts, both or neither."""
        before = self._counts
        counts = dict(before)
        self._new_epoch = None
        try:
            self._database.execute("BEGIN IMMEDIATE")
            yield counts
            self._database.executemany(
                "INSERT OR REPLACE INTO counts VALUES (?, ?)",
                [item for item in counts.items() if before.get(item[0]) != item[1]],
            )
            self._database.execute("COMMIT")
        except BaseException as error:
            if self._database.in_transaction:  # of some errors, such as a full disk, SQLite rolls back by itself
                self._database.execute("ROLLBACK")
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
                raise LedgerFull("the relay's ledger cannot be written: the disk is full") from None
            if isinstance(error, sqlite3.Error):
                raise ServiceError(f"the relay's ledger cannot be written: {error}") from None
            raise
        self._counts = counts
        if self._new_epoch is not None:
            self._epochs.add(self._new_epoch)


def _count(counts: dict[str, int], name: str, times: int = 1) -> None:
    counts[name] = counts.get(name, 0) + times
