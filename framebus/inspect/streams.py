"""Inspects streams and their subscribers, without taking a lease or a seat."""

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
_OTHER_CLOCK: Final = "its publisher runs in another time namespace"
_DOUBTFUL_CLOCK: Final = f"{_OTHER_CLOCK}, or the time of day was set"


@dataclass(frozen=True, slots=True)
class SubscriberInfo:
    """A subscriber, as its record describes it."""

    record: SubscriberRecord
    """Its record, as last written."""
    alive: bool
    """Whether its process lives, as the kernel's locks show."""


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """State of a stream."""

    name: str
    """The stream's name."""
    live: bool
    """Whether its publisher lives, as the kernel's locks show."""
    state: State
    """State that the publisher wrote last."""
    epoch: int
    """Random number that identifies the publisher instance."""
    sequence: int
    """Sequence of the newest frame; 0 before the first."""
    slots: int
    """Slots of the ring."""
    slot_bytes: int
    """Room for pixels in each."""
    ring_bytes: int
    """Size of the file."""
    slots_held: int
    """Slots that loans or leases hold now."""
    seats_taken: int
    """Leases that subscribers have reserved."""
    seats: int
    """Leases that all subscribers may reserve together."""
    frame: FrameHeader | None
    """Header of the newest frame; ``None`` before the first, or if it changed while it was read."""
    age_s: float | None
    """Seconds since the newest frame was published; ``None`` if there is no frame, or if the age is unknown."""
    subscribers: tuple[SubscriberInfo, ...]
    """All subscribers with a record, including dead ones."""
    age_unknown: str = ""
    """Why the age of the newest frame is unknown; empty if it is known, or if there is no frame."""


@dataclass(frozen=True, slots=True)
class UnreadableStream:
    """A stream whose ring could not be read: this user may not open it, or it is not a ring of this version."""

    name: str
    """The stream's name."""
    denied: bool
    """Whether this user may not open it; False for a ring that is corrupted or has another version."""
    reason: str
    """Why it was not read, in a few words."""
    detail: str
    """Why it was not read, in a sentence that says what to do."""
    owner: int
    """Number of the user that owns the file."""
    group: int
    """Number of the file's group."""
    mode: int
    """The file's permissions."""


def inspect(stream: str, *, timeout_s: float = 0.0) -> StreamInfo:
    """Inspect one stream.

    Args:
        stream: Name of the stream.
        timeout_s: Seconds to wait for a further frame if the clocks disagree on the age of the newest one. A frame
            that arrives during this time shows whether its publisher has the same clock.

    Raises:
        StreamNotFound: The stream has no ring.
        LayoutMismatch: The file is not a ring of this version.
        PermissionDenied: This user may not open the ring.
    """
    try:
        holder = shm.open_for_reading(ring_name(stream))
    except StreamNotFound:
        raise StreamNotFound(f"no publisher serves the stream {stream!r} here") from None
    try:
        fd = holder.fd
        # Read with pread(2) instead of mapping the file, because its owner may truncate it.
        begun_ns = time.monotonic_ns()
        head = os.pread(fd, PAGE_BYTES, 0)
        header = RingHeader.unpack(head, os.fstat(fd).st_size)
        geometry = header.geometry
        (tail,) = struct.unpack_from("<Q", head, TAIL)
        frame = _read_frame(fd, header, tail)
        # The kernel's lock decides: the state word stays "open" after a crash.
        live = locks.is_locked(fd, LIVE_PROBE)
        age_s, age_unknown = None, ""
        if frame is not None:
            age_s, age_unknown = _age_of(frame)
            if age_unknown == _DOUBTFUL_CLOCK and live and timeout_s > 0:
                later = _next_frame(fd, header, tail, timeout_s)
                if later is not None:
                    # It was published after `begun_ns`, if both processes have the same clock.
                    age_s, age_unknown = _age_since(later, begun_ns)
        return StreamInfo(
            name=stream,
            live=live,
            state=_STATES.get(struct.unpack_from("<I", head, STATE)[0], "unknown"),
            epoch=header.epoch,
            sequence=tail >> 8,
            slots=geometry.slots,
            slot_bytes=geometry.slot_bytes,
            ring_bytes=geometry.total_bytes,
            # Query a write lock, which conflicts with loans and leases, without acquiring it.
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
    """Return all streams in this /dev/shm whose rings this user may read, sorted by name."""
    return [stream for stream in survey() if isinstance(stream, StreamInfo)]


def survey(*, timeout_s: float = 0.0) -> list[StreamInfo | UnreadableStream]:
    """Return all streams in this /dev/shm that have a ring, sorted by name, including unreadable ones.

    Args:
        timeout_s: As for :func:`inspect`.
    """
    found: list[StreamInfo | UnreadableStream] = []
    for name in stream_names():
        try:
            found.append(inspect(name, timeout_s=timeout_s))
        except StreamNotFound:
            continue
        except (LayoutMismatch, PermissionDenied) as error:
            with contextlib.suppress(FileNotFoundError):  # the publisher has removed it meanwhile
                found.append(_unreadable(name, error))
    return found


def _unreadable(name: str, error: FramebusError) -> UnreadableStream:
    status = companion_path(name, "ring").lstat()
    denied = isinstance(error, PermissionDenied)
    reason = f"not readable by this user, but by {describe_readers(status)}" if denied else "not a ring of this version"
    mode = stat.S_IMODE(status.st_mode)
    return UnreadableStream(name, denied, reason, str(error), status.st_uid, status.st_gid, mode)


def _age_of(frame: FrameHeader) -> tuple[float | None, str]:
    """Return the frame's age in seconds, and why it is unknown.

    CLOCK_MONOTONIC differs between time namespaces, and the ring does not contain the publisher's namespace. The time
    of day is the same everywhere, so the age is trusted only if both clocks agree on it.
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
    """Return the age like :func:`_age_of`, for a frame published after ``since_ns`` of this process's clock."""
    now_ns = time.monotonic_ns()
    # The tolerance allows for a frame that got its time before ``since_ns``, and became visible after it.
    if since_ns - CLOCK_TOLERANCE_NS <= frame.published_ns <= now_ns:
        return (now_ns - frame.published_ns) / 1e9, ""
    return None, _OTHER_CLOCK


def _next_frame(fd: int, header: RingHeader, tail: int, timeout_s: float) -> FrameHeader | None:
    """Return the header of a frame that is published within ``timeout_s``, or ``None``."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        time.sleep(0.005)
        (newer,) = struct.unpack("<Q", os.pread(fd, 8, TAIL))
        if newer >> 8 > tail >> 8 and (frame := _read_frame(fd, header, newer)) is not None:
            return frame
    return None


def _read_frame(fd: int, header: RingHeader, tail: int) -> FrameHeader | None:
    """Read the newest frame's header without locking it; return ``None`` if its sequence changes meanwhile."""
    sequence, slot = tail >> 8, tail & 0xFF
    if not sequence or slot >= header.geometry.slots:
        return None
    offset = header.geometry.slot_header(slot)
    # Without a lease, so the publisher may rewrite the header meanwhile. The sequence is checked afterwards.
    content = os.pread(fd, PAGE_BYTES, offset)
    try:
        frame = FrameHeader.unpack_from(content, 0, header.geometry.slot_bytes)
    except (LayoutMismatch, struct.error):
        return None
    return frame if os.pread(fd, 8, offset) == struct.pack("<Q", sequence) and frame.sequence == sequence else None
