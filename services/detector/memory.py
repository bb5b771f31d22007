"""Save a detector's tracks for its successor, in a file beside the stream.

``framebus.STREAM.state.INSTANCE`` in /dev/shm is replaced after each frame, so that even a killed detector leaves it.
``framebus gc`` removes it once the stream has no publisher.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from typing import Any

import msgpack
import structlog

from framebus import companion_path

MAX_BYTES = 1 << 20
VERSION = 1
MODE = 0o600  # no other service reads the tracks


class Memory:
    """The file of one detector. Owned by one thread."""

    def __init__(self, stream: str, instance: str) -> None:
        self.path = companion_path(stream, f"state.{instance}")
        self._beside = companion_path(stream, f"state.{instance}.new")
        self._works = True

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace the file. If this fails, log it once."""
        content = msgpack.packb({"version": VERSION, **state})
        try:
            self._beside.unlink(missing_ok=True)  # left by a detector that was killed while it saved
            # /dev/shm may be shared with other users: O_EXCL refuses a file or link that another one has put there.
            fd = os.open(self._beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, MODE)
            with os.fdopen(fd, "wb") as file:
                file.write(content)
            # Rename, so that a kill at any moment leaves a complete file: the previous one or this one.
            self._beside.replace(self.path)
        except OSError as error:
            if self._works:
                structlog.get_logger().warning(
                    "tracks not kept",
                    path=str(self.path),
                    reason=f"{error.strerror}: a restart begins new numbers",
                )
            self._works = False

    def load(self) -> dict[str, Any] | None:
        """Return the state that a predecessor saved, or ``None`` if there is no file of this user."""
        try:
            # Neither follow a link nor wait for the writer of a FIFO, which another user may have put there.
            fd = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_size > MAX_BYTES:
                return None
            state = msgpack.unpackb(os.read(fd, MAX_BYTES))
        except (ValueError, OSError, msgpack.UnpackException):
            return None
        finally:
            os.close(fd)
        return state if isinstance(state, dict) and state.get("version") == VERSION else None
