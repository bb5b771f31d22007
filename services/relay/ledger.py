"""The ledger of frames: which were accepted, which were missed and why, and which still wait.

It is a SQLite database beside the spool. One transaction accepts a frame or counts it as missed, which ensures that a
killed relay neither forgets a frame nor counts one twice. Without a path, the ledger is in memory.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from services.common.reference import FrameReference, ResultReference
from services.relay.ledger_file import open_file, transaction

KEPT_RANGES: Final = 10_000
"""Number of ranges of missed frames that are kept individually; all are counted."""
_REMEMBERED: Final = 64
"""Number of unpublished frames whose entries are in memory too."""
_SQLITE_MAX: Final = (1 << 63) - 1
"""Largest integer of SQLite."""
LAST, SPOOLED = "last sequence", "spooled bytes"
"""Rows of the counts that are not counts of frames."""
ACCEPTED, PUBLISHED, ANALYSED, DEAD = "accepted", "published", "analysed", "dead letters"
"""Names of counts."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An accepted frame that is not yet published."""

    id: int
    reference: FrameReference
    body: bytes
    """The reference as a message."""


@dataclass(frozen=True, slots=True)
class Fate:
    """Outcome of a published frame in a group of detectors."""

    reference: FrameReference | ResultReference
    """Reference to the frame, or to its result."""
    group: str
    outcome: str
    """Name of the count: :data:`ANALYSED`, :data:`DEAD`, or ``dropped: REASON``."""

    @property
    def address(self) -> str:
        """Address of the frame's object."""
        reference = self.reference
        return reference.frame_address if isinstance(reference, ResultReference) else reference.address


class Ledger:
    """The frames of one stream. Thread-safe.

    Raises:
        ServiceError: The file is unusable, or another relay uses it.
    """

    def __init__(self, path: Path | None, groups: Sequence[str]) -> None:
        self.on_disk = path is not None
        """Whether changes wait for the disk, so that an event loop must make them in a thread."""
        self._groups = tuple(groups)
        self._lock = threading.Lock()
        self._new_epoch: str | None = None
        self._entries: dict[int, Entry] = {}
        """Some unpublished frames, so that :meth:`pending` need not parse them again."""
        self._database, self._epochs, self._counts = open_file(path)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()

    def is_new(self, epoch: int, sequence: int) -> bool:
        """Return whether a frame of the ring was neither accepted nor counted as missed."""
        # The last sequence is of the newest epoch. Each publisher has an epoch of its own, so the frames of an unknown
        # one are new whatever their sequences.
        return sequence > self._counts.get(LAST, 0) or str(epoch) not in self._epochs

    def accept(self, reference: FrameReference) -> None:
        """Accept a new frame, whose data is in the spool. Frames between it and the last one are counted as missed."""
        body = reference.to_json()
        with self._lock:
            number = self._accept(reference, body)
            # After the commit, because a full disk undoes the transaction.
            if len(self._entries) < _REMEMBERED:
                self._entries[number] = Entry(number, reference, body)

    def _accept(self, reference: FrameReference, body: bytes) -> int:
        with self._transaction() as counts:
            self._advance(counts, reference.epoch, reference.sequence)
            added = self._database.execute(
                "INSERT INTO frames (stream, epoch, sequence, reference, address, size_bytes, captured_wall_ns) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    reference.stream,
                    str(reference.epoch),
                    reference.sequence,
                    body,
                    reference.address,
                    reference.size_bytes,
                    reference.captured_wall_ns,
                ),
            )
            number = added.lastrowid
            assert number is not None
            self._database.executemany("INSERT INTO waiting VALUES (?, ?)", [(number, group) for group in self._groups])
            _count(counts, ACCEPTED)
            _count(counts, SPOOLED, reference.size_bytes)
        return number

    def miss(self, epoch: int, sequence: int, reason: str) -> None:
        """Count a new frame that is not accepted as missed, and the frames between it and the last one."""
        with self._lock, self._transaction() as counts:
            self._advance(counts, epoch, sequence)
            self._miss(counts, epoch, sequence, sequence, reason)

    def pending(self, after: int, limit: int) -> list[Entry]:
        """Return the oldest unpublished frames with a number above ``after``."""
        with self._lock:
            rows = self._database.execute(
                "SELECT id, reference FROM frames WHERE published = 0 AND id > ? ORDER BY id LIMIT ?", (after, limit)
            ).fetchall()
            return [
                self._entries.get(number) or Entry(number, FrameReference.from_json(body), body)
                for number, body in rows
            ]

    def unpublished_addresses(self) -> set[str]:
        """Return the addresses of all unpublished frames. Their objects need not exist yet."""
        with self._lock:
            return {address for (address,) in self._database.execute("SELECT address FROM frames WHERE published = 0")}

    def move(self, entry: Entry, address: str) -> Entry:
        """Change the address of an unpublished frame. Return its new entry."""
        reference = replace(entry.reference, address=address)
        moved = Entry(entry.id, reference, reference.to_json())
        with self._lock:
            self._database.execute(
                "UPDATE frames SET address = ?, reference = ? WHERE id = ?", (address, moved.body, entry.id)
            )
            self._entries.pop(entry.id, None)
        return moved

    def published(self, entries: Iterable[Entry]) -> None:
        """Mark frames as published: the broker confirmed their references, and their data may leave the spool."""
        with self._lock, self._transaction() as counts:
            for entry in entries:
                changed = self._database.execute(
                    "UPDATE frames SET published = 1 WHERE id = ? AND published = 0", (entry.id,)
                )
                self._entries.pop(entry.id, None)
                if changed.rowcount:  # otherwise a detector has already settled the frame
                    _count(counts, PUBLISHED)
                    counts[SPOOLED] -= entry.reference.size_bytes

    def drop(self, entry: Entry, reason: str) -> None:
        """Drop an unpublished frame."""
        with self._lock, self._transaction() as counts:
            if not self._one("SELECT count(*) FROM frames WHERE id = ? AND published = 0", entry.id):
                return  # all detectors have already settled the frame
            _count(counts, f"dropped: {reason}", self._one("SELECT count(*) FROM waiting WHERE id = ?", entry.id))
            self._forget(entry.id)
            counts[SPOOLED] -= entry.reference.size_bytes

    def settle(self, fates: Sequence[Fate]) -> list[bool]:
        """Record the outcomes of published frames in groups of detectors. Duplicates are ignored.

        Returns:
            For each, whether the frame's object is no longer required, because all groups have settled it or the frame
            is unknown. The object of a dead letter is still required, to reproduce the failure.
        """
        with self._lock, self._transaction() as counts:
            return [self._settle(counts, fate) for fate in fates]

    def _settle(self, counts: dict[str, int], fate: Fate) -> bool:
        reference = fate.reference
        if reference.sequence > _SQLITE_MAX:
            return False  # not a frame of a ring, so the message is of another program
        row = self._database.execute(
            "SELECT id, address, published, size_bytes FROM frames WHERE stream = ? AND epoch = ? AND sequence = ?",
            (reference.stream, str(reference.epoch), reference.sequence),
        ).fetchone()
        if row is None:  # settled or expired before, or accepted by a relay whose spool is lost
            return fate.outcome != DEAD
        number, address, published, size_bytes = row
        # The broker may deliver an outcome more than once; only the first one finds its row.
        if self._database.execute("DELETE FROM waiting WHERE (id, consumers) = (?, ?)", (number, fate.group)).rowcount:
            _count(counts, fate.outcome)
            if fate.outcome == DEAD:
                # The sweep asks this table how long to keep the object.
                self._database.execute("INSERT OR IGNORE INTO dead VALUES (?)", (address,))
        if self._one("SELECT count(*) FROM waiting WHERE id = ?", number):
            return False
        self._forget(number)
        if not published:  # the result arrived before the broker's confirmation, or that was lost
            _count(counts, PUBLISHED)
            counts[SPOOLED] -= size_bytes
        return not self._is_dead(address)

    def is_dead(self, address: str) -> bool:
        """Return whether an object belongs to a dead letter."""
        with self._lock:
            return self._is_dead(address)

    def removed(self, addresses: Iterable[str]) -> None:
        """Forget those of removed objects that belonged to dead letters."""
        with self._lock:
            self._database.executemany("DELETE FROM dead WHERE address = ?", [(address,) for address in addresses])

    def expire(self, before_wall_ns: int) -> int:
        """Drop the published frames that were captured before an instant. Return their number."""
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
        """Return all counts: of frames, and of the outcomes for each frame and group."""
        return {name: value for name, value in sorted(self._counts.items()) if name not in (LAST, SPOOLED)}

    @property
    def spooled_bytes(self) -> int:
        """Size of the unpublished frames, in bytes."""
        return self._counts.get(SPOOLED, 0)

    def missed(self) -> list[tuple[int, int, int, str]]:
        """Return the newest ranges of missed frames: epoch, first and last sequence, and reason."""
        with self._lock:
            rows = self._database.execute("SELECT epoch, first, last, reason FROM missed ORDER BY id").fetchall()
        return [(int(epoch), first, last, reason) for epoch, first, last, reason in rows]

    def waiting(self) -> tuple[int, int, int | None]:
        """Return the number of spooled frames, of unsettled frames, and the oldest capture time of both, in ns."""
        with self._lock:
            spooled = self._one("SELECT count(*) FROM frames WHERE published = 0")
            unsettled = self._one("SELECT count(*) FROM frames WHERE published = 1")
            (oldest,) = self._database.execute("SELECT min(captured_wall_ns) FROM frames").fetchone()
        return spooled, unsettled, oldest

    def _advance(self, counts: dict[str, int], epoch: int, sequence: int) -> None:
        last = counts.get(LAST)
        if last is not None and sequence <= last:
            last = 0  # a new ring, whose sequences start at 1
        if last is not None and sequence > last + 1:
            self._miss(counts, epoch, last + 1, sequence - 1, "overwritten")
        # Text, because an epoch has 64 bits and SQLite's integers have 63 and a sign.
        if str(epoch) not in self._epochs:
            self._database.execute("INSERT INTO epochs VALUES (?)", (str(epoch),))
            self._new_epoch = str(epoch)
        counts[LAST] = sequence

    def _miss(self, counts: dict[str, int], epoch: int, first: int, last: int, reason: str) -> None:
        _count(counts, f"missed: {reason}", last - first + 1)
        newest = self._database.execute(
            "SELECT id, epoch, last, reason FROM missed ORDER BY id DESC LIMIT 1"
        ).fetchone()
        # Extend the newest range if it continues: an outage of hours is then one row.
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
        self._entries.pop(number, None)
        self._database.execute("DELETE FROM waiting WHERE id = ?", (number,))
        self._database.execute("DELETE FROM frames WHERE id = ?", (number,))

    def _one(self, query: str, *values: int) -> int:
        (value,) = self._database.execute(query, values).fetchone()
        return int(value)

    @contextmanager
    def _transaction(self) -> Iterator[dict[str, int]]:
        """Change the database and a copy of the counts atomically."""
        # Change a copy: other threads read the counts without the lock, and a rollback must not change them.
        before = self._counts
        counts = dict(before)
        self._new_epoch = None
        with transaction(self._database):
            yield counts
            if self.on_disk:
                self._database.executemany(
                    "INSERT OR REPLACE INTO counts VALUES (?, ?)",
                    [item for item in counts.items() if before.get(item[0]) != item[1]],
                )
        self._counts = counts
        if self._new_epoch is not None:
            self._epochs.add(self._new_epoch)


def _count(counts: dict[str, int], name: str, times: int = 1) -> None:
    counts[name] = counts.get(name, 0) + times
