"""The part of Linux's fanotify that a measurement needs: which process opens, reads or executes which file.

This module calls the kernel itself, because the bindings on PyPI either start a process of their own or cannot mark a
whole file system.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from bench.image_usage.errors import CannotMeasure

ACCESS: Final = 0x1
OPEN: Final = 0x20
EXEC: Final = 0x1000
ASK_EXEC: Final = 0x40000
"""FAN_OPEN_EXEC_PERM: the process waits for the listener's answer, so that it still exists when it is identified."""

_CLOSE_ON_EXEC, _CONTENT_CLASS, _UNLIMITED_QUEUE, _UNLIMITED_MARKS = 0x1, 0x4, 0x10, 0x20
_ADD, _MOUNT, _FILE_SYSTEM = 0x1, 0x10, 0x100
_ALLOW: Final = 1
_AT_FDCWD: Final = -100
_VERSION: Final = 3
_EVENT: Final = struct.Struct("=IBBHQii")
_ANSWER: Final = struct.Struct("=iI")
_BUFFER_BYTES: Final = 1 << 18
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


class Event(NamedTuple):
    """An access of a process to a file."""

    mask: int
    process: int
    """PID in the namespace of this process."""
    descriptor: int
    """The file, open for reading; :meth:`Listener.events` closes it."""


class Listener:
    """A queue of events.

    Raises:
        CannotMeasure: The kernel rejects the request.
    """

    def __init__(self) -> None:
        flags = _CLOSE_ON_EXEC | _UNLIMITED_QUEUE | _UNLIMITED_MARKS
        # O_NOATIME, so that the measurement does not change the files' times.
        opened = os.O_RDONLY | os.O_CLOEXEC | os.O_NOATIME
        self.asks = True
        """Whether processes wait for an answer before they execute a file."""
        self._descriptor = int(_LIBC.fanotify_init(flags | _CONTENT_CLASS, opened))
        # A kernel without permission events reports EINVAL: listen without asking then.
        if self._descriptor < 0 and ctypes.get_errno() == errno.EINVAL:
            self.asks = False
            self._descriptor = int(_LIBC.fanotify_init(flags, opened))
        if self._descriptor < 0:
            raise CannotMeasure(_refusal(ctypes.get_errno(), "fanotify"))

    def mark_file_system(self, path: str) -> None:
        """Listen to a whole file system, through every mount of it."""
        self._mark(path, _FILE_SYSTEM)

    def mark_mount(self, path: str) -> None:
        """Listen to accesses through one mount."""
        self._mark(path, _MOUNT)

    def _mark(self, path: str, what: int) -> None:
        # FAN_OPEN_EXEC_PERM may be missing though fanotify_init accepted the class: try without it then.
        for asked in (ASK_EXEC, 0) if self.asks else (0,):
            mask = ctypes.c_uint64(ACCESS | OPEN | EXEC | asked)
            if not _LIBC.fanotify_mark(self._descriptor, ctypes.c_uint(_ADD | what), mask, _AT_FDCWD, path.encode()):
                self.asks = bool(asked)
                return
            number = ctypes.get_errno()
            if number != errno.EINVAL:
                break
        raise CannotMeasure(_refusal(number, f"fanotify on {path}"))

    def unread_bytes(self) -> int:
        """Return how many bytes wait in the queue."""
        answer = fcntl.ioctl(self._descriptor, termios.FIONREAD, struct.pack("=i", 0))
        return int(struct.unpack("=i", answer)[0])

    def events(self) -> Iterator[Event]:
        """Wait for events and yield them. A waiting process gets its answer when the caller asks for the next event."""
        content = os.read(self._descriptor, _BUFFER_BYTES)
        place = 0
        while place < len(content):
            length, version, _, _, mask, descriptor, process = _EVENT.unpack_from(content, place)
            place += length
            if version != _VERSION:
                raise CannotMeasure(f"the kernel's fanotify has version {version} instead of {_VERSION}")
            # The event has no file, such as that of a queue overflow.
            if descriptor < 0:
                continue
            try:
                yield Event(mask, process, descriptor)
            finally:
                if mask & ASK_EXEC:
                    # Always answer, also if the caller failed: the process waits until then.
                    os.write(self._descriptor, _ANSWER.pack(descriptor, _ALLOW))
                os.close(descriptor)

    def fileno(self) -> int:
        """Return the descriptor, to poll it."""
        return self._descriptor

    def close(self) -> None:
        """Close the queue; processes that wait for an answer continue."""
        os.close(self._descriptor)


def _refusal(number: int, what: str) -> str:
    if number in {errno.EPERM, errno.EACCES}:
        return f"{what} needs root (CAP_SYS_ADMIN): run this as root"
    if number == errno.ENOSYS:
        return f"{what} is missing in this kernel: it was built without CONFIG_FANOTIFY"
    return f"{what} does not work on this kernel: {os.strerror(number)}"


def executable(process: int) -> str:
    """Return the program that a process runs, as a path in the process's own root; empty if the process has ended."""
    try:
        return os.readlink(f"/proc/{process}/exe")
    except OSError:
        return ""


def arguments(process: int) -> tuple[str, ...]:
    """Return the command line of a process; empty if it has ended."""
    try:
        content = Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return ()
    return tuple(part.decode(errors="replace") for part in content.split(b"\0")[:-1])


def parent(process: int) -> int:
    """Return the parent of a process; 0 if it has ended."""
    try:
        content = Path(f"/proc/{process}/stat").read_text(errors="replace")
    except OSError:
        return 0
    # The program's name, in parentheses, may contain any character, also ")". Read the fields after the last one.
    return int(content.rpartition(")")[2].split()[1])
