"""An S3 server for tests, nanio. Its objects are files, so it may be killed and started again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from tests.support import free_ports

ACCESS_KEY, SECRET_KEY = "framebus-tests", "not-a-secret-0123456789"
BUCKET: Final = "frames"
START_TIMEOUT_S: Final = 30.0


class S3Server:
    """A server that runs within the context.

    Args:
        folder: Folder of its objects and log.
        host: Address to listen on.
        prefix: Command in front of the server's, such as ``ip netns exec NAME``.
    """

    def __init__(self, folder: Path, *, host: str = "127.0.0.1", prefix: tuple[str, ...] = ()) -> None:
        self.folder = folder
        self.host = host
        self.port = free_ports(1)
        self._prefix = prefix
        self._process: subprocess.Popen[bytes] | None = None
        (folder / "data" / BUCKET).mkdir(parents=True, exist_ok=True)

    @property
    def endpoint(self) -> str:
        """The server's address."""
        return f"http://{self.host}:{self.port}"

    @property
    def section(self) -> dict[str, object]:
        """The section ``storage`` of a configuration; the secret is in the environment variable S3_SECRET."""
        return {
            "url": f"s3://{BUCKET}/site",
            "endpoint": self.endpoint,
            "access_key_id": ACCESS_KEY,
            "secret_key_env": "S3_SECRET",
            "timeout_s": 3,
        }

    def start(self) -> None:
        """Start, and wait until it answers."""
        with (self.folder / "server.log").open("ab") as output:
            self._process = subprocess.Popen(
                [*self._prefix, sys.executable, "-m", "nanio", "serve", "--host", self.host, "--port", str(self.port),
                 "--data-dir", str(self.folder / "data")],
                env=os.environ | {"NANIO_ACCESS_KEY": ACCESS_KEY, "NANIO_SECRET_KEY": SECRET_KEY},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )  # fmt: skip
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                raise AssertionError((self.folder / "server.log").read_text()[-4000:])
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            socket.create_connection((self.host, self.port), 1).close()
        except OSError:
            return False
        return True

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all of its processes, such as SIGSTOP for a server that hangs."""
        assert self._process is not None
        os.killpg(self._process.pid, number)

    def kill(self) -> None:
        """Kill the server, as a crash would."""
        if self._process is not None:
            self.signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def __enter__(self) -> S3Server:
        self.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.kill()
