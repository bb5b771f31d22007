"""The spool: accepted frames that are not yet in the storage, in a folder or in memory."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from services.common.object_folder import flush_names
from services.common.reference import FrameReference
from services.common.service import ServiceError
from services.relay.ledger import Entry, Ledger
from services.relay.ledger_file import LedgerFull

LEDGER: Final = "ledger.sqlite3"
FRAMES: Final = "frames"
NO_PLACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
"""Errors of a full disk and of an exhausted quota."""


class SpoolFull(Exception):
    """The spool has no room for a frame; the message is the reason to count it by."""


class Lost(Exception):
    """The data of an accepted frame is missing in the spool."""


class Spool:
    """Accepted frames and their outcomes. Thread-safe, except that a single thread accepts frames.

    A frame is accepted once its data and its row in the ledger are on a disk, both of which :meth:`accept` ensures
    before it returns. The data is in the spool's folder, or already in the storage. Without a folder, data and ledger
    are in memory and are lost with the process.

    Args:
        folder: The spool's folder, which is created if it is missing.
        max_bytes: Largest total size of the frames.
        groups: Groups of detectors.

    Raises:
        ServiceError: The folder is unusable, or another relay uses it.
    """

    def __init__(self, folder: Path | None, max_bytes: int, groups: Sequence[str]) -> None:
        self.write_s = 0.0
        """Time that the newest write to the folder took."""
        self._max_bytes = max_bytes
        self._memory: dict[tuple[int, int], bytes | memoryview] = {}
        self._frames: Path | None = None
        if folder is not None:
            self._frames = folder / FRAMES
            try:
                self._frames.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ServiceError(f"relay.spool {folder} cannot be made: {error.strerror}") from None
        self.ledger = Ledger(None if folder is None else folder / LEDGER, groups)
        # After the ledger is open: its lock ensures that no other relay uses the folder.
        if self._frames is not None:
            self._remove_leftovers(self._frames)

    def __len__(self) -> int:
        """Return the number of unpublished frames of a spool in memory."""
        return len(self._memory)

    def accept(
        self, reference: FrameReference, data: bytes | memoryview, put: Callable[[], bool] = lambda: False
    ) -> None:
        """Store a frame's data, and accept it.

        Args:
            reference: The frame's.
            data: Its data.
            put: Called if the spool has room. Returns True if it has written the data to the storage, durably if the
                spool has a folder. The spool then does not keep the data.

        Raises:
            SpoolFull: The spool has no room for it.
        """
        if self.ledger.spooled_bytes + len(data) > self._max_bytes:
            raise SpoolFull("spool full")
        if self._frames is None:
            self._memory[reference.epoch, reference.sequence] = b"" if put() else data
            self.ledger.accept(reference)
            return
        path = self._path(self._frames, reference)
        # The data first: a row of the ledger promises that the data is there. A kill in between leaves a file without
        # a row, which the next start removes, or an object in the storage, which the sweep removes.
        if not put():
            begun_s = time.monotonic()
            try:
                _write(path, data)
                self.write_s = time.monotonic() - begun_s
            except OSError as error:
                path.unlink(missing_ok=True)
                if error.errno in NO_PLACE:
                    raise SpoolFull("disk full") from None
                raise ServiceError(f"relay.spool: {path} cannot be written: {error.strerror}") from None
        try:
            self.ledger.accept(reference)
        except LedgerFull:
            path.unlink(missing_ok=True)
            raise SpoolFull("disk full") from None

    def read(self, entry: Entry) -> bytes | memoryview:
        """Return the data of an accepted frame.

        Raises:
            Lost: The data is gone, because it was removed from outside or the disk failed.
        """
        if self._frames is None:
            try:
                return self._memory[entry.reference.epoch, entry.reference.sequence]
            except KeyError:
                raise Lost(f"the frame {entry.reference.key} is not in memory any more") from None
        path = self._path(self._frames, entry.reference)
        try:
            return path.read_bytes()
        except OSError as error:
            raise Lost(f"relay.spool: {path} cannot be read: {error.strerror}") from None

    def published(self, entries: Sequence[Entry]) -> None:
        """Release the data of frames that are in the storage, and whose references the broker has."""
        # The ledger first: a kill in between leaves a file that the next start removes, and not a row without data.
        self.ledger.published(entries)
        for entry in entries:
            self._remove(entry)

    def drop(self, entry: Entry, reason: str) -> None:
        """Drop an unpublished frame."""
        self.ledger.drop(entry, reason)
        self._remove(entry)

    def close(self) -> None:
        """Close the ledger."""
        self.ledger.close()

    def _remove(self, entry: Entry) -> None:
        if self._frames is None:
            self._memory.pop((entry.reference.epoch, entry.reference.sequence), None)
        else:
            self._path(self._frames, entry.reference).unlink(missing_ok=True)

    @staticmethod
    def _path(frames: Path, reference: FrameReference) -> Path:
        return frames / f"{reference.epoch}-{reference.sequence}"

    def _remove_leftovers(self, frames: Path) -> None:
        """Remove the data of frames that a killed relay had not yet accepted, or had already published."""
        kept = {self._path(frames, entry.reference).name for entry in self.ledger.pending(0, -1)}
        for path in frames.iterdir():
            if path.name not in kept:
                with contextlib.suppress(OSError):
                    path.unlink()


def _write(path: Path, data: bytes | memoryview) -> None:
    """Write a file and flush it and its directory entry to the disk, so that it survives a power failure."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    flush_names(path.parent)
