"""Redis, with a server that runs only for the measurement: pub/sub, and streams."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import time
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from bench.peers import Config, Peer, Pixels, Receiver, Sender
from bench.peers.places import (
    SEND_TIMEOUT_S,
    HoldingReceiver,
    ReceiverStalled,
    pixels_of,
    server,
    temporary_folder,
    touched,
    wait_until,
)

QUEUED: Final = 8
"""Frames that the server keeps for a subscriber at most, before it disconnects it."""
KEPT: Final = 2
"""Entries that the stream keeps, at least: MAXLEN is approximate."""
PACKED_BYTES: Final = 6000
"""Commands up to this size are sent in one piece. It is redis-py's default."""
RECONNECTIONS: Final = 3
"""How often one call reconnects after the server has disconnected a slow subscriber."""


def client(path: str, timeout_s: float) -> Any:
    """Return a connection to the server, once it answers."""
    import redis
    from redis.backoff import NoBackoff
    from redis.connection import PythonRespSerializer
    from redis.retry import Retry

    # To send a frame, hiredis would copy it twice, in 10 ms; redis-py's own serializer does not copy it. RESP2, because
    # with RESP3 redis-py formats each published message for a debug line, which takes 80 ms for 10 MB.
    encoder: Any = redis.Redis().get_encoder()
    pool = redis.ConnectionPool(
        connection_class=redis.UnixDomainSocketConnection,
        path=path,
        socket_timeout=timeout_s,
        protocol=2,
        retry=Retry(NoBackoff(), RECONNECTIONS),
        command_packer=PythonRespSerializer(PACKED_BYTES, encoder.encode),
    )
    opened = redis.Redis.from_pool(pool)

    def answers() -> bool:
        try:
            return bool(opened.ping())
        except redis.ConnectionError:
            return False

    wait_until(answers, "the Redis server")
    return opened


class RedisSender(Sender):
    """Holds the array and the connection. The subclasses send the array."""

    def __init__(self, config: Config) -> None:
        self.pixels = touched(config.shape)
        self.bytes = self.pixels.reshape(-1).data
        self.client = client(config.handles, SEND_TIMEOUT_S)
        self.channel = config.channel

    def loan(self) -> Pixels:
        return self.pixels

    def publish(self) -> None:
        import redis

        try:
            self.send()
        except redis.TimeoutError:
            raise ReceiverStalled("the Redis server") from None

    @abstractmethod
    def send(self) -> None:
        """Send the array."""

    def close(self) -> None:
        self.client.close()


class ChannelSender(RedisSender):
    def __init__(self, config: Config) -> None:
        super().__init__(config)
        # Pub/sub does not keep messages, so wait until every receiver has subscribed.
        wait_until(lambda: self.client.pubsub_numsub(self.channel)[0][1] >= config.receivers, "a subscriber")

    def send(self) -> None:
        self.client.publish(self.channel, self.bytes)


class ChannelReceiver(HoldingReceiver):
    def __init__(self, config: Config) -> None:
        self._shape = config.shape
        self._client = client(config.handles, 10)
        self._subscription = self._client.pubsub(ignore_subscribe_messages=True)
        self._subscription.subscribe(config.channel)

    def receive(self, timeout_s: float) -> Pixels:
        deadline_s = time.monotonic() + timeout_s
        while (left_s := deadline_s - time.monotonic()) > 0:
            message = self._subscription.get_message(timeout=left_s)
            if message is not None:
                return self.hold(pixels_of(message["data"], self._shape))
        raise TimeoutError

    def close(self) -> None:
        self._subscription.close()
        self._client.close()


class StreamSender(RedisSender):
    def send(self) -> None:
        self.client.xadd(self.channel, {b"frame": self.bytes}, maxlen=KEPT, approximate=True)


class StreamReceiver(HoldingReceiver):
    def __init__(self, config: Config) -> None:
        self._shape = config.shape
        self._channel = config.channel
        self._client = client(config.handles, 60)
        self._last: Any = b"0-0"

    def receive(self, timeout_s: float) -> Pixels:
        streams = self._client.xread({self._channel: self._last}, count=1, block=max(1, int(timeout_s * 1000)))
        if not streams:
            raise TimeoutError
        [(_, [(self._last, fields)])] = streams
        return self.hold(pixels_of(fields[b"frame"], self._shape))

    def close(self) -> None:
        self._client.close()


class RedisPeer(Peer):
    distribution = "redis"
    module = "redis"

    def missing(self) -> str | None:
        if shutil.which("redis-server") is None:
            return "there is no Redis server: apt-get install redis-server"
        return super().missing()

    def version(self) -> str:
        words = subprocess.run(["redis-server", "--version"], check=True, capture_output=True, text=True).stdout.split()
        number = next(word.removeprefix("v=") for word in words if word.startswith("v="))
        return f"server {number}, client {importlib.metadata.version('redis')}"

    @contextmanager
    def prepare(self, config: Config) -> Iterator[str]:
        with temporary_folder() as folder:
            path = folder / "redis.sock"
            options = {
                "port": "0",
                "unixsocket": str(path),
                "unixsocketperm": "700",
                "dir": str(folder),
                # No persistence, which would add writes to the disk.
                "save": "",
                "appendonly": "no",
                # Redis's default limit, 32 MB, holds only three frames of 10 MB.
                "client-output-buffer-limit": f"pubsub {QUEUED * config.frame_bytes} 0 0",
            }
            arguments = ["redis-server", *(word for key, value in options.items() for word in (f"--{key}", value))]
            with server(arguments, folder / "log"):
                client(str(path), SEND_TIMEOUT_S).close()
                yield str(path)


class Channel(RedisPeer):
    name = "redis-pubsub"
    title = "Redis pub/sub"
    how = (
        "Four copies, into and out of two Unix sockets, through a server without persistence. The receiver waits on "
        "its socket."
    )

    def sender(self, config: Config) -> Sender:
        return ChannelSender(config)

    def receiver(self, config: Config, index: int) -> Receiver:
        del index
        return ChannelReceiver(config)


class Stream(RedisPeer):
    name = "redis-stream"
    title = "Redis stream"
    how = "As Redis pub/sub, by XADD with MAXLEN ~ 2 and XREAD BLOCK."

    def sender(self, config: Config) -> Sender:
        return StreamSender(config)

    def receiver(self, config: Config, index: int) -> Receiver:
        del index
        return StreamReceiver(config)


PEERS = (Channel(), Stream())
