"""Report a service's health as an exit status, for a container's health check.

::

    python -m services.common.health detector
    python -m services.common.health --alive detector
    python -m services.common.health rtsp://127.0.0.1:8554/cam0

The first command reads the service's status socket in /dev/shm, which judges by the age of the newest frame. It exits
with 0 if the service is healthy, and with 1 and a one-line reason otherwise. The second only requires an answer: use it
to restart a service that hangs, because a restart does not repair a missing camera. Both judge the service of every
stream in /dev/shm, or only that of FRAMEBUS_STREAM__NAME if the environment sets it. The third sends OPTIONS to an RTSP
server, whose frames flow only while a client plays them.

Imports little besides the standard library, because a check runs every few seconds beside the services.

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
    """Read the status document of a socket.

    Raises:
        OSError: No process serves the socket, or none answers within ``timeout_s``.
        ValueError: The answer is not a JSON object, or exceeds the largest size of a status.
    """
    deadline_s = time.monotonic() + timeout_s
    content = b""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(timeout_s)
        client.connect(os.fspath(path))
        # The time-out bounds each recv(), not their number, so check a deadline as well.
        while part := client.recv(65536):
            content += part
            if len(content) > MAX_DOCUMENT_BYTES or time.monotonic() > deadline_s:
                raise ValueError(f"{path}: the answer is too large or too slow for a status")
    document = json.loads(content)
    if not isinstance(document, dict):
        raise ValueError(f"{path}: a JSON object is expected")  # noqa: TRY004  malformed data, not a caller's type
    return document


def fault_of_service(service: str, timeout_s: float = TIMEOUT_S, *, alive: bool = False, stream: str = "") -> str:
    """Return why a service is unhealthy, in one sentence, or an empty string if it is healthy.

    Args:
        service: Its name.
        timeout_s: Longest wait for its answer.
        alive: Accept any answer, even that of an unhealthy service.
        stream: The stream that it serves. If empty, search every stream of this /dev/shm.
    """
    of_stream = f" for the stream {stream}" if stream else ""
    fault = f"no {service} serves its status{of_stream} in {SHM_DIRECTORY}"
    for path in sorted(SHM_DIRECTORY.glob(f"framebus.{stream or '*'}.status.{service}.sock")):
        try:
            document = read_status(path, timeout_s)
        except ConnectionRefusedError:
            continue  # a killed service left its socket behind
        except (OSError, ValueError) as error:
            return f"{path}: {error}"
        if not alive and document.get("healthy") is not True:
            return f"{service}: {document.get('reason') or 'it is not healthy'}"
        fault = ""  # healthy for this stream; a fault of the same service for a further stream still counts
    return fault


def fault_of_camera(url: str, timeout_s: float = TIMEOUT_S) -> str:
    """Return why an RTSP server does not serve a camera, in one sentence, or an empty string if it does."""
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
    """Print the fault of the named service or camera, if there is one. Return the exit status."""
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
