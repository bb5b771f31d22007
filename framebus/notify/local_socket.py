"""The Unix socket of a stream's notifications.

Source: unix(7).
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from framebus.shm.paths import companion_path


def socket_path(stream: str) -> Path:
    """Return the path of the socket of a stream's notifications."""
    return companion_path(stream, "sock")


class LocalSocket(socket.socket):
    """A non-blocking Unix socket, which is closed without a warning when its last reference goes."""

    def __init__(self, fileno: int | None = None) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno)
        self.setblocking(False)  # accept(2) does not inherit O_NONBLOCK

    def accept(self) -> tuple[LocalSocket, Any]:
        """Accept a connection as a socket of this class.

        A socket of the standard library's class would emit a ResourceWarning if a signal handler raised before it is
        stored.
        """
        fileno, address = self._accept()  # type: ignore[attr-defined]  # as socket.accept() does
        return LocalSocket(fileno), address

    def __del__(self) -> None:
        # socket.close() fails on an object whose __init__() was interrupted by an exception of a signal handler.
        super(socket.socket, self).close()
