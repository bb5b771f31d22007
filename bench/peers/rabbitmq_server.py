"""RabbitMQ, with a server that runs only for the measurement."""

from __future__ import annotations

import importlib.metadata
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from bench.peers import Config, Peer, Pixels, Receiver, Sender
from bench.peers.places import (
    SEND_TIMEOUT_S,
    HoldingReceiver,
    ReceiverStalled,
    free_port,
    pixels_of,
    server,
    temporary_folder,
    touched,
    wait_until,
)

SCRIPT: Final = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
"""The script that /usr/sbin/rabbitmq-server runs as another user and in other folders."""
LIBRARIES: Final = Path("/usr/lib/rabbitmq/lib")
START_TIMEOUT_S: Final = 30.0
START_ATTEMPTS: Final = 2
"""Another process may take a free port before the server binds it."""
UNACKNOWLEDGED: Final = 2
"""Frames that a receiver holds or that are on the way to it, at most."""


def connect(port: int) -> Any:
    """Connect to the server.

    Raises:
        pika.exceptions.AMQPConnectionError: The server does not answer yet.
    """
    import pika

    return pika.BlockingConnection(
        pika.ConnectionParameters("127.0.0.1", port, heartbeat=0, blocked_connection_timeout=SEND_TIMEOUT_S)
    )


def declare(channel: Any, config: Config) -> None:
    """Declare the exchange, and a queue for each receiver that keeps the newest frame. Either side may be first."""
    channel.exchange_declare(config.channel, "fanout")
    for index in range(config.receivers):
        # Keep only the newest frame, as a subscriber of framebus does by default.
        queue = f"{config.channel}-{index}"
        channel.queue_declare(queue, durable=False, arguments={"x-max-length": 1, "x-overflow": "drop-head"})
        channel.queue_bind(queue, config.channel)


class QueueSender(Sender):
    def __init__(self, config: Config) -> None:
        self._connection = connect(config.handles)
        self._channel = self._connection.channel()
        declare(self._channel, config)
        self._exchange = config.channel
        self._pixels = touched(config.shape)

    def loan(self) -> Pixels:
        return self._pixels

    def publish(self) -> None:
        import pika.exceptions

        try:
            self._channel.basic_publish(self._exchange, "", self._pixels.tobytes())
        except pika.exceptions.ConnectionBlockedTimeout:
            raise ReceiverStalled("the RabbitMQ server") from None

    def close(self) -> None:
        self._connection.close()


class QueueReceiver(HoldingReceiver):
    def __init__(self, config: Config, index: int) -> None:
        self._shape = config.shape
        self._connection = connect(config.handles)
        self._channel = self._connection.channel()
        declare(self._channel, config)
        self._arrived: list[tuple[int, bytes]] = []
        self._tag = 0
        # One frame at the receiver and one on the way, so that the receiver does not wait for a round trip.
        self._channel.basic_qos(prefetch_count=UNACKNOWLEDGED)
        self._channel.basic_consume(f"{config.channel}-{index}", self._keep)

    def _keep(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        del channel, properties
        self._arrived.append((method.delivery_tag, body))

    def receive(self, timeout_s: float) -> Pixels:
        deadline_s = time.monotonic() + timeout_s
        while not self._arrived:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            self._connection.process_data_events(left_s)
        self._tag, body = self._arrived.pop(0)
        return self.hold(pixels_of(body, self._shape))

    def release(self) -> None:
        super().release()
        self._channel.basic_ack(self._tag)

    def close(self) -> None:
        self._connection.close()


class RabbitMq(Peer):
    name = "rabbitmq"
    title = "RabbitMQ"
    how = (
        "Many copies: in AMQP frames of 128 KiB through TCP into the server, out of it, and reassembled. A queue for "
        "each receiver, not durable, keeps the newest; the receiver waits on its socket and acknowledges each frame."
    )
    distribution = "pika"
    module = "pika"

    def missing(self) -> str | None:
        if not SCRIPT.exists():
            return "there is no RabbitMQ server: apt-get install rabbitmq-server"
        return super().missing()

    def version(self) -> str:
        found = [re.search(r"rabbitmq_server-([\d.]+)$", path.name) for path in LIBRARIES.iterdir()]
        number = next((match[1] for match in found if match), "unknown")
        return f"server {number}, client {importlib.metadata.version('pika')}"

    @contextmanager
    def prepare(self, config: Config) -> Iterator[int]:
        for attempt in range(1, START_ATTEMPTS + 1):
            with ExitStack() as stack:
                try:
                    port = stack.enter_context(self._running(config))
                except TimeoutError:
                    if attempt == START_ATTEMPTS:
                        raise
                else:
                    yield port
                    return

    @contextmanager
    def _running(self, config: Config) -> Iterator[int]:
        import pika.exceptions

        port, names_port = free_port(), free_port()
        with ExitStack() as stack:
            folder = stack.enter_context(temporary_folder())
            (folder / "rabbitmq.conf").write_text(f"listeners.tcp.1 = 127.0.0.1:{port}\nlog.console.level = warning\n")
            (folder / "enabled_plugins").write_text("[].\n")
            (folder / "environment").touch()
            environment = {
                "HOME": str(folder),
                # Every port and every path is its own, so that a server of the machine is not touched.
                "ERL_EPMD_PORT": str(names_port),
                "ERL_EPMD_ADDRESS": "127.0.0.1",
                "RABBITMQ_NODENAME": f"{config.channel}@localhost",
                "RABBITMQ_DIST_PORT": str(free_port()),
                "RABBITMQ_MNESIA_BASE": str(folder / "data"),
                "RABBITMQ_LOG_BASE": str(folder / "logs"),
                "RABBITMQ_LOGS": "-",
                "RABBITMQ_PID_FILE": str(folder / "pid"),
                "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
                "RABBITMQ_CONF_ENV_FILE": str(folder / "environment"),
                "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            }
            # Start epmd here, because Erlang would start it as a daemon that outlives the node.
            stack.enter_context(
                server(["epmd", "-port", str(names_port), "-address", "127.0.0.1"], folder / "epmd.log", environment)
            )
            stack.enter_context(server([str(SCRIPT)], folder / "server.log", environment))

            def answers() -> bool:
                try:
                    connect(port).close()
                except pika.exceptions.AMQPConnectionError:
                    return False
                return True

            wait_until(answers, "the RabbitMQ server", START_TIMEOUT_S)
            yield port

    def sender(self, config: Config) -> Sender:
        return QueueSender(config)

    def receiver(self, config: Config, index: int) -> Receiver:
        return QueueReceiver(config, index)


PEERS = (RabbitMq(),)
