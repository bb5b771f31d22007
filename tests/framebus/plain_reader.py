"""A reader of streams written from docs/spec.md alone: it imports nothing of framebus.

Names, offsets and steps are those of that page. It is as short as a reader can be that does what the page says a reader
must do; what a service would do beside that, such as waiting, is left out.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
import socket
import stat
import struct
import time
from dataclasses import dataclass
from math import prod
from typing import Literal

LIVE, SLOT, SEAT = 1 << 40, (1 << 40) + 256, (1 << 40) + 4096
TAIL, EVENT, STATE, SLOT_TABLE, SLOT_HEADER = 64, 128, 192, 4096, 1024
DTYPE_BYTES = {
    b"|b1": 1, b"|u1": 1, b"|i1": 1, b"<u2": 2, b"<i2": 2, b"<u4": 4, b"<i4": 4, b"<u8": 8, b"<i8": 8, b"<f2": 2,
    b"<f4": 4, b"<f8": 8,
}  # fmt: skip
GREETING = (b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0")).ljust(64, b"\0")


class NotReadable(Exception):
    """What is there is not a stream that this reader can read."""


def _flock(kind: int, byte: int) -> bytes:
    """A struct flock of one byte, as on every 64-bit Linux."""
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, byte, 1, 0)


def _lock(fd: int, kind: int, byte: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _flock(kind, byte))
    except BlockingIOError:
        return False
    return True


def _conflicts(fd: int, kind: int, byte: int) -> bool:
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _flock(kind, byte))
    return bool(struct.unpack("hhqqi4x", answer)[0] != fcntl.F_UNLCK)


@dataclass(frozen=True)
class Picture:
    """A copy of a frame."""

    slot: int
    sequence: int
    epoch: int
    captured_ns: int
    captured_wall_ns: int
    published_ns: int
    shape: tuple[int, ...]
    dtype: str
    pixel_format: str
    pixels: bytes
    metadata: bytes


class Ring:
    """A stream's ring, attached to with one seat."""

    def __init__(self, name: str, *, in_order: bool = False) -> None:
        self._in_order = in_order
        self._path = f"/dev/shm/framebus.{name}.ring"
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        self._fd, mapped = os.open(self._path, flags), os.open(self._path, flags)
        status, locked = os.fstat(mapped), os.fstat(self._fd)
        if (status.st_dev, status.st_ino) != (locked.st_dev, locked.st_ino) or not stat.S_ISREG(status.st_mode):
            raise NotReadable("not one regular file")
        if status.st_size < SLOT_TABLE or status.st_blocks * 512 < status.st_size:
            raise NotReadable("too short, or with holes")
        self._map = mmap.mmap(mapped, status.st_size, mmap.MAP_SHARED, mmap.PROT_READ)
        os.close(mapped)
        magic, version, slots, slot_bytes = struct.unpack_from("<8sIIQ", self._map, 0)
        self.first_sequence, self.epoch, self.created_wall_ns = struct.unpack_from("<QQQ", self._map, 24)
        (max_loans,) = struct.unpack_from("<I", self._map, 48)
        if magic != b"FRAMEBUS" or version != 2:
            raise NotReadable("not a ring of version 2")
        if not (3 <= slots <= 255 and 0 < slot_bytes <= 1 << 39 and slot_bytes % 4096 == 0):
            raise NotReadable("no such slots")
        self._begin = -(-(SLOT_TABLE + SLOT_HEADER * slots) // 4096) * 4096
        if not 1 <= max_loans <= slots - 2 or self._begin + slots * slot_bytes != status.st_size:
            raise NotReadable("no such ring")
        self._slots, self._slot_bytes, self._seats = slots, slot_bytes, slots - 1 - max_loans
        self.seat = -1
        self.last = 0
        if not self.is_live():
            raise NotReadable("no publisher")
        self._take_seat()
        if not self.is_current():
            raise NotReadable("replaced meanwhile")

    def is_live(self) -> bool:
        """Return whether a publisher serves the file."""
        return _conflicts(self._fd, fcntl.F_RDLCK, LIVE)

    def word(self, offset: int, code: Literal["I", "Q"]) -> int:
        """Return a word of the ring by its offset."""
        return memoryview(self._map)[offset : offset + struct.calcsize(code)].cast(code)[0]

    @property
    def state(self) -> int:
        """The word of that name."""
        return self.word(STATE, "I")

    @property
    def event(self) -> int:
        """The word of that name."""
        return self.word(EVENT, "I")

    def receive(self) -> Picture | None:
        """Copy the newest frame, if it was not received before."""
        for _ in range(8):
            slot = self.lease()
            if slot is None:
                return None
            if slot >= 0:
                try:
                    return self.read(slot)
                finally:
                    self.release(slot)
        return None

    def lease(self) -> int | None:
        """Take the steps R1 to R3; return the slot, -1 to look again, or ``None`` if there is nothing new."""
        tail = self.word(TAIL, "Q")  # R1, and in order without it
        sequence, slot = self._following() if self._in_order else (tail >> 8, tail & 0xFF)
        if slot >= self._slots or sequence <= self.last:
            return None
        if not _lock(self._fd, fcntl.F_RDLCK, SLOT + slot):  # R2
            return -1
        if self.word(SLOT_TABLE + SLOT_HEADER * slot, "Q") != sequence:  # R3
            self.release(slot)
            return -1
        self.last = sequence
        return slot

    def read(self, slot: int) -> Picture:
        """Take the steps R4 and R5 on a leased slot."""
        start = SLOT_TABLE + SLOT_HEADER * slot
        header = self._map[start : start + SLOT_HEADER]  # R4: a copy is checked, and used
        epoch, sequence, captured_ns, captured_wall_ns, published_ns = struct.unpack_from("<QQqqq", header, 64)
        height, width, channels, metadata_bytes = struct.unpack_from("<IIII", header, 104)
        dtype, pixel_format, arrangement = struct.unpack_from("<8s16sI", header, 120)
        value_bytes = DTYPE_BYTES.get(dtype.rstrip(b"\0"), 0)
        if arrangement > 4 or sequence != self.last or metadata_bytes > 832:
            raise NotReadable("no such frame")
        if arrangement >= 3 and (height % 2 or width % 2 or value_bytes != 1):
            raise NotReadable("not in 4:2:0")
        subsampled = (height * 3 // 2, width)
        shape = ((height, width, channels), (height, width), (channels, height, width), subsampled, subsampled)[
            arrangement
        ]
        size = prod(shape) * value_bytes
        if not 0 < size <= self._slot_bytes:
            raise NotReadable("no such pixels")
        pixels_at = self._begin + self._slot_bytes * slot
        return Picture(
            slot,
            sequence,
            epoch,
            captured_ns,
            captured_wall_ns,
            published_ns,
            shape,
            dtype.rstrip(b"\0").decode(),
            pixel_format.rstrip(b"\0").decode("ascii", "replace"),
            self._map[pixels_at : pixels_at + size],  # R5
            header[192 : 192 + metadata_bytes],
        )

    def release(self, slot: int) -> None:
        """Take the step R6."""
        _lock(self._fd, fcntl.F_UNLCK, SLOT + slot)

    def close(self) -> None:
        """Leave the ring; the seat and all leases end."""
        os.close(self._fd)
        self._map.close()

    def is_current(self) -> bool:
        """Return whether the path still names this file."""
        there, here = os.stat(self._path), os.fstat(self._fd)
        return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)

    def _following(self) -> tuple[int, int]:
        held = [(self.word(SLOT_TABLE + SLOT_HEADER * slot, "Q"), slot) for slot in range(self._slots)]
        return min((one for one in held if one[0] > self.last), default=(0, 0))

    def _take_seat(self) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            for seat in range(self._seats):
                if not _conflicts(self._fd, fcntl.F_WRLCK, SEAT + seat) and _lock(self._fd, fcntl.F_RDLCK, SEAT + seat):
                    self.seat = seat
                    return
            raise NotReadable("no seat is free")
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)


class Record:
    """A subscriber record."""

    def __init__(self, stream: str, name: str) -> None:
        self._path = f"/dev/shm/framebus.{stream}.sub.{secrets.token_hex(8)}"
        self._fd = os.open(f"{self._path}.new", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        fields = (b"FBUS-SUB", 2, 1, time.time_ns(), name.encode(), b"newest", b"plain")
        os.pwrite(self._fd, struct.pack("<8sIIQ48s8s8s", *fields).ljust(4096, b"\0"), 0)
        _lock(self._fd, fcntl.F_WRLCK, 0)
        os.rename(f"{self._path}.new", self._path)

    def count(self, received: int, sequence: int) -> None:
        """Write the counters."""
        os.pwrite(self._fd, struct.pack("<6Q", received, 0, sequence, 1, 0, time.monotonic_ns()), 128)

    def close(self) -> None:
        """Unlink the file."""
        os.unlink(self._path)
        os.close(self._fd)


def read_record(path: str) -> tuple[dict[str, int | str], bool]:
    """Return the fields of a record, and whether its subscriber lives."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        content, is_live = os.pread(fd, 4096, 0), _conflicts(fd, fcntl.F_RDLCK, 0)
    finally:
        os.close(fd)
    magic, version, max_leases = struct.unpack_from("<8sII", content, 0)
    if magic != b"FBUS-SUB" or version != 2:
        raise NotReadable("not a record of version 2")
    name, mode, wake = (text.rstrip(b"\0").decode() for text in struct.unpack_from("<48s8s8s", content, 24))
    received, skipped, sequence, leases = struct.unpack_from("<4Q", content, 128)
    told = {"name": name, "mode": mode, "wake": wake, "max_leases": max_leases, "received": received}
    return told | {"skipped": skipped, "sequence": sequence, "leases": leases}, is_live


def is_locked(path: str) -> bool:
    """Return whether another process, or another description, has write-locked byte 0 of a file."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _conflicts(fd, fcntl.F_RDLCK, 0)
    finally:
        os.close(fd)


class Notifications:
    """A connection to a stream's notifications, without ZeroMQ."""

    def __init__(self, stream: str, timeout_s: float) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout_s)
        self._socket.connect(f"/dev/shm/framebus.{stream}.sock")
        self._socket.sendall(GREETING + b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x03SUB")

    def subscribe(self) -> None:
        """Read the publisher's greeting and READY, and subscribe to all."""
        if self._exactly(64) != GREETING:
            raise NotReadable("another greeting")
        if self._exactly(28) != b"\x04\x1a\x05READY\x0bSocket-Type\0\0\0\x04XPUB":
            raise NotReadable("another READY")
        self._socket.sendall(b"\x00\x01\x01")

    def receive(self) -> bytes:
        """Return the content of the next notification."""
        flags, size = self._exactly(2)
        if flags:
            raise NotReadable("not a message of one short frame")
        return self._exactly(size)

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def _exactly(self, size: int) -> bytes:
        content = b""
        while len(content) < size:
            received = self._socket.recv(size - len(content))
            if not received:
                raise NotReadable("closed")
            content += received
        return content
