"""Streams and their subscribers, seen without taking a lease or a seat."""

from __future__ import annotations

import contextlib
import os
import stat
import struct
import time
from dataclasses import dataclass
from typing import Final, Literal

from framebus.errors import FramebusError, LayoutMismatch, PermissionDenied, StreamNotFound
from framebus.ring.admission import read_records, seats_taken
from framebus.ring.file import LIVE_PROBE, ring_name
from framebus.ring.frame_header import FrameHeader
from framebus.ring.layout import CLOSED, OPEN, PAGE_BYTES, STATE, SUPERSEDED, TAIL, RingHeader
from framebus.ring.record import SubscriberRecord
from framebus.ring.words import LOCK_WRITE
from framebus.shm import locks
from framebus.shm import segment as shm
from framebus.shm.directory import stream_names
from framebus.shm.identity import describe_readers
from framebus.shm.paths import companion_path

State = Literal["open", "closed", "superseded", "unknown"]
_STATES: Final[dict[int, State]] = {OPEN: "open", CLOSED: "closed", SUPERSEDED: "superseded"}
CLOCK_TOLERANCE_NS: Final = 2_000_000_000
"""How far the age by CLOCK_MONOTONIC and the age by the time of day may differ."""
_OTHER_CLOCK: Final = "its publisher's clock is of another time namespace"
_DOUBTFUL_CLOCK: Final = f"{_OTHER_CLOCK}, or the time of day was set"


@dataclass(frozen=True, slots=True)
class SubscriberInfo:
    """A subscriber, by its own record."""

    record: SubscriberRecord
    """What it wrote last."""
    alive: bool
    """Whether its process lives, as the kernel's locks show."""


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """A stream, seen without touching it."""

    name: str
    """The stream's name."""
    live: bool
    """Whether its publisher lives, as the kernel's locks show."""
    state: State
    """What the publisher last said."""
    epoch: int
    """Random number that marks this life of the publisher."""
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
    """Seconds since the newest frame was published; ``None`` without a frame, or when that cannot be known."""
    subscribers: tuple[SubscriberInfo, ...]
    """All subscribers with a record, the dead too."""
    age_unknown: str = ""
    """Why the age of the newest frame cannot be known; empty if it is known, or if there is no frame."""


@dataclass(frozen=True, slots=True)
class UnreadableStream:
    """A stream whose ring this user may not read, or that is not a ring of this version."""

    name: str
    """The stream's name."""
    denied: bool
    """Whether this user may not read it; False for a ring that is damaged or of another version."""
    reason: str
    """Why it was not read, in a few words."""
    detail: str
    """Why it was not read, in a sentence with what to do."""
    owner: int
    """Number of the user who owns the file."""
    group: int
    """Number of the file's group."""
    mode: int
    """The file's permissions."""


def inspect(stream: str, *, patience_s: float = 0.0) -> StreamInfo:
    """Look at one stream.

    Args:
        stream: Name of the stream.
        patience_s: How long to wait for a further frame if the clocks disagree on the age of the newest one. A frame
            that comes during that time shows whether its publisher has the same clock.

    Raises:
        StreamNotFound: It has no ring.
        LayoutMismatch: The file is not a ring of this version.
        PermissionDenied: It is closed to this user.
    """
    try:
        holder = shm.open_for_reading(ring_name(stream))
    except StreamNotFound:
        raise StreamNotFound(f"no publisher serves the stream {stream!r} here") from None
    try:
        fd = holder.fd
        looked_ns = time.monotonic_ns()
        head = os.pread(fd, PAGE_BYTES, 0)
        header = RingHeader.unpack(head, os.fstat(fd).st_size)
        geometry = header.geometry
        (tail,) = struct.unpack_from("<Q", head, TAIL)
        frame = _read_frame(fd, header, tail)
        live = locks.is_locked(fd, LIVE_PROBE)
        age_s, age_unknown = None, ""
        if frame is not None:
            age_s, age_unknown = _age_of(frame)
            if age_unknown == _DOUBTFUL_CLOCK and live and patience_s > 0:
                later = _next_frame(fd, header, tail, patience_s)
                if later is not None:
                    # It was published after `looked_ns`, in any clock that both processes share.
                    age_s, age_unknown = _age_since(later, looked_ns)
        return StreamInfo(
            name=stream,
            live=live,
            state=_STATES.get(struct.unpack_from("<I", head, STATE)[0], "unknown"),
            epoch=header.epoch,
            sequence=tail >> 8,
            slots=geometry.slots,
            slot_bytes=geometry.slot_bytes,
            ring_bytes=geometry.total_bytes,
            slots_held=sum(locks.is_locked(fd, LOCK_WRITE[slot]) for slot in range(geometry.slots)),
            seats_taken=seats_taken(fd, geometry),
            seats=geometry.seats,
            frame=frame,
            age_s=age_s,
            age_unknown=age_unknown,
            subscribers=tuple(SubscriberInfo(record, alive) for _, record, alive in read_records(stream) if record),
        )
    finally:
        holder.close()


def streams() -> list[StreamInfo]:
    """All streams of this /dev/shm whose rings this user may read, by name."""
    return [stream for stream in survey() if isinstance(stream, StreamInfo)]


def survey(*, patience_s: float = 0.0) -> list[StreamInfo | UnreadableStream]:
    """All streams of this /dev/shm that have a ring, by name, those too that this user may not read.

    Args:
        patience_s: As :func:`inspect` takes it.
    """
    found: list[StreamInfo | UnreadableStream] = []
    for name in stream_names():
        try:
            found.append(inspect(name, patience_s=patience_s))
        except StreamNotFound:
            continue
        except (LayoutMismatch, PermissionDenied) as error:
            with contextlib.suppress(FileNotFoundError):
                found.append(_unreadable(name, error))
    return found


def _unreadable(name: str, error: FramebusError) -> UnreadableStream:
    status = companion_path(name, "ring").lstat()
    denied = isinstance(error, PermissionDenied)
    reason = f"not readable by this user, but by {describe_readers(status)}" if denied else "not a ring of this version"
    mode = stat.S_IMODE(status.st_mode)
    return UnreadableStream(name, denied, reason, str(error), status.st_uid, status.st_gid, mode)


def _age_of(frame: FrameHeader) -> tuple[float | None, str]:
    """The frame's age in seconds, and why it is unknown.

    CLOCK_MONOTONIC differs between time namespaces, and the ring does not tell of which one its publisher is. The time
    of day is the same everywhere, so both clocks have to show the same age.
    """
    now_ns, now_wall_ns = time.monotonic_ns(), time.time_ns()
    age_ns = now_ns - frame.published_ns
    if age_ns < 0:
        return None, _OTHER_CLOCK
    published_wall_ns = frame.captured_wall_ns + frame.published_ns - frame.captured_ns
    if abs(now_wall_ns - published_wall_ns - age_ns) > CLOCK_TOLERANCE_NS:
        return None, _DOUBTFUL_CLOCK
    return age_ns / 1e9, ""


def _age_since(frame: FrameHeader, since_ns: int) -> tuple[float | None, str]:
    """As :func:`_age_of`, of a frame that was published after ``since_ns`` of this process's clock."""
    now_ns = time.monotonic_ns()
    # The frame may have been stamped shortly before ``since_ns``, and have become visible after it.
    if since_ns - CLOCK_TOLERANCE_NS <= frame.published_ns <= now_ns:
        return (now_ns - frame.published_ns) / 1e9, ""
    return None, _OTHER_CLOCK


def _next_frame(fd: int, header: RingHeader, tail: int, patience_s: float) -> FrameHeader | None:
    """The header of a frame that is published within ``patience_s``."""
    deadline_s = time.monotonic() + patience_s
    while time.monotonic() < deadline_s:
        time.sleep(0.005)
        (newer,) = struct.unpack("<Q", os.pread(fd, 8, TAIL))
        if newer >> 8 > tail >> 8 and (frame := _read_frame(fd, header, newer)) is not None:
            return frame
    return None


def _read_frame(fd: int, header: RingHeader, tail: int) -> FrameHeader | None:
    """Read the newest frame's header without its lock; ``None`` if its sequence changes meanwhile."""
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
