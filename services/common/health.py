"""Whether a service works, as an exit status: what a container's health check runs.

::

    python -m services.common.health detector
    python -m services.common.health --alive detector
    python -m services.common.health rtsp://127.0.0.1:8554/cam0

The first asks the service's status socket in /dev/shm, which judges by the age of the newest frame: 0 when the service
does its work, 1 with the reason in one line when not. The second asks only whether the service answers: for what
restarts a service that hangs, because a restart does not mend a camera that is missing. Both judge the service of every
stream in /dev/shm, or, where the environment has FRAMEBUS_STREAM__NAME, of that stream alone. The third asks an RTSP
server for a camera, whose frames flow only to those who watch.

A check runs every few seconds, beside the work, so this imports little beside the standard library.

Source: RFC 2326, section 10.1 (OPTIONS).
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from services.common.masking import mask_url

MAX_DOCUMENT_BYTES = 1 << 20
TIMEOUT_S = 3.0
SHM_DIRECTORY = Path("/dev/shm")
RTSP_PORT = 554
STREAM_VARIABLE = "FRAMEBUS_STREAM__NAME"
EXIT_USAGE = 2


def read_status(path: Path, timeout_s: float = 1.0) -> dict[str, Any]:
    """Read the status that a socket serves.

    Raises:
        OSError: Nobody serves it, or not within ``timeout_s``.
        ValueError: What it serves is no JSON object, or longer than a status can be.
    """
    deadline_s = time.monotonic() + timeout_s
    content = b""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(timeout_s)
        client.connect(os.fspath(path))
        while part := client.recv(65536):
            content += part
            if len(content) > MAX_DOCUMENT_BYTES or time.monotonic() > deadline_s:
                raise ValueError(f"{path}: no status, but an endless answer")
    document = json.loads(content)
    if not isinstance(document, dict):
        raise ValueError(f"{path}: a JSON object is expected")  # noqa: TRY004  malformed data, not a caller's type
    return document


def fault_of_service(service: str, timeout_s: float = TIMEOUT_S, *, alive: bool = False, stream: str = "") -> str:
    """Why a service does not do its work, in one sentence; empty when it does.

    Args:
        service: Its name.
        timeout_s: Longest wait for its answer.
        alive: Be content with any answer: an unhealthy service answers too.
        stream: The stream that it serves; without it, every stream of this /dev/shm is looked through.
    """
    of_stream = f" for the stream {stream}" if stream else ""
    fault = f"no {service} serves its status{of_stream} in {SHM_DIRECTORY}"
    for path in sorted(SHM_DIRECTORY.glob(f"framebus.{stream or '*'}.status.{service}.sock")):
        try:
            document = read_status(path, timeout_s)
        except ConnectionRefusedError:
            continue  # left by one that was killed
        except (OSError, ValueError) as error:
            return f"{path}: {error}"
        if not alive and document.get("healthy") is not True:
            return f"{service}: {document.get('reason') or 'it is not healthy'}"
        fault = ""
    return fault


def fault_of_camera(url: str, timeout_s: float = TIMEOUT_S) -> str:
    """Why an RTSP server does not serve a camera, in one sentence; empty when it does."""
    address = urlsplit(url)
    request = f"OPTIONS {url} RTSP/1.0\r\nCSeq: 1\r\n\r\n".encode()
    try:
        with socket.create_connection((address.hostname, address.port or RTSP_PORT), timeout_s) as connection:
            connection.sendall(request)
            answer = connection.recv(4096).partition(b"\r\n")[0]
    except OSError as error:
        return f"{mask_url(url)}: {error.strerror or error}"
    return "" if answer.startswith(b"RTSP/1.0 200") else f"{mask_url(url)}: the answer is {answer!r}"


def main(arguments: list[str]) -> int:
    """Print why the one that is named does not work, if so; return the exit status."""
    alive = arguments[:1] == ["--alive"]
    names = arguments[alive:]
    if len(names) != 1 or names[0].startswith("-"):
        sys.stderr.write("usage: python -m services.common.health [--alive] SERVICE|rtsp://HOST:PORT/CAMERA\n")
        return EXIT_USAGE
    (name,) = names
    if name.startswith("rtsp://"):
        fault = fault_of_camera(name)
    else:
        fault = fault_of_service(name, alive=alive, stream=os.environ.get(STREAM_VARIABLE, ""))
    if fault:
        sys.stdout.write(f"{fault}\n")
    return int(bool(fault))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
