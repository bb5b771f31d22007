"""Lower bounds of a hand-over: a bare wake-up and a bare message between two Python processes, without a frame.

Both sides have a private array of the frame's size; only the stamp is transferred.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import msgpack
import numpy as np
import zmq

from bench.peers import Config, Peer, Pixels, Receiver, Sender
from bench.peers.places import temporary_folder, touched
from bench.peers.zeromq_inline import Port, await_subscribers
from framebus.shm.futex import sleep_while, wake_all

STAMP_BYTES: Final = 64
WORD: Final = STAMP_BYTES
"""Offset of the futex word, after the stamp."""
MAX_SLICE_S: Final = 0.05


class StampPage:
    """A shared page with a stamp and a futex word."""

    def __init__(self, path: str) -> None:
        fd = os.open(path, os.O_RDWR)
        try:
            self._map = mmap.mmap(fd, mmap.PAGESIZE)
        finally:
            os.close(fd)
        self.stamp = np.frombuffer(self._map, np.uint8, STAMP_BYTES)
        self.words = memoryview(self._map).cast("I")
        self.word_address = ctypes.addressof(ctypes.c_char.from_buffer(self._map)) + WORD


class FutexSender(Sender):
    def __init__(self, config: Config) -> None:
        self._page = StampPage(config.handles)
        self._pixels = touched(config.shape)
        self._start = self._pixels.reshape(-1)[:STAMP_BYTES]

    def loan(self) -> Pixels:
        return self._pixels

    def publish(self) -> None:
        page = self._page
        # The stamp comes before the word: a receiver that sees the new word must find the new stamp.
        page.stamp[:] = self._start
        page.words[WORD // 4] = (page.words[WORD // 4] + 1) & 0xFFFFFFFF
        wake_all(page.word_address)


class FutexReceiver(Receiver):
    def __init__(self, config: Config) -> None:
        self._page = StampPage(config.handles)
        self._pixels = touched(config.shape)
        self._start = self._pixels.reshape(-1)[:STAMP_BYTES]
        self._seen = self._page.words[WORD // 4]

    def receive(self, timeout_s: float) -> Pixels:
        page = self._page
        deadline_s = time.monotonic() + timeout_s
        # Check the word again after each sleep: a futex wait may return without a wake-up.
        while page.words[WORD // 4] == self._seen:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            # Sleep in slices, so that a wake-up that was missed delays the receiver, but does not block it.
            sleep_while(page.word_address, self._seen, int(min(MAX_SLICE_S, left_s) * 1e9))
        self._seen = page.words[WORD // 4]
        self._start[:] = page.stamp
        return self._pixels


class BusyReceiver(FutexReceiver):
    def receive(self, timeout_s: float) -> Pixels:
        words, seen = self._page.words, self._seen
        deadline_ns = time.monotonic_ns() + int(timeout_s * 1e9)
        # No sleep and no system call but the clock's: this is the floor of the ways that poll.
        while words[WORD // 4] == seen:
            if time.monotonic_ns() >= deadline_ns:
                raise TimeoutError
        self._seen = words[WORD // 4]
        self._start[:] = self._page.stamp
        return self._pixels


class BareFutex(Peer):
    name = "floor-futex"
    title = "floor: bare futex wake"
    how = "No frame: a 64-byte stamp in a shared page, and one futex wake."
    exact = False

    @contextmanager
    def prepare(self, config: Config) -> Iterator[str]:
        del config
        with temporary_folder("/dev/shm") as folder:
            path = folder / "stamp"
            path.write_bytes(bytes(mmap.PAGESIZE))
            yield str(path)

    def sender(self, config: Config) -> Sender:
        return FutexSender(config)

    def receiver(self, config: Config, index: int) -> Receiver:
        del index
        return FutexReceiver(config)


class BareWord(BareFutex):
    name = "floor-busy"
    title = "floor: bare word"
    how = "No frame: a 64-byte stamp in a shared page, and a word that the receiver polls without a pause."

    def receiver(self, config: Config, index: int) -> Receiver:
        del index
        return BusyReceiver(config)


class MessageSender(Sender):
    """Sends the fields of framebus's notification, with the stamp instead of the times."""

    def __init__(self, config: Config) -> None:
        self._port = Port(zmq.XPUB)
        self._socket = self._port.socket
        # Without it, XPUB reports only the first of several equal subscriptions.
        self._socket.set(zmq.XPUB_VERBOSE, 1)
        self._socket.bind(config.handles)
        await_subscribers(self._socket, config.receivers)
        self._pack = msgpack.Packer().pack
        self._channel, self._shape = config.channel, config.shape
        self._pixels = touched(config.shape)
        self._start = self._pixels.reshape(-1)[:STAMP_BYTES].view(np.uint64)

    def loan(self) -> Pixels:
        return self._pixels

    def publish(self) -> None:
        fields = (self._channel, *self._shape, "|u1", "bgr", *self._start[:5].tolist())
        self._socket.send(self._pack(fields), zmq.NOBLOCK)

    def close(self) -> None:
        self._port.close()


class MessageReceiver(Receiver):
    def __init__(self, config: Config) -> None:
        self._port = Port(zmq.SUB)
        self._socket = self._port.socket
        self._socket.set(zmq.RECONNECT_IVL, 20)
        self._socket.subscribe(b"")
        self._socket.connect(config.handles)
        self._pixels = touched(config.shape)
        self._start = self._pixels.reshape(-1)[:STAMP_BYTES].view(np.uint64)

    def receive(self, timeout_s: float) -> Pixels:
        if not self._socket.poll(int(timeout_s * 1000)):
            raise TimeoutError
        self._start[:5] = msgpack.unpackb(self._socket.recv())[6:]
        return self._pixels

    def close(self) -> None:
        self._port.close()


class BareMessage(Peer):
    name = "floor-zmq"
    title = "floor: bare pyzmq message"
    how = "No frame: one PUB/SUB message as large as a notification, over a Unix socket."
    distribution = "pyzmq"
    module = "zmq"
    exact = False

    @contextmanager
    def prepare(self, config: Config) -> Iterator[str]:
        del config
        with temporary_folder("/dev/shm") as folder:
            yield f"ipc://{folder}/socket"

    def sender(self, config: Config) -> Sender:
        return MessageSender(config)

    def receiver(self, config: Config, index: int) -> Receiver:
        del index
        return MessageReceiver(config)


PEERS = (BareFutex(), BareWord(), BareMessage())
