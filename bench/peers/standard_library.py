"""Python's standard library: shared memory with queues of indices, and pipes."""

from __future__ import annotations

import os
import queue
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory
from struct import pack
from typing import Any, Final

import numpy as np

from bench.peers import Config, Peer, Pixels, Receiver, Sender
from bench.peers.places import SEND_TIMEOUT_S, ReceiverStalled, touched

SEGMENTS: Final = 4


@dataclass
class Pool:
    """Segments by name, and the queues that carry their indices."""

    names: list[str]
    ready: list[Any]
    """One queue for each receiver, with the indices of its frames."""
    read: Any
    """The queue back from all receivers: the index of each frame that a receiver has released."""


class Segments:
    """The segments of the pool, mapped into this process."""

    def __init__(self, config: Config) -> None:
        self.pool: Pool = config.handles
        self._segments = [SharedMemory(name) for name in self.pool.names]
        self.pixels: list[Pixels] = [np.ndarray(config.shape, np.uint8, each.buf) for each in self._segments]

    def close(self) -> None:
        self.pixels.clear()
        for each in self._segments:
            each.close()
        for each in (self.pool.read, *self.pool.ready):
            # The other side may be gone: do not wait until it has read the rest of the queue.
            each.cancel_join_thread()
            each.close()


class SegmentSender(Sender):
    def __init__(self, config: Config) -> None:
        self._segments = Segments(config)
        self._readers = [0] * SEGMENTS
        self._free = list(range(SEGMENTS))
        self._index = 0
        self._receivers = config.receivers

    def loan(self) -> Pixels:
        read = self._segments.pool.read
        # Collect all returned indices, not only the one that is needed, to keep the queue short.
        while not self._free or not read.empty():
            try:
                index = read.get(timeout=SEND_TIMEOUT_S)
            except queue.Empty:
                raise ReceiverStalled("a receiver") from None
            self._readers[index] -= 1
            if not self._readers[index]:
                self._free.append(index)
        self._index = self._free.pop(0)
        return self._segments.pixels[self._index]

    def publish(self) -> None:
        self._readers[self._index] = self._receivers
        for each in self._segments.pool.ready:
            each.put(self._index)

    def close(self) -> None:
        self._segments.close()


class SegmentReceiver(Receiver):
    def __init__(self, config: Config, index: int) -> None:
        self._segments = Segments(config)
        self._ready = self._segments.pool.ready[index]
        self._index = 0

    def receive(self, timeout_s: float) -> Pixels:
        try:
            self._index = self._ready.get(timeout=timeout_s)
        except queue.Empty:
            raise TimeoutError from None
        return self._segments.pixels[self._index]

    def release(self) -> None:
        self._segments.pool.read.put(self._index)

    def close(self) -> None:
        self._segments.close()


class SharedMemoryQueue(Peer):
    name = "shared-memory-queue"
    title = "multiprocessing.shared_memory with a Queue"
    how = (
        "No copy: four segments, whose indices go to each receiver through a multiprocessing.Queue and come back "
        "through another. The receiver waits on its queue, the sender for a free segment."
    )
    lossless = True

    @contextmanager
    def prepare(self, config: Config) -> Iterator[Pool]:
        spawn = get_context("spawn")
        segments: list[SharedMemory] = []
        queues = [spawn.Queue() for _ in range(config.receivers + 1)]
        try:
            for _ in range(SEGMENTS):
                segments.append(SharedMemory(create=True, size=config.frame_bytes))
                # Touch every page, so that the first frames do not pay for allocating them.
                np.ndarray(config.frame_bytes, np.uint8, segments[-1].buf)[:] = 0
            yield Pool([each.name for each in segments], queues[1:], queues[0])
        finally:
            for each in segments:
                each.unlink()
                each.close()
            for queue_ in queues:
                queue_.cancel_join_thread()
                queue_.close()

    def sender(self, config: Config) -> Sender:
        return SegmentSender(config)

    def receiver(self, config: Config, index: int) -> Receiver:
        return SegmentReceiver(config, index)


class PipeSender(Sender):
    def __init__(self, config: Config) -> None:
        self._connections: list[Connection[Any, Any]] = [sending for _, sending in config.handles]
        for receiving, sending in config.handles:
            receiving.close()
            # The time-out applies to the socket, not to the descriptor: socket(7), SO_SNDTIMEO. A write may take half
            # of the time, because a write that sent only a part before its time-out is followed by another.
            with socket.socket(fileno=os.dup(sending.fileno())) as handle:
                handle.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, pack("ll", int(SEND_TIMEOUT_S / 2), 0))
        self._pixels = touched(config.shape)
        self._bytes = self._pixels.reshape(-1).data

    def loan(self) -> Pixels:
        return self._pixels

    def publish(self) -> None:
        try:
            for each in self._connections:
                each.send_bytes(self._bytes)
        except BlockingIOError:
            raise ReceiverStalled("a receiver") from None

    def close(self) -> None:
        for each in self._connections:
            each.close()


class PipeReceiver(Receiver):
    def __init__(self, config: Config, index: int) -> None:
        for number, (receiving, sending) in enumerate(config.handles):
            sending.close()
            # Close the ends of the others, so that the end of the sender is the end of the stream.
            if number != index:
                receiving.close()
        self._connection: Connection[Any, Any] = config.handles[index][0]
        self._pixels = touched(config.shape)
        self._bytes = self._pixels.reshape(-1).data

    def receive(self, timeout_s: float) -> Pixels:
        if not self._connection.poll(timeout_s):
            raise TimeoutError
        self._connection.recv_bytes_into(self._bytes)
        return self._pixels

    def close(self) -> None:
        self._connection.close()


class Pipe(Peer):
    name = "pipe"
    title = "multiprocessing.Pipe"
    how = (
        "Two copies for each receiver, into a Unix socket and out of it into one array; the receivers are served in "
        "turn."
    )
    lossless = True

    @contextmanager
    def prepare(self, config: Config) -> Iterator[list[tuple[Connection[Any, Any], Connection[Any, Any]]]]:
        pairs = [get_context("spawn").Pipe() for _ in range(config.receivers)]
        try:
            yield pairs
        finally:
            for connection in (each for pair in pairs for each in pair):
                connection.close()

    def sender(self, config: Config) -> Sender:
        return PipeSender(config)

    def receiver(self, config: Config, index: int) -> Receiver:
        return PipeReceiver(config, index)


PEERS = (SharedMemoryQueue(), Pipe())
