"""A RabbitMQ server for tests: its own node name, ports and folders survive a kill and a restart."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Final

from tests.support import free_ports, lacks

SCRIPT: Final = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
"""What /usr/sbin/rabbitmq-server runs as another user, in folders of its own."""
START_TIMEOUT_S: Final = 90.0


class RabbitMq:
    """A server that runs within the context.

    Args:
        folder: Folder of its data, configuration and log.
        host: Address to listen on.
        settings: Further lines for rabbitmq.conf.
        prefix: Command in front of the server's, such as ``ip netns exec NAME``.
    """

    def __init__(
        self, folder: Path, *, host: str = "127.0.0.1", settings: str = "", prefix: tuple[str, ...] = ()
    ) -> None:
        if not SCRIPT.exists():
            lacks("there is no RabbitMQ server: run 'make system-packages'")
        self.host = host
        self.port = free_ports(4)
        self.tls_port = self.port + 3
        self.folder = folder
        self._prefix = prefix
        self._process: subprocess.Popen[bytes] | None = None
        self._names: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = {host}:{self.port}\nlog.console.level = warning\nloopback_users = none\n"
            # Debian's machines may have less free than the default asks for.
            f"disk_free_limit.absolute = 50MB\n{settings.format(tls_port=self.tls_port)}\n"
        )
        (folder / "enabled_plugins").write_text("[].\n")
        (folder / "environment").touch()
        self._environment = os.environ | {
            "HOME": str(folder),
            "ERL_EPMD_PORT": str(self.port + 1),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"framebus{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(self.port + 2),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder / "logs"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "environment"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            # Idle schedulers of the server would spin, which takes CPU from the other tests.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+sbwt none +sbwtdcpu none +sbwtdio none",
        }

    @property
    def url(self) -> str:
        """The server's address."""
        return f"amqp://{self.host}:{self.port}"

    def start(self) -> None:
        """Start, and wait until it accepts log-ins."""
        with (self.folder / "server.log").open("ab") as output:
            if self._names is None:
                # Start epmd here, because Erlang would start it as a daemon that outlives the node.
                self._names = subprocess.Popen(
                    [*self._prefix, "epmd", "-port", str(self.port + 1), "-address", "127.0.0.1"],
                    env=self._environment,
                    stdout=output,
                    stderr=output,
                )
            self._process = subprocess.Popen(
                [*self._prefix, str(SCRIPT)],
                env=self._environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                raise AssertionError((self.folder / "server.log").read_text()[-4000:])
            time.sleep(0.1)

    def _answers(self) -> bool:
        # Run it on its own host, because other hosts may be cut off.
        greet = f"exec 3<>/dev/tcp/{self.host}/{self.port}; printf 'AMQP\\0\\0\\x09\\x01' >&3"
        probe = [*self._prefix, "bash", "-c", f"{greet}; timeout 1 head -c 1 <&3 | grep -q ."]
        return subprocess.run(probe, check=False, stderr=subprocess.DEVNULL).returncode == 0

    def kill(self) -> None:
        """Kill the server, as a crash would."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """Stop the server in the regular way."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                pass
            else:
                self._process = None
            self.kill()

    def __enter__(self) -> RabbitMq:
        self.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.kill()
        if self._names is not None:
            self._names.kill()
            self._names.wait()
