"""What lies in /dev/shm: streams, their subscribers, and what the dead left behind. Nothing here takes a lease."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from framebus import segment as shm
from framebus.errors import FramebusError, LayoutMismatch, PermissionDenied, StreamNotFound
from framebus.layout import (
    CLOSED,
    LOCK_SEATS,
    OPEN,
    PAGE_BYTES,
    STATE,
    SUPERSEDED,
    TAIL,
    FrameHeader,
    RingHeader,
    SubscriberRecord,
    check_name,
)
from framebus.ring import LIVE_PROBE, ring_name
from framebus.seats import read_records
from framebus.segment import PREFIX, SHM_DIRECTORY, companion_path, companion_paths
from framebus.steps import LOCK_WRITE

State = Literal["open", "closed", "superseded", "unknown"]
_STATES: Final[dict[int, State]] = {OPEN: "open", CLOSED: "closed", SUPERSEDED: "superseded"}


@dataclass(frozen=True, slots=True)
class SubscriberInfo:
    """A subscriber, as it tells of itself."""

    record: SubscriberRecord
    """What it wrote last."""
    alive: bool
    """Whether it lives, by the kernel's word."""


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """A stream, seen without touching it."""

    name: str
    """The stream's name."""
    live: bool
    """Whether a publisher lives, by the kernel's word."""
    state: State
    """What the publisher last said."""
    epoch: int
    """Which life of the publisher."""
    sequence: int
    """Sequence of the newest frame; 0 before the first."""
    slots: int
    """Slots of the ring."""
    slot_bytes: int
    """Room for pixels in each."""
    ring_bytes: int
    """Size of the file."""
    slots_held: int
    """Slots that a loan or a lease holds now."""
    seats_taken: int
    """Leases that subscribers may hold together."""
    seats: int
    """Leases that the ring has for subscribers."""
    frame: FrameHeader | None
    """What the newest frame's header says; ``None`` before the first, or when it changed while it was read."""
    age_s: float | None
    """Seconds since the newest frame was published."""
    subscribers: tuple[SubscriberInfo, ...]
    """All subscribers with a record, the dead too."""


def stream_names() -> list[str]:
    """Names of all streams that have any file in /dev/shm, sorted."""
    names = set()
    for path in SHM_DIRECTORY.glob(f"{PREFIX}*.*"):
        name = path.name.removeprefix(PREFIX).partition(".")[0]
        try:
            names.add(check_name(name))
        except FramebusError:
            continue
    return sorted(names)


def inspect(stream: str) -> StreamInfo:
    """Look at one stream.

    Raises:
        StreamNotFound: It has no ring.
        LayoutMismatch: The file is no ring of this version.
        PermissionDenied: It is closed to this user.
    """
    try:
        holder = shm.open_for_reading(ring_name(stream))
    except StreamNotFound:
        raise StreamNotFound(f"no publisher serves the stream {stream!r} here") from None
    try:
        fd = holder.fd
        head = os.pread(fd, PAGE_BYTES, 0)
        header = RingHeader.unpack(head, os.fstat(fd).st_size)
        geometry = header.geometry
        seats = range(geometry.seats)
        (tail,) = struct.unpack_from("<Q", head, TAIL)
        frame = _read_frame(fd, header, tail)
        return StreamInfo(
            name=stream,
            live=shm.is_locked(fd, LIVE_PROBE),
            state=_STATES.get(struct.unpack_from("<I", head, STATE)[0], "unknown"),
            epoch=header.epoch,
            sequence=tail >> 8,
            slots=geometry.slots,
            slot_bytes=geometry.slot_bytes,
            ring_bytes=geometry.total_bytes,
            slots_held=sum(shm.is_locked(fd, LOCK_WRITE[slot]) for slot in range(geometry.slots)),
            seats_taken=sum(shm.is_locked(fd, shm.write_lock(LOCK_SEATS + seat)) for seat in seats),
            seats=len(seats),
            frame=frame,
            age_s=None if frame is None else max((time.monotonic_ns() - frame.published_ns) / 1e9, 0.0),
            subscribers=tuple(SubscriberInfo(record, alive) for _, record, alive in read_records(stream) if record),
        )
    finally:
        holder.close()


def streams() -> list[StreamInfo]:
    """All streams of this /dev/shm whose rings this user may read, by name."""
    found = []
    for name in stream_names():
        try:
            found.append(inspect(name))
        except (StreamNotFound, LayoutMismatch, PermissionDenied):
            continue
    return found


def _read_frame(fd: int, header: RingHeader, tail: int) -> FrameHeader | None:
    """The newest frame's header, read without its lock: taken only if its sequence is the same before and after."""
    sequence, slot = tail >> 8, tail & 0xFF
    if not sequence or slot >= header.geometry.slots:
        return None
    offset = header.geometry.slot_header(slot)
    content = os.pread(fd, PAGE_BYTES, offset)
    try:
        frame = FrameHeader.unpack_from(content, 0, header.geometry.slot_bytes)
    except (LayoutMismatch, struct.error):
        return None
    return frame if os.pread(fd, 8, offset) == struct.pack("<Q", sequence) and frame.sequence == sequence else None


@dataclass(frozen=True, slots=True)
class Leftover:
    """A file that no live process holds."""

    path: Path
    """The file."""
    reason: str
    """Why it is known to be left over."""
    obstacle: str = ""
    """Why this user cannot remove it; empty when it can be."""


def find_leftovers(stream: str | None = None, *, remove: bool = False) -> list[Leftover]:
    """What the dead left in /dev/shm; with ``remove``, removed where this user may.

    A ring that a subscriber still holds, or whose publisher lives, is never touched.
    """
    found = []
    for name in [check_name(stream)] if stream is not None else stream_names():
        with _excluded(name) as excluded:
            for leftover in _leftovers_of(name, excluded=excluded):
                obstacle = ""
                if remove:
                    try:
                        leftover.path.unlink(missing_ok=True)
                    except OSError as error:
                        obstacle = f"user {leftover.path.lstat().st_uid} owns it: {error.strerror}"
                found.append(Leftover(leftover.path, leftover.reason, obstacle))
    return found


@contextlib.contextmanager
def _excluded(stream: str) -> Iterator[bool]:
    """Keep publishers from opening the stream meanwhile, for what is a leftover now may be adopted at any moment.

    False when a publisher lives, or when this user may not tell.
    """
    exclusion, unused = None, False
    try:
        exclusion = shm.take_exclusion(companion_path(stream, "lock").name, create=False)
    except StreamNotFound:
        unused = True
    except PermissionDenied:
        pass
    try:
        yield unused or exclusion is not None
    finally:
        if exclusion is not None:
            exclusion.close()


def remove_leftovers(stream: str | None = None) -> list[Path]:
    """Remove what no live process holds, of one stream or of all; return what was removed."""
    return [leftover.path for leftover in find_leftovers(stream, remove=True) if not leftover.obstacle]


def _leftovers_of(stream: str, *, excluded: bool) -> list[Leftover]:
    own_socket, lock_path, ring_path = (companion_path(stream, suffix) for suffix in ("sock", "lock", "ring"))
    found = [Leftover(path, "its subscriber is gone") for path, _, alive in read_records(stream) if not alive]
    found += [
        Leftover(path, "nobody listens on it")
        for path in companion_paths(stream, "*sock")
        if (excluded or path != own_socket) and _is_deaf(path)
    ]
    if not excluded:
        return found
    found += [Leftover(path, "its creation was interrupted") for path in companion_paths(stream, "ring.*")]
    if ring_path.exists():
        if _is_held(ring_path):
            return found
        found.append(Leftover(ring_path, "its publisher is gone and no subscriber holds it"))
    if lock_path.exists():
        found.append(Leftover(lock_path, "no publisher holds it"))
    return found


def _is_held(ring_path: Path) -> bool:
    """Whether anybody locks the ring: any byte, so a publisher, a lease or a seat."""
    try:
        holder = shm.open_for_reading(ring_path.name)
    except (StreamNotFound, LayoutMismatch):
        return False
    except PermissionDenied:
        return True
    try:
        return shm.is_any_locked(holder.fd)
    finally:
        holder.close()


def _is_deaf(path: Path) -> bool:
    """Whether a Unix socket has nobody who listens."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            return False
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            probe.connect(os.fspath(path))
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False
