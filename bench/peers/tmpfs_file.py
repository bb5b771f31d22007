"""A file for each frame, in a folder in shared memory, or on a disk as with a shared volume."""

from __future__ import annotations

import mmap
import os
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, Final

from bench.peers import Config, Peer, Pixels, Receiver, Sender
from bench.peers.places import HoldingReceiver, pixels_of, temporary_folder

KEPT: Final = 2
"""Files that are kept for late receivers."""


class FileSender(Sender):
    """Fills a new file through a map, and then renames it to a name that receivers wait for: rename(2) is atomic."""

    def __init__(self, config: Config) -> None:
        self._folder = Path(config.handles)
        self._new = self._folder / ".new"
        self._setting = config
        self._kept: deque[Path] = deque()
        self._number = 0
        self._map: mmap.mmap

    def loan(self) -> Pixels:
        if len(self._kept) > KEPT:
            self._kept.popleft().unlink()
        fd = os.open(self._new, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o640)
        try:
            # Allocate now, so that a full tmpfs is an error and not a SIGBUS.
            os.posix_fallocate(fd, 0, self._setting.frame_bytes)
            # Keep the map until the next one replaces it, because unmapping takes longer than publishing.
            self._map = mmap.mmap(fd, self._setting.frame_bytes, mmap.MAP_SHARED | mmap.MAP_POPULATE)
        finally:
            os.close(fd)
        return pixels_of(self._map, self._setting.shape)

    def publish(self) -> None:
        self._number += 1
        path = self._folder / f"{self._number:012}"
        self._new.rename(path)
        self._kept.append(path)


class FileReceiver(HoldingReceiver):
    def __init__(self, config: Config) -> None:
        from inotify_simple import INotify, flags

        self._folder = Path(config.handles)
        self._shape, self._bytes = config.shape, config.frame_bytes
        self._inotify: Any = INotify()
        self._inotify.add_watch(self._folder, flags.MOVED_TO)

    def receive(self, timeout_s: float) -> Pixels:
        deadline_s = time.monotonic() + timeout_s
        while True:
            # Several files may be there: only the newest is mapped.
            events = self._inotify.read(timeout=max(0, int((deadline_s - time.monotonic()) * 1000)))
            if not events:
                raise TimeoutError
            with suppress(FileNotFoundError):  # the sender has removed it, so a newer file is there
                fd = os.open(self._folder / events[-1].name, os.O_RDONLY)
                try:
                    return self.hold(pixels_of(mmap.mmap(fd, self._bytes, prot=mmap.PROT_READ), self._shape))
                finally:
                    os.close(fd)

    def close(self) -> None:
        self._inotify.close()


class TmpfsFile(Peer):
    name = "tmpfs-file"
    title = "A file in a shared tmpfs"
    how = (
        "No copy: the sender fills a new file through a map and renames it; the receiver waits on inotify and maps the "
        "newest, whose pages are mapped as it reads them."
    )
    distribution = "inotify-simple"
    module = "inotify_simple"
    parent: ClassVar[Path] = Path("/dev/shm")
    """The folder in which the frames' folder is created."""

    @contextmanager
    def prepare(self, config: Config) -> Iterator[str]:
        del config
        self.parent.mkdir(exist_ok=True)
        with temporary_folder(str(self.parent)) as folder:
            yield str(folder)

    def sender(self, config: Config) -> Sender:
        return FileSender(config)

    def receiver(self, config: Config, index: int) -> Receiver:
        del index
        return FileReceiver(config)


class VolumeFile(TmpfsFile):
    name = "volume-file"
    title = "A file in a shared volume on disk"
    how = TmpfsFile.how + " The kernel writes files to the disk that are not removed in time."
    # A named volume and a bind mount are folders of the host's disk, as this checkout is.
    parent = Path(__file__).resolve().parent.parent.parent / ".bench"


PEERS = (TmpfsFile(), VolumeFile())
