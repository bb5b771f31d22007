"""Records what the processes of one root file system open, read and map, by fanotify and ``/proc/PID/maps``."""

from __future__ import annotations

import os
import re
import select
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from bench.image_usage import fanotify
from bench.image_usage.errors import CannotMeasure
from bench.image_usage.fanotify import ACCESS, ASK_EXEC, EXEC, OPEN, Event, Listener
from bench.image_usage.processes import Lookup, Processes

MOUNTS: Final = Path("/proc/self/mountinfo")
_ESCAPED: Final = re.compile(r"\\([0-7]{3})")
_POLL_MS: Final = 200


class Use(NamedTuple):
    """The first time that a process opened, or read from, a file."""

    moment: int
    phase: int
    life: int
    """Index in :attr:`Processes.lives`."""
    inode: int
    reads: bool


class Watch:
    """Listens in a thread of its own while the container runs.

    Args:
        inodes: Inode numbers of the image's files; other files are ignored.
        mount: Mount point at which the root file system will appear. It is watched from then on.
        whole: Whether to watch the file system through every mount, or only through this one.
    """

    def __init__(self, inodes: Collection[int], mount: str, *, whole: bool = True) -> None:
        self.phase = 0
        self.processes = Processes(Lookup(fanotify.executable, fanotify.arguments, fanotify.parent))
        self.uses: list[Use] = []
        self.mapped: set[tuple[int, int]] = set()
        """Phase and inode number of each file that was seen in a mapping."""
        self.marks = 0
        """How many times the root file system has been mounted."""
        self._inodes = frozenset(inodes)
        self._mount = mount
        self._whole = whole
        self._listener = Listener()
        self._known: set[tuple[int, int, bool, int]] = set()
        self._devices: set[int] = set()
        self._moment = 0
        self._busy = False
        self._ended = False
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> Watch:
        """Start to listen."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop to listen; processes that wait for an answer continue."""
        self._ended = True
        self._thread.join()
        self._listener.close()

    def drain(self) -> None:
        """Wait until all events so far are recorded.

        Raises:
            CannotMeasure: The listening thread has failed.
        """
        while self._error is None and (self._busy or self._listener.unread_bytes()):
            time.sleep(0.005)
        if self._error is not None:
            raise CannotMeasure(f"watching the container failed: {self._error}") from self._error

    def next_phase(self) -> None:
        """Record the following events as those of a new phase."""
        self.drain()
        self.phase += 1

    def alive(self) -> list[int]:
        """Return the PIDs of the recorded processes that still run."""
        numbers = {life.number for life in list(self.processes.lives)}
        return [number for number in numbers if Path(f"/proc/{number}/maps").exists()]

    def look_at_mappings(self) -> None:
        """Record which files the processes have mapped now."""
        for number in self.alive():
            for device, inode in _mappings(number):
                if inode in self._inodes and device in self._devices:
                    self.mapped.add((self.phase, inode))

    def _run(self) -> None:
        poll = select.poll()
        try:
            with MOUNTS.open() as mounts:
                # mountinfo signals POLLPRI at each change, so the root file system is marked before its first program
                # runs.
                poll.register(mounts, select.POLLPRI | select.POLLERR)
                poll.register(self._listener, select.POLLIN)
                present = self._look_for_mount(mounts.read(), present=False)
                while not self._ended:
                    for descriptor, _ in poll.poll(_POLL_MS):
                        if descriptor == mounts.fileno():
                            mounts.seek(0)
                            present = self._look_for_mount(mounts.read(), present=present)
                        else:
                            self._busy = True
                            # drain() must not return between reading an event from the queue and recording it.
                            for event in self._listener.events():
                                self._take(event)
                            self._busy = False
        except Exception as error:  # noqa: BLE001  (drain() raises it in the caller's thread)
            self._error = error
        finally:
            self._busy = False

    def _look_for_mount(self, mounts: str, *, present: bool) -> bool:
        if self._mount not in mount_points(mounts):
            return False
        if not present:
            mark: Callable[[str], None] = self._listener.mark_file_system if self._whole else self._listener.mark_mount
            mark(self._mount)
            self.marks += 1
        return True

    def _take(self, event: Event) -> None:
        self._moment += 1
        if event.mask & (ASK_EXEC | EXEC):
            self.processes.executes(event.process, os.readlink(f"/proc/self/fd/{event.descriptor}"), self._moment)
            # The process waits for the answer. The event of the execution itself follows.
            if event.mask & ASK_EXEC:
                return
        status = os.fstat(event.descriptor)
        # Mappings count only on these devices, because other file systems may have equal inode numbers.
        self._devices.add(status.st_dev)
        # The kernel also opens the files that a process executes; these do not show that its program has started.
        opens_itself = event.mask & OPEN and not event.mask & EXEC
        of = self.processes.opens if opens_itself else self.processes.of
        life = of(event.process, self._moment)
        if status.st_ino in self._inodes:
            for happened, reads in ((event.mask & (OPEN | EXEC), False), (event.mask & ACCESS, True)):
                key = (status.st_ino, life, reads, self.phase)
                if happened and key not in self._known:
                    self._known.add(key)
                    self.uses.append(Use(self._moment, self.phase, life, status.st_ino, reads))


def mount_points(mounts: str) -> set[str]:
    """Return the mount points in the text of ``/proc/PID/mountinfo``."""
    fields = (line.split() for line in mounts.splitlines())
    return {_ESCAPED.sub(lambda found: chr(int(found[1], 8)), one[4]) for one in fields if len(one) > 4}


def _mappings(process: int) -> Iterator[tuple[int, int]]:
    try:
        lines = Path(f"/proc/{process}/maps").read_text(errors="replace").splitlines()
    except OSError:
        return
    yield from parse_maps(lines)


def parse_maps(lines: list[str]) -> set[tuple[int, int]]:
    """Return the device and the inode number of each file in the lines of ``/proc/PID/maps``."""
    found = set()
    for line in lines:
        fields = line.split(None, 5)
        if len(fields) == 6 and fields[5].startswith("/"):
            major, _, minor = fields[3].partition(":")
            found.add((os.makedev(int(major, 16), int(minor, 16)), int(fields[4])))
    return found
