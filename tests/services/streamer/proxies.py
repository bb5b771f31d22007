"""A real nginx in front of a streamer, with ``server`` blocks as users write them."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Final

from tests.support import PATIENCE_S, free_ports, lacks, wait_until

UPGRADE: Final = (
    "proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade;"
)
SERVERS: Final = {
    "default Host": f"location / {{ proxy_pass http://UPSTREAM; {UPGRADE} }}",
    "$host": f"location / {{ proxy_pass http://UPSTREAM; {UPGRADE} proxy_set_header Host $host; }}",
    "$http_host": f"location / {{ proxy_pass http://UPSTREAM; {UPGRADE} proxy_set_header Host $http_host; }}",
    "sub-path": f"location /cams/ {{ proxy_pass http://UPSTREAM/; {UPGRADE} proxy_set_header Host $http_host; }}",
    "no Upgrade": "location / { proxy_pass http://UPSTREAM; proxy_set_header Host $http_host; }",
}
"""What stands in each ``server``, by what is special about it."""


class Nginx:
    """An nginx with one ``server`` for each text, on a port of its own, until its ``with`` block ends.

    Args:
        folder: Folder of its files.
        upstream: Host and port of the streamer, for ``UPSTREAM`` in the texts.
        servers: What stands in each ``server``, by a name for it; or what stands around them too, with ``LISTEN``.
    """

    def __init__(self, folder: Path, upstream: str, servers: dict[str, str]) -> None:
        program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
        if program is None:
            lacks("no nginx here: run 'make system-packages'")
        first = free_ports(len(servers))
        self._ports = {name: first + index for index, name in enumerate(servers)}
        listening = "\n".join(
            (text if "LISTEN" in text else f"  server {{ listen LISTEN; {text} }}")
            .replace("LISTEN", f"127.0.0.1:{self._ports[name]}")
            .replace("UPSTREAM", upstream)
            for name, text in servers.items()
        )
        if "map $http_upgrade" not in listening:
            listening = "  map $http_upgrade $connection_upgrade { default upgrade; '' close; }\n" + listening
        temporary = "".join(
            f"  {kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        # The workers of root's nginx run as another user, which may not enter the folder.
        user = "user root;" if os.geteuid() == 0 else ""
        configuration = folder / "nginx.conf"
        configuration.write_text(
            f"{user} daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx.err; worker_processes 1;\n"
            "events { worker_connections 256; }\n"
            f"http {{\n  access_log off;\n{temporary}"
            f"{listening}\n}}\n"
        )
        self._errors = folder / "nginx.err"
        self._process = subprocess.Popen(
            [program, "-p", str(folder), "-e", str(self._errors), "-c", str(configuration)],
            stderr=subprocess.DEVNULL,
        )

    def url(self, name: str, scheme: str = "http") -> str:
        """Return the URL of the page behind that server."""
        return f"{scheme}://127.0.0.1:{self._ports[name]}/{'cams/' if name == 'sub-path' else ''}"

    def __enter__(self) -> Nginx:
        def listens() -> bool:
            assert self._process.poll() is None, self._errors.read_text()
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", max(self._ports.values()))) == 0

        wait_until(listens, "nginx listens", detail=self._errors.read_text)
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait(PATIENCE_S)
