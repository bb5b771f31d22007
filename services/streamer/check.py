"""Check what the streamer loads and binds at its start, without serving."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

from services.common.service import ServiceError
from services.streamer.config import StreamerConfiguration
from services.streamer.entry import SERVICE
from services.streamer.service import main as _main  # noqa: F401  for what it imports: aiohttp, OpenCV

PAGE = Path(__file__).with_name("page")
REQUIRED = ("index.html", "main.js", "calibration.html")


def check(configuration: StreamerConfiguration) -> None:
    """Read the page's files, check broker and storage if they are used, and bind the address.

    An address that a running streamer of the same stream holds is not a fault.

    Raises:
        UnusableSetting: The broker or the storage is not configured, or is unusable.
        ServiceError: A file cannot be read, or the address cannot be bound.
    """
    try:
        for path in {PAGE / name for name in REQUIRED} | {path for path in PAGE.iterdir() if path.is_file()}:
            path.read_bytes()
    except OSError as error:
        raise ServiceError(f"the page's file {error.filename} cannot be read: {error.strerror}") from None
    section = configuration.streamer
    if section.from_broker:
        from services.streamer.remote import check as check_remote  # noqa: PLC0415  a ring requires no broker client

        check_remote(configuration)
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            section.host, section.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            # As the server does: connections of a previous run in TIME_WAIT do not prevent the bind.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            # The running streamer holds the address, and will have released it by the next start.
            if SERVICE.status(configuration) is not None:
                return
            reason = "another program listens there: stop it, or set another streamer.port"
        else:
            reason = error.strerror or str(error)
        raise ServiceError(f"cannot listen on {section.host} port {section.port}: {reason}") from None
