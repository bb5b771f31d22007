"""What lies in /dev/shm: streams, their subscribers, and leftovers of dead processes. Nothing here takes a lease."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from framebus.errors import FramebusError, LayoutMismatch, PermissionDenied, StreamNotFound
from framebus.ring.admission import read_records
from framebus.ring.frame_header import FrameHeader
from framebus.ring.layout import CLOSED, LOCK_SEATS, OPEN, PAGE_BYTES, STATE, SUPERSEDED, TAIL, RingHeader
from framebus.ring.record import SubscriberRecord
from framebus.ring.rings import LIVE_PROBE, ring_name
from framebus.ring.words import LOCK_WRITE
from framebus.shm import locks, paths
from framebus.shm import segment as shm
from framebus.shm.identity import as_user, describe_readers, describe_user, is_unmapped
from framebus.shm.paths import PREFIX, SHM_DIRECTORY, check_name, companion_path, companion_paths

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


def check_directory(*, writable: bool = False) -> None:
    """Check that this process can look into /dev/shm.

    Args:
        writable: Whether it must also be able to create files there.

    Raises:
        PermissionDenied: It is closed to this user, or read-only.
        FramebusError: It is missing, or not a directory.
    """
    fault = directory_fault(writable=writable)
    if fault is not None:
        number, (what, remedy) = fault
        sentence = f"{what}: {remedy}"
        raise PermissionDenied(number, sentence) if number in (errno.EACCES, errno.EROFS) else FramebusError(sentence)


def directory_fault(*, writable: bool) -> tuple[int, tuple[str, str]] | None:
    """What keeps this process from using /dev/shm: an errno, and the fault and its remedy; ``None`` if nothing does."""
    try:
        status = SHM_DIRECTORY.stat()
        read_only = bool(os.statvfs(SHM_DIRECTORY).f_flag & os.ST_RDONLY)
    except OSError as error:
        what = "does not exist" if error.errno == errno.ENOENT else f"cannot be read: {error.strerror}"
        return error.errno or errno.ENOENT, (f"{SHM_DIRECTORY} {what}", f"mount a tmpfs on {SHM_DIRECTORY}")
    if not stat.S_ISDIR(status.st_mode):
        return errno.ENOTDIR, (f"{SHM_DIRECTORY} is not a directory", f"mount a tmpfs on {SHM_DIRECTORY}")
    if writable and read_only:
        return errno.EROFS, (f"{SHM_DIRECTORY} is mounted read-only", "mount it writable")
    for verb, needed in [("read", os.R_OK | os.X_OK), *([("written", os.W_OK)] if writable else [])]:
        if not os.access(SHM_DIRECTORY, needed, effective_ids=True):
            mode = f"it belongs to {describe_user(status.st_uid)}, mode {stat.S_IMODE(status.st_mode):04o}"
            what = f"{SHM_DIRECTORY} cannot be {verb} by user {os.geteuid()}, since {mode}"
            return errno.EACCES, (what, f"have its owner run 'chmod 1777 {SHM_DIRECTORY}'")
    return None


def stream_names() -> list[str]:
    """Names of all streams that have any file in /dev/shm, sorted."""
    names = set()
    for file in paths.file_names():
        name, dot, _ = file.removeprefix(PREFIX).partition(".")
        if not dot or not file.startswith(PREFIX):
            continue
        try:
            names.add(check_name(name))
        except FramebusError:
            continue
    return sorted(names)


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
        seats = range(geometry.seats)
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
            seats_taken=sum(locks.is_locked(fd, locks.write_lock(LOCK_SEATS + seat)) for seat in seats),
            seats=len(seats),
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


Judgement = Literal["left", "kept", "unknown"]


@dataclass(frozen=True, slots=True)
class Leftover:
    """A file that no live process holds, or of which this user cannot tell."""

    path: Path
    """The file."""
    reason: str
    """Why it is a leftover, or why this user cannot tell."""
    obstacle: str = ""
    """Why this user cannot remove it; empty when it can be, or has been."""
    judgement: Judgement = "left"
    """``left`` by a process that died, ``kept`` by a publisher that closed, or ``unknown`` to this user."""
    owner: int = -1
    """Number of the user who owns the file."""

    @property
    def is_mine(self) -> bool:
        """Whether it belongs to this user, as far as the numbers of this user namespace tell."""
        return self.owner == os.geteuid() and not is_unmapped(self.owner)


@dataclass(frozen=True, slots=True)
class _Candidate:
    path: Path
    reason: str
    judgement: Judgement = "left"
    needs_exclusion: bool = True
    """Whether it may only be removed while no publisher can open the stream."""


def find_leftovers(stream: str | None = None, *, remove: bool = False) -> list[Leftover]:
    """Find what dead processes left in /dev/shm; with ``remove``, remove it where this user may.

    A ring that a subscriber still holds, or whose publisher lives, is never touched. What belongs to another user is
    found too, as far as this user may look.
    """
    found = []
    for name in [check_name(stream)] if stream is not None else stream_names():
        with _excluded(name) as (excluded, permitted):
            for candidate in _leftovers_of(name, excluded=excluded, permitted=permitted):
                try:
                    owner = candidate.path.lstat().st_uid
                except OSError:
                    continue  # it has just been removed
                obstacle = _obstacle(candidate, owner, excluded=excluded)
                if remove and not obstacle:
                    obstacle = _remove(candidate.path, owner)
                found.append(Leftover(candidate.path, candidate.reason, obstacle, candidate.judgement, owner))
    return found


def _obstacle(candidate: _Candidate, owner: int, *, excluded: bool) -> str:
    """Why this user may not remove the file, as far as can be told before it is tried."""
    mine = owner == os.geteuid()
    if candidate.judgement == "unknown" or (candidate.needs_exclusion and not excluded):
        return _read_only() or "its lock cannot be taken" if mine else _owned_by(owner)
    # /dev/shm is sticky: only a file's owner and root may remove it.
    return "" if mine or os.geteuid() == 0 else _owned_by(owner)


def _remove(path: Path, owner: int) -> str:
    """Remove the file; return why it could not be."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        if path.is_dir():
            return "it is a directory: look at what it holds, and remove it by hand"
        if error.errno in (errno.EPERM, errno.EACCES) and owner != os.geteuid():
            return _owned_by(owner)
        return _read_only() or os.strerror(error.errno or errno.EIO)
    return ""


def _owned_by(owner: int) -> str:
    return f"it belongs to {describe_user(owner)}: run 'framebus gc' {as_user(owner)}"


def _read_only() -> str:
    fault = directory_fault(writable=True)
    return "" if fault is None else ": ".join(fault[1])


@contextlib.contextmanager
def _excluded(stream: str) -> Iterator[tuple[bool, bool]]:
    """Keep publishers from opening the stream meanwhile, because they may adopt a leftover at any moment.

    Yields:
        Whether no publisher can open it, and whether this user could ask: if so, a publisher lives.
    """
    exclusion, excluded, permitted = None, False, True
    # Without a live publisher, what holds the lock is another that looks, or a publisher that opens.
    patience_s = 0.0 if _look_at_ring(companion_path(stream, "ring")) == "live" else locks.EXCLUSION_PATIENCE_S
    try:
        exclusion = locks.take_exclusion(companion_path(stream, "lock").name, patience_s, create=False)
        excluded = exclusion is not None
    except StreamNotFound:
        excluded = True
    except PermissionDenied:
        permitted = False
    except OSError:
        permitted = False  # not a regular file
    try:
        yield excluded, permitted
    finally:
        if exclusion is not None:
            exclusion.close()


def remove_leftovers(stream: str | None = None) -> list[Path]:
    """Remove what no live process holds, of one stream or of all; return what was removed."""
    return [leftover.path for leftover in find_leftovers(stream, remove=True) if not leftover.obstacle]


def _leftovers_of(stream: str, *, excluded: bool, permitted: bool) -> list[_Candidate]:
    own_socket, lock_path, ring_path = (companion_path(stream, suffix) for suffix in ("sock", "lock", "ring"))
    ring = _look_at_ring(ring_path)
    found = [
        _Candidate(path, "its subscriber is gone", needs_exclusion=False)
        for path, _, alive in read_records(stream)
        if not alive
    ]
    closed: Judgement = "kept" if ring == "closed" else "left"
    # Without the lock, the ring tells that no publisher lives. It may start at any moment, so nothing may be removed.
    idle = excluded or (not permitted and ring in ("closed", "dead", "held"))
    found += [
        _Candidate(path, "no process listens on it", closed, needs_exclusion=path == own_socket)
        for path in companion_paths(stream, "*sock")
        if (idle or path != own_socket) and _is_deaf(path)
    ]
    if not idle:
        if not permitted and ring == "denied":
            readers = _readers(ring_path)
            found.append(_Candidate(ring_path, f"only {readers} can tell whether it is in use", "unknown"))
        elif not permitted and ring == "missing":
            readers = _readers(lock_path)
            found.append(_Candidate(lock_path, f"only {readers} can tell whether it is in use", "unknown"))
        return found
    found += [_Candidate(path, "its creation was interrupted") for path in companion_paths(stream, "ring.*")]
    if ring in ("live", "held", "denied"):
        return found
    if ring == "closed":
        found.append(_Candidate(ring_path, "its publisher closed and kept it for the next one", "kept"))
    elif ring == "dead":
        found.append(_Candidate(ring_path, "its publisher is gone and no subscriber holds it"))
    if lock_path.exists():
        found.append(_Candidate(lock_path, "no publisher holds it", closed))
    return found


def _readers(path: Path) -> str:
    try:
        return describe_readers(path.lstat())
    except OSError:
        return "its owner"


RingUse = Literal["missing", "denied", "live", "held", "closed", "dead"]


def _look_at_ring(ring_path: Path) -> RingUse:
    """Tell from the ring's locks and state who uses it: ``held`` is by subscribers alone."""
    try:
        holder = shm.open_for_reading(ring_path.name)
    except StreamNotFound:
        return "missing"
    except LayoutMismatch:
        return "dead"
    except PermissionDenied:
        return "denied"
    try:
        if locks.is_locked(holder.fd, LIVE_PROBE):
            return "live"
        # Any byte: a lease, a seat, or the lock of another version of the layout.
        if locks.is_any_locked(holder.fd):
            return "held"
        return "closed" if _was_closed(holder.fd) else "dead"
    finally:
        holder.close()


def _was_closed(fd: int) -> bool:
    """Whether the file is a ring whose publisher closed it."""
    head = os.pread(fd, PAGE_BYTES, 0)
    try:
        RingHeader.unpack(head, os.fstat(fd).st_size)
    except LayoutMismatch:
        return False
    return bool(struct.unpack_from("<I", head, STATE)[0] == CLOSED)


def _is_deaf(path: Path) -> bool:
    """Whether no process listens on a Unix socket."""
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
