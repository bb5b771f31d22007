"""MomentumX: a stream of buffers in shared memory, whose receiver polls."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any, ClassVar

from bench.peers import OPEN_TIMEOUT_S, Config, Peer, Pixels, Receiver, Sender
from bench.peers.places import SEND_TIMEOUT_S, ReceiverStalled, pixels_of, shared_files_removed, wait_until


class Deadline:
    """Replaces the ``threading.Event`` that cancels MomentumX's waits, because its calls take no time-out."""

    def __init__(self) -> None:
        self._at_s = 0.0

    def start(self, timeout_s: float) -> None:
        """Let the next wait end after ``timeout_s``."""
        self._at_s = time.monotonic() + timeout_s

    def is_set(self) -> bool:
        """Return whether the time is over."""
        return time.monotonic() >= self._at_s

    def wait(self, timeout_s: float) -> bool:
        """Sleep, and return whether the time is over."""
        time.sleep(timeout_s)
        return self.is_set()


class StreamSender(Sender):
    def __init__(self, config: Config, polling_s: float) -> None:
        import momentumx

        self._shape, self._bytes = config.shape, config.frame_bytes
        self._deadline = Deadline()
        self._producer: Any = momentumx.Producer(
            config.channel,
            buffer_size=config.frame_bytes,
            # As many as framebus's ring has slots, see framebus_ring.slots_for.
            buffer_count=2 * config.receivers + 3,
            sync=False,
            cancel_event=self._deadline,
            polling_interval=polling_s,
        )
        self._buffer: Any = None
        config.handles.set()
        wait_until(lambda: self._producer.subscriber_count >= config.receivers, "a consumer")

    def loan(self) -> Pixels:
        self._deadline.start(SEND_TIMEOUT_S)
        self._buffer = self._producer.next_to_send()
        if self._buffer is None:
            raise ReceiverStalled("a consumer")
        return pixels_of(self._buffer, self._shape)

    def publish(self) -> None:
        self._buffer.send(self._bytes)

    def close(self) -> None:
        self._buffer = None
        self._producer.end()
        self._producer = None


class StreamReceiver(Receiver):
    def __init__(self, config: Config, polling_s: float) -> None:
        import momentumx

        self._shape = config.shape
        self._deadline = Deadline()
        # Wait until the producer is ready: an early consumer would make MomentumX log an error.
        if not config.handles.wait(OPEN_TIMEOUT_S):
            raise TimeoutError("the producer did not open in time")
        self._consumer: Any = momentumx.Consumer(
            config.channel, cancel_event=self._deadline, polling_interval=polling_s
        )
        self._buffer: Any = None

    def receive(self, timeout_s: float) -> Pixels:
        self._deadline.start(timeout_s)
        newest = self._consumer.receive()
        if newest is None:
            raise TimeoutError
        # Keep only the newest frame, as a subscriber of framebus does by default.
        while (newer := self._consumer.receive(blocking=False)) is not None:
            newest.release()
            newest = newer
        self._buffer = newest
        return pixels_of(newest, self._shape)

    def release(self) -> None:
        self._buffer.release()
        self._buffer = None

    def close(self) -> None:
        self._buffer = None
        self._consumer = None


class MomentumX(Peer):
    distribution = "momentumx"
    module = "momentumx"
    polling_s: ClassVar[float]

    @contextmanager
    def prepare(self, config: Config) -> Iterator[Any]:
        with shared_files_removed(f"mx.{config.channel}*"):
            yield get_context("spawn").Event()

    def sender(self, config: Config) -> Sender:
        return StreamSender(config, self.polling_s)

    def receiver(self, config: Config, index: int) -> Receiver:
        del index
        return StreamReceiver(config, self.polling_s)


class Eager(MomentumX):
    name = "momentumx-eager"
    title = "MomentumX, polling every 0.1 ms"
    how = "No copy. The receiver asks for a buffer 10,000 times a second, for 10 to 15 % of a core."
    polling_s = 0.0001


class Plain(MomentumX):
    name = "momentumx"
    title = "MomentumX, polling every 10 ms"
    how = "No copy. The receiver asks for a buffer 100 times a second, MomentumX's default."
    polling_s = 0.01


PEERS = (Eager(), Plain())
