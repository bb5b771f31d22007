"""The Unix socket of a stream's notifications.

Source: unix(7).
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from framebus.shm.paths import companion_path


def socket_path(stream: str) -> Path:
    """Where a stream's notifications are bound."""
    return companion_path(stream, "sock")


class LocalSocket(socket.socket):
    """A Unix socket that never blocks, and is closed with its last reference without a warning."""

    def __init__(self, fileno: int | None = None) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno)
        self.setblocking(False)  # accept(2) does not hand this on

    def accept(self) -> tuple[LocalSocket, Any]:
        """Accept a connection, as a socket of this kind at once.

        One of the standard library's would warn if a signal handler's exception came before it is stored.
        """
        fileno, address = self._accept()  # type: ignore[attr-defined]  # as socket.accept() does
        return LocalSocket(fileno), address

    def __del__(self) -> None:
        # Not socket.close(), which fails on an object whose __init__() was interrupted by a signal handler's exception.
        super(socket.socket, self).close()
