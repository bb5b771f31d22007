"""Eclipse Zenoh with payloads in shared memory."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from bench.peers import Config, Peer, Pixels, Receiver, Sender
from bench.peers.places import (
    SEND_TIMEOUT_S,
    HoldingReceiver,
    ReceiverStalled,
    pixels_of,
    remove,
    temporary_folder,
    wait_until,
    zenoh_files,
)

PAYLOADS: Final = 6
"""Frames that the shared memory has room for."""


def session(listen: list[str], connect: list[str]) -> Any:
    """Open a session in peer mode that finds others only by these endpoints."""
    import zenoh

    config = zenoh.Config()
    for key, value in {
        "mode": "peer",
        # Without scouting, so that a session never connects to other programs of the network.
        "scouting/multicast/enabled": False,
        "scouting/gossip/enabled": False,
        "transport/shared_memory/enabled": True,
        "listen/endpoints": listen,
        "connect/endpoints": connect,
        "connect/timeout_ms": 15_000,
    }.items():
        config.insert_json5(key, json.dumps(value))
    return zenoh.open(config)


def close(opened: Any) -> None:
    """Close the session, and remove the files that it leaves in /dev/shm."""
    # List the files before closing: closing unmaps them, and they can no longer be found.
    files = zenoh_files()
    opened.close()
    remove(files)


class ShmSender(Sender):
    def __init__(self, config: Config) -> None:
        import zenoh

        self._policy = zenoh.shm.GarbageCollect()
        self._session = session([config.handles], [])
        self._publisher = self._session.declare_publisher(
            config.channel, congestion_control=zenoh.CongestionControl.DROP, express=True
        )
        self._provider = zenoh.shm.ShmProvider.default_backend(PAYLOADS * config.frame_bytes)
        self._frame = bytearray(config.frame_bytes)
        self._pixels = pixels_of(self._frame, config.shape)
        ready = f"{config.channel}/ready/*"
        wait_until(lambda: len(list(self._session.liveliness().get(ready))) >= config.receivers, "a subscriber")

    def loan(self) -> Pixels:
        return self._pixels

    def publish(self) -> None:
        import zenoh

        deadline_s = time.monotonic() + SEND_TIMEOUT_S
        while True:
            try:
                # Memory is freed when the receivers have dropped the payload, so allocation may have to wait.
                payload = self._provider.alloc(len(self._frame), self._policy)
            except zenoh.ZError:
                if time.monotonic() > deadline_s:
                    raise ReceiverStalled("a subscriber") from None
                time.sleep(0.0005)
            else:
                break
        payload[:] = self._frame
        self._publisher.put(payload)

    def close(self) -> None:
        close(self._session)


class ShmReceiver(HoldingReceiver):
    """Keeps the newest sample from zenoh's thread, because waiting on zenoh's own channels takes no time-out."""

    def __init__(self, config: Config, index: int) -> None:
        self._shape = config.shape
        self._arrived = threading.Condition()
        self._sample: Any = None
        self._session = session([], [config.handles])
        self._subscriber = self._session.declare_subscriber(config.channel, self._keep)
        self._token = self._session.liveliness().declare_token(f"{config.channel}/ready/{index}")

    def _keep(self, sample: Any) -> None:
        with self._arrived:
            self._sample = sample
            self._arrived.notify()

    def receive(self, timeout_s: float) -> Pixels:
        with self._arrived:
            if not self._arrived.wait_for(lambda: self._sample is not None, timeout_s):
                raise TimeoutError
            sample, self._sample = self._sample, None
        # This copy is a part of the cost: the Python binding gives no view.
        return self.hold(pixels_of(bytes(sample.payload), self._shape))

    def close(self) -> None:
        self._sample = None
        close(self._session)


class Zenoh(Peer):
    name = "zenoh-shm"
    title = "Eclipse Zenoh, shared memory"
    how = (
        "Two copies, into the shared memory and out of it into new bytes: its Python binding offers no view of a "
        "payload on either side. A Unix socket carries the references; the receiver waits on zenoh's thread."
    )
    distribution = "eclipse-zenoh"
    module = "zenoh"

    @contextmanager
    def prepare(self, config: Config) -> Iterator[str]:
        del config
        with temporary_folder() as folder:
            yield f"unixsock-stream/{folder}/zenoh"

    def sender(self, config: Config) -> Sender:
        return ShmSender(config)

    def receiver(self, config: Config, index: int) -> Receiver:
        return ShmReceiver(config, index)


PEERS = (Zenoh(),)
